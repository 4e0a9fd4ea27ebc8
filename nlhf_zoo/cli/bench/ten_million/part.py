"""Plays the part, and checks what is kept of a run of it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from tqdm import tqdm

from nlhf_zoo.cli.bench.methods import Method
from nlhf_zoo.cli.bench.played import Played
from nlhf_zoo.cli.bench.results import Evidence, Figure
from nlhf_zoo.cli.bench.ten_million import measuring, models
from nlhf_zoo.cli.bench.ten_million.making import World
from nlhf_zoo.cli.bench.ten_million.setting import (
    BETA,
    CONDITION,
    SMALL,
    WHOLE,
    Setting,
    model,
    oracles,
)
from nlhf_zoo.cli.bench.ten_million.training import Run
from nlhf_zoo.cli.compare.entries import made_game
from nlhf_zoo.cli.parser import as_user_errors
from nlhf_zoo.cli.policies import weights_digest
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError

_GAME = "held-out prompts"
NOT_CHECKED = (
    "The kept responses were judged again, by oracles that were made here. Not checked is that "
    "these weights say them, with these log-probabilities, and that the algorithm comes to these "
    "weights on this budget: play it again for that."
)


def play(
    methods: Sequence[Method],
    seeds: list[int],
    queries: int,
    folder: Path,
    overwrite: bool = False,
    small: bool = False,
) -> tuple[list[Played], Evidence]:
    """Train the model by each method, and measure each by both oracles.

    Args:
        methods: those that cannot play this game are left out, which is said.
        seeds: of the runs; models, oracles and prompts are the same for all.
        queries: pairs that each may ask about, for each prompt of a batch.
        folder: of the runs; what is there already is not made again.
        overwrite: whether another run's files there are replaced.
        small: a small model, to see that it runs.

    Returns:
        what was played, and which files it was computed from.
    """
    setting = SMALL if small else WHOLE
    models.say_less()
    with quiet():
        place = World(folder / ("small_world" if small else "world"), setting.size)
        place.make()
        able = [*_those_that_can(methods, place, queries)]
        runs = [
            Run(
                method,
                seed,
                queries,
                model(place, method),
                place.prompts,
                folder / "ten_million" / method.name / f"seed_{seed}",
            )
            for seed in seeds
            for method in able
        ]
        for run in runs:
            run.begin(overwrite)
        evidence: Evidence = {}
        counted: Any = {"unit": " queries", "unit_scale": True, "file": sys.stderr}
        with tqdm(total=queries * len(runs), **counted) as bar:
            for run in runs:
                bar.set_description(run.name)
                weights = run.play(bar.update)
                file = run.folder / measuring.FILE
                if weights is not None and not file.is_file():
                    bar.set_description(f"{run.name}, measured")
                    measuring.keep(run.folder, run.seed, setting)
                evidence[run.name] = _evidence(file, folder.parent, weights)
        found = _figures(evidence, [m.name for m in able], seeds, folder.parent, place, setting)
    return _played(found, [method.name for method in able], seeds), evidence


def _those_that_can(methods: Sequence[Method], place: World, queries: int) -> Iterator[Method]:
    """The methods that can play; the others are named on standard error."""
    number = 0
    for method in tqdm(methods, desc="checking", delay=1, leave=False, file=sys.stderr):
        try:
            with as_user_errors():
                game = made_game(yaml.safe_dump(model(place, method), sort_keys=False), BETA)
                asked = game.queries_per_round()
            if asked > queries:
                raise UserError(f"a round of it asks {asked:,} queries, of a budget of {queries:,}")
        except UserError as error:
            print(f"{method.name} is left out: {error}", file=sys.stderr)
        else:
            number += 1
            yield method
    if not number:
        raise UserError("none of the algorithms can play the model of 10 M parameters")


def _evidence(file: Path, folder: Path, weights: str | None) -> dict[str, str | None]:
    if weights is None:
        return {"file": None, "sha256": None, "weights": None}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"file": file.relative_to(folder).as_posix(), "sha256": digest, "weights": weights}


def _figures(
    evidence: Evidence,
    names: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    place: World,
    setting: Setting,
) -> dict[int, dict[str, dict[str, float]]]:
    """Figures of each seed, by method and measure, from the kept files alone."""
    both, found = oracles(place), {}
    for seed in seeds:
        files = {name: evidence[f"{name}, seed {seed}"]["file"] for name in names}
        kept = {
            name: None if file is None else measuring.read(folder / file, setting)
            for name, file in files.items()
        }
        found[seed] = measuring.figures(kept, both, setting)
    return found


def _played(
    found: dict[int, dict[str, dict[str, float]]], names: Sequence[str], seeds: Sequence[int]
) -> list[Played]:
    return [
        Played(
            name,
            CONDITION,
            {
                measure: {(_GAME, seed): found[seed][name][measure] for seed in seeds}
                for measure in measuring.MEASURES
            },
        )
        for name in names
    ]


def check_evidence(
    evidence: Evidence, names: Sequence[str], seeds: list[int], folder: Path, small: bool
) -> tuple[list[Figure], list[str]]:
    """Compute the figures of a submission from the responses that it keeps, by oracles made here.

    Args:
        evidence: which files, with their checksums.
        names: of the methods.
        seeds: of the runs.
        folder: that the results lie in.
        small: whether it is of the small setting.

    Returns:
        the figures, and what is wrong with the files, a sentence each.

    Raises:
        UserError: a file is named that does not lie below the folder, or is damaged.
    """
    setting = SMALL if small else WHOLE
    models.say_less()
    wrong = []
    for run in (f"{name}, seed {seed}" for seed in seeds for name in names):
        if run not in evidence:
            raise UserError(f"there are no responses of {run}: the file is damaged")
        if (name := evidence[run]["file"]) is None:
            continue
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise UserError(f"{run}: there is no file {name} beside the results")
        if hashlib.sha256(path.read_bytes()).hexdigest() != evidence[run]["sha256"]:
            wrong.append(f"{run}: {name} is not the file that was measured")
        has_weights = (path.parent / "checkpoints" / "last.ckpt").is_file()
        if has_weights and weights_digest(str(path.parent)) != evidence[run]["weights"]:
            wrong.append(f"{run}: the weights beside {name} are not those that were measured")
    with quiet(), TemporaryDirectory() as made_here:  # by nothing that was submitted
        place = World(Path(made_here), setting.size)
        place.make(oracles_alone=True)
        found = _figures(evidence, names, seeds, folder, place, setting)
    return [each for one in _played(found, names, seeds) for each in one.figures], wrong
