"""Versions of players as folders that an engine loads: each has a path, a name and a number.

An engine that reloads an adapter from the same path answers from what it has cached of the one
before: vLLM knows weights by their number alone, and the cache of prompts by name and path. So no
path, name or number is used twice, and what weights are the same is found by their bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nlhf_zoo.policies.language_model.exporting import adapter_tensors, write_adapter
from nlhf_zoo.policies.language_model.players import AdapterPlayers


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """Weights of a player at one time."""

    name: str  # that no other version has, of this run or another
    number: int  # from 1 on
    folder: Path


class AdapterVersions:
    """The adapters that an engine holds, one for each player that has drawn.

    The base model is an adapter of zeros, and never drawn from without one: of a batch with
    adapters and without, vLLM 0.32 on a CPU computes the rows without with the adapter of another.

    Args:
        root: folder in which those of the adapters are made.
        load: let the engine load a version.
        drop: let it forget one.
    """

    def __init__(
        self,
        root: Path,
        load: Callable[[AdapterVersion], None],
        drop: Callable[[AdapterVersion], None],
    ) -> None:
        self._root = root
        self._load = load
        self._drop = drop
        self._run = uuid.uuid4().hex[:12]
        self._number = 0
        self._current: dict[str, str] = {}  # digest of the weights by which each player drew last
        self._held: dict[str, AdapterVersion] = {}  # by digest

    @property
    def held(self) -> list[AdapterVersion]:
        """Those that the engine holds now."""
        return [*self._held.values()]

    def of(self, players: AdapterPlayers, player: str) -> AdapterVersion:
        """The version of a player's weights as they are now; loaded if it is new.

        What no player has drawn by last is dropped first, its folder too.
        """
        tensors = adapter_tensors(players, player)
        digest = digest_of(tensors)
        self._current[player] = digest
        self._drop_others()
        if digest not in self._held:
            self._held[digest] = self._made(players, tensors)
        return self._held[digest]

    def close(self) -> None:
        """Drop all."""
        self._current.clear()
        self._drop_others()

    def _made(self, players: AdapterPlayers, tensors: Mapping[str, Tensor]) -> AdapterVersion:
        self._number += 1
        name = f"nlhf-{self._run}-{self._number}"
        made = AdapterVersion(name, self._number, self._root / name)
        made.folder.mkdir(parents=True)
        try:
            write_adapter(players, tensors, made.folder, "", None)
            self._load(made)
        except BaseException:
            shutil.rmtree(made.folder, ignore_errors=True)
            raise
        return made

    def _drop_others(self) -> None:
        used = {*self._current.values()}
        for digest in [*self._held]:
            if digest not in used:
                version = self._held.pop(digest)
                shutil.rmtree(version.folder, ignore_errors=True)
                self._drop(version)


def folder_of(owner: object, prefix: str, where: Path | None = None) -> Path:
    """A new folder that is removed with its owner, or when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    weakref.finalize(owner, _remove, folder, os.getpid())
    return folder


def _remove(folder: Path, maker: int) -> None:
    if os.getpid() == maker:  # and not a forked process
        shutil.rmtree(folder, ignore_errors=True)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes and bits: equal weights have one, and no others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
