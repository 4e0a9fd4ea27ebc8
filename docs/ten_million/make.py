"""Makes what the runs of the demonstration read: prompts, pairs, a language model, two oracles."""

from __future__ import annotations

from pathlib import Path

from nlhf_zoo.cli.bench.ten_million import models, world
from nlhf_zoo.cli.bench.ten_million.making import NUM_HELD_OUT, ORACLES
from nlhf_zoo.cli.main import main as nlhf

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs" / "ten_million"
PLACE = Path("runs/ten_million")  # in the working directory, as the files of configs/ten_million


def oracle_model(name: str) -> Path:
    """The folder of an oracle's model."""
    return PLACE / "oracles" / name / "version_0/preference_model"


def data(size: models.Size) -> None:
    """Prompts and pairs."""
    folder = PLACE / "data"
    folder.mkdir(parents=True, exist_ok=True)
    every = world.prompts()
    held_out, training = every[:NUM_HELD_OUT], every[NUM_HELD_OUT:]
    world.write_lines(folder / "prompts.jsonl", [{"prompt": one} for one in training])
    world.write_lines(folder / "held_out_prompts.jsonl", [{"prompt": one} for one in held_out])
    for name, (_, seed) in ORACLES.items():
        rows = world.pairs(size.pairs, training, seed)
        world.write_lines(folder / f"pairs_{name}.jsonl", rows)
    rows = world.pairs(max(64, size.pairs // 8), held_out, 3)
    world.write_lines(folder / "pairs_validation.jsonl", rows)


def language_model(size: models.Size, name: str = "language_model") -> None:
    """The policy's start and reference."""
    folder = PLACE / "models" / name
    if not (folder / "tokenizer.json").exists():  # it is written last
        number = models.language_model(folder, size)
        print(f"{folder}: {number:,} parameters")


def oracle(name: str) -> None:
    """A general preference model, on its own pairs, from its own backbone."""
    kind, seed = ORACLES[name]
    backbone = PLACE / "models" / f"backbone_{name}"
    if oracle_model(name).exists():
        return
    models.backbone(backbone, kind, seed)
    options = {
        "model.backbone": backbone,
        "data.path": PLACE / "data" / f"pairs_{name}.jsonl",
        "trainer.logger.name": f"oracles/{name}",
        "trainer.logger.version": 0,
    }
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    nlhf(["fit", "--config", str(CONFIGS / "preference_model.yaml"), *given])


def everything(size: models.Size) -> None:
    """All that is not there yet."""
    data(size)
    language_model(size)
    for name in ORACLES:
        oracle(name)
