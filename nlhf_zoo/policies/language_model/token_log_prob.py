"""Log-probabilities of tokens from hidden states, the vocabulary's softmax in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

# Hidden states of each player [M, H] -> log-probabilities of the next token [M, V].
Distribution = Callable[..., Tensor]


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
