"""The sections of a page about runs of ``nlhf fit``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlhf_zoo.callbacks.dashboard import CATEGORIES, Category
from nlhf_zoo.cli.report import page
from nlhf_zoo.cli.report.hiding import shown
from nlhf_zoo.cli.report.page import Html
from nlhf_zoo.cli.report.reading import Run, read_csv, read_json
from nlhf_zoo.cli.resuming import flatten
from nlhf_zoo.cli.yaml_rules import dump
from nlhf_zoo.errors import UserError
from nlhf_zoo.metrics.figures.canvas import new_figure, png_uri, svg_uri
from nlhf_zoo.metrics.figures.curves import draw_curves, lines_of

# Charts of what falls by a factor each round.
_BY_DIGITS = ("exploitability", "KL to the equilibrium, nats")
_SAMPLES = 40  # records that are shown of a run
_SIZE = 4.6, 3.4  # inches of a chart
_PER_RUN = 0.2  # inches for a line of its legend

# Rows of the summary: what they are, and the tags that have it, of which the first counts.
_SUMMARY = {
    "share of the budget": ("budget/share",),
    "queries per prompt": ("oracle/queries_per_prompt",),
    "exploitability, mean over prompts": ("game/exploitability", "val/exploitability"),
    "exploitability, worst prompt": ("game/exploitability_max",),
    "win rate against the reference": ("val/win_rate", "win_rate/vs_reference"),
    "its interval at 95 %, low": ("val/win_rate_low",),
    "high": ("val/win_rate_high",),
    "KL to the reference, nats": ("game/kl_to_reference", "val/kl", "policy/kl"),
    "entropy, nats": ("val/entropy", "policy/entropy"),
    "length, tokens": ("val/length", "rollout/length"),
}
_LEDGER = {
    "preference queries per prompt": "oracle/queries_per_prompt",
    "preference queries": "oracle/queries",
    "answers that could not be had": "oracle/invalid",
    "prompts that none of them judged": "oracle/unjudged",
    "pairs that the oracle was really asked about": "ledger/queries",
    "of these, asked again in the other order": "ledger/swapped",
    "pairs that a cache answered": "ledger/cache_hits",
    "pairs without an answer": "ledger/invalid",
    "requests": "ledger/requests",
    "of these, tried again": "ledger/retries",
    "tokens that the judge read": "ledger/prompt_tokens",
    "tokens that it wrote": "ledger/reply_tokens",
    "seconds of asking": "ledger/seconds",
    "tokens that the policy drew": "rollout/tokens",
}


def side_by_side(head: str, rows: Mapping[str, Sequence[Any]], runs: Sequence[Run]) -> Html:
    """A table with a column for each run; rows that no run has anything in are left out."""
    told = [(name, *cells) for name, cells in rows.items() if any(c is not None for c in cells)]
    return page.table((head, *(run.name for run in runs)), told)


def summary(runs: Sequence[Run]) -> Html:
    """What was played, and the last figures."""
    rows: dict[str, list[Any]] = {
        part: [run.kind(part) or None for run in runs] for part in ("algorithm", "oracle", "policy")
    }
    rows["beta"] = [run.parts.get("beta") for run in runs]
    rows["seed"] = [run.config.get("seed_everything") for run in runs]
    rows |= {name: [run.last(*tags) for run in runs] for name, tags in _SUMMARY.items()}
    return side_by_side("", rows, runs)


def curves(runs: Sequence[Run]) -> Html:
    """The charts of TensorBoard's first page, where any run has something to show in them."""
    parts = [_charts(category, runs) for category in CATEGORIES]
    return page.joined(filter(None, parts)) or page.note(
        "There are no curves: the runs logged nothing that is read here, TensorBoard's event files "
        "and history.bin."
    )


