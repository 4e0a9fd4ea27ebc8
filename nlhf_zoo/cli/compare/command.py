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
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path

import torch
from tqdm import tqdm

from nlhf_zoo.cli.compare.checks import check
from nlhf_zoo.cli.compare.configuration import Configuration, read_configuration
from nlhf_zoo.cli.compare.contenders import Contender, read_contenders, swept
from nlhf_zoo.cli.compare.figure import draw
from nlhf_zoo.cli.compare.processes import Task, Team
from nlhf_zoo.cli.compare.runs import Run
from nlhf_zoo.cli.compare.tables import (
    Entry,
    choose_best,
    markdown,
    results_csv,
    results_table,
    targets_csv,
    targets_table,
    terminal,
)
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError

_RESULTS = ("results.csv", "results.md", "comparison.png", "queries_to_target.csv")
_SMALL = 2_000_000  # entries of a table
_LOGS = ("history.json", "history.bin", "hparams.yaml", "events.out.tfevents.*")


def main(args: list[str]) -> None:
    """Run ``nlhf compare``.

    Args:
        args: what stands behind ``nlhf compare``.

    Raises:
        UserError: the comparison cannot be made as it is asked for.
    """
    configuration, folder = read_configuration(args)
    check(configuration)
    earlier = _earlier(configuration)
    torch.set_float32_matmul_precision("highest")  # log-probabilities must not lose digits to tf32
    with quiet():
        total = _count(configuration)
        with tqdm(
            total=total, desc="checking", unit="model", delay=1, leave=False, file=sys.stderr
        ) as bar:
            contenders = read_contenders(configuration, folder, bar.update)
        _clear(configuration.output, earlier)
        with _threads(max(contender.size for contender in contenders)):
            entries = _play(configuration, contenders)
    _write(configuration, entries)
    print(f"Tables and figure: {configuration.output}/")
    print(f"TensorBoard logs:  tensorboard --logdir '{configuration.output}'")


@contextmanager
def _threads(size: int) -> Iterator[None]:
    """One thread for tables of few entries: to wake a second costs more than it takes over."""
    before = torch.get_num_threads()
    if size <= _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(configuration: Configuration) -> int:
    values = sum(len(swept(own)) for own in configuration.algorithms.values())
    return len(configuration.games) * len(configuration.betas or [0]) * values


def _earlier(configuration: Configuration) -> list[Path]:
    """The files of an earlier comparison in the output folder.

    Raises:
        UserError: there are some, and `overwrite` is not given.
    """
    output = configuration.output
    results = [output / name for name in _RESULTS if (output / name).exists()]
    logs = [path for name in _LOGS for path in output.glob(f"*/*/seed_*/{name}")]
    if (results or logs) and not configuration.overwrite:
        raise UserError(
            f"output {output} holds an earlier comparison ({(results + logs)[0].name}): give "
            "another folder, or --overwrite"
        )
    return results + logs


def _clear(output: Path, earlier: list[Path]) -> None:
    """Make the output folder, without these files and the folders that held nothing else."""
    for path in earlier:
        path.unlink()
    for folder in {path.parent for path in earlier} - {output}:
        for empty in (folder, *folder.parents[:2]):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
    output.mkdir(parents=True, exist_ok=True)


class _Bar:
    """The progress bar of all runs."""

    def __init__(self, configuration: Configuration, runs: int) -> None:
        budget = configuration.budget
        by_queries = budget.queries is not None
        self._each = (budget.queries if by_queries else budget.rounds) or 0
        self._seen: dict[str, int] = {}
        self._bar = tqdm(
            total=self._each * runs,
            unit=" queries" if by_queries else " rounds",
            unit_scale=True,
            delay=1,
            mininterval=0.5,
            file=sys.stderr,
        )

    def begin(self, task: Task) -> None:
        """Name it."""
        self._bar.set_description(task.name, False)

    def advance(self, task: Task, amount: int) -> None:
        """Advance."""
        self._seen[task.name] = self._seen.get(task.name, 0) + amount
        self._bar.update(amount)

    def end(self, task: Task) -> None:
        """Make up for what a run left of its budget."""
        self._bar.update(self._each - self._seen.pop(task.name, 0))

    def close(self) -> None:
        """Leave it as it is."""
        self._bar.close()


