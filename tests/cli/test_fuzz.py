# ruff: noqa: E501  # tables
"""Configurations with one to three faults: each plays, or says in one sentence why it does not."""

import copy
import math
import random
import re
from typing import Any

import pytest
import yaml
from forked import Run, nlhf
from runs import CASES, part

CHUNKS, SIZE = 20, 25  # 500 configurations
SECONDS = 60  # the longest that a run may take

BASES = (
    "closed-nash_mp", "closed-moving_magnet", "sampled-egpo", "sampled-online_dpo", "mlp-nash_mp",
    "enumerated-optimistic",
)  # fmt: skip
NUMBERS = (
    None,
    0,
    -1,
    1,
    2,
    3,
    10**9,
    2**70,
    1e-300,
    1e300,
    0.5,
    0.01,
    -0.1,
    math.nan,
    math.inf,
    True,
)
VALUES = (
    None, 0, True, False, "", "x", "a\0b", 300 * "a", "\ud800", "../../x", "/dev/zero", "/proc/x", "1e3", [], [0], [[]], {}, {"x": 1},
    {"class_path": None}, {"class_path": "os.system", "init_args": {"command": "touch made"}},
    {"class_path": "Comal"}, {"init_args": None}, "Comal", "NashMP", "TabularPolicy", "${x.y}",
)  # fmt: skip
CLASSES = (
    "LBFGS", "SparseAdam", "SGD", "OneCycleLR", "StepLR", "ReduceLROnPlateau", "NashMD", "SPPO", "OnlineDPO",
    "MLPPolicy", "CausalLMPolicy", "VotesOracle", "EmbeddingOracle", "Sample", "Enumerate", "Cyclic",
    "PreferencePairs", "TextPrompts", "PreferenceModel", "EarlyStopping", "ModelCheckpoint",
)  # fmt: skip
TRAINER = (
    "accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval", "max_steps", "max_epochs",
    "limit_train_batches", "limit_val_batches", "num_nodes", "devices", "log_every_n_steps", "min_steps",
    "gradient_clip_val", "overfit_batches", "num_sanity_val_steps", "reload_dataloaders_every_n_epochs",
    "detect_anomaly", "strategy", "accelerator", "precision", "default_root_dir", "profiler", "logger",
    "callbacks", "barebones", "deterministic", "benchmark", "inference_mode", "use_distributed_sampler",
    "fast_dev_run", "enable_checkpointing", "plugins", "sync_batchnorm", "model_registry",
)  # fmt: skip


def mutated(rng: random.Random) -> dict[str, Any]:
    """A small configuration with faults."""
    config: dict[str, Any] = copy.deepcopy(CASES[rng.choice(BASES)])
    config["trainer"]["callbacks"] = [
        part("ExactMetrics"),
        part("Budget", rounds=3),
        part("GameCheckpoint"),
    ]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        how = rng.random()
        places = list(_places(config))
        holder, key = rng.choice(places)
        numbers = [(h, k) for h, k in places if isinstance(h[k], int | float)]
        if how < 0.35 and numbers:
            holder, key = rng.choice(numbers)
            holder[key] = rng.choice(NUMBERS)
        elif how < 0.5:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif how < 0.75:
            config_trainer = config.get("trainer")
            if isinstance(config_trainer, dict):
                values = NUMBERS if rng.random() < 0.8 else VALUES
                config_trainer[rng.choice(TRAINER)] = copy.deepcopy(rng.choice(values))
        elif how < 0.9:
            classes = [(h, k) for h, k in places if k == "class_path"]
            if classes:
                holder, key = rng.choice(classes)
                holder[key] = rng.choice(CLASSES)
        elif how < 0.95:
            del holder[key]
        elif isinstance(holder, dict):
            holder[f"{key}x"] = holder[key]
    return _alone(config)


def _alone(config: dict[str, Any]) -> dict[str, Any]:
    """In one process: others would be started by the name of this one's program."""
    trainer = config.get("trainer")
    if isinstance(trainer, dict) and trainer.get("devices") in (2, 3):
        trainer["devices"] = 1
    return config


def _places(value: Any) -> Any:
    """Everything that could be replaced: holders and keys."""
    entries = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, entry in entries:
        yield value, key
        if isinstance(entry, dict | list):
            yield from _places(entry)


def what_is_wrong(run: Run, config: dict[str, Any]) -> str:
    """What a run did that none may do; nothing of one that has played, or says why not."""
    if "Traceback" in run.err or run.code not in (0, 2):
        return f"exit code {run.code}: {run.err[-1500:]}"
    if run.code == 2:
        is_sentence = run.sentence.startswith("nlhf: error: ") and len(run.sentence) < 1000
        return "" if is_sentence else f"no sentence: {run.err[-1500:]}"
    trainer = config.get("trainer")
    is_trial = isinstance(trainer, dict) and bool(trainer.get("fast_dev_run"))
    played = re.search(r"^Logs, metrics and checkpoint: ", run.out, re.MULTILINE)
    return "" if is_trial or played else f"played nothing: {run.out[-500:]}"


@pytest.mark.slow
@pytest.mark.timeout(CHUNKS * SIZE * SECONDS)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_faulty_configuration_plays_or_says_why_not(chunk, tmp_path):
    wrong = []
    for number in range(chunk * SIZE, (chunk + 1) * SIZE):
        config = mutated(random.Random(number))
        folder = tmp_path / str(number)
        folder.mkdir()
        text = yaml.safe_dump(config, allow_unicode=True)
        (folder / "game.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            # A budget may be a billion rounds, which is no fault.
            stop = ("--trainer.max_time", "00:00:00:10")
            run = nlhf("fit", "--config", "game.yaml", *stop, folder=folder, timeout=SECONDS)
        except TimeoutError as error:
            wrong.append(f"{number}: {error}")
            continue
        if said := what_is_wrong(run, config):
            wrong.append(f"{number}: {said}")
        if (folder / "made").exists() or (tmp_path.parent / "x").exists():
            wrong.append(f"{number}: wrote where it may not")
    assert not wrong, "\n\n".join(wrong)