def _charts(category: Category, runs: Sequence[Run]) -> Html:
    lines = lines_of({run.name: run.kind("algorithm") for run in runs})
    drawn = []
    for label, tags in category.charts.items():
        found = [
            (line, *run.curves[tag])
            for line, run in zip(lines, runs, strict=True)
            for tag in [tag for tag in tags if tag in run.curves][:1]
        ]
        if not any(len(steps) > 1 and values.any() for _, steps, values in found):
            continue
        height = _SIZE[1] + _PER_RUN * (len(found) if len(found) > 1 else 0)
        with new_figure(_SIZE[0], height) as figure:
            draw_curves(figure.subplots(), found, category.axis, label, label in _BY_DIGITS)
            drawn.append(page.picture(svg_uri(figure), f"{label}, against {category.axis}", False))
    heading = f"<h3>{page.text(category.title)}</h3>"
    return Html(heading + page.pictures(drawn)) if drawn else Html("")


def figures(runs: Sequence[Run]) -> Html:
    """What the runs have drawn of their games."""
    shown = [
        page.picture(png_uri(path), f"{run.name}: {path.stem}")
        for run in runs
        for path in run.pictures
    ]
    return (
        page.pictures(shown)
        if shown
        else page.note(
            "There are none: a run of twenty rounds or more has them where its table is known."
        )
    )


def configuration(runs: Sequence[Run]) -> Html:
    """What differs between the runs, and each whole."""
    parts = []
    if len(runs) > 1:
        sections = ("seed_everything", "model", "data")
        flat = [dict(flatten({key: run.config.get(key) for key in sections})) for run in runs]
        keys = [*dict.fromkeys(key for each in flat for key in each)]
        told = {key: [each.get(key) for each in flat] for key in keys}
        differs = {key: cells for key, cells in told.items() if len({str(c) for c in cells}) > 1}
        parts = [side_by_side("what differs", differs, runs)]
    parts += [
        page.folded(f"config.yaml of {run.name}", page.code(dump(run.config))) for run in runs
    ]
    return page.joined(parts)


def samples(runs: Sequence[Run]) -> Html:
    """What the policies said in the last round that was kept."""
    parts: list[Html] = []
    for run in runs:
        if run.samples:
            more = len(run.samples) - _SAMPLES
            kept = page.rows_of(run.samples[:_SAMPLES])
            parts += [Html(f"<h3>{page.text(run.name)}</h3>"), kept]
            parts += [page.note(f"{more} more are in its responses.jsonl.")] if more > 0 else []
    return (
        page.joined(parts)
        if parts
        else page.note("There are none: a ResponseTable among a run's callbacks keeps them.")
    )


def ledger(runs: Sequence[Run]) -> Html:
    """What the oracle was asked, and what was drawn."""
    return side_by_side(
        "", {name: [r.last(tag) for r in runs] for name, tag in _LEDGER.items()}, runs
    )


def versions(runs: Sequence[Run]) -> Html:
    """By which versions the runs were played; of one that was resumed, the last."""
    last = [dict(run.versions[-1]) if run.versions else {} for run in runs]
    names = [*dict.fromkeys(name for each in last for name in each)]
    if not names:
        return page.note("They were not kept: the runs are of an earlier version of nlhf.")
    resumed = [run.name for run in runs if len(run.versions) > 1]
    said = page.note(f"Resumed by other versions than before: {', '.join(resumed)}.")
    shown = side_by_side("", {name: [each.get(name) for each in last] for name in names}, runs)
    return page.joined([shown, said] if resumed else [shown])


def results(folders: Iterable[Path], what: str, command: str) -> Html:
    """What another command has written into folders: its tables, figures and records."""
    parts = [
        Html(f"<h3>{page.text(folder)}</h3>{page.joined(_files(folder, command))}")
        for folder in folders
    ]
    return (
        page.joined(parts)
        if parts
        else page.note(f"There is none: `{command}` writes one, and --{what} DIR puts it here.")
    )


def _files(folder: Path, command: str) -> Iterator[Html]:
    """The files of a folder that can be shown: JSON, CSV and PNG."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give one that `{command}` has written")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".csv", ".png")]
    if not files:
        raise UserError(f"{folder} has no results: give a folder that `{command}` has written")
    for path in files:
        if path.suffix == ".json":
            yield page.structured(shown(read_json(path, {})))
        if path.suffix == ".csv":
            yield Html(f"<h3>{page.text(path.stem)}</h3>{page.rows_of(read_csv(path))}")
    drawn = [page.picture(png_uri(path), path.stem) for path in files if path.suffix == ".png"]
    yield page.pictures(drawn)
