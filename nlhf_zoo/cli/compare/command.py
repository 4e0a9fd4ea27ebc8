"""``nlhf compare``: several algorithms, seeds and games on one budget.

docs/command_line.md says what the file of a comparison holds, and what the output folder receives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import chain, groupby

import torch
from tqdm import tqdm

from nlhf_zoo.algorithms.closed_form import thread_limit
from nlhf_zoo.cli.compare import tables
from nlhf_zoo.cli.compare.configuration import Configuration, read_configuration
from nlhf_zoo.cli.compare.entries import Entry, read_entries
from nlhf_zoo.cli.compare.report import comparison_page
from nlhf_zoo.cli.compare.resuming import begin, refuse_earlier
from nlhf_zoo.cli.compare.runs import HISTORY, Task, WorkerPool
from nlhf_zoo.cli.compare.tables import EntryResult
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written

_SMALL = 2_000_000  # entries of a table, up to which runs go on one thread


def main(args: list[str]) -> None:
    """Run ``nlhf compare`` with what stands behind it on the command line."""
    configuration = read_configuration(args)
    output = configuration.output
    refuse_earlier(configuration)
    _write(configuration, compared(configuration))
    print(f"Tables and figure: {output}/")
    print(f"One page, offline: {output}/report.html")
    print(f"TensorBoard logs:  tensorboard --logdir '{output}'")


def compared(configuration: Configuration) -> list[EntryResult]:
    """Play a comparison; what an interrupted one has left in its folder is not played again."""
    games, algorithms = configuration.games, configuration.algorithms
    torch.set_float32_matmul_precision("highest")  # log-probabilities must not lose digits to tf32
    betas, seed = configuration.betas, configuration.seeds[0]
    values = sum(len(own.choices) for own in algorithms.values())
    checking = partial(tqdm, desc="checking", unit="model", delay=1, leave=False, file=sys.stderr)
    with quiet():
        with checking(total=len(games) * len(betas or [0]) * values) as bar:
            entries = read_entries(games, algorithms, betas, seed, bar.update)
        if said := str(begin(configuration, entries)):
            print(said, file=sys.stderr)
        with thread_limit(max(entry.size for entry in entries) <= _SMALL):
            return _play(configuration, entries)


def _play(configuration: Configuration, entries: list[Entry]) -> list[EntryResult]:
    """All runs; those that choose of a sweep come first, where these are runs of their own."""
    choosing, reported = configuration.split_seeds
    groups = [list(g) for _, g in groupby(entries, key=lambda e: (e.where, e.algorithm))]
    rivals = [group if choosing and len(group) > 1 else [] for group in groups]
    finals = sum(1 if tried else len(group) for group, tried in zip(groups, rivals, strict=True))
    runs = sum(map(len, rivals)) * len(choosing) + finals * len(reported)
    limit, unit = configuration.budget.counted
    counted = partial(tqdm, unit_scale=True, delay=1, mininterval=0.5, file=sys.stderr)
    with (
        counted(total=limit * runs, unit=f" {unit}") as bar,
        closing(WorkerPool(configuration.processes, bar)) as pool,
    ):
        play = partial(_results, pool, configuration)
        trials = list(play(rivals, choosing))
        finalists = [
            [result.entry for result in tried if result.best] or group
            for group, tried in zip(groups, trials, strict=True)
        ]
        results: list[EntryResult] = []
        for played, tried in zip(play(finalists, reported), trials, strict=True):
            chosen = [EntryResult(played[0].runs, True, r.runs) if r.best else r for r in tried]
            results += chosen or played
    return results


def _results(
    pool: WorkerPool, configuration: Configuration, groups: list[list[Entry]], seeds: list[int]
) -> Iterator[list[EntryResult]]:
    """Play groups of rivals, of which the best is marked; of it alone all rounds are kept."""
    gap = configuration.target.duality_gap if configuration.target else None
    settings = (configuration.output, configuration.budget, configuration.exploitability, gap)
    tasks = [Task(e, seed, *settings) for group in groups for e in group for seed in seeds]
    runs = pool.play(tasks)
    for group in groups:
        rivals = tables.choose_best([EntryResult([next(runs) for _ in seeds]) for _ in group])
        for run in chain(*(rival.runs for rival in rivals if not rival.best)):
            for name in HISTORY:
                (run.task.folder / name).unlink(missing_ok=True)  # it was, before an interruption
        yield rivals


def _write(configuration: Configuration, results: list[EntryResult]) -> None:
    """Write the files and print the tables."""
    output, target = configuration.output, configuration.target
    names = list(configuration.algorithms)
    heading, targets = _heading(configuration), ""
    texts: dict[str, str] = {}
    if target is not None:
        played, unit = configuration.budget.counted
        missed = f"not in {played:,}" + (" rounds" if unit == "rounds" else "")
        targets = f"\nOracle queries to a duality gap below {target.duality_gap:g}; median over "
        targets += "games and seeds, at the best value of a sweep.\n\n"
        targets += tables.targets_markdown(results, names, missed)
        texts["queries_to_target.csv"] = tables.targets_csv(results)
    texts["results.md"] = heading + tables.results_markdown(results) + targets
    log_queries = configuration.queries_axis == "log"
    printed = heading + tables.results_text(results) + targets
    rows, figure = tables.results_csv(results), output / "comparison.png"
    try:
        with written(figure) as path:
            tables.draw(results, path, configuration.exploitability, log_queries)
        texts["report.html"] = comparison_page(results, printed, rows, figure, f"nlhf: {output}")
        texts["results.csv"] = rows  # the last: by it a comparison has ended
        for name, text in texts.items():
            with written(output / name) as path:
                path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} could not be written to: {error.strerror}") from error
    print(printed)


def _heading(configuration: Configuration) -> str:
    """What the table is of, and how the best value of a sweep was chosen.

    By what is reported, the choice would flatter.
    """
    budget, (choosing, reported) = configuration.budget, configuration.split_seeds
    limits = [(budget.queries, "queries per prompt"), (budget.rounds, "rounds")]
    limit = " and ".join(f"{value:,} {what}" for value, what in limits if value is not None)
    by = f"other runs (seeds {', '.join(map(str, choosing))})" if choosing else "these same runs"
    chosen = f" Of a sweep the best value, chosen by {by}." if configuration.sweeps else ""
    seeds = ", ".join(map(str, reported))
    return (
        f"{configuration.exploitability.capitalize()} exploitability after at most {limit}; mean "
        f"and maximum over games and seeds {seeds}.{chosen}\n\n"
    )
