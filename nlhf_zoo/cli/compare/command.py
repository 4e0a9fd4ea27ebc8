"""``nlhf compare``: several algorithms, seeds and games on one budget.

The output folder receives

- ``results.csv``: one row for each independent game, algorithm and seed, at the end of the run;
  columns game, algorithm, seed, queries (for each prompt), rounds, exploitability, kl_to_nash,
  span, seconds;
- ``results.md``: mean and maximum of these over games and seeds;
- ``comparison.png``: exploitability against oracle queries, with the theory's rate;
- with a target, ``queries_to_target.csv``: the queries until the duality gap was below it;
- a folder a run, ``game/algorithm/seed_0``: TensorBoard logs, and the metrics of every round
  (``read_history`` reads them; of a sweep, those of the best value are kept).

Runs that choose the best value of a sweep, and are not reported themselves (``sweep_seeds``), are
in ``results.csv`` too.

A run that diverges is reported as infinitely far off in all its games, not dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from tqdm import tqdm

from nlhf_zoo.algorithms.closed_form import thread_limit
from nlhf_zoo.cli.compare.configuration import Configuration, read_configuration
from nlhf_zoo.cli.compare.entries import Entry, read_entries
from nlhf_zoo.cli.compare.figure import draw
from nlhf_zoo.cli.compare.pool import WorkerPool
from nlhf_zoo.cli.compare.runs import Task
from nlhf_zoo.cli.compare.tables import (
    EntryResult,
    choose_best,
    results_csv,
    results_markdown,
    results_text,
    targets_csv,
    targets_markdown,
)
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written

_RESULTS = ("results.csv", "results.md", "comparison.png", "queries_to_target.csv")
_SMALL = 2_000_000  # entries of a table, up to which runs go on one thread
_HISTORY = ("history.json", "history.bin")
_LOGS = (*_HISTORY, "hparams.yaml", "events.out.tfevents.*")


def main(args: list[str]) -> None:
    """Run ``nlhf compare``.

    Args:
        args: what stands behind ``nlhf compare``.

    Raises:
        UserError: the comparison cannot be made as it is asked for.
    """
    configuration = read_configuration(args)
    output, betas = configuration.output, configuration.betas
    games, algorithms = configuration.games, configuration.algorithms
    earlier = _earlier(output, configuration.overwrite)
    torch.set_float32_matmul_precision("highest")  # log-probabilities must not lose digits to tf32
    values = sum(len(own.values) for own in algorithms.values())
    total = len(games) * len(betas or [0]) * values
    checking = partial(tqdm, desc="checking", unit="model", delay=1, leave=False, file=sys.stderr)
    with quiet():
        with checking(total=total) as bar:
            seed = configuration.seeds[0]
            entries = read_entries(games, algorithms, betas, seed, bar.update)
        _clear(output, earlier)
        with thread_limit(max(entry.size for entry in entries) <= _SMALL):
            results = _play(configuration, entries)
    _write(configuration, results)
    print(f"Tables and figure: {output}/")
    print(f"TensorBoard logs:  tensorboard --logdir '{output}'")


def _earlier(output: Path, overwrite: bool) -> list[Path]:
    """The files of an earlier comparison in the output folder.

    Raises:
        UserError: there are some, and may not be overwritten.
    """
    results = [output / name for name in _RESULTS if (output / name).exists()]
    found = results + [path for name in _LOGS for path in output.glob(f"*/*/seed_*/{name}")]
    if found and not overwrite:
        raise UserError(
            f"output {output} holds an earlier comparison ({found[0].name}): give another folder, "
            "or --overwrite"
        )
    return found


def _clear(output: Path, earlier: list[Path]) -> None:
    """Make the output folder, without these files and the folders that held nothing else."""
    for path in earlier:
        path.unlink()
    for folder in {path.parent for path in earlier} - {output}:
        for empty in (folder, *folder.parents[:2]):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
    output.mkdir(parents=True, exist_ok=True)


def _play(configuration: Configuration, entries: list[Entry]) -> list[EntryResult]:
    """All runs; those that choose of a sweep come first, where these are runs of their own."""
    choosing, reported = configuration.choosing, configuration.reported
    target, (limit, unit) = configuration.target, configuration.budget.counted
    groups = [
        list(g) for _, g in groupby(entries, key=lambda entry: (entry.where, entry.algorithm))
    ]
    rivals = [group if choosing and len(group) > 1 else [] for group in groups]
    finals = sum(1 if tried else len(group) for group, tried in zip(groups, rivals, strict=True))
    runs = sum(map(len, rivals)) * len(choosing) + finals * len(reported)
    task = partial(
        Task,
        output=configuration.output,
        budget=configuration.budget,
        exploitability=configuration.exploitability,
        duality_gap=target.duality_gap if target else None,
    )
    shown = partial(tqdm, unit_scale=True, delay=1, mininterval=0.5, file=sys.stderr)
    with (
        shown(total=limit * runs, unit=f" {unit}") as bar,
        closing(WorkerPool(configuration.processes, bar)) as pool,
    ):
        trials = list(_results(pool, task, rivals, choosing))
        finalists = [
            [result.entry for result in tried if result.best] or group
            for group, tried in zip(groups, trials, strict=True)
        ]
        results: list[EntryResult] = []
        final = _results(pool, task, finalists, reported)
        for played, tried in zip(final, trials, strict=True):
            chosen = [EntryResult(played[0].runs, True, r.runs) if r.best else r for r in tried]
            results += chosen or played
    return results


def _results(
    pool: WorkerPool, task: Callable[..., Task], groups: list[list[Entry]], seeds: list[int]
) -> Iterator[list[EntryResult]]:
    """Play groups of rivals, of which the best is marked; of it alone all rounds are kept."""
    runs = pool.play([task(e, seed) for group in groups for e in group for seed in seeds])
    for group in groups:
        rivals = choose_best([EntryResult([next(runs) for _ in seeds]) for _ in group])
        for run in [run for rival in rivals if not rival.best for run in rival.runs]:
            for name in _HISTORY:
                (run.task.folder / name).unlink()
        yield rivals


def _write(configuration: Configuration, results: list[EntryResult]) -> None:
    """Write the files and print the tables."""
    budget, output = configuration.budget, configuration.output
    limits = [(budget.queries, "queries per prompt"), (budget.rounds, "rounds")]
    limit = " and ".join(f"{value:,} {what}" for value, what in limits if value is not None)
    seeds = ", ".join(map(str, configuration.reported))
    heading = f"{configuration.exploitability.capitalize()} exploitability after at most {limit}; "
    heading += f"mean and maximum over games and seeds {seeds}.{_selection(configuration)}\n\n"
    targets, texts = "", {"results.csv": results_csv(results)}
    names = list(configuration.algorithms)
    if configuration.target is not None:
        targets = f"\nOracle queries to a duality gap below {configuration.target.duality_gap:g}; "
        targets += "median over games and seeds, at the best value of a sweep.\n\n"
        played, unit = budget.counted
        missed = f"not in {played:,}" + (" rounds" if unit == "rounds" else "")
        targets += targets_markdown(results, names, missed)
        texts["queries_to_target.csv"] = targets_csv(results)
    texts["results.md"] = heading + results_markdown(results) + targets
    kind, log_queries = configuration.exploitability, configuration.queries_axis == "log"
    for name in (*texts, "comparison.png"):
        try:
            with written(output / name) as path:
                if name in texts:
                    path.write_text(texts[name], encoding="utf-8")
                else:
                    draw(results, path, names, kind, log_queries)
        except OSError as error:
            message = f"{output / name} could not be written: {error.strerror}"
            raise UserError(message) from error
    print(heading + results_text(results) + targets)


def _selection(configuration: Configuration) -> str:
    """By what the best value of a sweep was chosen: by what is reported, it flatters."""
    if not configuration.sweeps:
        return ""
    if not configuration.choosing:
        return " Of a sweep the best value, chosen by these same runs."
    seeds = ", ".join(map(str, configuration.choosing))
    return f" Of a sweep the best value, chosen by other runs (seeds {seeds})."
