"""Playing and judging the parts of a batch, on a fresh rollout or on one that is held."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlhf_zoo.game import checkpointing, rollout_files
from nlhf_zoo.game.ahead import Ahead, trained, weighted
from nlhf_zoo.game.held_rollout import FrozenLogProbs
from nlhf_zoo.game.lightning_internals import trainer_of
from nlhf_zoo.game.micro_batches import Played
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.game.rollout_files import Part, Place
from nlhf_zoo.metrics.processes import objects_of_each
from nlhf_zoo.oracles.tables.base import TableOracle
from nlhf_zoo.oracles.text_oracle import TextOracle
from nlhf_zoo.records import Prompts, ProximalStep, Responses
from nlhf_zoo.records.random_streams import random_stream, training_seed
from nlhf_zoo.records.shards import is_sharded, local

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame


_CPU = torch.device("cpu")


class Fresh:
    """Plays and judges the parts of a batch by one random stream, and keeps none of them."""

    steps = 1  # training steps that are taken on it

    def __init__(self, game: OnlineGame, step: ProximalStep) -> None:
        number = game.progress.batches
        game.progress.batches += 1
        place = training_seed(), game.global_rank, number
        self._rng = random_stream(*place, game.device)
        self._designs = random_stream(*place, _CPU, "design")
        self._game, self._step = game, step
        self.drawn = 0  # tokens, of scored responses and of opponents

    def play(self, prompts: Prompts) -> Played:
        """Draw the next part."""
        played = self._game.rollout.play(self._step, self._game.policy, prompts, self._rng)
        self.drawn += drawn_tokens(*played)
        return played

    def judge(
        self, prompts: Prompts, responses: Responses, opponents: Sequence[Responses]
    ) -> Payoffs:
        """Ask about it."""
        return judged(self._game, self._step, prompts, responses, opponents, self._designs)


class Recording:
    """Plays and judges the parts of a rollout, each by a random stream of its own, and keeps them.

    Parts that were written before the run was killed are read instead.
    """

    def __init__(
        self,
        game: OnlineGame,
        step: ProximalStep,
        place: Place,
        folder: Path | None,
        steps: int = 1,
        ahead: Ahead | None = None,
    ) -> None:
        self.steps = steps  # training steps that are taken on it
        self.effective: list[Tensor] = []  # sample sizes, where answers are weighted
        self._game, self._step, self._ahead = game, step, ahead
        self._place, self._folder = place, folder
        self._played, self._judged = count(), count()
        self._reads = folder is not None
        self._found: dict[int, Part] = {}  # those that are complete
        self._drawn: dict[int, tuple[Responses, Sequence[Responses], FrozenLogProbs]] = {}

    def play(self, prompts: Prompts) -> Played:
        """Draw the next part, and score it; the responses in main memory, without opponents."""
        game, place, number = self._game, self._place, next(self._played)
        if self._reads and self._folder is not None:
            file = place.file(self._folder, number)
            found = rollout_files.read(file, place.header(number, prompts))
            if found is not None:
                self._found[number] = found
                return found.responses, []
        self._reads = False  # behind a part that is missing, none is this run's
        step, others = self._step, dict[str, float]()
        if self._ahead is None:
            stream = place.seed, place.rank, place.number, game.device
            rng = random_stream(*stream, "rollout", part=number)
            responses, opponents = game.rollout.play(step, game.policy, prompts, rng)
        else:
            responses = self._ahead.part(game, prompts, place.number, number)
            opponents, others = [responses], dict(step.payoff[0][1])
            step = trained(step)
        with game.timer.phase("score"):
            log_probs = FrozenLogProbs.of(game.policy, step, prompts, responses, others)
        self._drawn[number] = responses, opponents, log_probs.to("cpu")
        return compact(responses), []

    def judge(self, prompts: Prompts, held: Responses, _: Sequence[Responses]) -> Payoffs:
        """Ask about the next part, of which `play` gave what is held, and write it."""
        game, place, number = self._game, self._place, next(self._judged)
        if (found := self._found.get(number)) is not None:
            checkpointing.restore_oracle(game, found.oracle)
            if self._ahead is not None:
                self.effective.append(weighted(self._step, found.payoffs, found.log_probs)[1])
            return found.payoffs
        responses, opponents, log_probs = self._drawn.pop(number)
        rng = random_stream(place.seed, place.rank, place.number, _CPU, "design", part=number)
        payoffs = judged(game, self._step, prompts, responses, opponents, rng).to("cpu")
        if self._ahead is not None:
            payoffs, effective = weighted(self._step, payoffs, log_probs)
            self.effective.append(effective)
        state = {name: one.cpu() for name, one in checkpointing.oracle_state(game).items()}
        drawn = drawn_tokens(responses, opponents)
        kept = prompts.without_text().to("cpu") if game.rollout.replay else None
        part = Part(held, payoffs, log_probs, drawn, state, kept)
        self._found[number] = part
        if self._folder is not None:
            file = place.file(self._folder, number)
            rollout_files.write(file, part, place.header(number, prompts))
        return payoffs

    @property
    def drawn(self) -> int:
        """Tokens that were drawn for all parts."""
        return sum(part.drawn for part in self._found.values())

    def log_probs(self) -> FrozenLogProbs:
        """Of the players as they were, for all parts."""
        parts = [self._found[number] for number in sorted(self._found)]
        return FrozenLogProbs.joined([part.log_probs for part in parts])


def judged(
    game: OnlineGame,
    step: ProximalStep,
    prompts: Prompts,
    responses: Responses,
    opponents: Sequence[Responses],
    rng: torch.Generator,
) -> Payoffs:
    """What the oracle says of what was drawn: of all pairs, or of those that a design draws."""
    asked = game.rollout.asked(step, responses, opponents, rng)
    if asked is None:
        return game.judge(step, prompts, responses, opponents)
    return game.judge(step, prompts, responses, opponents, asked)


def place_of(game: OnlineGame, number: int, num_prompts: int) -> Place:
    """Where the rollout belongs that is drawn now."""
    policy, rollout = game.policy, game.rollout
    names = policy.checkpoint_keys()
    weights = {name: one for name, one in policy.state_dict().items() if name in names}
    options = {
        "step": repr(game.step),
        "responses": rollout.num_responses,
        "opponents": rollout.num_opponents,
        "pairs": rollout.pairs,
        "texts": [
            str(getattr(policy, name, None))
            for name in ("max_new_tokens", "min_new_tokens", "stop_strings", "length_normalised")
        ],
        "beta": game.beta,
    }
    return Place(
        round=game.progress.round,
        step=game.progress.step,
        number=number,
        parts=game.micro_batches.number(num_prompts),
        rank=game.global_rank,
        weights=_digest_of_all(game, weights),
        options=json.dumps(options),
        **run_of(game),
    )


def _digest_of_all(game: OnlineGame, weights: Mapping[str, Tensor]) -> str:
    """A digest that all processes share: of sharded weights, of the digests of their parts."""
    own = rollout_files.digest_of_tensors({name: local(one) for name, one in weights.items()})
    if not any(map(is_sharded, weights.values())):
        return own
    return hashlib.sha256(" ".join(objects_of_each(trainer_of(game), own)).encode()).hexdigest()


def run_of(game: OnlineGame) -> dict[str, Any]:
    """What a place says of the run itself: its processes, its seed and its oracle."""
    oracle, trainer = game.oracle, trainer_of(game)
    # Without what `ListedResponses` asks for at its first use: it is the same oracle behind it.
    parts = {name: m for name, m in oracle.named_modules() if not name.endswith("_asked")}
    tables = {name: m.preference for name, m in parts.items() if isinstance(m, TableOracle)}
    judge = {
        "kinds": [type(module).__name__ for module in parts.values()],
        "texts": [m.fingerprint for m in parts.values() if isinstance(m, TextOracle)],
        "tables": rollout_files.digest_of_tensors(tables),
    }
    return {
        "world_size": 1 if trainer is None else trainer.world_size,
        "seed": training_seed(),
        "oracle": json.dumps(judge),
    }


def compact(responses: Responses) -> Responses:
    """Responses as they are held: in main memory, tokens of 32 bits, without text."""
    moved = responses.to("cpu")
    explored = None if moved.explored is None else compact(moved.explored)
    return replace(moved, tokens=moved.tokens.to(torch.int32), text=None, explored=explored)


def drawn_tokens(responses: Responses, opponents: Sequence[Responses]) -> int:
    """Tokens that were drawn; what is both scored and an opponent counts once."""
    played = [responses, *opponents, *([responses.explored] if responses.explored else [])]
    drawn = {id(each): each for each in played if not each.enumerated}
    return sum(int(each.mask.sum()) for each in drawn.values())
