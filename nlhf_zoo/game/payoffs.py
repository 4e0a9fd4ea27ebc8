"""Asking the oracle: what each response is worth, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.game import designs
from nlhf_zoo.game.chosen import Asked, Chosen
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records import Comparison, Mixture, Prompts, ProximalStep, Responses


class Versions(dict[str, int]):
    """A number for each player's weights: equal numbers mean equal weights.

    It changes when the weights move, and is copied when they are. By it samples say which weights
    drew them, and a product is remembered for as long as its players do not move.
    """

    def of(self, player: str) -> int:
        """A player's number: -1 for the reference, which never moves, 0 for one that has not."""
        return -1 if player == "reference" else self.get(player, 0)

    def moved(self, player: str) -> None:
        """A player has got weights that none had before."""
        self[player] = max([0, *self.values()]) + 1

    def copied(self, source: str, target: str) -> None:
        """A player has got another's weights."""
        self[target] = self.of(source)


@dataclass(frozen=True, slots=True)
class Payoffs:
    """What the oracle's answers say about the scored responses."""

    payoff: Tensor  # q [B, K], estimates of sum_j a_j (P o_j)(y_k)
    valid: Tensor  # bool [B, K]
    queries: int  # preference queries that were asked, for each prompt
    answers: int  # that were wanted, for each prompt
    invalid: int  # answers of all prompts that could not be had
    preference: Tensor | None = None  # P(y_k > y_k') [B, K, K], of responses among themselves
    pair_valid: Tensor | None = None  # bool [B, K, K], likewise
    bound: float = 0.5  # largest distance of the oracle's answers from 1/2

    def tensors(self) -> dict[str, Any]:
        """What there is for each prompt, by name."""
        names = ("payoff", "valid", "preference", "pair_valid")
        return {name: found for name in names if (found := getattr(self, name)) is not None}

    def take(self, rows: Tensor) -> Payoffs:
        """Those of some prompts; queries and answers are for each prompt, as in the whole."""
        return replace(self, **{name: found[rows] for name, found in self.tensors().items()})

    @classmethod
    def joined(cls, parts: Sequence[Payoffs]) -> Payoffs:
        """Those of different prompts as one; queries and answers are for each, as in every part."""
        tensors: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].tensors()
        }
        return replace(parts[0], invalid=sum(part.invalid for part in parts), **tensors)

    def to(self, device: torch.device | str) -> Payoffs:
        """These payoffs on another device."""
        return replace(self, **{name: found.to(device) for name, found in self.tensors().items()})


