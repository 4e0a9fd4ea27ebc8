"""Texts that end a response: found token by token, by an automaton or by decoding."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError

_TRIALS = 64  # random rows of tokens that an automaton must read as the tokenizer decodes them
_LENGTH = 12  # tokens of each
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a token of one byte, where there are such


class Stops(ABC):
    """Finds the first token of a response at which its text holds one of the stop strings.

    The text is that of the response alone: what the prompt ends with is no part of it. A special
    token has no text there, unless that is part of a stop string. The search of a row is a number,
    0 at its beginning.

    Attributes:
        found: the number of a row that has ended.
        on_device: whether the host is not asked.
    """

    found: int
    on_device: bool

    def begin(self) -> None:
        """Forget the rows that were read so far: new ones begin."""
        return

    @abstractmethod
    def after(self, state: Tensor, token: Tensor) -> Tensor:
        """The numbers [n] of rows that read one more token [n]."""

    def ended(self, tokens: Tensor) -> Tensor:
        """True at and behind the token that completes a stop string [R, T]."""
        self.begin()
        state = torch.zeros_like(tokens[:, 0])
        found = []
        for token in tokens.unbind(1):
            state = self.after(state, token)
            found.append(state == self.found)
        return torch.stack(found, 1)


class TokenAutomaton(Stops):
    """All that stop strings ask of a token, in a table by what was read before.

    Args:
        strings: in bytes, none empty.
        pieces: the bytes that each token stands for.
    """

    on_device = True

    def __init__(self, strings: Sequence[bytes], pieces: Sequence[bytes]) -> None:
        by_byte = _automaton(strings)
        self.found = len(by_byte) - 1
        self._tables = {torch.device("cpu"): torch.from_numpy(_by_token(by_byte, pieces))}

    @override
    def after(self, state: Tensor, token: Tensor) -> Tensor:
        table = self._tables.get(state.device)
        if table is None:
            table = next(iter(self._tables.values())).to(state.device)
            self._tables[state.device] = table
        return table[state, token].long()


class DecodedStops(Stops):
    """Decodes a row again at each token, for tokenizers whose tokens have no text of their own.

    Args:
        tokenizer: of the model.
        strings: none empty.
        silent: tokens without a text.
    """

    on_device = False
    found = -1

    def __init__(self, tokenizer: Any, strings: Sequence[str], silent: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._strings = [*strings]
        self._silent = silent
        self.begin()

    @override
    def begin(self) -> None:
        self._rows: list[list[int]] = [[]]  # the tokens that each number stands for
        self._next: dict[tuple[int, int], int] = {}

    @override
    def after(self, state: Tensor, token: Tensor) -> Tensor:
        pairs = zip(state.tolist(), token.tolist(), strict=True)
        return torch.tensor([self._after(*pair) for pair in pairs], device=state.device)

    def _after(self, state: int, token: int) -> int:
        if state == self.found or token in self._silent:
            return state
        if (state, token) not in self._next:
            row = [*self._rows[state], token]
            text = self._tokenizer.decode(row)
            number = self.found
            if not any(string in text for string in self._strings):
                number = len(self._rows)
                self._rows.append(row)
            self._next[state, token] = number
        return self._next[state, token]


def refuse_ends(min_new_tokens: int, max_new_tokens: int, stop_strings: Sequence[str]) -> None:
    """Refuse options of where a response ends that cannot be."""
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise UserError(
            f"model.policy.min_new_tokens must be between 0 and max_new_tokens, "
            f"{max_new_tokens}, but it is {min_new_tokens}"
        )
    if not all(stop_strings):
        raise UserError("model.policy.stop_strings has an empty text, which ends nothing")


def find_stops(tokenizer: Any, strings: Sequence[str], num_tokens: int) -> Stops:
    """The automaton of some stop strings, or decoding where the tokenizer does not let it be made.

    Args:
        tokenizer: of the model.
        strings: none empty.
        num_tokens: that the model embeds.
    """
    special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    silent = {token for token, text in special if not any(text in string for string in strings)}
    pieces = _pieces(tokenizer, num_tokens)
    if pieces is None:
        return DecodedStops(tokenizer, strings, silent)
    pieces = [b"" if token in silent else piece for token, piece in enumerate(pieces)]
    return TokenAutomaton([string.encode() for string in strings], pieces)


def _automaton(strings: Sequence[bytes]) -> NDArray[np.int64]:
    """Aho and Corasick's, of bytes [states, 256]; the last state is that of a string found.

    A state is the longest beginning of a string that what was read ends with.
    """
    prefixes = {string[:end] for string in strings for end in range(len(string))}
    prefixes = {p for p in prefixes if not any(s in p for s in strings)}
    order = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
    number = {prefix: place for place, prefix in enumerate(order)}
    table = np.full((len(order) + 1, 256), len(order), dtype=np.int64)
    for prefix, place in number.items():
        for byte in range(256):
            read = deque(prefix + bytes([byte]))
            whole = bytes(read)
            if any(whole.endswith(string) for string in strings):
                continue
            while bytes(read) not in number:
                read.popleft()
            table[place, byte] = number[bytes(read)]
    return table


def _by_token(by_byte: NDArray[np.int64], pieces: Sequence[bytes]) -> NDArray[np.int32]:
    """The automaton's states after each token [states, V]."""
    lengths = np.array([len(piece) for piece in pieces])
    text = np.zeros((len(pieces), max(1, lengths.max(initial=0))), dtype=np.uint8)
    for row, piece in zip(text, pieces, strict=True):
        row[: len(piece)] = np.frombuffer(piece, dtype=np.uint8)
    state = np.repeat(np.arange(len(by_byte))[:, None], len(pieces), 1)
    for place in range(text.shape[1]):
        (reading,) = (lengths > place).nonzero()
        state[:, reading] = by_byte[state[:, reading], text[reading, place]]
    return state.astype(np.int32)


