"""Token steps whose tensors stay where they are, so that a CUDA graph can repeat them.

On a GPU most of a token step is the launching of kernels; a graph launches all of them at once. It
repeats what was captured on the same addresses: rows, caches and adapters lie in buffers that are
filled anew for each rollout, and sizes are few. A batch has R, R/2, R/4, ... rows, and the
attention reads a multiple of 256 tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.errors import cause
from nlhf_zoo.policies.language_model.decoding.adapters import FusedAdapters
from nlhf_zoo.policies.language_model.decoding.calls import Call
from nlhf_zoo.policies.language_model.decoding.rows import Draw, Rows
from nlhf_zoo.policies.language_model.players import AdapterPlayers, Players

_WINDOW = 256  # tokens by which the attention of a captured step grows
_FEWEST = 8  # rows of the smallest batch
_KEPT = 16  # batches of other sizes or laws whose buffers are kept


def may_capture(players: Players, request_on: torch.device, on_device: bool) -> bool:
    """Whether a token step asks the host for nothing, and its tensors stay where they are on a GPU.

    Weights that are gathered for a rollout lie elsewhere in the next one.
    """
    if players.sharding is not None:
        return False
    fit = not isinstance(players, AdapterPlayers) or FusedAdapters.fit(players)
    return request_on.type == "cuda" and on_device and fit


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """Capture what is done in a CUDA graph, and return its repetition."""
    current = torch.cuda.current_stream()
    aside = torch.cuda.Stream()
    aside.wait_stream(current)
    with torch.cuda.stream(aside):  # libraries make their workspaces at the first calls
        for _ in range(2):
            work()
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


class StaticBatch:
    """n rows and the caches of their calls in buffers that stay, and the step that draws a token.

    Args:
        calls: whose buffers these are.
        rows: as many as there are in the batch; they are copied.
        draw: what draws from logits.
    """

    def __init__(self, calls: list[Call], rows: Rows, draw: Draw) -> None:
        self.draw = draw
        self.rows = rows.select(torch.arange(len(rows.index), device=rows.index.device))
        self.calls = calls
        self.capacity = calls[0].cache.place.capacity
        self.number = torch.zeros(1, dtype=torch.long, device=rows.index.device)
        self.position = torch.zeros_like(self.number)
        for call in self.calls:
            call.cache.place.position = self.position
        self._steps: dict[int, Callable[[], None]] = {}

    def load(self, calls: list[Call], rows: Rows, index: Tensor, number: int) -> None:
        """Take over some rows, of which ``number`` tokens are drawn."""
        filled = _filled(index, len(self.rows.index))
        for field in fields(rows):
            mine, theirs = getattr(self.rows, field.name), getattr(rows, field.name)
            mine.copy_(theirs.index_select(0, filled))
        self.rows.index[len(index) :] = -1
        self.rows.ended[len(index) :] = True
        for mine, theirs in zip(self.calls, calls, strict=True):
            mine.load(theirs, filled, len(rows.index))
        self.number.fill_(number)
        self.position.fill_(calls[0].cache.place.at)

    def advance(self, tokens: int) -> None:
        """Draw so many tokens more."""
        at = self.calls[0].cache.place.at
        window = min(self.capacity, -(-(at + tokens) // _WINDOW) * _WINDOW)
        if window not in self._steps:
            self._steps[window] = self._captured(window)
        for _ in range(tokens):
            self._steps[window]()
            self.number.add_(1)  # not in the step: its capture may repeat it
            self.position.add_(1)
        for call in self.calls:
            call.cache.place.at = at + tokens

    def _captured(self, window: int) -> Callable[[], None]:
        """The step for this window; what its capture does to rows and masks is undone."""
        before = [t.clone() for t in self._state()]
        for call in self.calls:
            call.cache.place.window = window
        step = capture(lambda: self._step(window))
        for tensor, value in zip(self._state(), before, strict=True):
            tensor.copy_(value)
        return step

    def _state(self) -> list[Tensor]:
        """Tensors that a step changes, but for the next place in the caches."""
        of_rows = [getattr(self.rows, field.name) for field in fields(self.rows)]
        return [*of_rows, *(call.mask for call in self.calls)]

    def _step(self, window: int) -> None:
        positions = (self.rows.positions + self.number - 1)[:, None]
        logits = []
        for call in self.calls:
            call.mask.index_fill_(1, self.position, 1)
            call.cache.place.window = window
            logits += call.logits(self.rows.last, positions, window)
        self.draw(self.rows, logits, self.number)


def _filled(index: Tensor, num: int) -> Tensor:
    """An index of ``num`` rows: its own, and the first of them again."""
    return torch.cat([index, index[:1].expand(num - len(index))])


class Store:
    """The batches of a model's players, kept from one rollout to the next.

    Args:
        players: of the model.
    """

    def __init__(self, players: Players) -> None:
        fit = isinstance(players, AdapterPlayers) and FusedAdapters.fit(players)
        self.adapters = FusedAdapters(players, transposed=False) if fit else None  # type: ignore[arg-type]
        self.batches: dict[Hashable, StaticBatch] = {}
        self.refused = ""  # what was raised by a capture

    def batch(self, key: Hashable, make: Callable[[], StaticBatch]) -> StaticBatch:
        """The batch of this kind; the one that was used last is kept longest."""
        found = self.batches.pop(key, None) or make()
        self.batches[key] = found
        while len(self.batches) > _KEPT:
            self.batches.pop(next(iter(self.batches)))
        return found

    def refuse(self, error: Exception) -> None:
        """Capture nothing any more, and say why."""
        self.refused = cause(error)
        self.batches.clear()
        print(
            f"nlhf: a token step is not captured in a CUDA graph: {self.refused}", file=sys.stderr
        )


def store_of(players: Players) -> Store:
    """What is kept for these players, as long as they are there."""
    if players.kept is None:
        players.kept = Store(players)
    kept: Store = players.kept
    return kept


def sizes(rows: int) -> list[int]:
    """Rows of the batches that R rows are drawn in, from the first on: R, R/2, R/4, ..."""
    found = [rows]
    while found[-1] > _FEWEST:
        found.append(-(-found[-1] // 2))
    return found


def key_of(draw: Draw, calls: list[Call], rows: Rows, capacity: int, num: int) -> Hashable:
    """What a batch is captured for: its sizes, its players and its law."""
    law = draw.law
    return (
        num,
        capacity,
        rows.tokens.shape[1],
        tuple(call.names for call in calls),
        tuple(law.weights),
        law.decoding,
        tuple(law.ends.tolist()),
        law.min_new_tokens,
        draw.pad,
        id(draw.stops),
    )


def drawn_by_graphs(
    store: Store, draw: Draw, calls: list[Call], rows: Rows, most: int, every: int, to: Any
) -> None:
    """Draw all further tokens of rows that have one, and write them where they belong.

    Args:
        store: what is kept for the players.
        draw: what draws from logits.
        calls: that have read the prompts, of all rows.
        rows: all of them.
        most: tokens of the longest response.
        every: tokens after which the host asks which rows have ended.
        to: the rows that are asked for: at first those themselves.
    """
    capacity = -(-calls[0].cache.place.most // _WINDOW) * _WINDOW
    left = sizes(len(rows.index))

    key = partial(key_of, draw, calls, rows, capacity)
    largest = store.batch(
        key(left[0]), lambda: StaticBatch(_copied(calls, left[0], capacity), to, draw)
    )

    def batch_of(num: int) -> StaticBatch:
        """The batch of ``num`` rows, which lies in the buffers of the largest."""
        if num == left[0]:
            return largest
        few = torch.arange(num, device=to.index.device)
        own = [call.first(num) for call in largest.calls]
        return store.batch(key(num), lambda: StaticBatch(own, to.select(few), draw))

    batch: StaticBatch | None = None
    number = 1
    while number < most:
        going = rows.ended.logical_not().nonzero()[:, 0]
        if not len(going):
            break
        smaller = [num for num in left if num >= len(going)][-1]
        if batch is None or smaller < len(rows.index):
            rows.write_to(to)
            batch = batch_of(smaller)
            batch.load(calls, rows, going, number)
            calls, rows = batch.calls, batch.rows
        tokens = min(every, most - number)
        batch.advance(tokens)
        number += tokens
    rows.write_to(to)


def _copied(calls: list[Call], rows: int, capacity: int) -> list[Call]:
    """The calls in buffers that are as long as any response may become."""
    index = torch.arange(rows, device=calls[0].mask.device)
    return [call.select(index, rows, capacity) for call in calls]
