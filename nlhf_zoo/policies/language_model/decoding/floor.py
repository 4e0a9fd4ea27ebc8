"""What decoding must move through the memory at least, which bounds it on a GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.policies.language_model.generation import Drawn, Generator, Request
from nlhf_zoo.policies.language_model.players import Players


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


def share_of_perfect(moved: float, bandwidth: float, seconds: float) -> float:
    """What a decoder that is bound by the memory alone would take, of the time that was taken.

    Args:
        moved: bytes that must be read.
        bandwidth: bytes a second of the memory.
        seconds: that were taken.
    """
    return moved / bandwidth / seconds


def copy_bandwidth(device: torch.device, nbytes: int = 2**28) -> float:
    """Bytes a second that a large copy on a GPU reads and writes: the best of five."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * nbytes / min(seconds)


class WatchedDraws:
    """Takes down how much each draw of an engine must move, until it is told to stop.

    Args:
        generator: the engine; its `draw` is another one meanwhile.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._drawn: list[tuple[Tensor, Tensor, int]] = []
        plain = generator.draw

        def draw(players: Players, request: Request) -> Drawn:
            drawn = plain(players, request)
            number = sum(1 for weight in request.who.values() if weight)
            self._drawn.append((request.mask, drawn.mask, number))
            return drawn

        vars(generator)["draw"] = draw

    def stop(self) -> None:
        """Let the engine draw unwatched again."""
        vars(self._generator).pop("draw", None)

    @property
    def tokens(self) -> int:
        """Tokens of all responses."""
        return sum(int(responses.sum()) for _, responses, _ in self._drawn)

    def moved(self, weights: int, per_token: int) -> float:
        """Bytes that all draws must read, as `moved_bytes` has them.

        A mixture's players share the weights, and each has keys and values of its own.
        """
        total = 0.0
        for prompts, responses, players in self._drawn:
            num = len(responses) // len(prompts)
            of_prompt = prompts.sum(-1).repeat_interleave(num).tolist()
            of_response = responses.sum(-1).tolist()
            total += moved_bytes(weights, per_token, of_prompt * players, of_response * players)
        return total
