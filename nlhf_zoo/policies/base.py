"""The interface of policies and of the players that an algorithm names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError
from nlhf_zoo.records import PLAIN, Decoding, Mixture, Prompts, Responses
from nlhf_zoo.records.shards import like

Draw = tuple[Mixture, int, Decoding]  # whose responses, how many to a prompt, and how


class Policy(nn.Module, ABC):
    """Responses and their log-probabilities, for several players: named versions of one policy.

    ``policy`` is the one that is trained and ``reference`` never moves; an algorithm asks for
    others (``anchor``, ``lookahead``, ``magnet``) by name.

    Attributes:
        versions: numbers of the players' weights, kept by the game; samples carry them.
        draws_apart: whether what ``begin_sample`` returns may run in another thread than training.
    """

    versions: Mapping[str, int] = MappingProxyType({})
    draws_apart: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class that overrides what is called otherwise now, and would be passed over."""
        super().__init_subclass__(**options)
        if "kept_names" in vars(cls):
            raise TypeError(
                f"{cls.__name__}.kept_names is called checkpoint_keys since version 0.2"
            )

    @property
    @abstractmethod
    def players(self) -> tuple[str, ...]:
        """Names of the players there are."""

    @abstractmethod
    def bind(
        self,
        players: tuple[str, ...],
        support: Tensor | None,
        names: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Make the players; called once by the game, before any optimiser exists.

        Args:
            players: what the algorithm asks for; each starts as a copy of ``policy``, but
                ``magnet``, which stands in for the reference and starts as a copy of that.
            support: the oracle's actions, bool [C, N], for policies over a table.
            names: the oracle's actions as texts, C lists, for policies over texts.
        """

    @abstractmethod
    def encode(self, prompts: Prompts) -> Prompts:
        """The prompts as this policy reads them: with tokens, for a language model."""

    def stamp(self, who: Mixture) -> int:
        """Version of what a mixture draws: that of its latest weights."""
        return max((self.versions.get(p, 0) for p, w in who.items() if w), default=0)

    def checkpoint_keys(self) -> set[str]:
        """Names in ``state_dict`` that a checkpoint must hold; what is loaded from files need not.

        All of them by default.
        """
        return set(self.state_dict())

    def optional_checkpoint_keys(self) -> set[str]:
        """Further names in ``state_dict``, which a checkpoint may lack; none by default."""
        return set()

    @abstractmethod
    def sample(
        self, who: Mixture, prompts: Prompts, num: int, decoding: Decoding, rng: torch.Generator
    ) -> Responses:
        """Draw ``num`` independent responses a prompt, each of weight 1 / num."""

    def refuse_drawing(self, who: Mixture, decoding: Decoding) -> None:  # optional
        """Refuse a mixture of players, or a way to draw, that its engine does not have."""

    def sample_together(
        self, draws: Sequence[Draw], prompts: Prompts, rng: torch.Generator
    ) -> list[Responses] | None:
        """What ``sample`` draws, for several players in one batch; None where nothing does that."""
        return None

    def begin_sample(
        self, who: Mixture, prompts: Prompts, num: int, decoding: Decoding, rng: torch.Generator
    ) -> Callable[[], Responses]:
        """Hand over the players' weights as they are; what is returned draws from these.

        By default it is drawn at once, and what is returned hands it out.
        """
        responses = self.sample(who, prompts, num, decoding, rng)
        return lambda: responses

    @abstractmethod
    def log_prob(
        self, who: Mixture, prompts: Prompts, responses: Responses, decoding: Decoding = PLAIN
    ) -> Tensor:
        """Log-probability [B, K] of the distribution that ``sample`` draws from.

        It carries gradient to the parameters of ``policy``, and of no other player.
        """

    @torch.no_grad()
    def divergence(
        self, who: Mixture, other: Mixture, prompts: Prompts, responses: Responses
    ) -> tuple[Tensor, Tensor]:
        r"""Unbiased estimates of KL(who || other) and of the entropy of ``who``, [B, K] each.

        In nats, one of each response that the plain law of ``who`` has drawn; of all responses
        there are, the mean by their weights is exact. By default from log-probabilities alone:

        .. math:: \hat{KL} = r - 1 - \log r, \quad r = \frac{other(y)}{who(y)}, \qquad
                  \hat{H} = -\log who(y).

        The first (k3 of Schulman, 2020) is not negative, and unbiased where ``who`` gives a
        probability to all that ``other`` does.
        """
        ours, theirs = (self.log_prob(each, prompts, responses) for each in (who, other))
        log_ratio = torch.where(ours > -torch.inf, theirs - ours, 0.0)
        return torch.expm1(log_ratio) - log_ratio, torch.where(ours > -torch.inf, -ours, 0.0)

    @abstractmethod
    def enumerate(self, prompts: Prompts) -> Responses | None:
        """All responses, of equal weight, where they are few; None otherwise."""

    def copy_(self, source: str, target: str) -> None:
        """Make player ``target`` equal to ``source``, bit for bit."""
        self.lerp_(source, target, 1.0)

    @abstractmethod
    def lerp_(self, source: str, target: str, weight: float) -> None:
        """Move the parameters of ``target`` towards those of ``source``; weight 1 copies them.

        Raises:
            ValueError: the reference, which never moves, is the target.
        """

    def refuse_sharding(self, layerwise: bool) -> None:
        """Refuse to spread weights over processes, as a policy does that has only a few.

        Args:
            layerwise: gather a part of them at a time for drawing, too.

        Raises:
            UserError: what cannot be, and what to do.
        """
        raise UserError(
            f"fsdp2 spreads the weights of a language model over processes, and a "
            f"{type(self).__name__} is none: set trainer.strategy to ddp"
        )

    def shard(self, mesh: Any, layerwise: bool) -> None:
        """Spread the weights over the processes of a mesh, where that is not done yet."""
        raise NotImplementedError

    def at_rest(self) -> None:  # few policies are sharded
        """Let all weights lie where they may be read and written: sharded ones may be gathered."""

    def mean_gradients(self) -> None:  # likewise
        """Replace gradients that nobody else averages by their means over processes."""

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Those of ``policy``, by the names that they have in a snapshot."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def snapshot(self) -> dict[str, Any]:
        """A copy of the trained parameters of ``policy``."""
        return {name: p.detach().clone() for name, p in self.trained_parameters().items()}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Any]) -> None:
        """Put back what ``snapshot`` returned, bit for bit."""
        for name, parameter in self.trained_parameters().items():
            parameter.copy_(like(snapshot[name], parameter))


@torch.no_grad()
def lerp_tensors_(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], weight: float
) -> None:
    """Move tensors in place by ``weight`` towards those of the same names; 1 copies bit for bit."""
    for name, tensor in target.items():
        if weight == 1:
            tensor.copy_(source[name])
        else:
            tensor.lerp_(source[name], weight)


def mix(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""Log-probabilities [..., V] of the geometric mixture prod_i pi_i^{w_i} / Z, sum_i w_i = 1.

    Of one player alone they are exactly that player's.
    """
    if len(logits) == 1:
        return logits[0].log_softmax(-1)
    total = weights[0] * logits[0].log_softmax(-1)
    for weight, other in zip(weights[1:], logits[1:], strict=True):
        total = total + weight * other.log_softmax(-1)
    return total.log_softmax(-1)