@dataclass
class PayoffEstimator:
    """Asks the oracle for the payoffs of a step.

    Where responses are enumerated, a product P o is one query, and it is remembered as long as
    its players do not move: an anchor's is asked for once in a round, however many gradient steps.
    """

    oracle: PreferenceOracle
    policy: Policy
    versions: Versions
    products: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(
        self,
        step: ProximalStep,
        prompts: Prompts,
        responses: Responses,
        opponents: Sequence[Responses],
        asked: Sequence[Asked] | None = None,
    ) -> Payoffs:
        """Judge the scored responses of a step; in self-play they are the opponents too.

        Args:
            step: the proximal step.
            prompts: B prompts.
            responses: K scored responses to each.
            opponents: responses of each opponent of the step.
            asked: which pairs are asked about, as `Rollout.asked` has them; None is all. What is
                not asked about is neither counted nor invalid.
        """
        if step.by_score:
            return self._scored(step, prompts, responses)
        if step.pairs if responses.enumerated else step.among_themselves:
            return self._among_themselves(prompts, responses, None if asked is None else asked[0])
        return self._against(step, prompts, responses, opponents, asked)

    def _scored(self, step: ProximalStep, prompts: Prompts, responses: Responses) -> Payoffs:
        """The oracle's score of each response.

        Those of all responses there are, are one query, and remembered while the sampler stays.
        """
        ask = partial(self.oracle.score, prompts, responses)
        if responses.enumerated:
            name = self._name(step.sampler, prompts, "score")
            scores, valid, queries, invalid = self._remembered(name, ask, responses.weight)
        else:
            scores, valid = ask()
            queries, invalid = responses.num, int((~valid).sum())
        scores = scores.to(responses.weight).masked_fill(~valid, 0.0)
        return Payoffs(scores, valid, queries, queries and responses.num, invalid)

    def _among_themselves(
        self, prompts: Prompts, responses: Responses, asked: Asked | None
    ) -> Payoffs:
        """Every response against every other; P(y > y) = 1/2 is not asked for."""
        if isinstance(asked, Chosen):
            compared = asked.questions
            comparison, invalid = asked.ask(self.oracle, prompts, responses)
        else:
            comparison = self._compared(prompts, responses, responses, asked)
            if asked is not None:
                comparison = designs.both_ways(comparison)
            all_pairs = responses.num * (responses.num - 1) // 2
            compared = all_pairs if asked is None else designs.questions(asked)
            invalid = None
        itself = torch.eye(responses.num, dtype=torch.bool, device=comparison.valid.device)
        preference = comparison.preference.to(responses.weight.dtype)
        preference = preference.masked_fill(itself | ~comparison.valid, 0.5)
        valid = comparison.valid | itself
        others = valid & ~itself
        answered = others.any(-1)
        if responses.enumerated:
            weight = responses.weight[:, None, :] * valid
            payoff = (weight * preference).sum(-1) / weight.sum(-1)
        else:
            # All pairs weigh the same, also where some are invalid or not asked about: averaging
            # each response over its own valid opponents and itself would shrink q - 1/2, and solve
            # another game.
            share = (answered.sum(-1) - 1) / others.sum((-2, -1)).clamp(min=1)
            payoff = 0.5 + share[:, None].to(preference) * (others * (preference - 0.5)).sum(-1)
        queries = 1 if responses.enumerated else compared
        if invalid is None:
            invalid = (2 * compared * len(prompts) - int(others.sum())) // 2
        bound = self.oracle.payoff_bound
        return Payoffs(payoff, answered, queries, compared, invalid, preference, valid, bound)

    def _against(
        self,
        step: ProximalStep,
        prompts: Prompts,
        responses: Responses,
        opponents: Sequence[Responses],
        asked: Sequence[Any] | None,
    ) -> Payoffs:
        """sum_j a_j P o_j, of opponents of their own."""
        payoff = torch.zeros_like(responses.weight)
        valid = torch.ones_like(payoff, dtype=torch.bool)
        queries = invalid = 0
        masks = [None] * len(opponents) if asked is None else asked
        for (coefficient, mixture), opponent, mask in zip(
            step.payoff, opponents, masks, strict=True
        ):
            if responses.enumerated:
                found = self._remembered_product(prompts, responses, opponent, mixture)
            else:
                found = self._sampled_product(prompts, responses, opponent, mask)
            product, answered, cost, unanswered = found
            payoff += coefficient * product
            valid = valid & answered
            queries += cost
            invalid += unanswered
        each = responses.num if responses.enumerated else 1
        bound = self.oracle.payoff_bound
        return Payoffs(payoff, valid, queries, queries * each, invalid, bound=bound)

    def _remembered_product(
        self, prompts: Prompts, responses: Responses, opponent: Responses, mixture: Mixture
    ) -> tuple[Tensor, Tensor, int, int]:
        """Enumerated: P o [B, K] and its validity, the queries it cost, invalid answers among them.

        A product is asked for unless it is remembered.
        """
        ask = partial(self.oracle.expected, prompts, responses, opponent)
        return self._remembered(self._name(mixture, prompts), ask, responses.weight)

    def _remembered(
        self, name: str, ask: Callable[[], tuple[Tensor, Tensor]], weight: Tensor
    ) -> tuple[Tensor, Tensor, int, int]:
        """What is remembered by a name, or asked for now, as above."""
        self._forget()
        if (known := self.products.get(name)) is not None:
            # One of a checkpoint lies in main memory.
            return known.to(weight.device), torch.ones_like(weight, dtype=torch.bool), 0, 0
        found, answered = ask()
        if answered.all():  # what could not be answered is asked for again
            self.products[name] = found
        return found, answered, 1, int((~answered).sum())

    def _sampled_product(
        self, prompts: Prompts, responses: Responses, opponent: Responses, asked: Tensor | None
    ) -> tuple[Tensor, Tensor, int, int]:
        """Sampled opponents: an estimate of P o by pairs, K x L if all are asked; as above."""
        comparison = self._compared(prompts, responses, opponent, asked)
        average, answered = comparison.average(opponent.weight)
        queries = responses.num * opponent.num if asked is None else designs.questions(asked)
        invalid = queries * len(prompts) - int(comparison.valid.sum())
        return average, answered, queries, invalid

    def _compared(
        self, prompts: Prompts, first: Responses, second: Responses, asked: Tensor | None
    ) -> Comparison:
        """What the oracle says, in one call, of all pairs or of those of a design."""
        if asked is None:
            comparison: Comparison = self.oracle(prompts, first, second)
            return comparison
        return designs.ask(self.oracle, prompts, first, second, asked.to(first.weight.device))

    def _name(self, mixture: Mixture, prompts: Prompts, *kind: str) -> str:
        """Names a product, or what is of another kind, by its players' weights and its prompts."""
        players = sorted((self.versions.of(player), w) for player, w in mixture.items() if w)
        return json.dumps([players, prompts.ids.tolist(), *kind])

    def _forget(self) -> None:
        """Drop the products of weights that no player has any more."""
        alive = {self.versions.of(player) for player in self.policy.players}
        self.products = {
            name: product
            for name, product in self.products.items()
            if all(version in alive for version, _ in json.loads(name)[0])
        }
