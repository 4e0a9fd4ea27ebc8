"""Models of texts and their tokenizers, from a folder or the hub; no code of theirs is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nlhf_zoo.errors import UserError, cause

Dtype = Literal["auto", "float32", "bfloat16"]
Head = Literal["sequence classifier", "causal language model"]
# Ends of the names of classes that write the next token.
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_AUTO: Mapping[Head, str] = {
    "sequence classifier": "AutoModelForSequenceClassification",
    "causal language model": "AutoModelForCausalLM",
}


def weights_dtype(dtype: Dtype) -> torch.dtype:
    """The type of weights; "auto" is bfloat16 on a GPU that has it, else float32."""
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if dtype == "bfloat16" or (dtype == "auto" and has_bfloat16):
        return torch.bfloat16
    return torch.float32


@dataclass(frozen=True, slots=True)
class Source:
    """A model with its tokenizer, in a folder or on the hub.

    What cannot be had is refused with a UserError.
    """

    name: str  # of a folder, or on the hub
    where: str  # which model it is, in messages, as "the reward model FOLDER"
    revision: str | None = None  # of the hub's repository

    def config(self) -> Any:
        """The configuration of the model."""
        from transformers import AutoConfig

        is_folder = Path(self.name).is_dir()
        if is_folder and not (Path(self.name) / "config.json").is_file():
            raise UserError(
                f"{self.where} is a folder without config.json: give that of a whole model"
            )
        what = "cannot be loaded" if is_folder else "is no folder here, nor had from the hub"
        return self._load(AutoConfig, f"{self.where} {what}", {})

    def tokenizer(self, refusal: str = "") -> Any:
        """The tokenizer; ``refusal`` is said, before the cause, where it cannot be loaded."""
        from transformers import AutoTokenizer

        refusal = refusal or f"{self.where} has no tokenizer that can be loaded"
        tokenizer = self._load(AutoTokenizer, refusal, {})
        # Where there are no files of a tokenizer, transformers makes one without words.
        if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):
            raise UserError(f"{self.where} has no tokenizer: save one beside it")
        return tokenizer

    def network(
        self, head: Head, refusal: str, options: Mapping[str, Any]
    ) -> tuple[Any, list[str]]:
        """A network of a kind, from safetensors alone, by ``options`` of ``from_pretrained``.

        With it come the names of weights that its files lack, or hold in another size: transformers
        fills these with random numbers, and says so in a log only. ``refusal`` is what is said,
        before the cause, where it cannot be loaded.
        """
        import transformers

        safe = {"use_safetensors": True, "output_loading_info": True}
        kind = getattr(transformers, _AUTO[head])
        network, report = self._load(kind, refusal, {**options, **safe})
        other_sizes = [name for name, *_ in report["mismatched_keys"]]
        return network, sorted([*map(str, report["missing_keys"]), *other_sizes])

    def whole_network(self, head: Head, config: Any, dtype: Dtype) -> Any:
        """A network none of whose weights its files lack."""
        options = {"config": config, "dtype": weights_dtype(dtype)}
        refusal = f"{self.where} cannot be loaded as a {head}"
        network, lacking = self.network(head, refusal, options)
        if lacking:
            raise UserError(f"{self.where} is no trained {head}: its file lacks {lacking[0]}")
        return network

    def _load(self, kind: Any, refusal: str, options: Mapping[str, Any]) -> Any:
        try:
            return kind.from_pretrained(
                self.name, revision=self.revision, trust_remote_code=False, **options
            )
        except Exception as error:  # of files, the network, the hub: too many kinds to name
            raise UserError(f"{refusal}: {cause(error)}") from error
