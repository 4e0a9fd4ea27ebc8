"""Six algorithms on a model that nobody can enumerate: made, trained, certified, played off, drawn.

    python docs/ten_million/run.py [--tiny]

Everything is made here, nothing is downloaded. What is already there is kept, so that the same
command goes on where it was interrupted. docs/ten_million.md says what comes of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import make
import page
from make import CONFIGS, PLACE

from nlhf_zoo.cli.bench.ten_million import models, world
from nlhf_zoo.cli.main import main as nlhf

ALGORITHMS = {
    "nash_mp": "Nash-MP",
    "nash_md": "Nash-MD",
    "sppo": "SPPO",
    "online_dpo": "online DPO",
    "online_ipo": "online IPO",
    "egpo": "EGPO",
}
UNTRAINED = "untrained"
HELD_OUT = PLACE / "data/held_out_prompts.jsonl"


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured.

    Attributes:
        size: of the models.
        queries: of the oracle for each prompt of a batch, the same for all algorithms; None for
            those of configs/ten_million/base.yaml.
        responses: of a certificate for each prompt, and as many opponents.
        certified: held-out prompts of a certificate.
        played: held-out prompts of the tournament. The last 16 of the 64 are in neither, for the
            learning rates were chosen on them.
    """

    size: models.Size = field(default_factory=models.Size)
    queries: int | None = None
    responses: int = 128
    certified: int = 12
    played: int = 48


TINY = Scale(models.Size(32, 1, 3, 64), queries=256, responses=16, certified=2, played=3)


def timed(path: Path, work: Callable[[], object]) -> None:
    """Do it unless it was done, and note the seconds of the processor and of the clock."""
    if path.exists():
        return
    clock, processor = time.perf_counter(), time.process_time()
    work()
    seconds = {"processor": time.process_time() - processor, "clock": time.perf_counter() - clock}
    path.write_text(json.dumps(seconds))


def train(name: str, *given: str) -> None:
    """One run of `nlhf fit`, which goes on where one was interrupted."""
    folder = PLACE / name / "version_0"
    files = [word for one in ("base", name) for word in ("--config", str(CONFIGS / f"{one}.yaml"))]
    last = ["--ckpt_path", "last"] if (folder / "checkpoints/last.ckpt").exists() else []
    args = ["fit", *files, "--trainer.logger.version", "0", *given, *last]
    timed(folder / "seconds.json", lambda: nlhf(args))


def judged_by(name: str) -> list[str]:
    """The options of an oracle."""
    oracle = "GeneralPreferenceModelOracle"
    return ["--oracle", oracle, "--oracle.model", str(make.oracle_model(name))]


def certify(name: str, scale: Scale) -> None:
    """The certificate of a run, or of what all runs start from, by the training oracle."""
    run, player = (next(iter(ALGORITHMS)), "reference") if name == UNTRAINED else (name, "policy")
    folder = PLACE / "certificates" / name
    folder.parent.mkdir(exist_ok=True)
    number = str(scale.responses)
    args = ["certify", str(PLACE / run / "version_0"), "--player", player, *judged_by("training")]
    args += ["--prompts", str(HELD_OUT), "--num_prompts", str(scale.certified)]
    args += ["--responses", number, "--opponents", number, "--output", str(folder)]
    timed(folder / "seconds.json", lambda: nlhf(args))


def play(scale: Scale) -> None:
    """Tournaments of the six and what they started from: by the held-out oracle, and by the rule.

    The hidden preference, which no oracle has seen, judges the same answers.
    """
    prompts = ["--prompts", str(HELD_OUT), "--num_prompts", str(scale.played)]
    runs = [f"{title}={PLACE / name / 'version_0'}" for name, title in ALGORITHMS.items()]
    tournament([*runs, f"{UNTRAINED}=reference"], [*judged_by("held_out"), *prompts], "tournament")
    drawn = sorted((PLACE / "tournament/answers").glob("*.jsonl"))  # numbered as they were named
    files = zip((*ALGORITHMS.values(), UNTRAINED), drawn, strict=True)
    rule = ["--oracle", "RuleOracle", "--oracle.function", f"{world.__name__}.people_prefer"]
    tournament([f"{title}={path}" for title, path in files], [*rule, *prompts], "tournament_rule")


def tournament(entrants: list[str], options: list[str], name: str) -> None:
    """One run of `nlhf tournament`, which goes on where one was interrupted."""
    folder = PLACE / name
    args = ["tournament", *entrants, *options, "--output", str(folder)]
    timed(folder / "seconds.json", lambda: nlhf(args))


def main(scale: Scale) -> None:
    """All of it, in the working directory."""
    make.everything(scale.size)
    budget = ["--trainer.callbacks+", "Budget", "--trainer.callbacks.queries", str(scale.queries)]
    for name in ALGORITHMS:
        train(name, *(budget if scale.queries else []))
    for name in (UNTRAINED, *ALGORITHMS):
        certify(name, scale)
    play(scale)
    page.write({UNTRAINED: UNTRAINED, **ALGORITHMS})


if __name__ == "__main__":
    main(TINY if "--tiny" in sys.argv[1:] else Scale())