def _play(configuration: Configuration, contenders: list[Contender]) -> list[Entry]:
    """All runs; those that choose of a sweep come first, where these are runs of their own."""
    groups = [list(g) for _, g in groupby(contenders, key=lambda c: (c.where, c.algorithm))]
    choosing, reported = configuration.choosing, configuration.reported
    swept = [group if choosing and len(group) > 1 else [] for group in groups]
    trials = [Task(c, seed) for group in swept for c in group for seed in choosing]
    finals = sum(1 if tried else len(group) for group, tried in zip(groups, swept, strict=True))
    with (
        closing(_Bar(configuration, len(trials) + finals * len(reported))) as bar,
        closing(Team(configuration, bar)) as team,
    ):
        runs = team.play(trials)
        rivals = [_choose(_entries(runs, group, choosing)) for group in swept]
        finalists = [
            [c for c, entry in zip(group, tried, strict=True) if entry.best] if tried else group
            for group, tried in zip(groups, rivals, strict=True)
        ]
        tasks = [Task(c, seed) for group in finalists for c in group for seed in reported]
        runs = team.play(tasks)
        entries: list[Entry] = []
        for group, tried in zip(finalists, rivals, strict=True):
            played = _entries(runs, group, reported)
            if tried:
                entries += [Entry(played[0].runs, True, e.runs) if e.best else e for e in tried]
            else:
                entries += _choose(played)
    return entries


def _entries(
    runs: Iterator[Run], contenders: Sequence[Contender], seeds: Sequence[int]
) -> list[Entry]:
    """The next runs, gathered by contender."""
    return [Entry([next(runs) for _ in seeds]) for _ in contenders]


def _choose(rivals: list[Entry]) -> list[Entry]:
    """Mark the best of a sweep; its metrics of every round alone are kept."""
    rivals = choose_best(rivals) if rivals else []
    for entry in rivals:
        if not entry.best:
            _forget(entry)
    return rivals


def _forget(entry: Entry) -> None:
    for run in entry.runs:
        for name in ("history.json", "history.bin"):
            (run.folder / name).unlink()


def _write(configuration: Configuration, entries: list[Entry]) -> None:
    """Write the files, each beside its place and then renamed, and print the tables."""
    seeds = ", ".join(map(str, configuration.reported))
    budget = configuration.budget
    limits = [(budget.queries, "queries per prompt"), (budget.rounds, "rounds")]
    limit = " and ".join(f"{value:,} {what}" for value, what in limits if value is not None)
    heading = f"{configuration.exploitability.capitalize()} exploitability after at most {limit}; "
    heading += f"mean and maximum over games and seeds {seeds}.{_selection(configuration)}\n\n"
    targets = ""
    if configuration.target is not None:
        targets = f"Oracle queries to a duality gap below {configuration.target.duality_gap:g}; "
        targets += "median over games and seeds, at the best value of a sweep.\n\n"
        targets += markdown(*targets_table(entries, configuration))
    results = heading + markdown(*results_table(entries)) + (f"\n{targets}" if targets else "")
    output = configuration.output
    _replace(output / "results.csv", lambda path: _text(path, results_csv(entries)))
    _replace(output / "results.md", lambda path: _text(path, results))
    if configuration.target is not None:
        _replace(output / "queries_to_target.csv", lambda path: _text(path, targets_csv(entries)))
    _replace(output / "comparison.png", lambda path: draw(entries, configuration, path))
    print(heading + terminal(entries) + (f"\n{targets}" if targets else ""))


def _selection(configuration: Configuration) -> str:
    """By what the best value of a sweep was chosen: by what is reported, it flatters."""
    if all(own.sweep is None for own in configuration.algorithms.values()):
        return ""
    if not configuration.choosing:
        return " Of a sweep the best value, chosen by these same runs."
    seeds = ", ".join(map(str, configuration.choosing))
    return f" Of a sweep the best value, chosen by other runs (seeds {seeds})."


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    partial = path.with_name(path.name + ".part")
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
