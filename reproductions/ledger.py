"""Claims, the rules that decide them, and what their runs gave.

A file of configs/reproductions holds a paper's claims. A claim names a function of this package,
which measures and returns figures, its arguments, and a rule about the figures; or the reason why
it cannot be tested here. Nobody writes a verdict.
"""

from __future__ import annotations

import importlib
import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "reproductions"
RESULTS = Path(__file__).parent / "results"

Figures = dict[str, float]

HOLDS, FAILS, CANNOT_TELL = "holds", "fails", "cannot tell"
_SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_CONDITION = re.compile(r"(?P<figure>\w+) (?P<sign>[<>]=?) (?P<bound>\S+)")


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
        paper: its number in the arXiv.
        name: of the claim, in lower case with underscores.
        title: a heading.
        says: the claim, in our words.
        source: where the paper says it.
        run: the function that measures, as module.function of this package; empty where nothing
            can be measured here.
        arguments: of the function.
        reduced: those that differ in the short form, which the tests run; None where there is none.
        holds: conditions on the figures, such as "worst <= 1", all of which make it hold.
        fails: conditions any of which makes it fail. Where neither is so, we cannot tell.
        untestable: why it cannot be tested here.
        held_out: the oracle that judged and trained nothing, where there is one.
        remark: what a reader of the verdict should know.
    """

    paper: str
    name: str
    title: str
    says: str
    source: str
    run: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reduced: Mapping[str, Any] | None = None
    holds: tuple[str, ...] = ()
    fails: tuple[str, ...] = ()
    untestable: str = ""
    held_out: str = ""
    remark: str = ""

    def __post_init__(self) -> None:
        if bool(self.run) == bool(self.untestable):
            raise ValueError(f"{self.name}: a claim has either a run or a reason why it has none")
        if bool(self.run) != bool(self.holds and self.fails):
            raise ValueError(
                f"{self.name}: a run has a rule of both verdicts, and no other has one"
            )

    @property
    def function(self) -> Callable[..., Figures]:
        """What measures."""
        module, _, name = self.run.partition(".")
        found = getattr(importlib.import_module(f"reproductions.{module}"), name)
        assert callable(found)
        return found  # type: ignore[no-any-return]

    def measure(self, reduced: bool = False) -> Figures:
        """Run it; the figures decide."""
        changed = (self.reduced or {}) if reduced else {}
        return self.function(**{**self.arguments, **changed})

    @property
    def key(self) -> str:
        """Its name among all papers' claims."""
        return f"{self.paper}/{self.name}"

    def verdict(self, figures: Figures | None) -> str:
        """What the rule makes of the figures."""
        if self.untestable or figures is None:
            return CANNOT_TELL
        if any(is_so(condition, figures) for condition in self.fails):
            return FAILS
        return HOLDS if all(is_so(condition, figures) for condition in self.holds) else CANNOT_TELL


def is_so(condition: str, figures: Figures) -> bool:
    """Whether figures meet a condition "figure sign bound"; the bound is a number or a figure.

    What is not a number meets none.
    """
    found = _CONDITION.fullmatch(condition)
    if found is None:
        raise ValueError(f'"{condition}" is no condition such as "worst <= 1"')
    bound = found["bound"]
    limit = figures[bound] if bound in figures else float(bound)
    return bool(_SIGNS[found["sign"]](figures[found["figure"]], limit))


@dataclass(frozen=True)
class Paper:
    """A paper's number, its title, and its claims in order."""

    number: str
    title: str
    claims: tuple[Claim, ...]


def read_papers() -> list[Paper]:
    """All papers of configs/reproductions, by their numbers."""
    return [_read(path) for path in sorted(CONFIGS.glob("*.yaml"))]


def _read(path: Path) -> Paper:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    claims = []
    for name, entry in content["claims"].items():
        given = {**entry, "arguments": entry.get("with", {})} | {
            verdict: tuple(entry.get(verdict, ())) for verdict in (HOLDS, FAILS)
        }
        given.pop("with", None)
        claims.append(Claim(path.stem, name, **given))
    return Paper(path.stem, content["title"], tuple(claims))


@dataclass(frozen=True)
class Result:
    """What a run gave, and where it ran.

    Attributes:
        run: the function that measured.
        arguments: that it had.
        figures: what it returned.
        cpu_seconds: of the processor.
        where: versions and machine.
    """

    run: str
    arguments: dict[str, Any]
    figures: Figures
    cpu_seconds: float
    where: str


def read_results(paper: str) -> dict[str, Result]:
    """What is kept of a paper's claims, by their names."""
    path = RESULTS / f"{paper}.json"
    if not path.is_file():
        return {}
    return {name: Result(**found) for name, found in json.loads(path.read_text()).items()}


def write_results(paper: str, results: Mapping[str, Result]) -> None:
    """Keep them, in the order of names."""
    content = {name: vars(results[name]) for name in sorted(results)}
    (RESULTS / f"{paper}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
