"""The sheet of a translation: what was given, what became of it, and what cannot be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from nlhf_zoo.cli.from_trl.found import Found
from nlhf_zoo.cli.from_trl.versions import OTHERS, Version, training_arguments
from nlhf_zoo.errors import nearest

# kept: the same name or meaning; translated: by an equation; differs: the run does something else
# there, as is said; left out: no figure depends on it; by hand: nobody but the user knows.
Kind = Literal["kept", "translated", "differs", "left out", "by hand"]

_CHANGE_NO_FIGURE = {"output_dir", "run_name", "logging_dir", "logging_steps", "report_to"}
_UNNAMED = {"an argument without a name", "further arguments", "a change"}  # as `script` says
_PARTS = {"peft_config", "reward model"}  # without which a run is another one, and begins


@dataclass(frozen=True, slots=True)
class Noted:
    """A value of a configuration, with a comment behind it."""

    value: Any
    comment: str


@dataclass(frozen=True, slots=True)
class Line:
    """What became of an argument."""

    kind: Kind
    theirs: str
    ours: str


@dataclass(slots=True)
class Sheet:
    """What is translated, and how far.

    Args:
        found: what the file says.
        version: of TRL.
        epoch: whose entries of lists are taken; None where the user says none.
        num_prompts: of the data set, where it is known.
        processes: of the run.
    """

    found: Found
    version: Version
    epoch: int | None
    num_prompts: int | None
    processes: int
    lines: list[Line] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def get(self, name: str) -> Any:
        """The value of an argument: what was given, or TRL's default."""
        self.seen.add(name)
        if name in self.found.given:
            return self.found.given[name]
        known = name in self.version.defaults or name in training_arguments()
        return self.version.default(name) if known else None

    def theirs(self, name: str) -> str:
        """An argument and its value, as the report names it."""
        if name.endswith("token"):
            return name  # a secret is never shown
        said = "" if name in self.found.given else " (TRL's default)"
        if any(one.startswith(f"{name}: ") for one in self.found.open):
            said = " (TRL's default, in place of what could not be read)"
        return f"{name}: {self.get(name)!r:.200}{said}"

    @property
    def guessed(self) -> list[str]:
        """What a run depends on and was not read: TRL's defaults stand in the places of these."""
        parted = [(one, one.partition(": ")[0]) for one in self.found.open]
        read = self.seen - _CHANGE_NO_FIGURE
        return [
            name if name in read else one
            for one, name in parted
            if name in read | _UNNAMED | _PARTS or name.endswith(" of peft_config")
        ]

    def number(self, name: str, least: float = -math.inf) -> Any:
        """A number; one that is none, or too small, is a problem, and 1 takes its place."""
        value = self.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value < math.inf:
            self.problem(f"{name} is {value!r}, and no number of at least {least:g}")
            return 1
        return value

    def whole(self, name: str, least: float = -math.inf) -> int:
        """A whole number, likewise."""
        value = self.number(name, least)
        if value != int(value):
            self.problem(f"{name} is {value!r}, and no whole number")
        return int(value)

    def options(self, name: str) -> dict[str, Any]:
        """A mapping by name; none is an empty one."""
        value = self.get(name)
        if value and not isinstance(value, dict):
            self.problem(f"{name} is {value!r:.80}, and holds no options by name")
            return {}
        return dict(value or {})

    def at_epoch(self, name: str, fixed: str) -> float:
        """A number, or the entry of a list with one for each epoch.

        TRL takes the entry of the epoch, and of later epochs the last one.

        Args:
            name: the argument.
            fixed: why it does not change within a run here.
        """
        value = self.get(name)
        if not isinstance(value, list | tuple):
            return float(self.number(name))
        if not value or not all(isinstance(one, int | float) for one in value):
            self.problem(f"{name} is {value!r}, and no list of numbers")
            return 1.0
        if self.epoch is None and len(set(value)) > 1:
            self.problem(
                f"{name} has an entry for each epoch, {value!r}, and {fixed}: give --epoch 0 for "
                "a run with the first entry, --epoch 1 for one with the second"
            )
        return float(value[min(self.epoch or 0, len(value) - 1)])

    def say(self, kind: Kind, name: str, ours: str) -> None:
        """Say what became of an argument."""
        self.lines.append(Line(kind, self.theirs(name), ours))

    def note(self, kind: Kind, theirs: str, ours: str) -> None:
        """Say what became of something that is no argument of the configuration."""
        self.lines.append(Line(kind, theirs, ours))

    def by_hand(self, theirs: str, ours: str) -> None:
        """Say what the user must set."""
        self.note("by hand", theirs, ours)

    def problem(self, sentence: str) -> None:
        """Refuse the file for this, among others; what is said twice counts once."""
        if sentence not in self.problems:
            self.problems.append(sentence)

    def finish(self) -> None:
        """Say what becomes of arguments that nothing has asked for, or refuse them."""
        known = {*training_arguments(), *self.version.defaults, *_NAMES}
        for name, value in self.found.given.items():
            if name in self.seen or self.version.has_default(name, value):
                continue
            if name in OTHERS:
                place = f"here it is {OTHERS[name]}"
                self.problem(f"{name} is no argument of {self.version.trainer}Config: {place}")
            elif name not in known:
                self.problem(
                    f"{name} is no argument of {self.version.trainer}Config" + nearest(name, known)
                )
            elif name in _HARMLESS or name.startswith(_HARMLESS_PREFIXES):
                self.say("left out", name, "no figure of the run depends on it")
            else:
                why = _REFUSED.get(name, "it has no counterpart here: leave it out")
                shown = "given" if name.endswith("token") else f"{value!r:.80}"
                self.problem(f"{name} is {shown}, and {why}")


