"""Log-probabilities of responses: one pass a player; rows, and the softmax, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.base import mix
from nlhf_zoo.policies.language_model.generation import position_ids, restrict, warp
from nlhf_zoo.policies.language_model.output_layer import output_layer
from nlhf_zoo.policies.language_model.players import Players
from nlhf_zoo.policies.language_model.row_chunks import Rows, chunked, in_turn
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
    _is_repeated: bool = False  # by the backward: what is computed now is for its value alone

    def __call__(
        self,
        who: Mixture,
        prompts: Prompts,
        responses: Responses,
        decoding: Decoding,
        max_tokens: int | None = None,
    ) -> Tensor:
        """Log-probability of each response [B, K], float32.

        Args:
            who: players and their weights.
            prompts: B prompts with tokens, padded on the left.
            responses: K responses a prompt.
            decoding: what the mixture's law is changed to.
            max_tokens: of prompts and responses, padding included, whose activations are held at a
                time; None, or as many as there are, holds all.

        Raises:
            UserError: all responses are listed, but the model gives others a probability too.
        """
        shared = responses.enumerated and _are_the_same(responses)
        score = self._by_prefixes if shared else self._by_responses
        log_prob = score(who, prompts, responses, decoding, max_tokens)
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
        self,
        who: Mixture,
        prompts: Prompts,
        responses: Responses,
        decoding: Decoding,
        max_tokens: int | None,
    ) -> Tensor:
        """One row for each response; chunks hold rows of like lengths."""
        assert prompts.tokens is not None
        assert prompts.mask is not None
        tokens, mask = responses.tokens.flatten(0, 1), responses.mask.flatten(0, 1)
        rows = Rows.following(prompts.tokens, prompts.mask, tokens, mask)
        score = partial(self._of_rows, who, decoding)
        chunks = [] if max_tokens is None else chunked(rows, max_tokens, self.players.most_calls)
        if not chunks:
            found = score(prompts.tokens.shape[1] - 1, *rows)
            return found.view(responses.weight.shape)
        packed = [rows.packed(numbers) for numbers in chunks]
        found = self._in_turn(who, score, [(chunk.start(), *chunk) for chunk in packed])
        order = torch.tensor([number for numbers in chunks for number in numbers])
        return found[order.argsort().to(found.device)].view(responses.weight.shape)

    def _of_rows(
        self,
        who: Mixture,
        decoding: Decoding,
        start: int,
        tokens: Tensor,
        mask: Tensor,
        scored: Tensor,
    ) -> Tensor:
        """Log-probability of the scored tokens of rows [R]: none stands before ``start`` + 1."""
        law, hidden = self.laws(who, decoding, start, *(t[:, :-1] for t in (tokens, mask, scored)))
        tokens, scored = tokens[:, start + 1 :], scored[:, start + 1 :]
        found = self._of_tokens(law, [h[scored] for h in hidden], tokens[scored])
        return _summed(found, scored)

    def _by_prefixes(
        self,
        who: Mixture,
        prompts: Prompts,
        responses: Responses,
        decoding: Decoding,
        max_tokens: int | None,
    ) -> Tensor:
        """One row for each beginning that responses share: all but their last token.

        A chunk holds all beginnings of a prompt, and of one prompt at least.
        """
        assert prompts.tokens is not None
        assert prompts.mask is not None
        tokens, mask = responses.tokens[0], responses.mask[0]
        key = torch.where(mask, tokens, -1)[:, :-1]
        key = torch.nn.functional.pad(key, (1, 0))  # `unique` wants a column
        unique, which = torch.unique(key, dim=0, return_inverse=True)
        score = partial(self._of_prompts, who, decoding, responses, unique[:, 1:], which)
        each = len(unique) * (prompts.tokens.shape[1] + tokens.shape[1] - 1)  # tokens of a prompt
        num = len(prompts) if max_tokens is None else max(1, max_tokens // each)
        number = -(-len(prompts) // num)
        number = number if max_tokens is None else self.players.most_calls(number)
        chunks = zip(*(t.tensor_split(number) for t in (prompts.tokens, prompts.mask)), strict=True)
        return self._in_turn(who, score, [*chunks])

    def _of_prompts(
        self,
        who: Mixture,
        decoding: Decoding,
        responses: Responses,
        beginnings: Tensor,
        which: Tensor,
        prompts: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Log-probability [B, K] from those of the beginnings [U, T - 1], -1 behind their ends.

        Args:
            who: players and their weights.
            decoding: what the mixture's law is changed to.
            responses: the same K for all prompts.
            beginnings: of the responses.
            which: beginning of each response [K].
            prompts: [B, S].
            mask: of the prompts.
        """
        num, start = len(prompts), prompts.shape[1] - 1
        prefix, inside = beginnings.clamp(min=0), beginnings >= 0
        rows = Rows.following(prompts, mask, prefix.repeat(num, 1), inside.repeat(num, 1))
        law, hidden = self.laws(who, decoding, start, *rows)
        tokens, scored = rows.tokens[:, start + 1 :], rows.scored[:, start + 1 :]
        found = self._of_tokens(law, [h[:, :-1][scored] for h in hidden], tokens[scored])
        path = _summed(found, scored).view(num, -1)[:, which]
        last = law(*(h[:, -1] for h in hidden)).unflatten(0, (num, -1))  # [B, U, V]
        end, ends = responses.tokens[0, :, -1], responses.mask[0, :, -1]
        ending: Tensor = last[:, which, end].masked_fill(~ends, 0.0)
        return path + ending

    def _in_turn(
        self, who: Mixture, score: Callable[..., Tensor], chunks: Sequence[tuple[Any, ...]]
    ) -> Tensor:
        trains = torch.is_grad_enabled() and bool(who.get("policy"))
        return in_turn(score, chunks, self._first_pass, trains)

    @contextmanager
    def _first_pass(self) -> Iterator[None]:
        """Around what the backward computes again."""
        self._is_repeated = True
        try:
            yield
        finally:
            self._is_repeated = False

    def _of_tokens(self, law: Distribution, hidden: Sequence[Tensor], tokens: Tensor) -> Tensor:
        return token_log_prob(law, hidden, tokens, self.softmax_chunk, self._is_repeated)

    def laws(
        self,
        who: Mixture,
        decoding: Decoding,
        start: int,
        tokens: Tensor,
        mask: Tensor,
        scored: Tensor,
    ) -> tuple[Distribution, list[Tensor]]:
        """The next-token law, and each player's hidden states [R, S - start, H] that it takes.

        Behind those it takes whether it is too early for an end [R, S - start], where that is
        asked. Of rows of tokens [R, S], from position ``start`` on.
        """
        players = [(player, weight) for player, weight in who.items() if weight]
        hidden = []
        for player, _ in players:
            with self._gradient(player):
                hidden.append(self._hidden(player, tokens, mask, start))
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
        early = scored.cumsum(1)[:, start:] < self.min_new_tokens
        return law, [*hidden, early]

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
        body = self.players.body(player)
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


