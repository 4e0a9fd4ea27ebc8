"""The report of `nlhf oracle`: its options, a table in print, a file, and a figure.

Of preferences among the responses, and of one order against the other.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlhf_zoo import __version__
from nlhf_zoo.cli.files import refuse_output
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.health.oracles.asking import (
    Answers,
    ResponseSample,
    TableAnswers,
    ask,
    both_orders,
    limited,
    read_table,
)
from nlhf_zoo.health.oracles.diagnostics import ROWS, Diagnostic, diagnose
from nlhf_zoo.oracles import PreferenceOracle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


_ABSENT = {  # figures that stand in a report all the same: why there is none
    "first_place": "a table shows no texts in an order",
    "flip_rate": "a table shows no texts in an order",
    "length_correlation": "a table has no texts",
    "invalid": "every entry of a table is an answer",
    "agreement": "no ensemble",
    "seconds_per_1000": "entries are looked up",
    "tokens_per_1000": "no judge reads anything",
}
_MATRICES = 3  # of the first prompts, that are drawn
_BLUE = "#0072B2"
_NUMBERED = 10  # responses of a matrix whose entries are written out


class ReportOptions(argparse.Namespace):
    """What was asked for; the command's help says what each option is."""

    responses: Path | None
    num_prompts: int
    num_responses: int
    max_queries: int | None
    output: Path | None
    figure: Path | None
    probe: bool


def parse(args: Sequence[str]) -> tuple[ReportOptions, list[str]]:
    """The options, each with a value that it may have, and all other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_prompts", type=int, default=8)
    parser.add_argument("--num_responses", type=int, default=4)
    parser.add_argument("--max_queries", type=int)
    parser.add_argument("--responses", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--probe", action="store_true")
    try:
        options, rest = parser.parse_known_args(args, ReportOptions())
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from error
    for name, least in (("num_prompts", 1), ("num_responses", 2), ("max_queries", 1)):
        number = getattr(options, name)
        if number is not None and number < least:
            raise UserError(f"--{name} must be at least {least}, but it is {number}")
    if options.probe and (options.output or options.figure or options.max_queries):
        raise UserError("--probe asks one question and prints the answer: leave other outputs out")
    for name, ending in (("output", ".json"), ("figure", ".png")):
        path = getattr(options, name)
        if path is not None and path.suffix != ending:
            raise UserError(f"--{name} {path} must end with {ending}")
        refuse_output(f"--{name}", path, [options.responses])
    return options, rest


def report(
    oracle: PreferenceOracle, samples: Sequence[ResponseSample] | None, options: ReportOptions
) -> None:
    """Ask about the samples, or look at a table; print and write.

    What was answered is reported, too, where the oracle stops in between.
    """
    name = type(oracle).__name__
    if oracle.support is not None:
        if options.responses is not None or options.max_queries is not None:
            raise UserError(
                f"{name} looks its answers up and is asked about no texts: leave --responses and "
                "--max_queries out"
            )
        table = read_table(oracle)
        prompts, actions = len(table.table), int(table.support.sum(-1).max())
        title = f"a table of {_number(prompts, 'prompt')}, {actions} actions at most"
        _output(table, name, title, options)
        return
    if samples is None:
        raise UserError(
            f"{name} reads texts: give --responses FILE, or a --config whose policy draws them"
        )
    most = options.max_queries
    answers = ask(oracle, samples if most is None else limited(samples, most))
    if answers.asked.any() or answers.stopped is None:
        _output(answers, name, _title(answers, samples), options)
    if answers.stopped is not None:
        raise answers.stopped
    if answers.probability.isnan().all():
        raise UserError(
            f"{name} has no answer to any of {_number(len(answers.questions), 'pair')}"
            f"{answers.last_words}"
        )


def _title(answers: Answers, given: Sequence[ResponseSample]) -> str:
    num, most = len(answers.questions), sum(sample.num_pairs for sample in given)
    prompts = _number(len(answers.samples), "prompt")
    rest = f", of {most} pairs and {_number(len(given), 'prompt')} that were given"
    return f"{_number(num, 'pair')} of responses to {prompts}{rest if num < most else ''}"


def _output(answers: Answers | TableAnswers, name: str, title: str, options: ReportOptions) -> None:
    title = f"{name}: {title}"
    rows = _with_absent(diagnose(answers))
    print(title)
    name_width = max(len(row.name) for row in rows)
    value_width = max(len(row.formatted) for row in rows)
    for row in rows:
        print(f"  {row.name:<{name_width}}  {row.formatted:>{value_width}}  {row.reading}".rstrip())
    report = {
        "version": __version__,
        "oracle": name,
        "title": title,
        "figures": {row.key: {"value": _plain(row.value), "reading": row.reading} for row in rows},
        "answers": [] if isinstance(answers, TableAnswers) else _pairs(answers),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _write(options.output, lambda path: path.write_text(text, encoding="utf-8"))
    _write(options.figure, partial(_draw, answers, title))


def _with_absent(found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """All figures in their order, those that are absent with the reason why."""
    absent = [Diagnostic(key, *ROWS[key], math.nan, why) for key, why in _ABSENT.items()]
    by_key = {row.key: row for row in (*absent, *found)}
    return [by_key[key] for key in ROWS if key in by_key]


def _pairs(answers: Answers) -> list[dict[str, Any]]:
    """Every pair that was asked about, with the answers."""
    columns = [answers.probability, answers.forward, 1 - answers.backward]
    rows = zip(answers.questions, *(column.tolist() for column in columns), strict=True)
    return [
        {
            "prompt": [dict(message) for message in question.conversation],
            "first": question.first,
            "second": question.second,
            "probability": _plain(probability),
            "shown_first": _plain(forward),
            "shown_second": _plain(backward),
        }
        for question, probability, forward, backward in compress(rows, answers.asked.tolist())
    ]


def _write(path: Path | None, write: Callable[[Path], object]) -> None:
    if path is None:
        return
    try:
        with written(path) as beside:
            write(beside)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror}") from error


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _draw(answers: Answers | TableAnswers, title: str, path: Path) -> None:
    """Draw the first prompts' matrices by falling win rate, and P(a > b) against 1 - P(b > a)."""
    import matplotlib as mpl  # slow to import, and needed at the end only
    from matplotlib.figure import Figure

    if isinstance(answers, TableAnswers):
        shown = answers.matrices(_MATRICES)
        forward, backward = both_orders(shown)
    else:
        shown = answers.matrices()[:_MATRICES]
        forward, backward = answers.forward, answers.backward
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(1 + 2.9 * (len(shown) + 1), 3.9), layout="constrained")
        axes = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
        for number, (ax, matrix) in enumerate(zip(axes, shown, strict=False), 1):
            image = _matrix(ax, matrix)
            ax.set_title(f"prompt {number}")
        axes[0].set_ylabel("response, by falling mean win rate")
        bar = figure.colorbar(image, ax=list(axes[: len(shown)]), location="bottom", shrink=0.4)
        bar.set_label("P(row > column)")
        _orders(axes[-1], forward, backward)
        figure.suptitle(title)
        figure.savefig(path, dpi=110, format="png")