_NAMES = {"output_dir", "logging_dir", "run_name", "hub_token", "push_to_hub_token"}
_HARMLESS_PREFIXES: tuple[str, ...] = (
    *("hub_", "push_to_hub", "dataloader_", "ddp_", "log_", "logging_", "trackio_"),
    *("eval_", "save_", "include_", "vllm_"),
)
_HARMLESS = {
    *("accelerator_config", "average_tokens_across_devices", "batch_eval_metrics"),
    *("cache_implementation", "dataset_num_proc", "debug", "disable_tqdm", "do_eval"),
    *("do_predict", "do_train", "ds3_gather_for_generation", "enable_jit_checkpoint"),
    *("gpu_memory_utilization", "gradient_checkpointing_kwargs", "greater_is_better"),
    *("ignore_data_skip", "label_names", "length_column_name", "load_best_model_at_end"),
    *("local_rank", "metric_for_best_model", "overwrite_output_dir", "past_index"),
    *("per_device_eval_batch_size", "prediction_loss_only", "project", "ray_scope"),
    *("remove_unused_columns", "restore_callback_states_from_checkpoint", "skip_memory_metrics"),
    *("tf32", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps"),
    *("use_cache", "use_legacy_prediction_loop", "use_liger_kernel", "use_transformers_paged"),
    *("bf16_full_eval", "fp16_full_eval", "fp16_backend", "fp16_opt_level"),
    *("half_precision_backend", "liger_kernel_config", "jit_mode_eval", "full_determinism"),
    *_NAMES,
}
_REFUSED = {
    "deepspeed": "DeepSpeed is none of the strategies here: take configs/hardware/fsdp2.yaml",
    "fsdp": "sharding is the Trainer's strategy here: take configs/hardware/fsdp2.yaml",
    "fsdp_config": "sharding is the Trainer's strategy here: take configs/hardware/fsdp2.yaml",
    "neftune_noise_alpha": "noise on embeddings would be another policy than the one that draws",
    "label_smoothing_factor": "it is of a loss on labels, which TRL's trainer does not take either",
    "auto_find_batch_size": "the batch belongs to the game: give --model.micro_batches, or "
    "max_tokens_per_chunk: auto",
    "resume_from_checkpoint": "a checkpoint of TRL's is none of ours: start anew, or give the "
    "adapter's folder as model.policy.adapter",
    "trust_remote_code": "no code of a model's repository is run here",
}
