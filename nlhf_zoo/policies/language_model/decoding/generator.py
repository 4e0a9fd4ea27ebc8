"""`NativeGenerator`: the decoder as an engine behind the `Generator` interface."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.generation import (
    Drawn,
    Generator,
    Request,
    TransformersGenerator,
    position_ids,
)
from nlhf_zoo.policies.language_model.players import AdapterPlayers, Players

if TYPE_CHECKING:
    from nlhf_zoo.policies.language_model.decoding.graphs import Store

_ROOM = 64  # tokens of a response that a cache is made for at first
_LONG = 32  # tokens that repay a copy of the weights
_DEAD = 8  # rows are dropped when one of so many has ended


class NativeGenerator(Generator):
    """A decoder of our own: a static cache, rows that have ended dropped, adapters fused.

    A prompt is read once for all its responses. Every token of a response has a random number of
    its own in the game's stream, so that a resumed run draws the same, whatever rows stand beside.
    Where an architecture does not fit, as those with a recurrent state, ``generate`` of
    transformers draws in its place; `nlhf doctor` says so, and why.

    Args:
        check_every: tokens after which it is asked which rows have ended. Null is 1 on a CPU, where
            asking costs nothing, and 16 on a GPU, which the question makes wait.
        cuda_graph: capture the token step on a GPU, where the model lets it be captured.
    """

    def __init__(self, check_every: int | None = None, cuda_graph: bool = True) -> None:
        if check_every is not None and check_every < 1:
            raise ValueError(f"check_every must be at least 1, but it is {check_every}")
        self.check_every = check_every
        self.cuda_graph = cuda_graph
        self.fallback = TransformersGenerator()

    @override
    def refuse_sharding(self, layerwise: bool) -> None:
        if layerwise:
            raise UserError(
                "NativeGenerator holds the weights whole while it draws: set trainer.strategy to "
                "fsdp2, or model.policy.generator to TransformersGenerator"
            )

    @torch.no_grad()
    @override
    def draw(self, players: Players, request: Request) -> Drawn:
        if not request.drawing.native:
            return self.fallback.draw(players, request)
        from nlhf_zoo.policies.language_model.decoding.adapters import FusedAdapters
        from nlhf_zoo.policies.language_model.decoding.graphs import may_capture, store_of

        device, stops = request.tokens.device, request.stops
        every = self.check_every or (1 if device.type == "cpu" else 16)
        if self.cuda_graph and may_capture(players, device, stops is None or stops.on_device):
            store = store_of(players)
            if not store.refused:
                found = _captured(store, players, request, every)
                if found is not None:
                    return found
        adapters = None
        if isinstance(players, AdapterPlayers) and FusedAdapters.fit(players):
            adapters = FusedAdapters(players, request.max_new_tokens >= _LONG)
        with adapters.applied() if adapters is not None else nullcontext():
            return _Decoding(players, request, adapters, every).run()


def _captured(store: Store, players: Players, request: Request, every: int) -> Drawn | None:
    """What graphs have drawn; None where a step cannot be captured, and the stream is put back."""
    adapters = store.adapters
    state = request.rng.get_state()
    if adapters is not None:
        adapters.refresh()
    with adapters.applied() if adapters is not None else nullcontext():
        try:
            return _Decoding(players, request, adapters, every).run(store)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of a layer that asks the host, for instance
            store.refuse(error)
            request.rng.set_state(state)
            return None


class _Decoding:
    """One request: its prompts are read, then all its rows grow by a token at a time."""

    def __init__(self, players: Players, request: Request, adapters: Any, every: int) -> None:
        from nlhf_zoo.policies.language_model.decoding.calls import calls_of
        from nlhf_zoo.policies.language_model.decoding.law import NextToken
        from nlhf_zoo.policies.language_model.decoding.rows import Draw, Rows

        self.request = request
        self.every = every
        mixture = {player: weight for player, weight in request.who.items() if weight}
        names = [*mixture]
        together = [names] if request.drawing.one_call else [[name] for name in names]
        self.width = request.tokens.shape[1]
        most = self.width + request.max_new_tokens
        mask = request.mask.bool()
        self.calls = calls_of(players, adapters, together, mask, most)
        self.rows = self.all = Rows.of(request)
        ends = torch.tensor([*request.ends], dtype=torch.long, device=mask.device)
        law = NextToken([*mixture.values()], request.decoding, ends, request.min_new_tokens)
        self.draw = Draw(law, request.pad, request.stops)
        if request.stops is not None:
            request.stops.begin()

    def run(self, store: Store | None = None) -> Drawn:
        """Draw all, by graphs where there is a store for them."""
        self._first()
        if store is not None:
            from nlhf_zoo.policies.language_model.decoding.graphs import drawn_by_graphs

            most = self.request.max_new_tokens
            drawn_by_graphs(store, self.draw, self.calls, self.rows, most, self.every, self.all)
            return self._drawn()
        for number in range(1, self.request.max_new_tokens):
            if number % self.every == 0 and self._all_ended():
                break
            self._next(number)
        return self._drawn()

    def _first(self) -> None:
        """Read the prompts, and draw a first token for each row."""
        request, num = self.request, self.request.num
        positions = position_ids(request.mask)
        logits = []
        for call in self.calls:
            found = call.logits(request.tokens, positions, self.width)
            logits += [of_player.repeat_interleave(num, 0) for of_player in found]
            call.cache.place.at = self.width
        index = torch.arange(len(request.tokens), device=request.tokens.device)
        self._select(index.repeat_interleave(num), len(request.tokens))
        self.draw(self.rows, logits, self._number(0))

    def _next(self, number: int) -> None:
        at = self.width + number - 1
        positions = (self.rows.positions + (number - 1))[:, None]
        logits = []
        for call in self.calls:
            logits += call.logits(self.rows.last, positions, at + 1)
            call.cache.place.at = at + 1
        self.draw(self.rows, logits, self._number(number))

    def _number(self, number: int) -> Tensor:
        return torch.tensor([number], device=self.rows.last.device)

    def _all_ended(self) -> bool:
        """Drop rows that have ended, where there are enough of them; whether all have."""
        going = self.rows.ended.logical_not().nonzero()[:, 0]
        rows = len(self.rows.last)
        if not len(going):
            return True
        if _DEAD * (rows - len(going)) >= rows:
            self.rows.write_to(self.all)
            self.rows = self.rows.select(going)
            self._select(going, rows)
        return False

    def _select(self, index: Tensor, rows: int) -> None:
        capacity = self.calls[0].cache.place.at + _ROOM
        self.calls = [
            call.select(index, rows, min(capacity, call.cache.place.most)) for call in self.calls
        ]

    def _drawn(self) -> Drawn:
        if self.rows is not self.all:
            self.rows.write_to(self.all)
        found = self.all
        longest = int(found.length.max())
        behind = torch.arange(longest, device=found.length.device)
        mask = behind < found.length[:, None]
        return Drawn(found.tokens[:, :longest], mask, ~found.ended, found.log_prob)
