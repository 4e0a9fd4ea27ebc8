"""Models of texts and their tokenizers, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from nlhf_zoo.errors import UserError, cause

Dtype = Literal["auto", "float32", "bfloat16"]
Head = Literal["sequence classifier", "causal language model", "backbone"]
# Ends of the names of classes that write the next token.
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_AUTO: Mapping[Head, str] = {
    "sequence classifier": "AutoModelForSequenceClassification",
    "causal language model": "AutoModelForCausalLM",
    "backbone": "AutoModel",
}


def weights_dtype(dtype: Dtype) -> torch.dtype:
    """The type of weights; "auto" is bfloat16 on a GPU that has it, else float32."""
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if dtype == "bfloat16" or (dtype == "auto" and has_bfloat16):
        return torch.bfloat16
    return torch.float32


def load_config(model: str, revision: str | None, where: str) -> Any:
    """The configuration of a model.

    Args:
        model: hub name or folder.
        revision: of the hub's repository.
        where: which model, in messages.

    Raises:
        UserError: it cannot be had.
    """
    from transformers import AutoConfig

    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{where} is a folder without config.json: give that of a whole model")
    try:
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # of files, the network, the hub: too many kinds to name
        what = "cannot be loaded" if folder.is_dir() else "is no folder here, nor had from the hub"
        raise UserError(f"{where} {what}: {cause(error)}") from error


def load_tokenizer(model: str, revision: str | None, where: str) -> Any:
    """The tokenizer beside a model.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # likewise
        raise UserError(f"{where} has no tokenizer that can be loaded: {cause(error)}") from error
    # Where there are no files of a tokenizer, transformers makes one without words.
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):
        raise UserError(f"{where} has no tokenizer: save one beside it")
    return tokenizer


def load_network(
    model: str, head: Head, config: Any, revision: str | None, dtype: Dtype, where: str
) -> Any:
    """A whole network of a kind, from safetensors alone; no code of its repository is run.

    Raises:
        UserError: it cannot be loaded, or its files lack weights.
    """
    import transformers

    try:
        network, report = getattr(transformers, _AUTO[head]).from_pretrained(
            model,
            config=config,
            dtype=weights_dtype(dtype),
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # likewise
        raise UserError(f"{where} cannot be loaded as a {head}: {cause(error)}") from error
    # Transformers would fill these with random numbers.
    if lacking := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise UserError(f"{where} is no trained {head}: its file lacks {lacking[0]}")
    return network


def refuse_other_tokenizer(network: Any, tokenizer: Any, where: str) -> int:
    """The number of tokens that a network has embeddings of.

    Raises:
        UserError: the tokenizer gives others.
    """
    rows = len(network.get_input_embeddings().weight)
    if (largest := max(tokenizer.get_vocab().values())) >= rows:
        raise UserError(
            f"{where} has embeddings of {rows} tokens, but its tokenizer gives tokens up to "
            f"{largest}: they do not belong together"
        )
    return rows


def longest(network: Any, tokenizer: Any) -> int | None:
    """Tokens that a network reads at most; None where it does not say."""
    limits = [getattr(network.config.get_text_config(), "max_position_embeddings", None)]
    limits.append(tokenizer.model_max_length)
    for name, module in network.named_modules():
        # RoBERTa's positions begin behind that of padding, so its last ones are never reached.
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known, default=None)
