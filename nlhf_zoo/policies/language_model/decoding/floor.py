"""What decoding must move through the memory at least, which bounds it on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def moved_bytes(
    weights: int, per_token: int, prompts: Sequence[int], responses: Sequence[int]
) -> float:
    """Bytes that a decoder must read: the weights once a token step, each row's keys and values.

    sum_t (W + c sum_{r: T_r > t} (S_r + t)), t from 0, with rows drawn together and dropped when
    they have ended. What is written, and all that is computed, is left out.

    Args:
        weights: bytes of the weights W, which all rows share.
        per_token: bytes of the keys and values of one token, c.
        prompts: tokens of each row's prompt, S_r.
        responses: tokens of each row's response, T_r.
    """
    cached = sum(
        length * prompt + length * (length - 1) / 2
        for prompt, length in zip(prompts, responses, strict=True)
    )
    return weights * max(responses, default=0) + per_token * cached


def read_bytes(model: Any) -> tuple[int, int] | None:
    """Bytes of a model's weights, and of one token's keys and values; None where it hides them.

    All weights count, of a mixture of experts those too that a token does not come to.

    Args:
        model: a causal language model of transformers.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    width = getattr(config, "hidden_size", None)
    if not (isinstance(heads, int) and isinstance(layers, int) and isinstance(width, int)):
        return None
    kept = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or width // heads
    parameters = [*model.parameters()]
    weights = sum(parameter.nbytes for parameter in parameters)
    number = max(parameters, key=lambda parameter: parameter.numel()).element_size()
    return weights, 2 * layers * kept * size * number
