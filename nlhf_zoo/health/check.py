"""What a check of a game's health says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must never go wrong silently.

    Args:
        name: what was looked at.
        passed: whether it is right; None where it does not apply.
        figure: what was measured; where it does not apply, why not.
        limit: what the figure must be.
        advice: what to do if it is not.
    """

    name: str
    passed: bool | None
    figure: str
    limit: str = ""
    advice: str = ""

    def __str__(self) -> str:
        """The line that `nlhf doctor` prints."""
        verdict = {True: "ok", False: "FAIL", None: "skipped"}[self.passed]
        limit = f" ({self.limit})" if self.limit else ""
        advice = f": {self.advice}" if self.passed is False else ""
        return f"{verdict:<8} {self.name:<42} {self.figure}{limit}{advice}"


@dataclass(frozen=True, slots=True)
class Note:
    """A figure that cannot be right or wrong.

    Args:
        name: what was measured.
        figure: with its unit.
    """

    name: str
    figure: str

    def __str__(self) -> str:
        """The line that `nlhf doctor` prints."""
        return f"{'note':<8} {self.name:<42} {self.figure}"


Finding = Check | Note


def at_most(name: str, figure: float, limit: float, advice: str, unit: str = "") -> Check:
    """A figure that must not exceed a limit; one that is no number does."""
    what = f"at most {limit:.3g}" if limit else "exactly 0"
    return Check(name, bool(figure <= limit), f"{figure:.3g}{unit}", what, advice)


def above(name: str, figure: float, limit: float, advice: str, unit: str = "") -> Check:
    """A figure that must exceed a limit and be finite."""
    passed = bool(limit < figure < float("inf"))
    return Check(name, passed, f"{figure:.3g}{unit}", f"above {limit:.3g}", advice)


def skipped(name: str, why: str) -> Check:
    """A check that does not apply."""
    return Check(name, None, why)
