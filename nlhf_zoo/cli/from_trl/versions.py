"""What TRL's configurations had in which version, and what transformers' arguments default to.

Facts, read off the packages from 0.11 to 1.16: names and default values, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nlhf_zoo.errors import UserError

TRAINERS = ("NashMD", "OnlineDPO", "XPO")
_OWN = {"NashMD": {"mixture_coef": 0.5}, "XPO": {"alpha": 1e-5}}
_FIRST: dict[str, Any] = {
    "learning_rate": 5e-7,
    "reward_model_path": None,
    "max_new_tokens": 64,
    "temperature": 0.9,
    "missing_eos_penalty": None,
    "beta": 0.1,
    "loss_type": "sigmoid",
    "dataset_num_proc": None,
    "disable_dropout": True,
}
# What changed with a version: arguments of the three configurations that are new or have another
# default, and those that are gone (None).
_GONE = object()
_CHANGES: dict[str, dict[str, Any]] = {
    "0.11": _FIRST,
    "0.12": {"judge": None},
    "0.14": {"max_length": 512, "use_vllm": False, "ds3_gather_for_generation": True},
    "0.17": {"gpu_memory_utilization": 0.55},
    "0.19": {"logging_steps": 10, "bf16": None},
    "0.20": {"model_init_kwargs": None},
    "0.21": {"vllm_model_impl": "vllm"},
    "0.22": {"gradient_checkpointing": True},
    "0.23": {
        "top_p": 1.0,
        "top_k": None,
        "min_p": None,
        "repetition_penalty": 1.0,
        "generation_kwargs": None,
        "use_transformers_paged": False,
        "cache_implementation": None,
        "vllm_guided_decoding_regex": None,
        "vllm_gpu_memory_utilization": 0.55,
        "vllm_mode": "server",
        "vllm_server_base_url": None,
        "vllm_server_host": "0.0.0.0",
        "vllm_server_port": 8000,
        "vllm_server_timeout": 240.0,
        "vllm_tensor_parallel_size": 1,
        "reward_weights": None,
        "gpu_memory_utilization": None,
    },
    "0.25": {"dataset_num_proc": _GONE, "gpu_memory_utilization": _GONE},
    "0.27": {
        "top_k": 0,
        "vllm_structured_outputs_regex": None,
        "vllm_group_port": 51216,
        "vllm_guided_decoding_regex": _GONE,
    },
    "0.28": {"vllm_enable_sleep_mode": False},
    "1.0": {"remove_unused_columns": False, "vllm_mode": "colocate"},
    "1.1": {"judge": _GONE},
    "1.2": {"use_transformers_paged": _GONE},
    "1.7": {"trust_remote_code": False},
}
_NEWEST = {"NashMD": "1.13", "XPO": "1.13", "OnlineDPO": "1.16"}
_LAST_AT_THE_TOP = (0, 28)  # then in trl.experimental alone
# Arguments of TRL's other trainers, and where the same stands here.
OTHERS = {
    "num_generations": "model.rollout.num_responses",
    "steps_per_generation": "model.rollout.epochs and minibatch",
    "num_iterations": "model.rollout.epochs",
    "epsilon": "model.rollout.clip",
    "max_completion_length": "max_new_tokens, model.policy.max_new_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "max_target_length": "max_new_tokens, model.policy.max_new_tokens",
}


@dataclass(frozen=True, slots=True)
class Version:
    """One version of TRL, as far as one of the three configurations goes."""

    name: str
    trainer: str

    @property
    def number(self) -> tuple[int, int]:
        """To be compared with another."""
        return number(self.name)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Default values of what TRL has beside transformers' arguments, or in place of them."""
        return _defaults(self.name, self.trainer)

    def default(self, argument: str) -> Any:
        """The default of an argument; of transformers' own the first that any version has."""
        own = self.defaults
        return own[argument] if argument in own else training_arguments()[argument][0]

    def has_default(self, argument: str, value: object) -> bool:
        """Whether an argument of transformers' or TRL's is as it is where nobody sets it."""
        own = self.defaults
        known = [own[argument]] if argument in own else training_arguments().get(argument, [])
        return any(value == one and type(value) is type(one) for one in known)


def number(version: str) -> tuple[int, int]:
    """The first two numbers of a version.

    Raises:
        UserError: it has no two.
    """
    parts = version.split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):
        raise UserError(f"--trl_version is a version such as 0.16 or 1.1.0, not {version!r}")
    return int(parts[0]), int(parts[1])


@cache
def _defaults(version: str, trainer: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, changes in _CHANGES.items():
        if number(name) <= number(version):
            found |= changes
    found |= _OWN.get(trainer, {})
    return {name: value for name, value in found.items() if value is not _GONE}


@cache
def training_arguments() -> dict[str, list[Any]]:
    """Arguments of transformers' `TrainingArguments`, each with the defaults it has had."""
    path = Path(__file__).with_name("training_arguments.json")
    found: dict[str, list[Any]] = json.loads(path.read_text())
    return found


def arguments_of(trainer: str) -> set[str]:
    """Names of the arguments that a configuration has had in any version."""
    own = {name for changes in _CHANGES.values() for name in changes}
    return own | _OWN.get(trainer, {}).keys() | training_arguments().keys()


def trainer_of(given: Collection[str]) -> str:
    """Whose configuration has such arguments."""
    if "mixture_coef" in given:
        return "NashMD"
    return "XPO" if "alpha" in given else "OnlineDPO"


def version_of(
    trainer: str, given: Collection[str], whole: bool, said: str | None, module: str = ""
) -> Version:
    """The version whose configuration has the arguments that are given.

    Args:
        trainer: whose configuration it is.
        given: names of arguments.
        whole: all of the configuration's arguments are given, as a dump has them.
        said: the version, where the user says it.
        module: that the configuration is imported from; TRL itself has it no more.

    Raises:
        UserError: it is said and no version.
    """
    if said is not None:
        number(said)
        return Version(said, trainer)
    newest = Version(_NEWEST[trainer], trainer)
    changes = [*_CHANGES, newest.name] if number(newest.name) not in map(number, _CHANGES) else []
    versions = [Version(name, trainer) for name in changes or _CHANGES]
    versions = [one for one in versions if one.number <= newest.number]
    if module.startswith("trl") and not module.startswith("trl.experimental"):
        versions = [one for one in versions if one.number <= _LAST_AT_THE_TOP]
    every = {name for one in versions for name in one.defaults} - training_arguments().keys()
    own = every & set(given)

    def misses(one: Version) -> int:
        has = one.defaults.keys() - training_arguments().keys()
        return len(own - has) + (len(has - own) if whole else 0)

    # Of those that fit equally well the newest; of a whole one, the one that it is.
    return min(reversed(versions), key=misses)
