"""The language part: a LoRA language model of which everything is known exactly, at two sizes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nlhf_zoo.callbacks import read_history
from nlhf_zoo.cli.bench.methods import Block, Method
from nlhf_zoo.cli.bench.played import Played, points
from nlhf_zoo.cli.bench.rates import LANGUAGE, OTHERS
from nlhf_zoo.cli.bench.results import EXPLOITABILITY, HELD_OUT
from nlhf_zoo.cli.compare.command import compared
from nlhf_zoo.cli.compare.configuration import AlgorithmBlocks, BudgetLimits, Configuration
from nlhf_zoo.cli.compare.entries import read_entries
from nlhf_zoo.cli.compare.runs import METRICS
from nlhf_zoo.cli.compare.tables import EntryResult
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.cli.yaml_rules import dump
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written

BETA = 0.1
SIZES = (4, 8)  # letters; words have three
_RESPONSES = 32
# By the name of the game in the comparison, what is measured there.
_MEASURES = {"language": EXPLOITABILITY, "votes": HELD_OUT}


def _part(name: str, **arguments: Any) -> Block:
    return {"class_path": name, "init_args": arguments}


def _oracle(letters: int) -> Block:
    return _part("nlhf_zoo.SmallLanguage", num_letters=letters)


def _games(letters: int) -> dict[str, Block]:
    """The language by its own preference, and by votes; both are measured by the former."""
    voted = _part("nlhf_zoo.cli.bench.voted.VotedSmallLanguage", num_letters=letters)
    return {"language": {"oracle": _oracle(letters)}, "votes": {"oracle": voted}}


def _optimizer(method: Method) -> Block:
    """AdamW at the method's own rate."""
    rate = method.rate or LANGUAGE.get(method.name, OTHERS)
    return _part("torch.optim.AdamW", lr=rate, weight_decay=0.0)


def _model(letters: int) -> Block:
    """What all methods share, but for the rate; that falls to 0 over the budget."""
    source = _part("nlhf_zoo.SmallLanguageModel", num_letters=letters)
    lora = {"r": 8, "alpha": 16}
    return _part(
        "nlhf_zoo.OnlineGame",
        beta=BETA,
        policy=_part("nlhf_zoo.CausalLMPolicy", model=source, lora=lora, max_new_tokens=3),
        oracle=_oracle(letters),
        rollout=_part("nlhf_zoo.Sample", num_responses=_RESPONSES, num_opponents=_RESPONSES),
        realisation=_part("nlhf_zoo.GradientSteps"),
        optimizer=_part("torch.optim.AdamW", lr=OTHERS, weight_decay=0.0),
        lr_scheduler=_part("nlhf_zoo.BudgetLR"),
    )


def play(
    methods: Sequence[Method],
    seeds: list[int],
    queries: int,
    folder: Path,
    overwrite: bool = False,
    small: bool = False,
) -> list[Played]:
    """Train the language model by each method, at each size, by the preference and by votes.

    Args:
        methods: those that cannot play this game are left out, which is said.
        seeds: of the runs; the game is one.
        queries: pairs that each may ask about, for each prompt.
        folder: of the runs; one that was interrupted goes on there.
        overwrite: whether another run's files there are replaced.
        small: the smaller language alone.
    """
    played = []
    for letters in SIZES[:1] if small else SIZES:
        place = folder / f"{letters}_letters"
        place.mkdir(parents=True, exist_ok=True)
        with written(place / "base.yaml") as beside:
            beside.write_text(dump({"model": _model(letters)}), encoding="utf-8")
        comparison = Configuration(
            output=place,
            budget=BudgetLimits(queries=queries),
            games=_games(letters),
            algorithms=_those_that_can(methods, place / "base.yaml", letters),
            seeds=seeds,
            betas=[BETA],
            overwrite=overwrite,
        )
        by_method: dict[str, list[EntryResult]] = {}
        for result in compared(comparison):
            by_method.setdefault(result.entry.algorithm, []).append(result)
        condition = f"{letters} letters"
        played += [_played(own, condition, queries) for own in by_method.values()]
    return played


def _those_that_can(
    methods: Sequence[Method], base: Path, letters: int
) -> dict[str, AlgorithmBlocks]:
    """The methods that can play; the others are named on standard error."""
    able = {}
    for method in methods:
        own = AlgorithmBlocks(base, {"algorithm": method.block, "optimizer": _optimizer(method)})
        games = {"language": {"oracle": _oracle(letters)}}
        try:
            with quiet():
                read_entries(games, {method.name: own}, [BETA], 0, lambda: None)
        except UserError as error:
            print(f"{method.name} is left out: {error}", file=sys.stderr)
        else:
            able[method.name] = own
    if not able:
        raise UserError("none of the algorithms can play the small language")
    return able


def _played(results: Sequence[EntryResult], condition: str, queries: int) -> Played:
    """The runs of a method, prompt by prompt, with the curve of the first game."""
    final: dict[str, dict[tuple[str, int], float]] = {}
    for result in results:
        final[_MEASURES[result.entry.game]] = {
            (f"prompt {i}", run.task.seed): value
            for run in result.runs
            for i, value in enumerate(run.figures["exploitability"].tolist())
        }
    curves = []
    for run in results[0].runs:
        history = read_history(run.task.folder)
        rows = np.searchsorted(history["queries"], points(queries), side="right") - 1
        curves.append(history[METRICS["regularised"]][rows])
    return Played(results[0].entry.algorithm, condition, final, np.concatenate(curves, -1))
