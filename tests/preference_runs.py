"""Runs of PreferenceModel in tests: their configuration, the command line in this process."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT
from runs import part as part
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nlhf_zoo.cli.main import main

CONFIGS = ROOT / "configs" / "preference_model"
TEMPLATES = {"response": "{prompt}>{response}", "pair": "{prompt}>{first}>{second}"}
HEADS = {
    "reward": ("BradleyTerryHead", "RewardModelOracle"),
    "pair": ("PairHead", "PairModelOracle"),
    "general": ("GeneralPreferenceHead", "GeneralPreferenceModelOracle"),
}


def configuration(folder: Path, kind: str = "general", **model: Any) -> dict[str, Any]:
    """Ten steps on a few pairs of the cyclic groups; every option of the model can be another."""
    head = model.pop("head", part(HEADS[kind][0]))
    data = ROOT / "configs/data/cyclic_groups"
    return {
        "seed_everything": 3,
        "model": part(
            "nlhf_zoo.preference_models.PreferenceModel",
            **{
                "backbone": part("LettersBackbone", hidden_size=16),
                "head": head,
                "optimizer": part("torch.optim.AdamW", lr=0.01),
                "template": TEMPLATES["pair" if kind == "pair" else "response"],
                **model,
            },
        ),
        "data": part(
            "nlhf_zoo.data.pairs.PreferencePairs", path=str(data / "train.jsonl"), limit=40,
            batch_size=8, validation_path=str(data / "held_out.jsonl"), num_validation=2,
        ),
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "logger": part(
                "lightning.pytorch.loggers.TensorBoardLogger",
                save_dir=str(folder / "runs"),
                name="model",
                default_hp_metric=False,
            ),
            "callbacks": [part("GameCheckpoint", every_n_train_steps=1)],
        },
    }  # fmt: skip


def write(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def run(*args: str) -> tuple[str, str]:
    """What a command prints, on standard output and on standard error."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(args))
        except SystemExit as end:  # by --print_config
            code = end.code
    assert not code, err.getvalue()
    return out.getvalue(), err.getvalue()


def refused(*args: str) -> str:
    """The one sentence of a command that ends with exit code 2."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code == 2, err.getvalue()
    assert "Traceback" not in err.getvalue()
    return err.getvalue().strip().splitlines()[-1]


def fit(folder: Path, config: dict[str, Any], *args: str) -> tuple[str, str]:
    return run("fit", "--config", write(folder, config), *args)


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of a run's only file of events, by tag."""
    (file,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
