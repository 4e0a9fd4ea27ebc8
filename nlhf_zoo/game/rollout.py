"""Which responses enter a step: all of them, or K samples of each player."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from typing_extensions import override

from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records import PLAIN, Decoding, Mixture, Prompts, ProximalStep, Responses

_MOST = 4096  # responses to a prompt


class Rollout(ABC):
    """How responses are had of a policy."""

    enumerated: bool
    num_responses: int = 0
    num_opponents: int = 0

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
        """The scored responses and those of each opponent; in self-play these are one object."""
        scored = self.responses(policy, step.sampler, prompts, self.num_responses, step.scored, rng)
        if step.self_play:
            return scored, [scored]
        return scored, [
            self.responses(policy, opponent, prompts, self.num_opponents, step.opponent, rng)
            for _, opponent in step.payoff
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
    """

    enumerated = False

    def __init__(self, num_responses: int = 4, num_opponents: int = 1) -> None:
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
