"""What a trained best response has shown: a table with the estimate by samples, a curve, files."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from nlhf_zoo.cli.best_response.training import BestResponseBound
from nlhf_zoo.files import written
from nlhf_zoo.metrics.figures.canvas import new_figure
from nlhf_zoo.metrics.figures.styles import BLUE, MEAN_WIDTH, ORANGE, WORST_WIDTH


@dataclass(frozen=True, slots=True)
class SampledFigure:
    """The estimate of exploitability from samples, on the prompts of the measurement.

    Args:
        value: the estimate.
        low: end of its interval for these prompts.
        high: the other end.
        answers: of the oracle.
        known: whether the samples can tell at all.
    """

    value: float
    low: float
    high: float
    answers: int
    known: bool = True


def table(bound: BestResponseBound, estimate: SampledFigure | None) -> str:
    """Both figures with their intervals for the prompts that were measured, and what they mean."""
    rows = [("", "figure", "95 % interval", "answers")]
    if estimate is not None:
        shown = (estimate.value, estimate.low, estimate.high)
        rows.append(("exploitability, estimated from samples", *_cells(*shown, estimate.answers)))
    found = bound.interval
    cells = _cells(found.mean, found.low, found.high, bound.answers)
    rows.append(("lower bound by a trained best response", *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, *others in rows:
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    return "\n".join([*lines, "", meaning(bound, estimate), scope(bound)])


def _cells(value: float, low: float, high: float, answers: int) -> tuple[str, str, str]:
    return f"{value:.4f}", f"[{low:.4f}, {high:.4f}]", f"{answers:,}"


def meaning(bound: BestResponseBound, estimate: SampledFigure | None) -> str:
    """One sentence on what the two figures say together."""
    found = bound.interval
    if estimate is None or not estimate.known or math.isnan(estimate.value):
        return (
            f"The policy loses at least {found.low:.4f} (97.5 % confidence) to the best response; "
            "how much more, these samples cannot tell."
        )
    if found.low > estimate.high:
        return (
            "The trained response wins more than the estimate says there is to win: the estimate "
            "has a blind spot, responses that were hardly ever drawn, so trust the bound, or draw "
            "more responses."
        )
    if found.high < estimate.low:
        return (
            "The trained response does not attain the estimate: it is not trained to the end, or "
            "its adapter cannot be the best response, or what it learnt does not carry over to "
            "these prompts; the exploitability is at least the bound, and nothing speaks against "
            "the estimate."
        )
    return (
        "The two agree within their intervals: no blind spot of the estimate shows, and the "
        "trained response is about as good as the best one."
    )


def scope(bound: BestResponseBound) -> str:
    """What the bound is one for, and how sure it is."""
    found, number = bound.interval, len(bound.draws)
    prompts = f"{number} prompt{'' if number == 1 else 's'}"
    of_law = (
        ""
        if math.isnan(found.low_of_law) or not bound.split.disjoint
        else f" For the law that the prompts come from it is [{found.low_of_law:.4f}, "
        f"{found.high_of_law:.4f}]."
    )
    where = (
        f"The bound is for the {prompts} that were neither trained on nor chosen by"
        if bound.split.disjoint
        else f"The bound is for these very {prompts}, on which the response was trained"
    )
    lost = f" {bound.invalid} answers could not be had, and count as lost." if bound.invalid else ""
    return (
        f"{where}; nothing was chosen by its draws, {bound.draws.shape[1]} a prompt, and each end "
        f"of the interval is wrong in 2.5 % of repetitions.{of_law} A response of a limited "
        f"adapter is no more than a lower bound.{lost}"
    )


def write_report(
    bound: BestResponseBound, folder: Path, estimate: SampledFigure | None = None
) -> None:
    """Write the table, the curve as CSV and as a figure, and all figures as JSON.

    Raises:
        OSError: the folder cannot be written to.
    """
    with written(folder / "bound.txt") as beside:
        beside.write_text(table(bound, estimate) + "\n", encoding="utf-8")
    with written(folder / "bound.csv") as beside, beside.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("round", "answers", "bound", "low", "high"))
        rows.writerows([list(asdict(look).values()) for look in bound.looks])
    with written(folder / "bound.png") as beside:
        _draw(bound, estimate, beside)
    found = {
        "bound": asdict(bound.interval),
        "answers": bound.answers,
        "invalid": bound.invalid,
        "rounds": bound.rounds,
        "best round": bound.best.round,
        "prompts": {
            part: getattr(bound.split, part).ids.tolist()
            for part in ("training", "selection", "measurement")
        },
        "disjoint": bound.split.disjoint,
        "draws a prompt": bound.draws.shape[1],
        "estimate": None if estimate is None else asdict(estimate),
        "meaning": meaning(bound, estimate),
    }
    with written(folder / "bound.json") as beside:
        beside.write_text(json.dumps(_plain(found), indent=2) + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draw(bound: BestResponseBound, estimate: SampledFigure | None, path: Path) -> None:
    """The bound against answers, on the prompts that choose; what was measured at the end."""
    answers = [look.answers for look in bound.looks]
    with new_figure(6.4, 4.0) as figure:
        axes = figure.add_subplot()
        low, high = ([getattr(look, end) for look in bound.looks] for end in ("low", "high"))
        axes.fill_between(answers, low, high, color=BLUE, alpha=0.15, linewidth=0)
        shown = [look.bound for look in bound.looks]
        axes.plot(answers, shown, color=BLUE, linewidth=MEAN_WIDTH, label="while training")
        chosen = bound.best
        axes.plot(chosen.answers, chosen.bound, "o", color=BLUE, label="chosen")
        found = bound.interval
        error = [[found.mean - found.low], [found.high - found.mean]]
        label = "measured anew, 95 % interval"
        axes.errorbar(
            bound.answers, found.mean, yerr=error, fmt="s", color="black", capsize=4, label=label
        )
        if estimate is not None and estimate.known:
            axes.axhspan(estimate.low, estimate.high, color=ORANGE, alpha=0.15, linewidth=0)
            label = "estimate from samples, 95 % interval"
            axes.axhline(estimate.value, color=ORANGE, linestyle="--", label=label)
        axes.axhline(0, color="grey", linewidth=WORST_WIDTH)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("answers of the oracle")
        axes.set_ylabel("lower bound of the exploitability")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        figure.savefig(path, format="png", dpi=150)
