"""Which responses enter a step: all of them, or K samples of each player."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from typing_extensions import override

from nlhf_zoo.game import designs, knockout
from nlhf_zoo.game.best_worst import BestWorst
from nlhf_zoo.game.chosen import Asked
from nlhf_zoo.policies.base import Draw, Policy
from nlhf_zoo.records import GREEDY, PLAIN, Decoding, Mixture, Prompts, ProximalStep, Responses

BEHIND = "behind"  # the player that draws ahead: the policy one rollout ago
_MOST = 4096  # responses to a prompt
_MOST_STEPS = 1_000_000  # of a rollout
_MOST_REPLAYED = 100  # rollouts


class Rollout(ABC):
    """How responses are had of a policy."""

    enumerated: bool
    num_responses: int = 0
    num_opponents: int = 0
    pairs: str = "all"  # which of them are compared: a comparison design
    epochs: int | None = None  # passes over a rollout; None draws anew for each gradient step
    max_epochs: int | None = None  # at most, while people answer the next; None is no limit
    clip: float | None = None  # of the importance ratio of a rollout that is passed over
    ahead: bool = False  # whether the next rollout is drawn while this one is passed over
    sampler: Mixture | None = None  # who draws the scored responses; None is the step's own
    greedy: bool = False  # whether one of them is the most probable one of the sampler
    replay: int = 0  # earlier rollouts that a proximal step is trained on, too

    @property
    def players(self) -> tuple[str, ...]:
        """The players that it needs beside the algorithm's."""
        return (BEHIND,) if self.ahead else ()

    @property
    def counting(self) -> dict[str, Any]:
        """What `PolicyOptimizer.queries` is told beside the numbers of responses.

        Only what is not as usual, so that a method of version 0.1, which knows of nothing else,
        counts on.
        """
        degree = designs.degree_of(self.pairs, self.num_responses)
        unusual: dict[str, Any] = {} if self.epochs is None else {"reused": True}
        unusual |= {} if degree is None else {"degree": degree}
        unusual |= {} if self.sampler is None else {"sampler": self.sampler}
        return unusual | ({"greedy": True} if self.greedy else {})

    def plan(self, steps: Sequence[ProximalStep]) -> list[ProximalStep]:
        """Proximal steps on the responses that it draws."""
        chosen = self.pairs in designs.CHOSEN
        drawn = [step.drawn_by(self.sampler, self.greedy) for step in steps]
        return [replace(step, chosen=True) for step in drawn] if chosen else drawn

    @abstractmethod
    def responses(
        self,
        policy: Policy,
        who: Mixture,
        prompts: Prompts,
        num: int,
        decoding: Decoding,
        rng: torch.Generator,
    ) -> Responses:
        """Responses of a mixture of players, with their weights."""

    def play(
        self, step: ProximalStep, policy: Policy, prompts: Prompts, rng: torch.Generator
    ) -> tuple[Responses, list[Responses]]:
        """The scored responses and those of each opponent.

        Where the scored ones are compared among themselves, these are one object. Those of the
        step's ``explored`` go with the scored ones.
        """
        greedy = [(step.sampler, 1, GREEDY)] if step.greedy and not self.enumerated else []
        draws = [(step.sampler, self.num_responses - len(greedy), step.scored), *greedy]
        if not step.among_themselves:
            draws += [(who, self.num_opponents, step.opponent) for _, who in step.payoff]
        if step.explored is not None:
            draws.append((step.explored, self.num_responses, PLAIN))
        scored, *others = self.each(policy, draws, prompts, rng)
        if greedy:
            scored = Responses.beside([scored, others.pop(0)])
        if step.explored is not None:
            scored = replace(scored, explored=others.pop())
        return scored, others or [scored]

    def each(
        self, policy: Policy, draws: Sequence[Draw], prompts: Prompts, rng: torch.Generator
    ) -> list[Responses]:
        """Responses of several mixtures, one after the other."""
        return [self.responses(policy, who, prompts, num, how, rng) for who, num, how in draws]

    def asked(
        self,
        step: ProximalStep,
        responses: Responses,
        opponents: Sequence[Responses],
        rng: torch.Generator,
    ) -> list[Asked] | None:
        """Which pairs the oracle is asked about; None asks about all, and draws nothing.

        Args:
            step: the proximal step.
            responses: K scored responses to each of B prompts.
            opponents: L of each opponent.
            rng: the game's random stream for designs.

        Returns:
            one mask, bool [B, K, K], where the responses are compared among themselves, or their
            knock-out tournament, or the choice of their best and worst; else one mask of each
            opponent, bool [B, K, L]. Of a pair one order is asked about, and as many pairs of each
            prompt.
        """
        mean_degree = designs.degree_of(self.pairs)
        if mean_degree is None or self.enumerated:
            return None
        num_prompts, num = responses.weight.shape
        if self.pairs == designs.KNOCKOUT:
            return [knockout.drawn(num_prompts, num, rng)]
        if self.pairs == designs.BEST_WORST:
            return [BestWorst(num)]
        degree = int(mean_degree)
        if step.among_themselves:
            return [designs.among_themselves(num_prompts, num, degree, rng)]
        return [
            designs.with_opponents(num_prompts, num, each.num, degree, rng) for each in opponents
        ]


