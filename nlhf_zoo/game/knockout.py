r"""A knock-out tournament: best and worst of K responses, the one pair that is trained on.

In the first round K/2 pairs are asked about. Winners go on among winners until one is left, the
best, and losers among losers until one is left, the worst: K - 1 and K/2 - 1 questions. The last
one is about these two: 3K/2 - 1 in all, 11 of the 28 pairs of K = 8. If they have met in the first
round they are asked about in the other order. A tie goes to who stands first, which is drawn.

The pair is chosen by the answers, so that it is *not* two independent responses. A loss whose
derivation needs these, as that of INPO does, then takes another step than the proximal one, and its
fixed point is not the equilibrium.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nlhf_zoo.game import designs
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.records import Comparison, Prompts, Responses


@dataclass(frozen=True, slots=True)
class Knockout:
    """The first round of each prompt's tournament.

    Args:
        seats: orders of the K responses [B, K]; neighbours meet, and the earlier stands first.
    """

    seats: Tensor

    @property
    def questions(self) -> int:
        """Of each prompt."""
        return 3 * self.seats.shape[1] // 2 - 1

    def ask(
        self, oracle: PreferenceOracle, prompts: Prompts, responses: Responses
    ) -> tuple[Comparison, int]:
        """Play it: a call of the oracle for each round.

        Args:
            oracle: who judges.
            prompts: B prompts.
            responses: K to each.

        Returns:
            what is known of the best and the worst of each prompt, both ways, and nothing of others
            [B, K, K]; and how many answers could not be had. A prompt with such a one has no pair,
            for nobody knows who would have gone on.
        """
        seats = self.seats.to(responses.weight.device)
        place = seats.argsort(-1)  # of each response
        best, worst, invalid = seats, seats[:, :0], 0
        decided = torch.ones_like(seats[:, 0], dtype=torch.bool)
        while best.shape[1] > 1:
            # Of the first round losers are who loses among the best.
            ours = torch.cat([best, worst], -1).unflatten(-1, (-1, 2))
            _, first_wins, valid = _ask(oracle, prompts, responses, ours)
            decided = decided & valid.all(-1)
            invalid += int((~valid).sum())
            winner = torch.where(first_wins, ours[..., 0], ours[..., 1])
            loser = torch.where(first_wins, ours[..., 1], ours[..., 0])
            half = best.shape[1] // 2
            best, worst = winner[:, :half], loser[:, half:] if worst.shape[1] else loser
        two = torch.cat([best, worst], -1)
        later_first = two.gather(-1, place.gather(-1, two).argsort(-1, descending=True))
        found, _, valid = _ask(oracle, prompts, responses, later_first[:, None])
        invalid += int((~valid).sum())
        known = found.valid & (decided & valid[:, 0])[:, None, None]
        return designs.both_ways(Comparison(found.preference, known)), invalid


def drawn(num_prompts: int, num_responses: int, rng: torch.Generator) -> Knockout:
    """Uniform random seats of K responses to each of B prompts."""
    return Knockout(designs.orders(num_prompts, num_responses, rng))


def _ask(
    oracle: PreferenceOracle, prompts: Prompts, responses: Responses, pairs: Tensor
) -> tuple[Comparison, Tensor, Tensor]:
    """Pairs [B, Q, 2]: what was said [B, K, K], whether the first wins, and validity [B, Q]."""
    first, second = pairs.unbind(-1)
    rows = torch.arange(len(pairs), device=pairs.device)[:, None]
    shape = (len(pairs), responses.num, responses.num)
    asked = torch.zeros(shape, dtype=torch.bool, device=pairs.device)
    asked[rows, first, second] = True
    found = designs.ask(oracle, prompts, responses, responses, asked)
    return found, found.preference[rows, first, second] >= 0.5, found.valid[rows, first, second]
