"""The report: a table in print, a file of figures and answers, and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo import __version__
from nlhf_zoo.cli.oracle.figure import draw
from nlhf_zoo.cli.oracle.options import ReportOptions
from nlhf_zoo.errors import UserError
from nlhf_zoo.health.oracles.asking import Answers, ResponseSample, ask, limited
from nlhf_zoo.health.oracles.diagnostics import (
    Diagnostic,
    drawn_actions,
    of_answers,
    of_table,
    upper,
)
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.oracles.wrappers.ensemble import EnsembleOracle
from nlhf_zoo.records import Responses


def report_answers(
    oracle: PreferenceOracle, samples: Sequence[ResponseSample], options: ReportOptions
) -> None:
    """Ask, and tell; what was answered is told, too, where the oracle stops in between.

    Raises:
        UserError: there is nothing to ask.
        OracleStoppedError: the oracle stopped.
    """
    if not any(sample.num_pairs for sample in samples):
        raise UserError("all responses to each prompt are equal: there is nothing to compare")
    pairs = sum(sample.num_pairs for sample in samples)
    kept = samples if options.max_queries is None else limited(samples, options.max_queries)
    answers = ask(oracle, kept)
    if not answers.asked.any() and answers.stopped is not None:
        raise answers.stopped
    title = f"{type(oracle).__name__}: {_number(len(answers.questions), 'pair')} of responses to "
    title += _number(len(kept), "prompt")
    if len(answers.questions) < pairs:
        title += f", of {pairs} pairs and {_number(len(samples), 'prompt')} that were given"
    matrices = answers.matrices()
    _tell(
        oracle,
        title,
        of_answers(oracle, answers),
        options,
        partial(draw, matrices, answers.forward, answers.backward),
        answers,
    )
    if answers.stopped is not None:
        raise answers.stopped


def report_table(oracle: PreferenceOracle, options: ReportOptions) -> None:
    """Look at the table of an oracle.

    Raises:
        UserError: options do not apply.
    """
    name = type(oracle).__name__
    if options.responses is not None or options.max_queries is not None:
        raise UserError(
            f"{name} looks its answers up and is asked about no texts: leave --responses and "
            "--max_queries out"
        )
    support = oracle.support
    assert support is not None
    table = oracle.table
    if table is None:
        table, support = _sampled_table(oracle, support)
    actions = int(support.sum(-1).max())
    title = f"{name}: a table of {_number(len(table), 'prompt')}, {actions} actions at most"
    matrices = [
        P.double().cpu()[exists.cpu()][:, exists.cpu()]
        for P, exists in zip(table[:3], support[:3], strict=True)
    ]
    forward, backward = (torch.cat(side) for side in zip(*map(upper, matrices), strict=True))
    agreement = oracle.agreement() if isinstance(oracle, EnsembleOracle) else None
    diagnostics = of_table(table, support, agreement)
    _tell(oracle, title, diagnostics, options, partial(draw, matrices, forward, backward))


@torch.no_grad()
def _sampled_table(oracle: PreferenceOracle, support: Tensor) -> tuple[Tensor, Tensor]:
    """P among some actions, of an oracle that holds no table; all its prompts have all actions."""
    actions = drawn_actions(support.shape[1]).expand(len(support), -1)[..., None]
    weight = torch.full(actions.shape[:2], 1 / actions.shape[1], dtype=torch.float64)
    responses = Responses(actions, torch.ones_like(actions, dtype=torch.bool), weight)
    prompts = oracle.prompts
    assert prompts is not None
    return oracle(prompts, responses, responses).preference, support[:, : actions.shape[1]]


def _tell(
    oracle: PreferenceOracle,
    title: str,
    diagnostics: Sequence[Diagnostic],
    options: ReportOptions,
    drawing: Callable[[str, Path], None],
    answers: Answers | None = None,
) -> None:
    print(title)
    widths = [max(len(getattr(one, part)) for one in diagnostics) for part in ("name", "shown")]
    for one in diagnostics:
        print(f"  {one.name:<{widths[0]}}  {one.shown:>{widths[1]}}  {one.reading}".rstrip())
    if options.output is not None:
        report = {
            "version": __version__,
            "oracle": type(oracle).__name__,
            "title": title,
            "figures": {
                one.key: {"value": _plain(one.value), "reading": one.reading} for one in diagnostics
            },
            "answers": [] if answers is None else _rows(answers),
        }
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        _replace(options.output, lambda path: _write(path, text))
    if options.figure is not None:
        _replace(options.figure, partial(drawing, title))


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rows(answers: Answers) -> list[dict[str, Any]]:
    """Every pair, with what was said of it."""
    told = zip(
        answers.questions,
        answers.probability.tolist(),
        answers.forward.tolist(),
        answers.backward.tolist(),
        answers.asked.tolist(),
        strict=True,
    )
    return [
        {
            "prompt": [dict(message) for message in question.conversation],
            "first": question.first,
            "second": question.second,
            "probability": _plain(p),
            "shown_first": _plain(forward),
            "shown_second": _plain(1 - backward),
        }
        for question, p, forward, backward, asked in told
        if asked
    ]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    partial_file = path.with_name(path.name + ".part")
    try:
        write(partial_file)
        partial_file.replace(path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror}") from error
    finally:
        partial_file.unlink(missing_ok=True)