class Enumerate(Rollout):
    """All responses, weighted by their probabilities: expectations are exact."""

    enumerated = True

    def responses(
        self,
        policy: Policy,
        who: Mixture,
        prompts: Prompts,
        num: int = 0,
        decoding: Decoding = PLAIN,
        rng: torch.Generator | None = None,
    ) -> Responses:
        """All responses there are.

        Raises:
            ValueError: the policy cannot list its responses.
        """
        responses = policy.enumerate(prompts)
        if responses is None:
            raise ValueError(
                f"{type(policy).__name__} cannot list all its responses: choose the rollout Sample"
            )
        with torch.no_grad():
            weight = policy.log_prob(who, prompts, responses, decoding).exp()
        return replace(responses, weight=weight, enumerated=True)


class Sample(Rollout):
    """Independent samples: expectations are estimated, without bias.

    Args:
        num_responses: scored responses a prompt, K; at least 2 for losses on pairs.
        num_opponents: responses of each opponent a prompt, L; not used in self-play.
        epochs: draw and judge once for each proximal step, and pass over that so many times; null
            draws and judges anew for each gradient step.
        minibatch: prompts of a training step, where a rollout has several; null is all of them,
            over trainer.accumulate_grad_batches.
        held_out: share of a rollout's prompts that is not trained on, for
            `rollout/held_out_loss`, rounded down to whole optimiser steps.
        clip: how far the importance ratio pi_theta / sampler is followed away from 1 by a policy
            gradient on a rollout that serves several steps; null follows it everywhere.
        pairs: which pairs the oracle is asked about. `all` of them; `regular(d)`, drawn so that
            each response is in d, K d / 2 questions, or meets d of each opponent's, K d; `circle`
            is `regular(2)`, in which each response stands once first and once second. `knockout`
            finds the best and the worst of 4, 8, 16, ... responses by 3 K / 2 - 1 questions, and
            trains on this pair alone, which is not two independent responses. `best_worst` asks
            about all pairs, and trains on the responses of the highest and of the lowest win rate.
        ahead: draw the next rollout while this one is passed over, by a generator with weights of
            its own; the policy that draws is then one rollout behind.
        sampler: who draws the responses that are scored: a player, such as `reference`, or a
            mixture of players, {player: weight}; null is who the algorithm says, most often the
            policy. Another one is not the opponent, so that in self-play opponents are drawn too.
        greedy: whether one of the responses is the most probable one of the sampler, token by
            token; it is not the opponent either.
        replay: earlier rollouts that a proximal step is trained on beside its own, their answers
            weighed for its opponent; nothing is asked for them.
        max_epochs: where people answer the next rollout meanwhile (`HumanOracle` with wait false),
            passes over a rollout at most, after which the run waits for them; null is no limit.

    Raises:
        ValueError: a number is out of its range, there is no such design, or the options exclude
            each other.
    """

    enumerated = False

    def __init__(
        self,
        num_responses: int = 4,
        num_opponents: int = 1,
        epochs: int | None = None,
        minibatch: int | None = None,
        held_out: float = 0.1,
        clip: float | None = 0.2,
        pairs: str = "all",
        ahead: bool = False,
        sampler: dict[str, float] | str | None = None,
        greedy: bool = False,
        replay: int = 0,
        max_epochs: int | None = None,
    ) -> None:
        _check_held(epochs, minibatch, held_out, clip, replay, ahead)
        _check_longer(epochs, max_epochs, ahead)
        _check_numbers(num_responses, num_opponents)
        designs.degree_of(pairs)  # refuses another name
        self.sampler = None if sampler is None else _mixture(sampler)
        self.greedy = greedy
        if ahead and (self.sampler is not None or greedy):
            raise ValueError(
                "ahead has the policy one rollout ago draw: leave sampler at null and greedy at "
                "false, or set ahead to false"
            )
        if greedy and num_responses == 1:
            raise ValueError(
                "a greedy response alone leaves all others without support: set num_responses to "
                "2 or more, or greedy to false"
            )
        self.pairs = pairs
        self.epochs = epochs
        self.max_epochs = max_epochs
        self.minibatch = minibatch
        self.held_out = held_out
        self.clip = clip
        self.ahead = ahead
        self.replay = replay
        self.num_responses = num_responses
        self.num_opponents = num_opponents

    @override
    def responses(
        self,
        policy: Policy,
        who: Mixture,
        prompts: Prompts,
        num: int,
        decoding: Decoding,
        rng: torch.Generator,
    ) -> Responses:
        return policy.sample(who, prompts, num, decoding, rng)

    @override
    def each(
        self, policy: Policy, draws: Sequence[Draw], prompts: Prompts, rng: torch.Generator
    ) -> list[Responses]:
        together = policy.sample_together(draws, prompts, rng)
        return super().each(policy, draws, prompts, rng) if together is None else together


