"""A rollout that is held while a proximal step is taken, and the order of training on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records import Prompts, ProximalStep, Responses
from nlhf_zoo.records.random_streams import random_stream

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class FrozenLogProbs:
    """Log-probabilities of a rollout's responses under players as they were when it was drawn.

    Args:
        sampler: under the law that drew them [N, K].
        players: under each player that the step names, ``policy`` among them [N, K].
    """

    sampler: Tensor
    players: dict[str, Tensor]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        policy: Policy,
        step: ProximalStep,
        prompts: Prompts,
        responses: Responses,
        others: Iterable[str] = (),
    ) -> FrozenLogProbs:
        """Compute those of a step, and of other players; each once."""
        players = {
            player: policy.log_prob({player: 1.0}, prompts, responses)
            for player in sorted({*step.centre, step.reference, *alone(step), *others})
        }
        for player in alone(step):
            return cls(players[player], players)
        sampler = policy.log_prob(step.sampler, prompts, responses, step.scored)
        return cls(sampler, players)

    def take(self, rows: Tensor) -> FrozenLogProbs:
        """Those of some prompts."""
        return FrozenLogProbs(
            self.sampler[rows], {name: one[rows] for name, one in self.players.items()}
        )

    def of_players(self, names: Sequence[str]) -> FrozenLogProbs:
        """Those of some players alone."""
        return FrozenLogProbs(self.sampler, {name: self.players[name] for name in names})

    def to(self, device: torch.device | str) -> FrozenLogProbs:
        """These on another device."""
        moved = {name: one.to(device) for name, one in self.players.items()}
        return FrozenLogProbs(self.sampler.to(device), moved)

    @classmethod
    def joined(cls, parts: Sequence[FrozenLogProbs]) -> FrozenLogProbs:
        """Those of several parts as one."""
        players = {
            name: torch.cat([part.players[name] for part in parts]) for name in parts[0].players
        }
        return cls(torch.cat([part.sampler for part in parts]), players)


def alone(step: ProximalStep) -> list[str]:
    """The player that draws a step's responses by its own law; empty where it is another law."""
    players = [player for player, weight in step.sampler.items() if weight]
    return players if len(players) == 1 and step.scored.is_plain else []


@dataclass(frozen=True, slots=True)
class HeldRollout:
    """What was drawn and judged at the start of a proximal step.

    Args:
        number: of the rollouts of the run, 0 for the first; -1 of one that is replayed.
        round: of the game, in which it was drawn; -1 of one that is replayed.
        prompts: N encoded prompts.
        responses: K to each; in main memory.
        payoffs: what the oracle said of them, likewise.
        log_probs: of the players as they were, likewise.
    """

    number: int
    round: int
    prompts: Prompts
    responses: Responses
    payoffs: Payoffs
    log_probs: FrozenLogProbs

    def take(self, rows: Sequence[int], device: torch.device) -> HeldRollout:
        """That of some prompts, on a device, padded to the longest of these alone."""
        taken = torch.tensor([*rows], dtype=torch.long)
        responses = _as_read(self.responses.take(rows).to(device))
        return replace(
            self,
            prompts=self.prompts.take(rows).trimmed().to(device),
            responses=responses,
            payoffs=self.payoffs.take(taken).to(device),
            log_probs=self.log_probs.take(taken).to(device),
        )

    def beside(self, others: Sequence[HeldRollout]) -> HeldRollout:
        """This and others as one, of all their prompts."""
        every = [self, *others]
        common = [name for name in self.log_probs.players if name in others[0].log_probs.players]
        return replace(
            self,
            prompts=Prompts.joined([one.prompts.without_text() for one in every]),
            responses=Responses.joined([one.responses for one in every]),
            payoffs=Payoffs.joined([one.payoffs for one in every]),
            log_probs=FrozenLogProbs.joined([one.log_probs.of_players(common) for one in every]),
        )


