"""The key-value cache of the decoder: buffers that are written in place, rows that can go."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_GROWTH = 1.5  # of a buffer that is full


class Place:
    """Where in the cache a call writes, shared by its layers.

    Attributes:
        at: tokens in the cache before the call.
        window: tokens that a call reads where its shapes must stay the same; None reads those that
            there are.
        position: ``at`` on the device [1]; used with a window.
        capacity: tokens that buffers are made for.
        most: tokens that there can be at all.
    """

    def __init__(self, capacity: int, most: int) -> None:
        self.at = 0
        self.window: int | None = None
        self.position: Tensor | None = None
        self.capacity = capacity
        self.most = most


class BufferLayer(CacheLayerMixin):
    """Keys and values of one layer [rows, heads, capacity, size]."""

    is_sliding = False

    def __init__(self, place: Place) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place = place
        self.keys: Any
        self.values: Any

    @property
    def is_compileable(self) -> bool:  # type: ignore[override]
        """Whether shapes stay the same: transformers then makes masks without asking the host."""
        return self.place.window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers."""
        self.keys = _buffer(key_states, len(key_states), self.place.capacity)
        self.values = _buffer(value_states, len(value_states), self.place.capacity)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write what is new, and return all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.place
        if place.window is not None:
            assert place.position is not None
            self.keys.index_copy_(2, place.position, key_states)
            self.values.index_copy_(2, place.position, value_states)
            return self.keys[:, :, : place.window], self.values[:, :, : place.window]
        end = place.at + key_states.shape[2]
        if end > self.keys.shape[2]:
            self._grow(end)
        self.keys[:, :, place.at : end] = key_states
        self.values[:, :, place.at : end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, end: int) -> None:
        place = self.place
        place.capacity = max(end, place.capacity, min(place.most, int(_GROWTH * end)))
        self.keys = moved(self.keys, None, place.at, place.capacity)
        self.values = moved(self.values, None, place.at, place.capacity)

    def select(self, index: Tensor, place: Place) -> BufferLayer:
        """A layer of these rows, with buffers of its own."""
        layer = BufferLayer(place)
        if self.is_initialized:
            layer.keys = moved(self.keys, index, place.at, place.capacity)
            layer.values = moved(self.values, index, place.at, place.capacity)
            layer.is_initialized = True
        return layer

    def first(self, rows: int, place: Place) -> BufferLayer:
        """A layer whose buffers are the first rows of this one's."""
        layer = BufferLayer(place)
        layer.keys, layer.values = self.keys[:rows], self.values[:rows]
        layer.is_initialized = True
        return layer

    def load(self, other: BufferLayer, index: Tensor, used: int) -> None:
        """Take these rows of another layer, as many as there are here, with their first tokens."""
        self.keys[:, :, :used] = other.keys[:, :, :used].index_select(0, index)
        self.values[:, :, :used] = other.values[:, :, :used].index_select(0, index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that a call reads, and where they begin."""
        place = self.place
        return (place.at + query_length if place.window is None else place.window), 0

    def get_seq_length(self) -> Any:
        """Tokens in the cache before the call."""
        place = self.place
        return place.at if place.window is None else place.position[0]  # type: ignore[index]

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


class RowCache(Cache):
    """The cache of a batch of rows, one `BufferLayer` for each layer of a model."""

    def __init__(self, place: Place, layers: list[Any] | None = None) -> None:
        if layers:
            super().__init__(layers=layers)
        else:
            make: Any = partial(BufferLayer, place)
            super().__init__(layer_class_to_replicate=make)
        self.place = place

    def no_state(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse what is no key and no value."""
        raise NotImplementedError("a layer has a recurrent state")

    has_previous_state = get_conv_state = update_conv_state = update_recurrent_state = no_state

    def select(self, index: Tensor, capacity: int) -> RowCache:
        """The cache of these rows; a row may be there several times."""
        place = Place(capacity, self.place.most)
        place.at = self.place.at
        made: list[Any] = self.layers
        return RowCache(place, [layer.select(index, place) for layer in made])

    def first(self, rows: int) -> RowCache:
        """The cache whose buffers are the first rows of this one's."""
        place = Place(self.place.capacity, self.place.most)
        made: list[Any] = self.layers
        return RowCache(place, [layer.first(rows, place) for layer in made])


def _buffer(like: Tensor, rows: int, capacity: int) -> Tensor:
    heads, size = like.shape[1], like.shape[3]
    # Zeros: what is never written may be read under a mask, and 0 times NaN is NaN.
    return like.new_zeros(rows, heads, capacity, size)


def moved(buffer: Tensor, index: Tensor | None, used: int, capacity: int) -> Tensor:
    """A buffer of another capacity, with some rows of this one; all where there is no index."""
    kept = buffer[:, :, :used]
    kept = kept if index is None else kept.index_select(0, index)
    new = _buffer(buffer, len(kept), capacity)
    new[:, :, :used] = kept
    return new
