"""docs/reproductions.md, made of the claims and what is kept of their runs."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from reproductions.ledger import (
    CANNOT_TELL,
    FAILS,
    HOLDS,
    ROOT,
    Claim,
    Paper,
    Result,
    read_papers,
    read_results,
)

PAGE = ROOT / "docs" / "reproductions.md"
_TOP = Path(__file__).with_name("page_top.md")


def page() -> str:
    """The whole page."""
    papers = read_papers()
    kept = {paper.number: read_results(paper.number) for paper in papers}
    rows = [(claim, kept[claim.paper].get(claim.name)) for p in papers for claim in p.claims]
    intervals = sum(any("_low" in c or "_high" in c for c in claim.holds) for claim, _ in rows)
    counts = Counter(verdict_of(claim, result) for claim, result in rows)
    held_out = sum(bool(claim.held_out) for claim, _ in rows)
    minutes = sum(result.cpu_seconds for _, result in rows if result) / 60
    lines = [
        _TOP.read_text(encoding="utf-8"),
        *_wrapped(
            "An exploitability is half of a duality gap. An interval of a figure holds it in 99 % "
            f"of repetitions of that row alone: {intervals} rows have one. Where a step is swept, "
            "it was chosen on other games or seeds than those reported. What is otherwise a row "
            "says below its figures. Where an oracle that "
            f"trained nothing is the judge, the row names it: {held_out} do; in the others the "
            "judge is the one that trained."
        ),
        "",
        *_wrapped(
            f"Of {len(rows)} claims {counts[HOLDS]} hold, {counts[FAILS]} fail, and of "
            f"{counts[CANNOT_TELL]} we cannot tell. All runs take {minutes:.0f} minutes of a core."
        ),
        "",
        "| paper | claim | verdict |",
        "|---|---|---|",
        *(
            f"| {claim.paper} | [{claim.title}](#{anchor(claim)}) | {verdict_of(claim, result)} |"
            for claim, result in rows
        ),
        "",
    ]
    for paper in papers:
        lines += _section(paper, kept[paper.number])
    return "\n".join(lines).rstrip() + "\n"


def anchor(claim: Claim) -> str:
    """The anchor of a claim's section."""
    return re.sub(r"[._]", "-", f"{claim.paper}-{claim.name}")


def verdict_of(claim: Claim, result: Result | None) -> str:
    """What the rule makes of what is kept."""
    return claim.verdict(result.figures if result else None)


def _section(paper: Paper, results: dict[str, Result]) -> Iterator[str]:
    yield f"## arXiv:{paper.number}"
    yield ""
    link = f"[{paper.title}](https://arxiv.org/abs/{paper.number})"
    yield from _wrapped(f"{link}; `python -m reproductions {paper.number}`.")
    yield ""
    for claim in paper.claims:
        result = results.get(claim.name)
        yield f"### {claim.title}: {verdict_of(claim, result)} {{#{anchor(claim)}}}"
        yield ""
        yield from _wrapped(f"{claim.says} *({claim.source}.)*")
        yield ""
        if claim.untestable:
            yield from _wrapped(f"Not tested here: {claim.untestable}")
            yield ""
            continue
        yield from _item(f"**Run:** {_about(claim)} `{claim.run}` with {_arguments(claim)}.")
        if claim.held_out:
            yield from _item(f"**Held-out oracle:** {claim.held_out}")
        yield from _item(f"**Rule:** {_rule(claim)}.")
        if result:
            figures = ", ".join(f"{name} {_short(v)}" for name, v in result.figures.items())
            yield from _item(f"**Figures:** {figures}.")
        if claim.remark:
            yield from _item(f"**To be known:** {claim.remark}")
        if result:
            yield from _item(f"{_short(result.cpu_seconds)} seconds of a core; {result.where}.")
        yield ""


def _about(claim: Claim) -> str:
    """What the function measures: its docstring's first sentence or sentences, on one line."""
    text = inspect.getdoc(claim.function) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _arguments(claim: Claim) -> str:
    def told(value: object) -> str:
        if isinstance(value, dict):
            return "(" + ", ".join(f"{k} {told(v)}" for k, v in value.items()) + ")"
        if isinstance(value, list):
            return "[" + ", ".join(map(told, value)) + "]"
        return str(value)

    return ", ".join(f"{name} {told(value)}" for name, value in claim.arguments.items())


def _rule(claim: Claim) -> str:
    holds = " and ".join(f"`{condition}`" for condition in claim.holds)
    fails = " or ".join(f"`{condition}`" for condition in claim.fails)
    return f"holds where {holds}; fails where {fails}; else we cannot tell"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _item(text: str) -> list[str]:
    return _wrapped(text, "- ", "  ")


def _wrapped(text: str, first: str = "", others: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        120,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
