"""The optimiser and its schedule, the prompts, and the Trainer."""

from __future__ import annotations

import math
from typing import Any

from nlhf_zoo.cli.from_trl.sheet import Noted, Sheet
from nlhf_zoo.errors import UserError

_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "AdamW"),
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
}
_DECAYS = {"linear": "linear", "cosine": "cosine", "constant": "constant"}
_DECAYS |= {"constant_with_warmup": "constant"}
_WHOLE = "train"  # the split that holds all rows of a file
PROMPTS = "PROMPTS.jsonl"  # which stands where nobody has said it


def optimizer(sheet: Sheet) -> dict[str, Any]:
    """The block of the optimiser."""
    rate = sheet.number("learning_rate", least=0)
    if rate == 0:
        sheet.problem("learning_rate is 0, which trains nothing")
    decay = sheet.number("weight_decay", least=0)
    kind = sheet.get("optim")
    name = _OPTIMIZERS.get(str(kind))
    if name is None:
        sheet.problem(
            f"optim is {kind!r}, which has no counterpart in torch.optim: take adamw_torch"
        )
        name = "AdamW"
    if sheet.get("optim_args") or sheet.get("optim_target_modules"):
        sheet.problem(
            "optim_args and optim_target_modules have no counterpart here: leave them out"
        )
    sheet.say("kept", "learning_rate", f"model.optimizer.lr: {rate:g}")
    sheet.say("kept", "optim", f"model.optimizer: torch.optim.{name}")
    sheet.say("kept", "weight_decay", f"model.optimizer.weight_decay: {decay:g}")
    if decay and sheet.found.lora is None:
        sheet.note(
            "differs", "weight_decay", "of all weights; transformers spares biases and norms"
        )
    init_args: dict[str, Any] = {"lr": rate, "weight_decay": decay}
    moments = [sheet.number(each, least=0) for each in ("adam_beta1", "adam_beta2")]
    epsilon = sheet.number("adam_epsilon", least=0)
    if name == "AdamW":
        init_args |= {"betas": moments, "eps": epsilon}
    return {"class_path": f"torch.optim.{name}", "init_args": init_args}


