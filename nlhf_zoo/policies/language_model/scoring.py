"""Log-probabilities of responses: one pass a player, the vocabulary's softmax in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.base import mix
from nlhf_zoo.policies.language_model.generation import position_ids, restrict, warp
from nlhf_zoo.policies.language_model.output_layer import output_layer
from nlhf_zoo.policies.language_model.players import Players
from nlhf_zoo.records import Decoding, Mixture, Prompts, Responses

# Hidden states of each player [M, H] -> log-probabilities of the next token [M, V].
Distribution = Callable[..., Tensor]


@dataclass
class Scorer:
    """Scores responses as the tokens that were drawn, under a mixture formed token by token."""

    players: Players
    softmax_chunk: int  # tokens whose logits over the vocabulary are held at a time; 0 holds all
    compiled: bool  # the model's body
    trained_mode: bool  # where gradient is wanted: dropout and gradient checkpointing need it
    ends: Sequence[int] = ()  # tokens that end a response
    min_new_tokens: int = 0  # before these, none of them is drawn
    _bodies: dict[int, Callable[..., Any]] = field(default_factory=dict)

    def __call__(
        self, who: Mixture, prompts: Prompts, responses: Responses, decoding: Decoding
    ) -> Tensor:
        """Log-probability of each response [B, K], float32.

        Raises:
            UserError: all responses are listed, but the model gives others a probability too.
        """
        shared = responses.enumerated and _are_the_same(responses)
        score = self._by_prefixes if shared else self._by_responses
        log_prob = score(who, prompts, responses, decoding)
        if responses.enumerated:
            _refuse_part_of_the_responses(log_prob)
        return log_prob

    @contextmanager
    def _gradient(self, player: str) -> Iterator[None]:
        """Gradient for the policy alone, in training mode where checkpointing or dropout needs it.

        A checkpoint of another player would be computed again in the backward, when the policy's
        adapter is back in its place.
        """
        wanted = player == "policy" and torch.is_grad_enabled()
        trains = wanted and self.trained_mode
        if trains:
            self.players.module("policy").train()
        try:
            with torch.set_grad_enabled(wanted):
                yield
        finally:
            if trains:
                self.players.eval()

    def _by_responses(
        self, who: Mixture, prompts: Prompts, responses: Responses, decoding: Decoding
    ) -> Tensor:
        """One row for each response."""
        tokens, mask = responses.tokens.flatten(0, 1), responses.mask.flatten(0, 1)
        law, hidden = self._laws(who, prompts, tokens[:, :-1], mask[:, :-1], decoding)
        found = token_log_prob(law, [h[mask] for h in hidden], tokens[mask], self.softmax_chunk)
        per_token: Tensor = found.new_zeros(mask.shape).masked_scatter(mask, found)
        return per_token.sum(-1).view(responses.weight.shape)

    def _by_prefixes(
        self, who: Mixture, prompts: Prompts, responses: Responses, decoding: Decoding
    ) -> Tensor:
        """One row for each beginning that responses share: all but their last token."""
        tokens, mask = responses.tokens[0], responses.mask[0]
        key = torch.where(mask, tokens, -1)[:, :-1]
        key = torch.nn.functional.pad(key, (1, 0))  # `unique` wants a column
        unique, which = torch.unique(key, dim=0, return_inverse=True)
        prefix, prefix_mask = unique[:, 1:].clamp(min=0), unique[:, 1:] >= 0
        num = len(prompts)
        prefixes, inside = prefix.repeat(num, 1), prefix_mask.repeat(num, 1)
        law, hidden = self._laws(who, prompts, prefixes, inside, decoding)
        before = [h[:, :-1][inside] for h in hidden]
        found = token_log_prob(law, before, prefixes[inside], self.softmax_chunk)
        path: Tensor = found.new_zeros(inside.shape).masked_scatter(inside, found).sum(-1)
        last = law(*(h[:, -1] for h in hidden)).unflatten(0, (num, -1))  # [B, U, V]
        ending: Tensor = last[:, which, tokens[:, -1]].masked_fill(~mask[:, -1], 0.0)
        return path.view(num, -1)[:, which] + ending

    def _laws(
        self, who: Mixture, prompts: Prompts, tokens: Tensor, mask: Tensor, decoding: Decoding
    ) -> tuple[Callable[..., Tensor], list[Tensor]]:
        """The next-token law, and each player's hidden states [R, T + 1, H] that it takes.

        Behind those it takes whether it is too early for an end [R, T + 1], where that is asked.

        ``tokens`` and ``mask`` [R, T] follow the prompts; R is a multiple of B, prompt by prompt.
        """
        assert prompts.tokens is not None
        assert prompts.mask is not None
        each = len(tokens) // len(prompts)
        whole = torch.cat([prompts.tokens.repeat_interleave(each, 0), tokens], 1)
        whole_mask = torch.cat([prompts.mask.repeat_interleave(each, 0), mask], 1)
        start = prompts.tokens.shape[1] - 1
        players = [(player, weight) for player, weight in who.items() if weight]
        hidden = []
        for player, _ in players:
            with self._gradient(player):
                hidden.append(self._hidden(player, whole, whole_mask, start))
        heads = [self._head(player) for player, _ in players]
        weights = [weight for _, weight in players]
        warped = warp(decoding)
        ends = torch.tensor([*self.ends], dtype=torch.long, device=tokens.device)

        def law(*hidden: Tensor) -> Tensor:
            logits = [head(h) for head, h in zip(heads, hidden, strict=False)]
            log_prob = mix(logits, weights)
            if len(hidden) > len(heads):
                log_prob = restrict(log_prob, hidden[-1], ends)
            return log_prob if decoding.is_plain else warped(log_prob).log_softmax(-1)

        if not self.min_new_tokens:
            return law, hidden
        early = torch.arange(tokens.shape[1] + 1, device=tokens.device) < self.min_new_tokens
        return law, [*hidden, early.expand(len(tokens), -1)]

    def _hidden(self, player: str, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        """Hidden states that the output layer takes, from position ``start`` on; or logits."""
        inputs = _inputs(tokens, mask)
        with self.players.playing([player], len(tokens)):
            if self.softmax_chunk:
                hidden: Tensor = self._body(player)(**inputs).last_hidden_state[:, start:]
            else:
                model, kept = self.players.module(player), tokens.shape[1] - start
                # Not every model heeds what it is to keep.
                hidden = model(**inputs, logits_to_keep=kept).logits[:, -kept:]
        return hidden

    def _body(self, player: str) -> Callable[..., Any]:
        """The model without its output layer; compiled for scoring alone."""
        body: nn.Module = self.players.language_model(player).base_model
        if not self.compiled:
            return body
        return self._bodies.setdefault(id(body), torch.compile(body, dynamic=True))

    def _head(self, player: str) -> Callable[[Tensor], Tensor]:
        """Logits in float32 from hidden states."""
        if not self.softmax_chunk:
            return Tensor.float
        return output_layer(self.players.language_model(player))

    @torch.no_grad()
    def gap_of_output_layer(self, player: str, tokens: Tensor, mask: Tensor) -> float:
        """Largest gap between the output layer's and the model's own log-probabilities.

        Of the last token of rows [R, S]; more than rounding says that the model makes its logits
        in another way, and that ``softmax_chunk`` must be 0.
        """
        inputs = {**_inputs(tokens, mask), "logits_to_keep": 1}
        with self.players.playing([player], len(tokens)):
            theirs: Tensor = self.players.module(player)(**inputs).logits[:, -1].float()
        ours = self._head(player)(self._hidden(player, tokens, mask, -1))[:, -1]
        return float((ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max())


def _inputs(tokens: Tensor, mask: Tensor) -> dict[str, Any]:
    """What a model is called with to score rows [R, S]."""
    return {
        "input_ids": tokens,
        "attention_mask": mask.long(),
        "position_ids": position_ids(mask),
        "use_cache": False,
    }


def _are_the_same(responses: Responses) -> bool:
    """Whether all prompts have the same responses."""
    return all(bool((t == t[:1]).all()) for t in (responses.tokens, responses.mask))


def _refuse_part_of_the_responses(log_prob: Tensor) -> None:
    """Figures over listed responses are exact only if there are no others."""
    total = log_prob.detach().exp().sum(-1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-3):
        raise UserError(
            "the responses that the oracle lists have a probability of "
            f"{float(total.min()):.3g} only under this language model, so nothing exact can be "
            "said of them: choose the rollout Sample, and leave ExactMetrics out"
        )


def token_log_prob(
    distribution: Distribution, hidden: Sequence[Tensor], tokens: Tensor, chunk: int
) -> Tensor:
    """Log-probability of each token [M], float32, without ever holding [M, V].

    With gradient, the memory is that of one chunk, whatever the vocabulary and the length; a chunk
    of 0 is all tokens. Where nothing of the distribution is trained, the derivative by the hidden
    states is computed together with the value and nothing twice; else the logits of a chunk are
    computed again in the backward.
    """

    def of_chunk(tokens: Tensor, *hidden: Tensor) -> Tensor:
        return distribution(*hidden).gather(-1, tokens[:, None])[:, 0]

    if not len(tokens):
        return hidden[0].new_zeros(0, dtype=torch.float32)
    chunk = chunk or len(tokens)
    in_parts = torch.is_grad_enabled() and len(tokens) > chunk
    trained = in_parts and distribution(*(h[:1].detach() for h in hidden)).requires_grad
    parts = []
    for begin in range(0, len(tokens), chunk):
        inputs = [h[begin : begin + chunk] for h in hidden]
        now = tokens[begin : begin + chunk]
        if trained:
            parts.append(checkpoint(of_chunk, now, *inputs, use_reentrant=False))
        elif in_parts:
            found: Tensor = _WithDerivative.apply(of_chunk, now, *inputs)  # type: ignore[no-untyped-call]
            parts.append(found)
        else:
            parts.append(of_chunk(now, *inputs))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _WithDerivative(torch.autograd.Function):
    """Log-probabilities with their derivative by the hidden states, computed at once.

    The log-probability of a token depends on its own hidden state h_m alone, so with g_m the
    derivative of the loss by it, the backward is g_m d log p_m / d h_m.
    """

    @staticmethod
    @override
    def forward(ctx: Any, of_chunk: Distribution, tokens: Tensor, *hidden: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            inputs = [h.detach().requires_grad_(w) for h, w in zip(hidden, wanted, strict=True)]
            log_prob: Tensor = of_chunk(tokens, *inputs)
            needed = [h for h in inputs if h.requires_grad]
            derivatives = torch.autograd.grad(log_prob.sum(), needed) if needed else ()
        ctx.save_for_backward(*derivatives)
        return log_prob.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """g_m d log p_m / d h_m, with the derivatives that were kept."""
        saved = iter(ctx.saved_tensors)
        found = [
            (gradient[:, None] * (d := next(saved))).to(d.dtype) if wanted else None
            for wanted in ctx.needs_input_grad[2:]
        ]
        return None, None, *found