def _as_read(responses: Responses) -> Responses:
    """Held responses with tokens of 64 bits, as policies read them."""
    explored = None if responses.explored is None else _as_read(responses.explored)
    return replace(responses, tokens=responses.tokens.long(), explored=explored)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a rollout of N prompts is trained on.

    Each epoch passes over the trained prompts in an order of its own, minibatch by minibatch;
    ``accumulate`` of these make an optimiser step. The order depends on the seed and the number of
    the rollout, and which prompts are held out on the seed and the round, for what one step of a
    round writes is meant for the prompts of the next. Both are equal in all processes.

    Args:
        prompts: N, of a rollout in one process.
        epochs: passes over the trained prompts.
        minibatch: prompts of a training step; None is N / ``accumulate``.
        accumulate: training steps of an optimiser step.
        held_out: share of the prompts that is not trained on, rounded down to whole optimiser
            steps.

    Raises:
        UserError: N is no multiple of an optimiser step's prompts.
    """

    prompts: int
    epochs: int
    minibatch: int | None = None
    accumulate: int = 1
    held_out: float = 0.0

    def __post_init__(self) -> None:
        if self.prompts % self.step_prompts or not self.prompts:
            raise UserError(
                f"a rollout of {self.prompts} prompts cannot be trained on in optimiser steps of "
                f"{self.step_prompts}: set data.batch_size x trainer.accumulate_grad_batches to a "
                "multiple of model.rollout.minibatch x trainer.accumulate_grad_batches"
            )

    @property
    def size(self) -> int:
        """Prompts of a training step."""
        return self.minibatch or max(1, self.prompts // self.accumulate)

    @property
    def step_prompts(self) -> int:
        """Prompts of an optimiser step."""
        return self.size * self.accumulate

    @property
    def num_held_out(self) -> int:
        """Prompts that are not trained on: none where a rollout is but one optimiser step."""
        steps = self.prompts // self.step_prompts
        return min(int(self.held_out * steps + 1e-9), steps - 1) * self.step_prompts

    @property
    def minibatches(self) -> int:
        """Training steps of an epoch."""
        return (self.prompts - self.num_held_out) // self.size

    @property
    def optimizer_steps(self) -> int:
        """Those of the proximal step."""
        return self.epochs * self.minibatches // self.accumulate

    def said(self) -> str:
        """It in words."""
        return (
            f"{self.prompts} prompts, {self.epochs} epochs of minibatches of {self.size}, "
            f"{self.accumulate} a step, {self.num_held_out} held out"
        )

    def rows(self, seed: int, round: int, number: int, epoch: int, minibatch: int) -> list[int]:
        """The prompts of a minibatch of rollout ``number``, in a round."""
        trained = self._choice(seed, round)[self.num_held_out :]
        rng = random_stream(seed, 0, number, _CPU, "order", part=epoch)
        order = torch.randperm(len(trained), generator=rng).tolist()
        places = order[minibatch * self.size : (minibatch + 1) * self.size]
        return [trained[place] for place in places]

    def held_out_rows(self, seed: int, round: int) -> list[list[int]]:
        """The prompts that are not trained on in a round, in minibatches."""
        held = self._choice(seed, round)[: self.num_held_out]
        return [held[first : first + self.size] for first in range(0, len(held), self.size)]

    def _choice(self, seed: int, round: int) -> list[int]:
        """All prompts, those first that are held out."""
        rng = random_stream(seed, 0, round, _CPU, "held out")
        chosen: list[int] = torch.randperm(self.prompts, generator=rng).tolist()
        return chosen


def bytes_held(
    num_prompts: int,
    num_responses: int,
    num_tokens: int,
    players: int,
    compared: bool,
    explored: bool = False,
) -> int:
    """About how many bytes a held rollout takes in memory and on disk, without its prompts.

    Args:
        num_prompts: N, of one process.
        num_responses: K to each.
        num_tokens: T, of the longest response.
        players: whose log-probabilities are held.
        compared: whether the responses are compared among themselves, K x K answers.
        explored: whether as many responses are held beside these, which are not judged.
    """
    drawn = num_tokens * (4 + 1) + 4 + 1 + 4  # numbers and mask; weight, cut, log-probability
    figures = 4 + 1 + 4 * (players + 1)  # payoff and its validity, log-probabilities of players
    pairs = num_responses * (4 + 1) if compared else 0
    return num_prompts * num_responses * (drawn * (1 + explored) + figures + pairs)


def reweighed(payoffs: Payoffs, sampler: Tensor, opponent: Tensor) -> tuple[Payoffs, Tensor]:
    r"""Payoffs against another opponent than the one that drew the responses.

    .. math:: q(y_k) = \frac{1}{2} + c \sum_{l \ne k} w_l (P(y_k > y_l) - \frac{1}{2}), \quad
              w_l \propto \frac{o(y_l)}{\pi_{sampler}(y_l)}

    over the responses and pairs that were answered; c is the weight w_k w_l of all pairs over that
    of those that were answered, one number a prompt: averaging each response over its own answers
    would shrink q - 1/2, and take a smaller step. The weights are self-normalised, so that q has a
    bias of order 1/K. With o = sampler it is the payoff that the responses were judged to have.

    Args:
        payoffs: of responses that were compared among themselves.
        sampler: log-probability under the law that drew them [N, K].
        opponent: log o, likewise.

    Returns:
        the payoffs, and the effective sample size of the weights [N], between 1 and K; 0 where
        nothing was answered.
    """
    preference, valid = payoffs.preference, payoffs.pair_valid
    assert preference is not None  # steps that are reweighted come behind one in self-play
    assert valid is not None
    answered = payoffs.valid
    log_weight = (opponent - sampler).to(preference).masked_fill(~answered, -torch.inf)
    weight = log_weight.softmax(-1).nan_to_num(0.0)  # 0 where nothing was answered
    itself = torch.eye(weight.shape[-1], dtype=torch.bool, device=weight.device)
    of_pairs = (weight[:, :, None] * weight[:, None, :]).masked_fill(itself, 0.0)
    known = (of_pairs * valid).sum((-2, -1))
    factor = torch.where(known > 0, of_pairs.sum((-2, -1)) / known, torch.ones_like(known))
    gain = ((valid & ~itself) * weight[:, None, :] * (preference - 0.5)).sum(-1)
    squares = weight.square().sum(-1)
    size = torch.where(squares > 0, 1 / squares, squares)
    return replace(payoffs, payoff=0.5 + factor[:, None] * gain), size