def steps_of_epoch(sheet: Sheet) -> int | None:
    """Optimiser steps of an epoch; None where the number of prompts is not known."""
    num = sheet.num_prompts
    if num is None:
        return None
    a_batch = sheet.whole("per_device_train_batch_size", 1) * sheet.processes
    whole = sheet.get("dataloader_drop_last")
    batches = num // a_batch if whole else -(-num // a_batch)
    return max(1, -(-batches // sheet.whole("gradient_accumulation_steps", 1)))


def total_steps(sheet: Sheet) -> int:
    """Optimiser steps of the run, each a round of the game."""
    limit, epochs = sheet.whole("max_steps"), sheet.number("num_train_epochs", least=0)
    if limit > 0:
        sheet.say("kept", "max_steps", f"Budget.rounds: {limit}; an optimiser step is a round")
        sheet.seen.add("num_train_epochs")
        return limit
    a_pass = steps_of_epoch(sheet)
    if a_pass is None:
        sheet.problem(
            f"the run has num_train_epochs: {epochs:g} passes over a data set of unknown length, "
            "and its schedule ends with them: give --num_prompts N, the number of its rows"
        )
        return 1
    steps: int = max(1, math.ceil(epochs * a_pass))
    sheet.say(
        "translated",
        "num_train_epochs",
        f"Budget.rounds: {steps}, that is {epochs:g} passes of {a_pass} optimiser steps over "
        f"{sheet.num_prompts} prompts",
    )
    return steps


def schedule(sheet: Sheet, steps: int) -> dict[str, Any]:
    """The block of the schedule; empty where the rate stays."""
    kind, warmup = str(sheet.get("lr_scheduler_type")), _warmup(sheet, steps)
    if sheet.get("lr_scheduler_kwargs"):
        sheet.problem("lr_scheduler_kwargs has no counterpart here: leave it out")
    if kind not in _DECAYS:
        sheet.problem(
            f"lr_scheduler_type is {kind!r}, and a schedule here is linear, cosine, constant or "
            "constant_with_warmup"
        )
    warmup = 0 if kind == "constant" else warmup
    if kind == "constant":
        sheet.say("kept", "lr_scheduler_type", "no schedule: the rate stays")
        return {}
    decay = _DECAYS.get(kind, "linear")
    sheet.say(
        "translated", "lr_scheduler_type", f"WarmupDecay of {warmup} + {steps - warmup} steps"
    )
    factor = {"steps": steps, "warmup_steps": warmup, "decay": decay}
    path = "nlhf_zoo.algorithms.warmup.WarmupDecay"
    init_args = {"lr_lambda": {"class_path": path, "init_args": factor}}
    return {
        "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": init_args}
    }


def _warmup(sheet: Sheet, steps: int) -> int:
    """Optimiser steps of the warm-up: a number of them, or a share."""
    given = sheet.get("warmup_steps") or sheet.get("warmup_ratio") or 0
    if not isinstance(given, int | float) or not 0 <= given < math.inf:
        sheet.problem(f"the warm-up is {given!r}, and no number of steps and no share")
        return 0
    is_share = given < 1
    name = "warmup_steps" if sheet.get("warmup_steps") else "warmup_ratio"
    found = math.ceil(steps * given) if is_share else int(given)
    if given:
        sheet.say("translated" if is_share else "kept", name, f"WarmupDecay.warmup_steps: {found}")
    return found


def prompts(sheet: Sheet) -> dict[str, Any]:
    """The block of the data."""
    size = sheet.whole("per_device_train_batch_size", least=1)
    responses = "a response of the policy and one of the opponent"
    each = responses if sheet.version.trainer == "NashMD" else "two responses"
    sheet.say(
        "kept",
        "per_device_train_batch_size",
        f"data.batch_size: {size}; it counts prompts, each with {each}",
    )
    init_args: dict[str, Any] = {**_where(sheet), "batch_size": size}
    seed = sheet.get("data_seed")
    init_args["seed"] = sheet.get("seed") if seed is None else seed
    return {"class_path": "nlhf_zoo.TextPrompts", "init_args": init_args | _longest(sheet)}


def _where(sheet: Sheet) -> dict[str, str]:
    """Where the prompts lie: a file, a folder or a data set."""
    given = dict(sheet.found.data)
    files = given.pop("data_files", None)
    is_file = given.get("path") == "json" and given.get("split", _WHOLE) == _WHOLE
    if files is not None and is_file and files.endswith((".json", ".jsonl")):
        return {"path": files}
    path = given.pop("path", None)
    if path is None or files is not None:
        sheet.by_hand("the prompts", "set data.path to a .jsonl file, or the name of a data set")
        return {"path": PROMPTS}
    for name in given.keys() - {"name", "split"}:
        sheet.by_hand(f"{name} of the data set: {given.pop(name)}", "data has no such option")
    return {"path": path, **given}


def _longest(sheet: Sheet) -> dict[str, Any]:
    """The longest prompt that TRL scores whole."""
    if sheet.version.trainer != "OnlineDPO" or "max_length" not in sheet.version.defaults:
        if "max_length" in sheet.found.given:
            sheet.say("left out", "max_length", "that trainer does not read it")
        sheet.seen.add("max_length")
        return {}
    left = sheet.whole("max_length", 1) - sheet.whole("max_new_tokens", 1)
    if left < 1:
        sheet.problem(
            f"max_length is {sheet.get('max_length')} and max_new_tokens is not below it, so that "
            "TRL scores long responses without their prompt: raise max_length"
        )
    sheet.say(
        "translated",
        "max_length",
        f"data.max_prompt_tokens: {left}; longer prompts, which TRL cuts on the left where it "
        "scores and not where it draws, are refused (data.too_long: drop leaves them out)",
    )
    return {"max_prompt_tokens": Noted(left, "max_length - max_new_tokens")}


def num_rows(sheet: Sheet) -> int | None:
    """Rows of a local file of prompts."""
    found = sheet.found.data
    path = found.get("data_files", found.get("path"))
    if path is None or not path.endswith((".jsonl", ".json")):
        return None
    if found.get("split", _WHOLE) != _WHOLE:  # a share of them, or none
        return None
    from nlhf_zoo.data.texts import RowSource  # with torch, which nothing else here needs

    try:
        return sum(1 for _ in RowSource(path, "train", None, None, "prompts", "").rows())
    except UserError:
        return None  # the run will say what is wrong with it


def trainer(sheet: Sheet, steps: int) -> dict[str, Any]:
    """The block of the Trainer."""
    accumulated = sheet.whole("gradient_accumulation_steps", least=1)
    sheet.say(
        "kept", "gradient_accumulation_steps", f"trainer.accumulate_grad_batches: {accumulated}"
    )
    block: dict[str, Any] = {
        "accelerator": "cpu" if sheet.get("use_cpu") or sheet.get("no_cuda") else "auto",
        "devices": Noted(sheet.processes, "processes of one machine, by which steps were counted"),
        "precision": _precision(sheet),
        "accumulate_grad_batches": accumulated,
    }
    if sheet.get("max_grad_norm"):
        norm = sheet.number("max_grad_norm", least=0)
        sheet.say("kept", "max_grad_norm", f"trainer.gradient_clip_val: {norm:g}")
        block["gradient_clip_val"] = norm
    block["log_every_n_steps"] = _every(sheet, "logging", steps, "trainer.log_every_n_steps")
    if sheet.get("eval_strategy") not in ("no", None):
        sheet.say("left out", "eval_strategy", "set data.num_validation and val_check_interval")
    block["logger"] = _logger(sheet)
    every = _every(sheet, "save", steps, "GameCheckpoint.every_n_train_steps")
    saved = {"class_path": "nlhf_zoo.GameCheckpoint", "init_args": {"every_n_train_steps": every}}
    budget = {"class_path": "nlhf_zoo.Budget", "init_args": {"rounds": steps}}
    return block | {"callbacks": [saved, budget]}


def _precision(sheet: Sheet) -> str:
    half, brain = bool(sheet.get("fp16")), sheet.get("bf16")
    brain = not half if brain is None else bool(brain)
    precision = "bf16-mixed" if brain else "16-mixed" if half else "32-true"
    sheet.say("kept", "fp16" if half else "bf16", f"trainer.precision: {precision}")
    return precision


def _every(sheet: Sheet, what: str, steps: int, ours: str) -> int:
    """Optimiser steps between two logs or checkpoints; a share is one of the whole run."""
    strategy, name = sheet.get(f"{what}_strategy"), f"{what}_steps"
    if strategy == "epoch" and (a_pass := steps_of_epoch(sheet)) is not None:
        sheet.say("translated", f"{what}_strategy", f"{ours}: {a_pass}, the steps of an epoch")
        return a_pass
    if strategy not in ("steps", None):
        sheet.say("translated", f"{what}_strategy", f"{ours}: {steps}, at the end of the run")
        return steps
    given = sheet.number(name, least=0)
    every = max(1, math.ceil(given * steps) if given < 1 else int(given))
    sheet.say("kept" if every == given else "translated", name, f"{ours}: {every}")
    return every


def _logger(sheet: Sheet) -> dict[str, Any]:
    wanted = sheet.get("report_to")
    wanted = wanted if isinstance(wanted, list) else [wanted]
    folder = str(sheet.get("output_dir") or "trainer_output")
    init_args: dict[str, Any] = {"save_dir": folder}
    if "wandb" in wanted:
        sheet.say("kept", "report_to", "trainer.logger: WandbLogger, which needs wandb")
        return {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": init_args}
    others = [one for one in wanted if one not in ("tensorboard", "all", "none", None)]
    if others:
        sheet.by_hand(f"report_to: {', '.join(map(str, others))}", "trainer.logger writes files")
    else:
        sheet.say("kept", "report_to", f"trainer.logger: files of TensorBoard in {folder}")
    init_args["default_hp_metric"] = False
    return {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": init_args}
