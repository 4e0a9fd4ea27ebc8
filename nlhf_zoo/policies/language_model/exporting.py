"""Players of a language model as folders that plain peft and transformers load."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.players import AdapterPlayers, Players
from nlhf_zoo.policies.language_model.reloading import refuse_another, with_adapter
from nlhf_zoo.policies.language_model.sources import ModelSource, Pretrained
from nlhf_zoo.policies.language_model.targets import plain_name

_BASE = "base"  # folder of a base model that has no place of its own
_UNMERGED = "leave --merged out, and export the adapter"


def _place(name: str) -> str:
    """A base model's folder wherever one stands, or its name on the hub."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def refuse_folder(folder: Path) -> None:
    """Refuse to write over anything."""
    above = folder.absolute().parent
    if not above.is_dir():
        raise UserError(f"the folder {above} does not exist: create it first")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"the folder {above} cannot be written to")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give the name of a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"the folder {folder} is not empty: give the name of a new one")


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of another when it is whole, or never does."""
    refuse_folder(folder)
    place = folder.absolute()
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as beside:
        work = Path(beside) / "whole"  # with the permissions of any folder, not of a temporary one
        work.mkdir()
        yield work
        if place.exists():
            place.rmdir()
        os.replace(work, place)


@dataclass(frozen=True, slots=True)
class Exported:
    """What stands beside a player's weights in a folder."""

    source: ModelSource  # of the base model
    tokenizer: Any
    generation_config: Any  # that came with the model; sampling here does without

    def write(self, players: Players, player: str, folder: Path, merged: bool) -> None:
        """Write an adapter, or a whole model where that is asked for or all weights are trained.

        A base model that has no hub name or folder of its own is written into the adapter's. What
        was written is loaded again, and compared with the player.
        """
        if player not in players.names:
            raise UserError(
                f"there is no player {player!r}: choose one of {', '.join(players.names)}"
            )
        with written_beside(folder) as work:
            self.tokenizer.save_pretrained(work)
            remedy = "export it merged"
            if not isinstance(players, AdapterPlayers):
                written = self._whole(players.language_model(player), work)
            elif merged:
                remedy = _UNMERGED
                with plain_model(players, None if players.is_base(player) else player) as model:
                    written = self._whole(model, work)
            else:
                written = self._adapter(players, player, work, folder)
            refuse_another(players, player, written, remedy)

    def _whole(self, model: Any, work: Path) -> Any:
        """Write a whole model, and load it again."""
        self._save_model(model, work)
        return type(model).from_pretrained(work, dtype="auto")

    def _adapter(self, players: AdapterPlayers, player: str, work: Path, folder: Path) -> Any:
        """Write an adapter, to be moved to ``folder``, and load it again upon its base."""
        if isinstance(self.source, Pretrained):
            save_adapter(players, player, work, _place(self.source.name), self.source.revision)
            return with_adapter(self.source.load().model, work)
        save_adapter(players, player, work, str(folder.absolute() / _BASE), None)
        with plain_model(players, None) as model:
            base = self._whole(model, work / _BASE)
        self.tokenizer.save_pretrained(work / _BASE)
        return with_adapter(base, work)

    def _save_model(self, model: Any, folder: Path) -> None:
        if getattr(model, "is_quantized", False):
            raise UserError(
                "a whole model is not made of weights in 4 bits: export the adapter, or set "
                "model.policy.model.four_bit to false in the configuration and export again"
            )
        ours, model.generation_config = model.generation_config, self.generation_config
        try:
            model.save_pretrained(folder)
        except ValueError as error:  # defaults that contradict each other are not written
            raise UserError(f"transformers does not write this model: {error}") from error
        finally:
            model.generation_config = ours


def save_adapter(
    players: AdapterPlayers, player: str, folder: Path, base: str, revision: str | None
) -> None:
    """Write one adapter at the folder's top, where peft looks for it whatever its name.

    ``base`` is the hub name or the folder of the base model.
    """
    if players.is_base(player):
        raise UserError(
            f"player {player!r} is the base model itself, without an adapter: export it merged"
        )
    write_adapter(players, adapter_tensors(players, player), folder, base, revision)


def adapter_tensors(players: AdapterPlayers, player: str) -> dict[str, torch.Tensor]:
    """An adapter's weights in main memory, as peft names them; of the base model, zeros."""
    from peft import get_peft_model_state_dict

    is_base = players.is_base(player)
    # Embeddings are the base model's; peft would ask the hub whether they were resized.
    state = get_peft_model_state_dict(
        players.module(player),
        adapter_name="policy" if is_base else player,
        save_embedding_layers=False,
    )
    found = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    return {name: torch.zeros_like(t) for name, t in found.items()} if is_base else found


def write_adapter(
    players: AdapterPlayers,
    tensors: Mapping[str, torch.Tensor],
    folder: Path,
    base: str,
    revision: str | None,
) -> None:
    """Write weights of an adapter, whose shape is that of all players."""
    from safetensors.torch import save_file

    config = copy.copy(players.module("policy").peft_config["policy"])
    config.inference_mode = True
    config.base_model_name_or_path = base
    config.revision = revision
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


@contextmanager
def plain_model(players: AdapterPlayers, adapter: str | None) -> Iterator[Any]:
    """The base model in plain transformers, with one adapter merged into its weights, or none.

    Afterwards all is as it was, bit for bit: weights are put back, and never unmerged.

    Raises:
        UserError: an adapter would be merged into a weight that others use too.
    """
    from peft.tuners.lora import LoraLayer

    model = players.language_model("policy")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    # Of one module several parameters may have adapters: their layers are nested in each other.
    outer = {name: m for name, m in layers.items() if not name.endswith(".base_layer")}
    weights: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    try:
        if adapter is not None:
            adapted = [_adapted(m) for m in layers.values() if _has(m, adapter)]
            _refuse_shared(model, adapted)
            weights += [(weight, weight.detach().clone()) for weight in adapted]
            for layer in layers.values():
                layer.merge(adapter_names=[adapter])
        for name, layer in outer.items():
            model.set_submodule(name, layer.get_base_layer())
        yield model
    finally:
        with torch.no_grad():
            for parameter, before in weights:
                parameter.copy_(before)
        for name, layer in outer.items():
            model.set_submodule(name, layer)
        for layer in layers.values():
            layer.merged_adapters.clear()


def _has(layer: Any, adapter: str) -> bool:
    return adapter in layer.lora_A or adapter in layer.lora_embedding_A


def _adapted(layer: Any) -> torch.nn.Parameter:
    """The weight of the base model that an adapter's layer is added to."""
    name = getattr(layer, "parameter_name", "weight")
    weight: torch.nn.Parameter = getattr(layer.get_base_layer(), name)
    return weight


def _refuse_shared(model: Any, adapted: list[torch.nn.Parameter]) -> None:
    """A merged weight is another one for all that use it."""
    places: dict[int, list[str]] = {id(weight): [] for weight in adapted}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in places:
            places[id(parameter)].append(plain_name(name))
    for names in places.values():
        if len(names) > 1:
            raise UserError(
                f"{names[0]} and {names[1]} are one weight, so that no merged model has the "
                f"adapter of one and not of the other: {_UNMERGED}"
            )
