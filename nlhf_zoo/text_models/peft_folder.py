"""Models that were saved as an adapter of peft: read on the base that the adapter names."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlhf_zoo.errors import UserError, cause

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of names in an adapter's file
# Ends of the names of output layers of sequence classifiers, whose rows are the labels.
_OUTPUTS = (
    "score.weight",
    "classifier.weight",
    "classifier.out_proj.weight",
    "head.out_proj.weight",
)


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """An adapter's folder: what it names, and the tensors that it holds.

    Args:
        folder: with configuration and weights.
        where: whose it is, in messages.
    """

    folder: Path
    where: str

    def _configuration(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"{self.folder / CONFIG} cannot be read: {cause(error)}") from error
        if not isinstance(found, dict) or not isinstance(found.get("base_model_name_or_path"), str):
            raise UserError(
                f"{self.where} is an adapter of peft whose {CONFIG} names no base model: write it "
                "there, as base_model_name_or_path"
            )
        return found

    @property
    def base(self) -> str:
        """Hub name or folder of the base model."""
        return str(self._configuration()["base_model_name_or_path"])

    @property
    def base_revision(self) -> str | None:
        """Of the base model's repository."""
        revision = self._configuration().get("revision")
        return revision if isinstance(revision, str) else None

    @property
    def is_classifier(self) -> bool:
        """Whether it was trained for a sequence classifier."""
        return self._configuration().get("task_type") == "SEQ_CLS"

    def num_labels(self) -> int | None:
        """Rows of the output layer that stands beside the adapter; None where none does."""
        rows = [
            shape[0]
            for name, shape in self._shapes().items()
            if name.endswith(_OUTPUTS) and ".lora_" not in name
        ]
        return rows[0] if rows else None

    def provides(self) -> set[str]:
        """Names of tensors, without peft's prefix: weights of the base that have others here."""
        return {name.removeprefix(_PREFIX) for name in self._shapes()}

    def _shapes(self) -> dict[str, list[int]]:
        from safetensors import safe_open

        path = self.folder / WEIGHTS
        if not path.is_file():
            raise UserError(f"{self.where} is an adapter of peft without {WEIGHTS}")
        try:
            with safe_open(path, "pt") as file:
                names = file.keys()
                return {name: file.get_slice(name).get_shape() for name in names}
        except Exception as error:  # of the safetensors library, in Rust
            raise UserError(f"{path} cannot be read: {cause(error)}") from error

    def put_on(self, network: Any) -> Any:
        """The base network with the adapter in its layers, unmerged: its class is what it was.

        Raises:
            UserError: peft cannot do this, or the two do not belong together.
        """
        from peft import PeftModel, get_peft_model_state_dict

        dtype = network.dtype
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is missing is refused below
                model = PeftModel.from_pretrained(
                    network, str(self.folder), autocast_adapter_dtype=False
                )
        except Exception as error:  # of peft and its files: too many kinds to name
            raise UserError(f"{self.where} does not fit its base: {cause(error)}") from error
        if model.active_peft_config.is_prompt_learning:
            raise UserError(f"{self.where} is a prompt and no adapter of layers: merge it first")
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
        own = {f"{_PREFIX}{name}" for name in network.state_dict()}
        self._refuse_misfit(wanted, own)
        return model.get_base_model().to(dtype)

    def _refuse_misfit(self, wanted: Iterable[str], own: set[str]) -> None:
        given = {f"{_PREFIX}{name}" for name in self.provides()}
        lacking, unknown = sorted({*wanted} - given), sorted(given - {*wanted} - own)
        if lacking or unknown:
            what = f"lacks {lacking[0]}" if lacking else f"holds {unknown[0]}, which it has not"
            raise UserError(f"{self.where} does not fit its base {self.base}: its file {what}")
