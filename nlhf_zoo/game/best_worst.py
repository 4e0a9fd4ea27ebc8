r"""Best of K against worst of K: the pair that is trained on, chosen by the group's win rates.

All K (K - 1) / 2 pairs are asked about. The best response is the one with the highest win rate
among the others, the worst the one with the lowest, and what was said of these two is what is
trained on. Of equal win rates the earlier response counts as the better one; responses are drawn in
no order.

As that of a knock-out (``knockout.py``), the pair is chosen by the answers, and is *not* two
independent responses: a loss whose derivation needs these goes to another policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.records import Comparison, Prompts, Responses


@dataclass(frozen=True, slots=True)
class BestWorst:
    """The choice among the responses of each prompt.

    Args:
        num_responses: K.
    """

    num_responses: int

    @property
    def questions(self) -> int:
        """Of each prompt."""
        return self.num_responses * (self.num_responses - 1) // 2

    def ask(
        self, oracle: PreferenceOracle, prompts: Prompts, responses: Responses
    ) -> tuple[Comparison, int]:
        """Ask about all pairs, in one call, and choose.

        Args:
            oracle: who judges.
            prompts: B prompts.
            responses: K to each.

        Returns:
            what is known of the best and the worst of each prompt, both ways, and nothing of others
            [B, K, K]; and how many answers could not be had. A win rate is among those that could;
            a prompt has no pair where that about its pair could not.
        """
        found: Comparison = oracle(prompts, responses, responses)
        itself = torch.eye(responses.num, dtype=torch.bool, device=found.valid.device)
        valid = found.valid & ~itself
        wins = torch.where(valid, found.preference, 0.0).sum(-1)
        rate = wins / valid.sum(-1).clamp(min=1)
        answered = valid.any(-1)
        best = rate.masked_fill(~answered, -1.0).argmax(-1)
        worst = responses.num - 1 - rate.masked_fill(~answered, 2.0).flip(-1).argmin(-1)
        rows = torch.arange(len(rate), device=rate.device)
        chosen = torch.zeros_like(valid)
        chosen[rows, best, worst] = chosen[rows, worst, best] = True
        invalid = int((~found.valid & ~itself).sum()) // 2
        return Comparison(found.preference, chosen & valid), invalid
