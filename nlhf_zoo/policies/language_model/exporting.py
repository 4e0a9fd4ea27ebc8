"""Players of a language model as folders that plain peft and transformers load."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.players import AdapterPlayers, Players
from nlhf_zoo.policies.language_model.sources import ModelSource, Pretrained

_BASE = "base"  # folder of a base model that has no place of its own


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

        A base model that has no hub name or folder of its own is written into the adapter's.
        """
        if player not in players.names:
            raise UserError(
                f"there is no player {player!r}: choose one of {', '.join(players.names)}"
            )
        with written_beside(folder) as work:
            self.tokenizer.save_pretrained(work)
            if not isinstance(players, AdapterPlayers):
                self._save_model(players.language_model(player), work)
            elif merged:
                adapter = None if players.is_base(player) else player
                with plain_model(players, adapter) as model:
                    self._save_model(model, work)
            elif isinstance(self.source, Pretrained):
                save_adapter(players, player, work, self.source.name, self.source.revision)
            else:
                save_adapter(players, player, work, str(folder.absolute() / _BASE), None)
                with plain_model(players, None) as model:
                    self._save_model(model, work / _BASE)
                self.tokenizer.save_pretrained(work / _BASE)

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
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    if players.is_base(player):
        raise UserError(
            f"player {player!r} is the base model itself, without an adapter: export it merged"
        )
    model = players.module(player)
    config = copy.copy(model.peft_config[player])
    config.inference_mode = True
    config.base_model_name_or_path = base
    config.revision = revision
    # Embeddings are the base model's; peft would ask the hub whether they were resized.
    state = get_peft_model_state_dict(model, adapter_name=player, save_embedding_layers=False)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


@contextmanager
def plain_model(players: AdapterPlayers, adapter: str | None) -> Iterator[Any]:
    """The base model in plain transformers, with one adapter merged into its weights, or none.

    Afterwards all is as it was, bit for bit: weights are put back, and never unmerged.
    """
    from peft.tuners.lora import LoraLayer

    model = players.language_model("policy")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    weights = []
    try:
        for name, layer in layers.items():
            base = layer.get_base_layer()
            if adapter is not None:
                weights += [(p, p.detach().clone()) for p in base.parameters(recurse=False)]
                layer.merge(adapter_names=[adapter])
            model.set_submodule(name, base)
        yield model
    finally:
        with torch.no_grad():
            for parameter, before in weights:
                parameter.copy_(before)
        for name, layer in layers.items():
            layer.merged_adapters.clear()
            model.set_submodule(name, layer)
