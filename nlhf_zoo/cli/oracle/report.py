"""The report: a table in print, a file of figures and answers, and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

from nlhf_zoo import __version__
from nlhf_zoo.cli.oracle.figure import MATRICES, draw
from nlhf_zoo.cli.oracle.options import ReportOptions
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

_ABSENT = {  # figures that stand in a report all the same: why there is none
    "first_place": "a table shows no texts in an order",
    "flip_rate": "a table shows no texts in an order",
    "length_correlation": "a table has no texts",
    "invalid": "every entry of a table is an answer",
    "agreement": "no ensemble",
    "seconds_per_1000": "entries are looked up",
    "tokens_per_1000": "no judge reads anything",
}


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
    _write(options.output, partial(_dump, report))
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


def _draw(answers: Answers | TableAnswers, title: str, path: Path) -> None:
    if isinstance(answers, TableAnswers):
        matrices = answers.matrices(MATRICES)
        forward, backward = both_orders(matrices)
    else:
        matrices, forward, backward = answers.matrices(), answers.forward, answers.backward
    draw(matrices, forward, backward, title, path)


def _dump(report: dict[str, Any], path: Path) -> None:
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _write(path: Path | None, write: Callable[[Path], None]) -> None:
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
