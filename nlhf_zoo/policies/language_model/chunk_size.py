"""How many tokens a chunk of rows holds, given or found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.scoring import Scorer
from nlhf_zoo.records import PLAIN, Prompts, Responses

# A processor is no faster with more of them, and a GPU's memory is not measured by fewer.
WITHOUT_MEASURE = 2048
_TO_COME = 3  # numbers for each trained one: gradient, two moments of an optimiser
_SHARE = 0.5  # of what is free then; the rest is for what no row of this batch needs


class ChunkSize(nn.Module):
    """Tokens whose activations are held at a time.

    A number, or None for all. "auto" is 2048; on a GPU it is measured by the first trained batch
    that has more, but of sharded weights. What was measured is kept in checkpoints, and a resumed
    run takes it. Where buffers are the first process's, as with DDP, all processes take that one's
    after one step.

    Args:
        max_tokens: of prompts and responses, padding included.

    Raises:
        UserError: it is below 1, or another word than "auto".
    """

    measured: Tensor  # 0 before it is

    def __init__(self, max_tokens: int | str | None) -> None:
        super().__init__()
        is_number = isinstance(max_tokens, int) and not isinstance(max_tokens, bool)
        if not (max_tokens in (None, "auto") or (is_number and int(max_tokens) >= 1)):
            raise UserError(
                'model.policy.max_tokens_per_chunk is null, "auto" or a number of tokens from 1 '
                f"on, but it is {max_tokens!r}"
            )
        self.max_tokens = max_tokens
        if max_tokens == "auto":
            self.register_buffer("measured", torch.zeros((), dtype=torch.long))

    @override
    def forward(
        self,
        score: Scorer,
        trained: Callable[[], Mapping[str, nn.Parameter]] | None,
        prompts: Prompts,
        responses: Responses,
    ) -> int | None:
        """Tokens of a chunk of this batch; None holds all.

        Args:
            score: as the policy scores.
            trained: the parameters by which gradient is wanted; None where none is.
            prompts: B prompts with tokens.
            responses: K a prompt.
        """
        if not isinstance(self.max_tokens, str):
            return self.max_tokens
        tokens = responses.weight.numel() * _width(prompts, responses)
        measurable = can_be_measured(responses.tokens.device) and not responses.enumerated
        measurable &= score.players.sharding is None  # else all must measure, and call, alike
        if trained and measurable and not self.measured and tokens > WITHOUT_MEASURE:
            parameters = [*trained().values()]
            self.measured.fill_(_measured(score, parameters, prompts, responses))
        return int(self.measured) or WITHOUT_MEASURE


def _measured(
    score: Scorer, trained: list[nn.Parameter], prompts: Prompts, responses: Responses
) -> int:
    """Tokens of a chunk whose forward and backward fit into half of the free memory of a GPU.

    With m(n) the bytes that n times the row with the most tokens needs at most, w tokens wide, and
    M those that are free but for gradient and moments of the optimiser,

        tokens = w (1 + (M / 2 - m(1)) / (m(2) - m(1))),

    one row at least, rounded down to a power of two, so that small differences change nothing.
    """
    device, width = responses.tokens.device, _width(prompts, responses)
    prompt, which = divmod(int(responses.mask.sum(-1).argmax()), responses.num)

    def backward(num: int) -> None:
        tokens, mask = (t[[prompt]][:, [which] * num] for t in (responses.tokens, responses.mask))
        rows = Responses(tokens, mask, torch.ones(1, num, device=device))
        log_prob = score({"policy": 1.0}, prompts.take([prompt]), rows, PLAIN)
        torch.autograd.grad(log_prob.sum(), trained, allow_unused=True)

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        backward(1)  # what libraries keep from their first call on is no row's
        one_row, two_rows = (raised(device, backward, num) for num in (1, 2))
    left = free(device) - _TO_COME * sum(parameter.nbytes for parameter in trained)
    more = (_SHARE * left - one_row) / max(two_rows - one_row, 1)
    return 1 << (max(int(width * (1 + more)), width).bit_length() - 1)


def _width(prompts: Prompts, responses: Responses) -> int:
    assert prompts.tokens is not None
    return prompts.tokens.shape[1] + responses.tokens.shape[2]


def can_be_measured(device: torch.device) -> bool:
    """Whether torch says of a device what is used and free."""
    return device.type == "cuda"


def raised(device: torch.device, work: Callable[[int], None], num: int) -> int:
    """By how much work on some rows raises the bytes that torch uses on a GPU, at most."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work(num)
    return torch.cuda.max_memory_allocated(device) - before


def free(device: torch.device) -> int:
    """Bytes that are free on a GPU, with what torch holds there without using it."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
