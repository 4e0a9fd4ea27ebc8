"""How far people agree: Krippendorff's alpha, and each person with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nlhf_zoo.people.pairs import Vote

_TURNED = {"first": "second", "second": "first"}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far people agree.

    Args:
        alpha: Krippendorff's alpha of all, with each question in both orders: which response the
            file has first is chance, or even the better one's place, and nothing that people know.
            None where no question has two votes, or all votes see no difference: then there is no
            chance to compare with.
        questions: how many have two votes or more.
        people: of each person the mean, over the questions that others have voted on too, of the
            share of these others who have said the same; None where there is no such question.
    """

    alpha: float | None
    questions: int
    people: Mapping[str, float | None]


def agreement(votes: Iterable[Vote]) -> Agreement:
    """Agreement in votes that count; what was passed or undone is no vote."""
    units: dict[int, dict[str, str]] = {}
    names: set[str] = set()
    for vote in votes:
        if vote.undone is None and vote.choice != "skip":
            units.setdefault(vote.question, {})[vote.person] = vote.choice
            names.add(vote.person)
    several = [unit for unit in units.values() if len(unit) > 1]
    people = {name: _with_others(name, several) for name in sorted(names)}
    said = [[*unit.values()] for unit in several]
    turned = [[_TURNED.get(choice, choice) for choice in values] for values in said]
    return Agreement(krippendorff_alpha(said + turned), len(several), people)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha of nominal values.

    With n_uc values c among the m_u of unit u, n_c = sum_u n_uc and n = sum_c n_c over the units
    of two values or more,

        alpha = 1 - D_o / D_e,
        D_o = (1 / n) sum_u sum_{c != k} n_uc n_uk / (m_u - 1),
        D_e = sum_{c != k} n_c n_k / (n (n - 1)).

    It is 1 where all agree and 0 where they agree as often as by chance. The choices of a pair are
    such values: first, second, neither.

    Args:
        units: the values of each unit, any number of them.

    Returns:
        alpha; None where D_e = 0, or there are no two values of a unit.

    Source:
        K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011.
    """
    observed, all_of = 0.0, Counter[Hashable]()
    for values in units:
        if len(values) > 1:
            of_it = Counter(values)
            observed += _unlike(of_it) / (len(values) - 1)
            all_of += of_it
    expected = _unlike(all_of)
    return 1 - observed * (all_of.total() - 1) / expected if expected else None


def _unlike(counts: Counter[Hashable]) -> int:
    """How many ordered pairs of two values differ."""
    return counts.total() ** 2 - sum(count**2 for count in counts.values())


def _with_others(name: str, units: Iterable[Mapping[str, str]]) -> float | None:
    shares = [
        (sum(choice == unit[name] for choice in unit.values()) - 1) / (len(unit) - 1)
        for unit in units
        if name in unit
    ]
    return sum(shares) / len(shares) if shares else None