def _check_held(
    epochs: int | None,
    minibatch: int | None,
    held_out: float,
    clip: float | None,
    replay: int,
    ahead: bool,
) -> None:
    """Refuse what a rollout that serves several gradient steps cannot have."""
    for name, number in (("epochs", epochs), ("minibatch", minibatch)):
        if number is not None and not 1 <= number <= _MOST_STEPS:
            raise ValueError(f"{name} must lie between 1 and {_MOST_STEPS:,}, not {number}")
    if minibatch is not None and epochs is None:
        raise ValueError(
            "minibatch is of a rollout that serves several gradient steps: set epochs too"
        )
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is a share, at least 0 and below 1, but it is {held_out}")
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip must be a finite number above 0, but it is {clip}")
    _check_replay(epochs, replay, ahead)


def _check_longer(epochs: int | None, max_epochs: int | None, ahead: bool) -> None:
    """Refuse a limit of further passes where there are none, or one below those planned."""
    if max_epochs is None:
        return
    if not ahead or epochs is None:
        raise ValueError(
            "max_epochs limits the passes over a rollout while people answer the next, which is "
            "drawn ahead: set ahead too, or leave max_epochs out"
        )
    if not epochs <= max_epochs <= _MOST_STEPS:
        raise ValueError(
            f"max_epochs must lie between epochs, {epochs}, and {_MOST_STEPS:,}, not {max_epochs}"
        )


def _check_replay(epochs: int | None, replay: int, ahead: bool) -> None:
    """Refuse rollouts of other times where none is held, and of two kinds at once."""
    if not 0 <= replay <= _MOST_REPLAYED:
        raise ValueError(f"replay must lie between 0 and {_MOST_REPLAYED}, but it is {replay}")
    if replay and epochs is None:
        raise ValueError("replay trains on earlier rollouts that are held: set epochs too")
    if ahead and epochs is None:
        raise ValueError(
            "ahead draws the next rollout while one that is held is passed over: set epochs too"
        )
    if ahead and replay:
        raise ValueError(
            "ahead and replay both train on responses of earlier policies: set one of them alone"
        )


def _check_numbers(num_responses: int, num_opponents: int) -> None:
    """Refuse too few responses, or more than can be compared."""
    if num_responses < 1 or num_opponents < 1:
        raise ValueError(
            "num_responses and num_opponents must be at least 1, "
            f"but they are {num_responses} and {num_opponents}"
        )
    if max(num_responses, num_opponents) > _MOST:
        raise ValueError(
            f"num_responses and num_opponents must be at most {_MOST}, for all pairs are "
            f"compared, but they are {num_responses} and {num_opponents}"
        )


def _mixture(sampler: Mapping[str, float] | str) -> Mixture:
    """A player, or a mixture of players.

    Raises:
        ValueError: it is no mixture.
    """
    weights = {sampler: 1.0} if isinstance(sampler, str) else dict(sampler)
    if min(weights.values(), default=-1) < 0 or not math.isclose(sum(weights.values()), 1.0):
        raise ValueError(
            f"sampler is a player or a mixture {{player: weight}} whose weights are not negative "
            f"and sum to 1, but it is {sampler!r:.80}"
        )
    return weights
