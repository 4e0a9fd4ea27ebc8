"""`VLLMGenerator`, and what it shares with the one behind a server."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.generation import Drawn, Generator, Request
from nlhf_zoo.policies.language_model.players import AdapterPlayers, LoRA, Players
from nlhf_zoo.policies.language_model.sources import ModelSource, Pretrained
from nlhf_zoo.policies.language_model.vllm import limits
from nlhf_zoo.policies.language_model.vllm.adapters import AdapterVersion, AdapterVersions
from nlhf_zoo.policies.language_model.vllm.rows import (
    Completion,
    Row,
    are_finite,
    diverged,
    drawn_from,
    rows_of,
)
from nlhf_zoo.records import Decoding, Mixture


class AdapterGenerator(Generator):
    """An engine that holds the base model, and is given each version of a player as an adapter.

    A subclass starts the engine, lets it load and drop adapters, and has it draw rows.
    """

    mixes: ClassVar[bool] = False
    holds_base: ClassVar[bool] = True
    is_tried: ClassVar[bool] = True
    max_gap: float | None

    def __init__(self, max_gap: float | None) -> None:
        if max_gap is not None and not max_gap > 0:
            raise ValueError(f"max_gap must be above 0, but it is {max_gap}")
        self.max_gap = max_gap
        self._source: ModelSource | None = None
        self._versions: AdapterVersions | None = None

    @abstractmethod
    def start(self, source: ModelSource, players: AdapterPlayers) -> Path:
        """Start the engine, or find that it can be asked.

        Returns:
            the folder for adapters, which the engine sees by the same name or knows by another.
        """

    @abstractmethod
    def load(self, version: AdapterVersion) -> None:
        """Let the engine load an adapter from its folder."""

    @abstractmethod
    def drop(self, version: AdapterVersion) -> None:
        """Let the engine forget an adapter."""

    @abstractmethod
    def complete(self, rows: Sequence[Row]) -> list[Completion]:
        """Draw all rows, which may be of several players, together."""

    @override
    def attach(self, source: ModelSource, lora: LoRA | None, adapter: str | None) -> None:
        limits.refuse_policy(source, lora, adapter)
        self._source = source

    @override
    def refuse_drawing(self, who: Mixture, decoding: Decoding) -> None:
        limits.refuse_drawing(who, decoding)

    @override
    def draw(self, players: Players, request: Request) -> Drawn:
        return self.begin(players, request)()

    @override
    def draw_each(self, players: Players, requests: Sequence[Request]) -> list[Drawn]:
        return self.begin_each(players, requests)()

    @override
    def begin(self, players: Players, request: Request) -> Callable[[], Drawn]:
        finish = self.begin_each(players, [request])
        return lambda: finish()[0]

    @torch.no_grad()
    def begin_each(
        self, players: Players, requests: Sequence[Request]
    ) -> Callable[[], list[Drawn]]:
        """Hand over the players' weights as they are; what is returned draws from these.

        Of one player it is to be called before another request is begun. Random numbers are drawn
        here.

        Raises:
            UserError: the engine cannot draw this, cannot be reached, or ends responses elsewhere.
        """
        adapters = limits.refuse_players(players)
        who = [limits.refuse_drawing(request.who, request.decoding) for request in requests]
        for player in who:
            if not adapters.is_base(player) and not are_finite(
                [*adapters.parameters_of(player).values()]
            ):
                found = [diverged(request) for request in requests]
                return lambda: found
        rows = [
            rows_of(request, self._version(adapters, player))
            for player, request in zip(who, requests, strict=True)
        ]

        def finish() -> list[Drawn]:
            completions = iter(self.complete([row for each in rows for row in each]))
            return [
                drawn_from([next(completions) for _ in each], request)
                for each, request in zip(rows, requests, strict=True)
            ]

        return finish

    def close(self) -> None:
        """Drop all adapters."""
        if self._versions is not None:
            self._versions.close()

    def _version(self, players: AdapterPlayers, player: str) -> AdapterVersion:
        if self._versions is None:
            assert self._source is not None
            root = self.start(self._source, players)
            self._versions = AdapterVersions(root, self.load, self.drop)
        return self._versions.of(players, player)


class VLLMGenerator(AdapterGenerator):
    """vLLM in a process beside this one, with a copy of the base model.

    Players are LoRA adapters, which are written to a temporary folder whenever they have moved:
    each version has a folder, a name and a number of its own, and those before are dropped. Rows
    have seeds from the game's stream. Every process of a run has an engine of its own. Needs the
    extra `vllm`.

    Args:
        gpu_memory: share of a GPU's memory that the engine takes, for its copy of the base model
            and its cache; the trainer lives in the rest.
        max_gap: largest distance, for each token, between the engine's log-probabilities and the
            trainer's at which a run starts; null is that of rounding in the base model's type.
        engine_args: further arguments of `vllm.LLM`, such as `{max_model_len: 4096}`.
    """

    # What is drawn is the same.
    may_change_on_resume: ClassVar[frozenset[str]] = frozenset({"gpu_memory", "max_gap"})

    def __init__(
        self,
        gpu_memory: float = 0.4,
        max_gap: float | None = None,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(max_gap)
        if not 0 < gpu_memory <= 1:
            raise ValueError(f"gpu_memory is a share, above 0 and at most 1, not {gpu_memory}")
        self.gpu_memory = gpu_memory
        self.engine_args = engine_args or {}
        self._engine: Any = None

    @override
    def refuse_sharding(self, layerwise: bool) -> None:
        if layerwise and not isinstance(self._source, Pretrained):
            raise UserError(
                "VLLMGenerator writes the base model for its engine where that has no name or "
                "folder, and is never whole here: take a model from a folder, or set "
                "model.policy.generator to TransformersGenerator"
            )

    @override
    def start(self, source: ModelSource, players: AdapterPlayers) -> Path:
        from nlhf_zoo.policies.language_model.vllm.engine import Engine

        self._engine = Engine(source, players, self.gpu_memory, self.engine_args)
        root: Path = self._engine.root
        return root

    @override
    def load(self, version: AdapterVersion) -> None:
        self._engine.load(version)

    @override
    def drop(self, version: AdapterVersion) -> None:
        self._engine.drop(version)

    @override
    def complete(self, rows: Sequence[Row]) -> list[Completion]:
        found: list[Completion] = self._engine.complete(rows)
        return found

    @override
    def close(self) -> None:
        super().close()
        if self._engine is not None:
            self._engine.close()
        self._engine = self._versions = None
