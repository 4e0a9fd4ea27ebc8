"""Drawing responses from players of a language model, and from mixtures of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.base import mix
from nlhf_zoo.policies.language_model.players import LoRA, Players
from nlhf_zoo.policies.language_model.stops import Stops
from nlhf_zoo.records import Decoding, Mixture

if TYPE_CHECKING:
    from nlhf_zoo.policies.language_model.sources import ModelSource


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a generator drew: R = B K rows, K for each prompt in turn."""

    tokens: Tensor  # [R, T]; what stands behind the end of a response is arbitrary
    mask: Tensor  # bool [R, T], True up to and with the token that ends a response
    truncated: Tensor  # bool [R], True where the limit of tokens came before an end
    log_prob: Tensor  # of the tokens, untempered and whole, as the generator computed it [R]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A way to draw; each way that a model is capable of gives the same law."""

    one_call: bool = True  # rows of all players of a mixture stand in one batch
    # How the cache of a prompt serves all responses to it; None computes one for each response.
    shared_prompt: Literal["repeated", "reordered"] | None = "repeated"
    cached: bool = True  # a step reads the new token alone, and not the whole row again
    native: bool = False  # by the decoder of our own, where the generator is that one


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be drawn."""

    who: Mixture  # formed token by token
    tokens: Tensor  # prompts, padded on the left [B, S]
    mask: Tensor  # True where these are no padding [B, S]
    num: int  # responses a prompt, K
    decoding: Decoding  # how a token is drawn from the mixture's law
    max_new_tokens: int
    ends: Sequence[int]  # tokens that end a response
    pad: int  # token behind the end of a response
    rng: torch.Generator
    drawing: Drawing = Drawing()  # as the players' model was found capable of
    min_new_tokens: int = 0  # before these, no token of `ends` is drawn
    stops: Stops | None = None  # texts that end a response, too


class Generator(ABC):
    """An engine that draws responses.

    Another engine may hold weights of its own: it must then draw from those of the players at the
    time of the call, or state their version in the responses.

    Attributes:
        mixes: whether it draws from mixtures of players.
        holds_base: whether it has a copy of the base model, and reads adapters alone.
        is_tried: whether it is tried with its policy before the first rollout, as those are that
            draw from the players' own weights.
        max_gap: largest gap of a log-probability, for each token, that is none; None is rounding.
    """

    mixes: ClassVar[bool] = True
    holds_base: ClassVar[bool] = False
    is_tried: ClassVar[bool] = False
    max_gap: float | None = None
    # Whether `begin` hands the weights over, so that what it returns may run beside training.
    draws_apart: bool = False

    @abstractmethod
    def draw(self, players: Players, request: Request) -> Drawn:
        """Draw independent responses to each prompt."""

    def begin(self, players: Players, request: Request) -> Callable[[], Drawn]:
        """Hand over what a drawing needs, in the thread that trains; what is returned draws.

        An engine that ``draws_apart`` reads no player behind this call.
        """
        return partial(self.draw, players, request)

    def refuse_sharding(self, layerwise: bool) -> None:  # noqa: B027  # optional
        """Refuse weights that are spread over processes; they are whole while it draws.

        Args:
            layerwise: they are gathered block by block instead, in all processes together.

        Raises:
            UserError: it cannot draw from these.
        """

    def draw_each(self, players: Players, requests: Sequence[Request]) -> list[Drawn]:
        """Draw what several requests ask for; an engine may do so in one batch."""
        return [self.draw(players, request) for request in requests]

    def attach(  # noqa: B027  # optional
        self, source: ModelSource, lora: LoRA | None, adapter: str | None
    ) -> None:
        """Be told whose responses are to be drawn, before anything is loaded.

        Args:
            source: of the base model.
            lora: shape of the adapters; None where all weights train.
            adapter: folder of the adapter that policy and reference start from.

        Raises:
            UserError: it cannot draw from such players.
        """

    def refuse_drawing(self, who: Mixture, decoding: Decoding) -> None:  # noqa: B027  # optional
        """Refuse a mixture of players, or a way to draw, that it does not have."""


def warp(decoding: Decoding) -> Callable[[Tensor], Tensor]:
    """Temperature, top-k, top-p and min-p on log-probabilities [R, V], as transformers has them."""
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    uniform = decoding.temperature == torch.inf
    steps: list[Any] = []
    if decoding.temperature != 1 and not uniform:
        steps.append(TemperatureLogitsWarper(float(decoding.temperature)))
    if decoding.top_k:
        steps.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        steps.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p:
        steps.append(MinPLogitsWarper(decoding.min_p))

    def apply(log_prob: Tensor) -> Tensor:
        scores = torch.zeros_like(log_prob) if uniform else log_prob
        for step in steps:
            scores = step(None, scores)
        return scores

    return apply


def restrict(log_prob: Tensor, early: Tensor, ends: Tensor) -> Tensor:
    """The law [n, V] without tokens that end a response, in rows where it is too early for them.

    Of what is left, the probabilities sum to 1 again.

    Args:
        log_prob: of the whole law.
        early: bool [n], or [1] for all rows.
        ends: tokens that end a response [E].
    """
    is_end = torch.zeros_like(log_prob[0], dtype=torch.bool).index_fill(0, ends, True)
    return log_prob.masked_fill(early[:, None] & is_end, -torch.inf).log_softmax(-1)


class TransformersGenerator(Generator):
    """``generate`` of transformers with its key-value cache, for mixtures too.

    A mixture is one batch with rows for each player, each row with its own cache, or a call for
    each player where the model cannot hold several; all rows of a response get the token that is
    drawn from the mixture. The prompt's cache is computed once for all K responses.

    Args:
        cache: "dynamic" grows with the response; "static" has its full length from the start and
            lets transformers compile the decoding on a GPU.
        share_prompt: compute the prompt's cache once for all responses to it, where the model's
            cache can be repeated.
    """

    def __init__(
        self, cache: Literal["dynamic", "static"] = "dynamic", share_prompt: bool = True
    ) -> None:
        self.cache = cache
        self.share_prompt = share_prompt

    @override
    def refuse_sharding(self, layerwise: bool) -> None:
        if self.cache == "static":
            raise UserError(
                "model.policy.generator.cache static does not go with fsdp2: set it to dynamic"
            )

    @torch.no_grad()
    def draw(self, players: Players, request: Request) -> Drawn:
        """Draw responses by transformers' `generate`, the rows of all players in one batch."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        mixture = {player: weight for player, weight in request.who.items() if weight}
        how = request.drawing
        names = list(mixture) if how.one_call else list(mixture)[:1]
        draw = _Draw(players, request, mixture)
        rows, copies = request.num, len(names)
        tokens = request.tokens.repeat_interleave(rows, 0).repeat(copies, 1)
        mask = request.mask.repeat_interleave(rows, 0).repeat(copies, 1).long()
        config = GenerationConfig(
            max_new_tokens=request.max_new_tokens,
            do_sample=False,  # the processor draws, and leaves one token to choose
            eos_token_id=list(request.ends) or None,
            pad_token_id=request.pad,
            use_cache=how.cached,
            cache_implementation="static" if self.cache == "static" and how.cached else None,
            return_dict_in_generate=False,
        )
        shared = {}
        together = players.called_together
        if together and len(mixture) > len(names) and (request.ends or request.stops):
            raise UserError(
                "fsdp2_layerwise draws from no mixture of players that are whole models, for those "
                "whose responses have ended would leave the others waiting: set trainer.strategy "
                "to fsdp2"
            )
        share = self.share_prompt and how.shared_prompt is not None and how.cached
        if share and not together and rows > 1 and self.cache == "dynamic" and tokens.shape[1] > 1:
            shared["past_key_values"] = _prefill(players, names, request)
        with players.playing(names, len(tokens) // copies) as arguments:
            out: Tensor = players.module(names[0]).generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([draw]),
                stopping_criteria=StoppingCriteriaList(
                    [lambda *_, **__: draw.ended.repeat(copies)] if request.stops else []
                ),
                synced_gpus=together,
                **arguments,
                **shared,
            )
        new = out[: len(out) // copies, tokens.shape[1] :]
        return Drawn(new, _up_to_end(new, request), ~draw.ended, draw.log_prob)


def _prefill(players: Players, names: Sequence[str], request: Request) -> Any:
    """The cache of all prompts but their last token, for each player, K times each."""
    from transformers import DynamicCache

    cache = DynamicCache(config=players.language_model(names[0]).config)
    mask = request.mask.repeat(len(names), 1).long()
    with players.playing(names, len(request.tokens)) as arguments:
        players.module(names[0])(
            input_ids=request.tokens.repeat(len(names), 1)[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=position_ids(mask)[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **arguments,
        )
    if request.drawing.shared_prompt == "repeated":
        cache.batch_repeat_interleave(request.num)
    else:  # by an index, which layers with a recurrent state know too
        rows = torch.arange(len(mask), device=mask.device)
        cache.reorder_cache(rows.repeat_interleave(request.num))  # type: ignore[arg-type]
    return cache


def position_ids(mask: Tensor) -> Tensor:
    """Positions of tokens [R, S] that do not count padding on either side."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def draw_one(probability: Tensor, rng: torch.Generator) -> Tensor:
    """One index a row [R, 1], by inversion of the distribution function of ``probability`` [R, V].

    One random number a row, where `torch.multinomial` takes one for each token of the vocabulary,
    which is a tenth of the time of decoding with a small model on a CPU. A GPU takes the latter:
    its cumulative sums are not the same in each run, and a resumed run must be. No row need sum to
    exactly 1.
    """
    if probability.device.type != "cpu":
        # Of NaN it would raise on the device: a uniform draw lets the game say that it diverged.
        finite = probability.isfinite().all(-1, keepdim=True)
        safe = torch.where(finite, probability, torch.ones_like(probability))
        return torch.multinomial(safe, 1, generator=rng)
    below = probability.cumsum(-1, dtype=torch.float64)  # in float32, rare tokens would be lost
    total = below[:, -1:]
    at = torch.rand(total.shape, dtype=torch.float64, device=total.device, generator=rng) * total
    # The first index whose sum exceeds `at` has a probability above 0; at the total there is none.
    at = at.minimum(total.nextafter(torch.zeros_like(total)))
    # NaN has no index: the last one lets the game say that training diverged.
    return torch.searchsorted(below, at, right=True).clamp(max=probability.shape[1] - 1)


def _up_to_end(tokens: Tensor, request: Request) -> Tensor:
    """True up to and with the first token that ends a response [R, T]."""
    ends = torch.tensor([*request.ends], dtype=torch.long, device=tokens.device)
    is_end = torch.isin(tokens, ends)
    if request.stops is not None:
        is_end |= request.stops.ended(tokens)
    return is_end.long().cumsum(-1) - is_end.long() == 0


class _Companion:
    """Another player's logits beside the one that `generate` drives, with a cache of its own."""

    def __init__(self, players: Players, player: str, mask: Tensor, cached: bool) -> None:
        from transformers import DynamicCache

        self.players = players
        self.player = player
        self.mask = mask.long()
        config = players.language_model(player).config
        self.cache = DynamicCache(config=config) if cached else None
        self.seen = 0  # tokens in the cache, counted here: not every cache counts them

    def logits(self, tokens: Tensor) -> Tensor:
        """Of the next token [R, V], from all tokens so far [R, S + t]."""
        grown = tokens.shape[1] - self.mask.shape[1]
        self.mask = torch.nn.functional.pad(self.mask, (0, grown), value=1)
        with self.players.playing([self.player], len(tokens)):
            output = self.players.module(self.player)(
                input_ids=tokens[:, self.seen :],
                attention_mask=self.mask,
                position_ids=position_ids(self.mask)[:, self.seen :],
                past_key_values=self.cache,
                use_cache=self.cache is not None,
                logits_to_keep=1,
            )
        if self.cache is not None:
            self.seen = tokens.shape[1]
        logits: Tensor = output.logits[:, -1].float()
        return logits


class _Draw:
    """A logits processor that draws the next token of a mixture, and leaves no other to choose."""

    def __init__(self, players: Players, request: Request, mixture: Mixture) -> None:
        self.rng = request.rng
        self.weights = [*mixture.values()]
        self.warped = None if request.decoding.is_plain else warp(request.decoding)
        mask = request.mask.repeat_interleave(request.num, 0)
        how, others = request.drawing, [*mixture][1:]
        apart = [] if how.one_call else others
        self.companions = [_Companion(players, player, mask, how.cached) for player in apart]
        self.ends = torch.tensor([*request.ends], dtype=torch.long, device=mask.device)
        self.min_new_tokens = request.min_new_tokens
        self.stops = request.stops
        if self.stops is not None:
            self.stops.begin()
        self.log_prob = torch.zeros(len(mask), device=mask.device)
        self.ended = torch.zeros_like(self.log_prob, dtype=torch.bool)
        self.state = torch.zeros_like(self.ended, dtype=torch.long)
        self.drawn = 0  # tokens of each response

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = len(self.ended)
        laws = [*scores.split(rows), *(c.logits(input_ids) for c in self.companions)]
        log_prob = mix(laws, self.weights)
        if self.drawn < self.min_new_tokens:
            log_prob = restrict(log_prob, torch.ones_like(self.ended), self.ends)
        law = log_prob.exp() if self.warped is None else self.warped(log_prob).softmax(-1)
        token = draw_one(law, self.rng)
        self.log_prob += log_prob.gather(1, token)[:, 0].masked_fill(self.ended, 0.0)
        self.ended |= torch.isin(token[:, 0], self.ends)
        if self.stops is not None:
            self.state = self.stops.after(self.state, token[:, 0])
            self.ended |= self.state == self.stops.found
        self.drawn += 1
        # In place: `generate` hands over a copy, and takes the largest.
        return scores.scatter_(1, token.repeat(len(scores) // rows, 1), torch.inf)