def _pieces(tokenizer: Any, num_tokens: int) -> list[bytes] | None:
    """The bytes that each token stands for; None where decoding does more than to join them."""
    known = sorted(tokenizer.get_vocab().values())
    special = {*tokenizer.all_special_ids}
    plain = [token for token in known if token not in special]
    bytes_of = _bytes_by_letter() if "ByteLevel" in _decoder(tokenizer) else None
    pieces = [b""] * num_tokens
    written = tokenizer.convert_ids_to_tokens(known)
    added = {token: str(word) for token, word in tokenizer.added_tokens_decoder.items()}
    first = next((t for t in plain if tokenizer.decode([t]).isalpha()), None)
    if first is None:
        return None
    before = tokenizer.decode([first])
    for token, word in zip(known, written, strict=True):
        if token in added:
            pieces[token] = added[token].encode()
        elif bytes_of is not None and all(letter in bytes_of for letter in word):
            pieces[token] = bytes(bytes_of[letter] for letter in word)
        elif match := _BYTE.fullmatch(word):
            pieces[token] = bytes([int(match[1], 16)])
        else:
            text = tokenizer.decode([first, token])
            if not text.startswith(before) or "\ufffd" in text:
                return None
            pieces[token] = text[len(before) :].encode()
    return pieces if _joins(tokenizer, pieces, first, plain) else None


def _decoder(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return repr(getattr(backend, "decoder", None))


def _bytes_by_letter() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes as."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    found = {chr(byte): byte for byte in shown}
    return found | {chr(256 + place): byte for place, byte in enumerate(others)}


def _joins(tokenizer: Any, pieces: Sequence[bytes], first: int, tokens: Sequence[int]) -> bool:
    """Whether random rows are decoded to their tokens' pieces, one behind the other.

    Rows of tokens that are letters by themselves: bytes that are none when they stand alone may be
    decoded to a mark that hides its neighbours, too.
    """
    rng = random.Random(0)
    whole = [token for token in tokens if _is_text(pieces[token])]
    before = tokenizer.decode([first])
    for _ in range(_TRIALS):
        row = rng.choices(whole, k=_LENGTH)
        joined = before + b"".join(pieces[token] for token in row).decode()
        if tokenizer.decode([first, *row]) != joined:
            return False
    return True


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
