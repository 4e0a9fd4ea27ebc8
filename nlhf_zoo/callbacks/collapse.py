"""Whether the policy still is one that a game could want: entropy, KL, length, equal responses."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from nlhf_zoo.callbacks.logs import is_logged, log_by_query
from nlhf_zoo.errors import DivergenceError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.metrics.processes import Figure, Largest, Mean, of_all_processes
from nlhf_zoo.policies import CausalLMPolicy
from nlhf_zoo.records import PLAIN, Prompts
from nlhf_zoo.records.random_streams import random_stream, training_seed

_PROMPTS = 4  # that responses are drawn to, where they cannot be listed
_RESPONSES = 8  # to each of them
_SLACK = 1.01  # of the bound, for rounding
_EQUAL = 0.9  # of the pairs of responses to a prompt, from which on little is left to compare
_MOVED = 1.0  # nats of KL, below which the reference is like that, and nothing has collapsed


class CollapseWatch(L.Callback):
    r"""Log how certain the policy is, and say so where no equilibrium is like that.

    The equilibrium of the regularised game is :math:`\pi(y) \propto \mu(y) e^{q(y) / \beta}` with
    :math:`q = P(y \succ \pi) \in [0, 1]`. So of all responses to a prompt

    .. math:: \max_y \log \frac{\pi(y)}{\mu(y)} - \min_y \log \frac{\pi(y)}{\mu(y)}
        \le \frac{1}{\beta},

    and of each of them, with the odds :math:`o(p) = p / (1 - p)`,
    :math:`|\log \pi(y) / \mu(y)| \le 1 / \beta` and :math:`\log o(\pi(y)) / o(\mu(y)) \le 1/\beta`.
    Payoffs of another range than 1 have it in place of 1 in these bounds.
    A learning rate that is too large goes past these bounds at once. An algorithm whose last
    iterate does not go to that equilibrium is held to less: that some prompt has two responses.

    Of responses that are drawn it says, too, where nine in ten pairs of them are equal, or all end
    with their first token, at a KL of at least 1 nat: a reference that has little to say is no
    collapse.

    It looks at the end of rounds, thinned as logs are, where steps are taken by gradients: at all
    responses where they can be listed, else at a few that are drawn from a random stream of their
    own. What it finds twice in a row, or at the end, is said once, on standard error.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}  # the last figures by their tags
        self._batch: Prompts | None = None
        self._looked = -1  # the round of the last look
        self._suspected = False
        self._said = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Look at the end of a round."""
        if not isinstance(pl_module, OnlineGame) or not _is_watched(pl_module):
            return
        self._batch = batch
        if pl_module.between_rounds and is_logged(pl_module.progress.round):
            suspected = self._look(trainer, pl_module)
            if suspected and self._suspected:
                self._say(trainer, suspected)
            self._suspected = bool(suspected)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look for the last time."""
        if isinstance(pl_module, OnlineGame) and self._batch is not None:
            self._say(trainer, self._look(trainer, pl_module))

    def _say(self, trainer: L.Trainer, sentence: str) -> None:
        if sentence and not self._said and trainer.is_global_zero:
            print(f"nlhf: {sentence}", file=sys.stderr)
            self._said = True

    def _look(self, trainer: L.Trainer, game: OnlineGame) -> str:
        """Log the figures; what is to be said of them, where anything is."""
        assert self._batch is not None
        certainty = of_processes(trainer, measure(game, self._batch))
        number = game.progress.round
        if number != self._looked:
            for logger in trainer.loggers:
                logger.log_metrics(certainty.figures, number)
            log_by_query(trainer, certainty.figures, game.progress.queries_per_prompt)
        self.latest = certainty.figures
        self._looked = number
        figures = {name.rpartition("/")[-1]: v for name, v in certainty.figures.items()}
        found = (
            f"the policy has collapsed: in round {number} its entropy is {figures['entropy']:.3g} "
            f"nats, its KL to the reference {figures['kl']:.3g}"
        )
        most = 2 * game.oracle.payoff_bound / game.beta
        if game.algorithm.last_iterate and certainty.excess > _SLACK * most:
            return (
                f"{found}, and no equilibrium at beta = {game.beta:g} is so far from the "
                "reference: lower the learning rate"
            )
        if certainty.is_one_response:
            return (
                f"{found}, and it has one response to each prompt, from which nothing is learnt: "
                "unless that is wanted, lower the learning rate"
            )
        may_be_longer = getattr(game.policy, "max_new_tokens", 1) > 1
        return _of_draws(figures, number, may_be_longer)


def _of_draws(figures: dict[str, float], number: int, may_be_longer: bool) -> str:
    """What is to be said of responses that were drawn in a round, where anything is.

    Args:
        figures: by the last part of their tags.
        number: of the round.
        may_be_longer: whether a response may have more than one token.
    """
    if figures["kl"] < _MOVED:
        return ""
    advice = "unless that is wanted, lower the learning rate or raise model.beta"
    if may_be_longer and figures.get("length", 2.0) <= 1:
        return (
            f"the policy's responses are empty: in round {number} each ends with its first token, "
            f"at a KL to the reference of {figures['kl']:.3g} nats: {advice}"
        )
    if figures.get("equal", 0.0) >= _EQUAL:
        return (
            f"the policy says the same each time: in round {number} {figures['equal']:.0%} of the "
            f"pairs of its responses to a prompt are equal, at an entropy of "
            f"{figures['entropy']:.3g} nats: {advice}"
        )
    return ""


