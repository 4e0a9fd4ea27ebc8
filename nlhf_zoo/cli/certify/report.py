"""A certificate as a table, a sentence, and a figure of its prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nlhf_zoo.cli.certify.records import Certificate, PromptFigures
from nlhf_zoo.files import written
from nlhf_zoo.metrics.figures.canvas import new_figure, pixels, save_png
from nlhf_zoo.metrics.figures.styles import BLUE, ORANGE
from nlhf_zoo.solvers import LEAST_EFFECTIVE

_Z = 1.959964
_SHOWN = 40  # prompts of the figure


def as_table(found: Certificate) -> str:
    """The figures as a table of Markdown, and a sentence on what they say."""
    f, plan = found.figures, found.plan
    rows = [
        ("exploitability", f"{f['mean']:.4f}"),
        ("95 % interval, these prompts", f"[{f['low']:.4f}, {f['high']:.4f}]"),
        ("95 % interval, prompts a sample", f"[{f['low_of_law']:.4f}, {f['high_of_law']:.4f}]"),
        ("KL to the reference", f"{f['kl']:.3f} nats"),
        ("effective sample size, the least", f"{f['ess']:.1f} of {plan.num_responses}"),
        ("answers", f"{found.asked:,}"),
    ]
    if f["prompts"] < 2:
        rows[2] = (rows[2][0], "none of one prompt")
    if found.exact is not None:
        rows.insert(1, ("exact, of all responses", f"{found.exact:.4f}"))
    if found.invalid:
        rows.append(("invalid answers", f"{found.invalid:,}"))
    width = max(len(name) for name, _ in rows)
    title = f"{found.name} at beta = {plan.beta:g}"
    lines = [f"| {title.ljust(width)} | {len(found.prompts)} prompts, {plan.form} |"]
    lines += ["|---|---|", *(f"| {name.ljust(width)} | {shown} |" for name, shown in rows)]
    return "\n".join([*lines, "", sentence(found)])


def sentence(found: Certificate) -> str:
    """What the figures say, or that samples cannot know."""
    f = found.figures
    if not found.known:
        number = int(f["unknown"])
        return (
            f"Cannot know: for {number} of {len(found.prompts)} prompts the effective sample size "
            f"of exp(r / beta) is below {LEAST_EFFECTIVE:g}, so that responses decide that were "
            "hardly ever drawn. Raise --responses or --beta, or ask for a lower bound by "
            "--best_response."
        )
    return (
        f"A best response wins {f['mean']:.4f} beyond 1/2, between {f['low']:.4f} and "
        f"{f['high']:.4f} on these prompts, its divergence from the reference paid for."
    )


def write_report(found: Certificate, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write certificate.json, certificate.md and certificate.png into a folder."""
    content = {
        **settings,
        "known": found.known,
        "exact": found.exact,
        "answers": found.asked,
        "invalid": found.invalid,
        **found.figures,
        "each": [asdict(row) for row in found.prompts],
    }
    with written(folder / "certificate.json") as beside:
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    with written(folder / "certificate.md") as beside:
        beside.write_text(as_table(found) + "\n", encoding="utf-8")
    _draw(found, folder / "certificate.png")


def _draw(found: Certificate, path: Path) -> None:
    """Each prompt's estimate with its interval; the worst ones where there are many."""
    rows = sorted(found.prompts, key=lambda row: -row.value)[:_SHOWN]
    with new_figure(6, 1.2 + 0.22 * len(rows)) as figure:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            _draw_prompt(axes, place, row)
        axes.set_yticks(range(len(rows)), [(row.prompt or "")[:30] for row in rows], fontsize=7)
        axes.invert_yaxis()
        axes.axvline(found.figures["mean"], color="#666666", linewidth=1, linestyle=":")
        axes.set_xlabel("exploitability, with its 95 % interval (dotted: mean)")
        axes.set_ylabel("prompt")
        save_png(pixels(figure), path)


def _draw_prompt(axes: Any, place: int, row: PromptFigures) -> None:
    colour = BLUE if row.known else ORANGE
    axes.errorbar(
        row.value, place, xerr=_Z * row.variance**0.5, fmt="o" if row.known else "x", color=colour
    )
    if row.exact is not None:
        axes.plot(row.exact, place, "|", color="black", markersize=10)