def _summed(found: Tensor, scored: Tensor) -> Tensor:
    """What was found of the scored tokens of rows [R, T], summed over each row [R]."""
    per_token: Tensor = found.new_zeros(scored.shape).masked_scatter(scored, found)
    return per_token.sum(-1)


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
    distribution: Distribution,
    hidden: Sequence[Tensor],
    tokens: Tensor,
    chunk: int,
    is_repeated: bool = False,
) -> Tensor:
    """Log-probability of each token [M], float32, without ever holding [M, V].

    With gradient, the memory is that of one chunk, whatever the vocabulary and the length; a chunk
    of 0 is all tokens. Where nothing of the distribution is trained, the derivative by the hidden
    states is computed together with the value and nothing twice; else the logits of a chunk are
    computed again in the backward.

    Args:
        distribution: of the next token, from hidden states.
        hidden: of each player [M, H].
        tokens: [M].
        chunk: tokens whose distributions are held at a time.
        is_repeated: this call stands within `torch.utils.checkpoint`, and the backward makes it
            again: no derivative is computed now.
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
            found: Tensor = _WithDerivative.apply(  # type: ignore[no-untyped-call]
                of_chunk, is_repeated, now, *inputs
            )
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
    def forward(
        ctx: Any, of_chunk: Distribution, is_repeated: bool, tokens: Tensor, *hidden: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad[3:]
        needed = [h for h, w in zip(hidden, wanted, strict=True) if w]
        if is_repeated:  # a checkpoint saves none of these, but counts them
            ctx.save_for_backward(*needed)
            with torch.no_grad():
                return of_chunk(tokens, *hidden)
        # A checkpoint around this call is not to keep, or to miss, what is used up within it.
        with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
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
            for wanted in ctx.needs_input_grad[3:]
        ]
        return None, None, None, *found


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
