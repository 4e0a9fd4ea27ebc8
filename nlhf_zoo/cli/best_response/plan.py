"""What a best response is trained on, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.lower_bound import ANSWERS
from nlhf_zoo.records import Prompts
from nlhf_zoo.records.random_streams import random_stream

_SHARES = (0.5, 0.25)  # of the prompts: to train on, to choose by; the rest measures


@dataclass(frozen=True, slots=True)
class Split:
    """Prompts to train on, to choose the best policy by, and to measure the bound on.

    Args:
        training: what is trained on.
        selection: what is looked at while training goes on.
        measurement: what the reported bound is measured on.
        disjoint: whether no prompt is in two of them. If not, all three are all prompts, and only
            the draws differ: the bound then is one for these very prompts.
    """

    training: Prompts
    selection: Prompts
    measurement: Prompts
    disjoint: bool


def split_prompts(prompts: Prompts, disjoint: bool = True, seed: int = 0) -> Split:
    """Split prompts in a half, a quarter and a quarter, in an order that the seed draws.

    Raises:
        UserError: there are too few for three parts.
    """
    if not disjoint:
        return Split(prompts, prompts, prompts, False)
    number = len(prompts)
    if number < 3:
        raise UserError(
            f"a best response is trained on some prompts, chosen by others and measured on "
            f"others, but there {'is' if number == 1 else 'are'} {number}: give at least 3, or "
            "--response.prompts all, which measures a bound for these very prompts"
        )
    rng = random_stream(seed, 0, 0, torch.device("cpu"), "best response")
    order = torch.randperm(number, generator=rng).tolist()
    first = min(max(1, round(_SHARES[0] * number)), number - 2)
    second = first + max(1, math.floor(_SHARES[1] * number))
    places = order[:first], order[first:second], order[second:]
    training, selection, measurement = (prompts.take(sorted(part)) for part in places)
    return Split(training, selection, measurement, True)


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads the defaults by vars()
class TrainingOptions:
    """How a best response is trained, looked at and measured.

    Args:
        prompts: split them, to train on some, choose by others and measure on others; or do all
            three on all, each with draws of its own, for a bound for these very prompts.
        answers: of the oracle, of training, looks and measurement together.
        responses: of the trained policy to a prompt of a rollout.
        opponents: of the certified policy to a prompt of a rollout; each pair is judged.
        epochs: passes over a rollout.
        batch_size: prompts of a rollout.
        learning_rate: of Adam at the start; it falls to 0 as the budget is spent.
        step: eta beta, the share of the way to the best response that a round aims at.
        every: rounds between two looks at the prompts that choose.
        patience: looks without a better bound after which training ends.
        draws: of the bound to each prompt, at a look; two answers each.
        measured: draws of the reported bound to each prompt; two answers each.
        rank: of the response's adapter, where the policy is its base; else it is the policy's.
        seed: of everything that is drawn.
    """

    prompts: Literal["split", "all"] = "split"
    answers: int = 50_000
    responses: int = 16
    opponents: int = 4
    epochs: int = 4
    batch_size: int = 8
    learning_rate: float = 1e-4
    step: float = 0.2
    every: int = 5
    patience: int = 10
    draws: int = 64
    measured: int = 256
    rank: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"answers": 1, "responses": 2, "opponents": 1, "epochs": 1, "batch_size": 1}
        least |= {"every": 1, "patience": 1, "draws": 2, "measured": 2, "rank": 1, "seed": 0}
        for name, number in least.items():
            if (given := getattr(self, name)) < number:
                raise UserError(f"--response.{name} must be at least {number}, but it is {given}")
        if not 0 < self.step <= 1:
            raise UserError(
                f"--response.step must lie above 0 and be at most 1, but it is {self.step}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise UserError(
                "--response.learning_rate must be a finite number above 0, but it is "
                f"{self.learning_rate}"
            )

    @property
    def rows(self) -> int:
        """Responses that are drawn at a time in looks and measurement, as in a rollout."""
        return self.batch_size * self.responses

    def rounds(self, split: Split) -> int:
        """Rounds that the budget allows, with a look every so often and the measurement.

        Raises:
            UserError: not one, with the answers that one takes.
        """
        look = ANSWERS * self.draws * len(split.selection)
        measured = ANSWERS * self.measured * len(split.measurement)
        a_round = self.batch_of(split) * self.responses * self.opponents
        left = self.answers - measured - 2 * look  # one before training, and one at its end
        rounds = 0
        while left >= (cost := a_round + (look if (rounds + 1) % self.every == 0 else 0)):
            left -= cost
            rounds += 1
        if not rounds:
            needed = measured + 2 * look + a_round
            raise UserError(
                f"--response.answers is {self.answers}, but one round of training with its "
                f"looks and the measurement takes {needed}: raise it, or lower "
                "--response.measured, draws, responses or opponents"
            )
        return rounds

    def batch_of(self, split: Split) -> int:
        """Prompts of a rollout: not more than there are."""
        return min(self.batch_size, len(split.training))
