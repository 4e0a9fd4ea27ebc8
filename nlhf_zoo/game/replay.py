r"""Earlier rollouts beside the present one, and answers that are weighed for another opponent.

A regression on pairs has the proximal step as its minimiser whoever drew the responses; what
depends on who drew is the payoff q in it, which is against the step's opponent o. An answer about
two responses stays right whatever the policy does: so earlier responses that were compared among
themselves are trained on again, each as an opponent weighted by o / the law that drew it,

    q(y_k) = 1/2 + c sum_{l != k} w_l (P(y_k > y_l) - 1/2),   w_l ~ o(y_l) / sampler(y_l),

with a bias of order 1/K, and log-probabilities of the step's players as they are now. An average
over opponents that were drawn for an earlier step says nothing of the present one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlhf_zoo.game import rollout_files
from nlhf_zoo.game.held_rollout import FrozenLogProbs, HeldRollout, reweighed
from nlhf_zoo.game.rollout_files import Part, Place
from nlhf_zoo.records import PLAIN, ProximalStep

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame


@torch.no_grad()
def weighed(
    game: OnlineGame, step: ProximalStep, held: HeldRollout, players: Iterable[str]
) -> tuple[HeldRollout, Tensor]:
    """A rollout with its answers against a step's opponent, and log-probabilities of players.

    Args:
        game: whose players are scored as they are now.
        step: of one opponent.
        held: responses that were compared among themselves.
        players: whose log-probabilities are computed; others stay as they are held.

    Returns:
        the rollout, and the effective sample size of the opponents' weights [N].
    """
    ((_, opponent),) = step.payoff
    wanted = [("opponent", opponent, step.opponent)]
    wanted += [(player, {player: 1.0}, PLAIN) for player in players]
    scored: dict[str, list[Tensor]] = {name: [] for name, *_ in wanted}
    num = len(held.prompts)
    for rows in torch.arange(num).tensor_split(game.micro_batches.number(num)):
        part = held.take(rows.tolist(), game.device)
        for name, who, how in wanted:
            log_prob = game.policy.log_prob(who, part.prompts, part.responses, how)
            scored[name].append(log_prob.cpu())
    of = {name: torch.cat(found) for name, found in scored.items()}
    payoffs, size = reweighed(held.payoffs, held.log_probs.sampler, of.pop("opponent"))
    log_probs = FrozenLogProbs(held.log_probs.sampler, {**held.log_probs.players, **of})
    return replace(held, payoffs=payoffs, log_probs=log_probs), size


class Replay:
    """The rollouts before the present one, as a proximal step is trained on them.

    Attributes:
        rollouts: the latest first; in main memory.
    """

    def __init__(self) -> None:
        self.rollouts: list[HeldRollout] = []

    def begin(
        self,
        game: OnlineGame,
        step: ProximalStep,
        present: HeldRollout,
        previous: HeldRollout | None,
    ) -> list[Tensor]:
        """Take the rollout before the present one too, and weigh all of them for a step.

        After a change of their number of prompts, those of before are let go.

        Args:
            game: whose players are scored as they are now.
            step: that begins.
            present: rollout.
            previous: the rollout before it, where there is one.

        Returns:
            effective sample sizes of each rollout [N].
        """
        kept = [] if previous is None else [previous, *self.rollouts]
        same = [one for one in kept if len(one.prompts) == len(present.prompts)]
        names = sorted({*step.centre, step.reference})
        found = [weighed(game, step, one, names) for one in same[: game.rollout.replay]]
        self.rollouts = [
            replace(one, number=-1, round=-1, prompts=one.prompts.without_text())
            for one, _ in found
        ]
        return [size for _, size in found]

    def go_on(self, game: OnlineGame, step: ProximalStep) -> list[Tensor]:
        """Weigh them for a step that takes the answers of the one before; sizes, as above."""
        found = [weighed(game, step, one, missing(step, one)) for one in self.rollouts]
        self.rollouts = [one for one, _ in found]
        return [size for _, size in found]

    def beside(
        self, present: HeldRollout, rows: Sequence[int], device: torch.device
    ) -> HeldRollout:
        """A minibatch of the present rollout with the same rows of the others."""
        if not self.rollouts:
            return present
        return present.beside([one.take(rows, device) for one in self.rollouts])

    def write(self, folder: Path, place: Place) -> None:
        """Write them beside the present rollout, so that a resumed run has them."""
        for ago, one in enumerate(self.rollouts, 1):
            part = Part(one.responses, one.payoffs, one.log_probs, 0, {}, one.prompts)
            rollout_files.write(place.replayed(folder, ago), part, place.header(-ago))

    def read(self, folder: Path, place: Place) -> None:
        """Take those that were written beside a rollout."""
        self.rollouts = []
        for ago in count(1):
            part = rollout_files.read(place.replayed(folder, ago), place.header(-ago))
            if part is None or part.prompts is None:
                return
            held = part.prompts, part.responses, part.payoffs, part.log_probs
            self.rollouts.append(HeldRollout(-1, -1, *held))


def missing(step: ProximalStep, held: HeldRollout) -> list[str]:
    """Players of a step's loss whose log-probabilities a rollout has not."""
    return sorted({*step.centre, step.reference} - held.log_probs.players.keys())
