"""Files of TRL's: dumped configurations, files of options and scripts, none of which is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nlhf_zoo.cli.files import refuse_device
from nlhf_zoo.cli.from_trl.found import Found, Made
from nlhf_zoo.cli.from_trl.script import read_script
from nlhf_zoo.errors import UserError, cause

_MOST = 1_000_000  # bytes
# Of TRL's command line: what a trainer is given beside its configuration.
_MODEL = {
    "model_revision": "revision",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "attn_implementation": "attn_implementation",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
}
_LORA = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
_DATA = {"dataset_name": "path", "dataset_config": "name", "dataset_train_split": "split"}
# As TRL's example scripts call them.
_JUDGES = {"pair_rm": "PairRMJudge", "openai": "OpenAIPairwiseJudge", "hf": "HfPairwiseJudge"}
_NO_PART = {"dataset_test_split", "dataset_streaming", "gradient_checkpointing_use_reentrant"}
_NO_PART |= {"ignore_bias_buffers", "lora_task_type", "bnb_4bit_quant_type"}
_NO_PART |= {"use_bnb_nested_quant", "bnb_4bit_quant_storage"}


def read(path: Path) -> Found:
    """What a file says.

    Raises:
        UserError: it cannot be read, or is a pickle.
    """
    refuse_device(str(path), "")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix in (".bin", ".pt", ".pkl", ".pickle"):
        raise UserError(
            f"{path} is a pickle, and to read one is to run what it holds: where TRL is installed "
            "write it as JSON by torch.load(..., weights_only=False).to_json_string()"
        )
    if path.stat().st_size > _MOST:
        raise UserError(f"{path} has more than 1 MB, which no script or configuration has")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {cause(error)}") from error
    if path.suffix == ".py":
        return read_script(text, path)
    return _of_options(_mapping(text, path))


def _mapping(text: str, path: Path) -> dict[str, Any]:
    """The options of a JSON or a YAML file."""
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {cause(error)}") from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds no options by name, as a dumped configuration does")
    if not content:
        raise UserError(f"{path} holds no options")
    return {key: _number(value) for key, value in content.items()}


def _number(value: object) -> object:
    """A text that is a number, as YAML reads 5e-7; others as they are."""
    if not isinstance(value, str) or not value[:1].isdigit():
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _of_options(content: dict[str, Any]) -> Found:
    """Options by name: arguments of the configuration, and those of parts."""
    found = Found(whole=content.keys() >= {"adam_beta1", "max_grad_norm", "seed", "optim"})
    is_command_line = "model_name_or_path" in content
    for key, value in content.items():
        if key in _NO_PART or (is_command_line and key == "trust_remote_code" and not value):
            continue
        if key in _MODEL:
            found.model_options |= {_MODEL[key]: value} if value else {}
        elif key in _DATA:
            found.data |= {_DATA[key]: str(value)} if value else {}
        elif key not in _LORA and key not in ("model_name_or_path", "use_peft"):
            found.given[key] = value
    found.model = content.get("model_name_or_path")
    if "use_peft" in content or is_command_line:
        found.says_adapter = True
        if content.get("use_peft"):
            given = {_LORA[key]: value for key, value in content.items() if key in _LORA}
            found.lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05} | given
    if isinstance(content.get("judge"), str):
        found.judge = Made(_JUDGES.get(content["judge"], content["judge"]))
    if isinstance(content.get("reward_model_path"), str):
        found.rewards = [content["reward_model_path"]]
    return found
