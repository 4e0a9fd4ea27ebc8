"""What a language model does as a policy that scores responses."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.policies.language_model.chunk_size import ChunkSize
from nlhf_zoo.policies.language_model.divergence import divergence
from nlhf_zoo.policies.language_model.scoring import Scorer
from nlhf_zoo.policies.language_model.sharded_policy import ShardedPolicy
from nlhf_zoo.records import PLAIN, Decoding, Mixture, Prompts, Responses


class ScoredPolicy(ShardedPolicy):
    """A policy whose responses are scored by a scorer, in chunks of rows.

    Attributes:
        length_normalised: divide a log-probability by the number of tokens.
    """

    length_normalised: bool
    _chunk_size: ChunkSize
    _score: Scorer

    @abstractmethod
    def _ready(self, prompts: Prompts) -> Prompts:
        """Encoded prompts that have room for a response; what the model is capable of is known."""

    @override
    def log_prob(
        self, who: Mixture, prompts: Prompts, responses: Responses, decoding: Decoding = PLAIN
    ) -> Tensor:
        """Log-probability of each response [B, K], float32; recomputed, never the generator's.

        Raises:
            UserError: all responses are listed, but the model gives others a probability too.
        """
        prompts = self._ready(prompts)
        trains = torch.is_grad_enabled() and bool(who.get("policy"))
        trained = self.trained_parameters if trains else None
        max_tokens = self._chunk_size(self._score, trained, prompts, responses)
        log_prob = self._score(who, prompts, responses, decoding, max_tokens)
        if self.length_normalised:
            return log_prob / responses.mask.sum(-1)
        return log_prob

    @torch.no_grad()
    @override
    def divergence(
        self, who: Mixture, other: Mixture, prompts: Prompts, responses: Responses
    ) -> tuple[Tensor, Tensor]:
        """KL and entropy, each token's exact and summed along the response; float32.

        A length-normalised policy's are those of its law, too.
        """
        prompts = self._ready(prompts)
        max_tokens = self._chunk_size(self._score, None, prompts, responses)
        return divergence(self._score, who, other, prompts, responses, max_tokens)
