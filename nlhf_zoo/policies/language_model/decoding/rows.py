"""The rows that are being drawn: what is kept of each, and what a new token does to it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from nlhf_zoo.policies.language_model.decoding.law import NextToken, invert
from nlhf_zoo.policies.language_model.generation import Request
from nlhf_zoo.policies.language_model.stops import Stops


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows that are drawn together; all tensors are changed in place."""

    index: Tensor  # of the row among all that are asked for; -1 of one that fills a batch [n]
    positions: Tensor  # of the first new token [n]
    uniform: Tensor  # the random number of each token, float64 [n, T]
    tokens: Tensor  # that were drawn; padding behind the end [n, T]
    length: Tensor  # tokens of the response, its end among them [n]
    last: Tensor  # the token that was drawn last [n, 1]
    ended: Tensor  # bool [n]
    log_prob: Tensor  # of the response so far, float32 [n]
    state: Tensor  # of the search for stop strings [n]

    @staticmethod
    def of(request: Request) -> Rows:
        """Rows of which nothing is drawn: K for each prompt in turn.

        The game's stream gives all numbers at once, so that neither which rows are still drawn nor
        when the host is asked changes what a row gets, and it goes on from the same place.
        """
        device, most = request.tokens.device, request.max_new_tokens
        num = len(request.tokens) * request.num
        rng = request.rng
        shape = most, num
        uniform = torch.rand(shape, dtype=torch.float64, generator=rng, device=rng.device)
        return Rows(
            index=torch.arange(num, device=device),
            positions=request.mask.sum(-1).repeat_interleave(request.num, 0),
            uniform=uniform.T.contiguous().to(device),
            tokens=torch.full((num, most), request.pad, device=device),
            length=torch.zeros(num, dtype=torch.long, device=device),
            last=torch.full((num, 1), request.pad, device=device),
            ended=torch.zeros(num, dtype=torch.bool, device=device),
            log_prob=torch.zeros(num, device=device),
            state=torch.zeros(num, dtype=torch.long, device=device),
        )

    def select(self, index: Tensor) -> Rows:
        """Some of the rows, in tensors of their own."""
        kept = {f.name: getattr(self, f.name).index_select(0, index) for f in fields(self)}
        return replace(self, **kept)

    def write_to(self, all_rows: Rows) -> None:
        """Put what was drawn into the rows that were asked for."""
        here = self.index >= 0
        where = self.index[here]
        for name in ("tokens", "length", "ended", "log_prob"):
            getattr(all_rows, name)[where] = getattr(self, name)[here]


@dataclass(frozen=True, slots=True)
class Draw:
    """Draws the next token of each row from logits, and sees which responses end with it."""

    law: NextToken
    pad: int
    stops: Stops | None

    def __call__(self, rows: Rows, logits: list[Tensor], number: Tensor) -> None:
        """Draw token ``number`` [1] of all rows, but of those that have ended."""
        log_prob, probability = self.law(logits, number)
        uniform = rows.uniform.index_select(1, number)[:, 0]
        token = invert(probability, uniform)
        gained = log_prob.gather(1, token[:, None])[:, 0]
        token.masked_fill_(rows.ended, self.pad)
        rows.log_prob.add_(gained.masked_fill_(rows.ended, 0.0))
        rows.tokens.index_copy_(1, number, token[:, None])
        rows.length.add_(~rows.ended)
        rows.last.copy_(token[:, None])
        if len(self.law.ends):
            is_end = (token[:, None] == self.law.ends).any(-1)
        else:
            is_end = torch.zeros_like(rows.ended)
        if self.stops is not None:
            rows.state.copy_(self.stops.after(rows.state, token))
            is_end |= rows.state == self.stops.found
        rows.ended.logical_or_(is_end)