def _is_watched(game: OnlineGame) -> bool:
    """Whether steps are taken by gradients, and log-probabilities are some."""
    policy = game.policy
    is_normalised = isinstance(policy, CausalLMPolicy) and policy.length_normalised
    return not game.realisation.closed_form and not is_normalised


@dataclass(frozen=True, slots=True)
class Certainty:
    """How certain a policy is of its responses to some prompts."""

    figures: dict[str, float]  # by tags
    excess: float  # the largest of what the bounds hold below range / beta
    is_one_response: bool  # to each prompt, as far as numbers tell
    num_prompts: int


def of_processes(trainer: L.Trainer, own: Certainty) -> Certainty:
    """What all processes have measured of their own prompts; all of them call this."""
    if trainer.world_size == 1:
        return own
    num = own.num_prompts
    figures: dict[str, Figure] = {
        tag: Mean(torch.tensor(figure * num), num) for tag, figure in own.figures.items()
    }
    figures["excess"] = Largest(torch.tensor(own.excess))
    figures["one"] = Mean(torch.tensor(float(own.is_one_response)), 1)
    found = of_all_processes(trainer, figures)
    values = {tag: figure.value.item() for tag, figure in found.items()}
    excess, one = values.pop("excess"), values.pop("one")
    return Certainty(values, excess, one == 1, num * trainer.world_size)


@torch.no_grad()
def measure(game: OnlineGame, batch: Prompts) -> Certainty:
    """Measure it of all responses, where they can be listed, or of a few that are drawn.

    Args:
        game: nothing of it is changed.
        batch: B prompts.

    Raises:
        DivergenceError: log-probabilities are no numbers any more.
    """
    prompts = game.policy.encode(batch)
    responses = game.policy.enumerate(prompts)
    if responses is None:
        prompts = prompts.take(range(min(_PROMPTS, len(prompts))))
        number = game.progress.round
        rng = random_stream(training_seed(), game.global_rank, number, game.device, "collapse")
        responses = game.policy.sample({"policy": 1.0}, prompts, _RESPONSES, PLAIN, rng)
    ours, theirs = (
        game.policy.log_prob({player: 1.0}, prompts, responses)
        for player in ("policy", "reference")
    )
    if ours.isnan().any():
        raise DivergenceError(
            f"training diverged: after optimiser step {game.global_step}, in round "
            f"{game.progress.round}, the policy's log-probabilities are not finite, so lower the "
            "learning rate or the step size"
        )
    rounding = torch.finfo(ours.dtype).eps * responses.tokens.shape[-1]
    if responses.enumerated:
        return of_all(ours.double(), theirs.double(), rounding)
    certainty = of_some(ours.double(), theirs.double(), responses.tokens, rounding)
    length = responses.mask.sum(-1).double().mean().item()
    return replace(certainty, figures={**certainty.figures, "policy/length": length})


def of_all(ours: Tensor, theirs: Tensor, rounding: float) -> Certainty:
    """Of log-probabilities [B, N] of all responses; absent ones are impossible for both."""
    probability = ours.exp()
    there = theirs > -torch.inf
    ratio = torch.where(there, ours - theirs, 0.0)
    highest = ratio.masked_fill(~there, -torch.inf).amax(-1)
    lowest = ratio.masked_fill(~there, torch.inf).amin(-1)
    kl = torch.where(probability > 0, probability * ratio, 0.0).sum(-1)
    one = probability.amax(-1) >= 1 - rounding
    return Certainty(
        {
            "policy/entropy": torch.special.entr(probability).sum(-1).mean().item(),
            "policy/kl": kl.mean().item(),
        },
        excess=(highest - lowest).max().item(),
        is_one_response=bool((one & (there.sum(-1) > 1)).all()),
        num_prompts=len(ours),
    )


def of_some(ours: Tensor, theirs: Tensor, tokens: Tensor, rounding: float) -> Certainty:
    """Of log-probabilities [B, K] of responses that were drawn, and their tokens [B, K, T]."""
    ratio = ours - theirs
    # What is left for other responses; a probability says no less of it than its own rounding.
    rest = (-torch.expm1(ours)).clamp(min=rounding).log()
    odds = ratio - rest + (-torch.expm1(theirs)).clamp(min=rounding).log()
    counts = [Counter(map(tuple, rows)) for rows in tokens.tolist()]
    distinct = [*map(len, counts)]
    num, num_drawn = ours.shape
    equal = sum(math.comb(times, 2) for each in counts for times in each.values())
    return Certainty(
        {
            "policy/entropy": -ours.mean().item(),
            "policy/kl": ratio.mean().item(),
            "policy/distinct": sum(distinct) / ours.numel(),
            "policy/equal": equal / max(1, num * math.comb(num_drawn, 2)),
        },
        excess=max(ratio.abs().max().item(), odds.max().item()),
        is_one_response=max(distinct) == 1 and bool((-torch.expm1(ours) <= rounding).all()),
        num_prompts=len(ours),
    )
