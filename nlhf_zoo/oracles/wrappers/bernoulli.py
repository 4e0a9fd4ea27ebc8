"""Labels instead of probabilities."""

from __future__ import annotations

import hashlib
from typing import Self, final

import torch
from torch import Tensor, distributed
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.wrappers.base import WrappedOracle
from nlhf_zoo.records import Comparison, Prompts, Responses
from nlhf_zoo.records.random_streams import run_seed
from nlhf_zoo.solvers.payoffs import PREFERENCE_BOUND


@final
class BernoulliLabels(WrappedOracle):
    """Another oracle's probabilities, each replaced by a sampled verdict: 1 a win, 0 a loss.

    Responses that are compared with themselves get one verdict a pair, P(y > y') = 1 - P(y' > y),
    and 1/2 against oneself. Verdicts are drawn from a stream of their own, keyed by seed, rank and
    the number of calls so far; that number is in the checkpoint, so that a resumed run goes on as
    it would have. Calls in evaluation mode have streams apart: to look does not change training.

    Args:
        oracle: whose probabilities.
        seed: of the verdicts; None takes the run's seed.

    Raises:
        UserError: the oracle answers with payoffs outside [0, 1].
    """

    draws_answers = True

    calls: Tensor

    def __init__(self, oracle: PreferenceOracle, seed: int | None = None) -> None:
        super().__init__()
        if oracle.payoff_bound > PREFERENCE_BOUND:
            raise UserError(
                f"a label is drawn from a probability, and {type(oracle).__name__} answers with "
                f"payoffs as far as {oracle.payoff_bound:g} from 1/2: leave BernoulliLabels out, "
                "or give the payoff sign or identity, or a bound of 1/2"
            )
        self.oracle = oracle
        self.seed = run_seed(seed)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self._evaluated = 0

    @property
    @override
    def answers_table(self) -> bool:
        return False  # but labels

    @override
    def train(self, mode: bool = True) -> Self:
        """Choose the streams of training, or those of an evaluation, from their start."""
        self._evaluated = 0
        return super().train(mode)

    @override
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """Draw a verdict for each pair: a preference in {0, 1/2, 1}."""
        answer: Comparison = self.oracle(prompts, first, second)
        chance = answer.preference
        draw = torch.rand(chance.shape, generator=self._rng(), dtype=torch.float64)
        label = (draw.to(chance.device) < chance).to(chance.dtype)
        if first is second or torch.equal(first.tokens, second.tokens):
            label = label.triu(1) + (1 - label.mT).tril(-1)
            label.diagonal(dim1=1, dim2=2).fill_(0.5)
        return Comparison(label, answer.valid)

    def _rng(self) -> torch.Generator:
        """The stream of this call; the counter moves on."""
        is_parallel = distributed.is_available() and distributed.is_initialized()
        rank = distributed.get_rank() if is_parallel else 0
        key = f"{self.seed}/{rank}/{int(self.calls)}"
        if self.training:
            self.calls += 1
        else:
            self._evaluated += 1
            key += f"/evaluation/{self._evaluated}"
        return torch.Generator().manual_seed(
            int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "little")
        )