def _matrix(ax: Axes, matrix: Tensor) -> AxesImage:
    order = matrix.nanmean(-1).nan_to_num(0.5).argsort(descending=True, stable=True)
    ordered = matrix[order[:, None], order]
    image = ax.imshow(ordered.numpy(), cmap="RdBu", vmin=0, vmax=1)
    names = [str(number + 1) for number in order.tolist()]
    if len(names) > _NUMBERED:
        ax.set(xticks=[], yticks=[])
        return image
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    for row, column in permutations(range(len(names)), 2):
        value = float(ordered[row, column])
        text = "?" if math.isnan(value) else f"{value:.2f}"
        color = "white" if abs(value - 0.5) > 0.3 else "black"
        ax.text(column, row, text, ha="center", va="center", color=color)
    return image


def _orders(ax: Axes, forward: Tensor, backward: Tensor) -> None:
    known = ~(forward.isnan() | backward.isnan())
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    ax.axhline(0.5, color="0.85", linewidth=0.8)
    ax.axvline(0.5, color="0.85", linewidth=0.8)
    pairs = torch.stack([forward, 1 - backward], 1)[known]
    # Many pairs may lie on one point: its area says how many.
    points, counts = pairs.unique(dim=0, return_counts=True)
    x, y = points.unbind(1)
    ax.scatter(x, y, s=14 * counts.double().sqrt(), color=_BLUE, alpha=0.6, linewidths=0)
    ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
    ax.set(xlabel="P(a > b), a shown first", ylabel="1 − P(b > a), b shown first")
    ax.set_title("one order against the other")
