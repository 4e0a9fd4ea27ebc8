"""Figures of an oracle, each with what it means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from nlhf_zoo.health.oracles.asking import Answers
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.oracles.wrappers.ensemble import Agreement
from nlhf_zoo.solvers.preference import (
    agreement,
    asymmetry,
    cyclic_triples,
    flipped,
    length_correlation,
    mean,
)

_FLOAT = 1e-6  # of P and 1 - P in float32
_MOST_ACTIONS = 2048  # of a table, whose triples are counted
_SEED = 20_250_520  # of the actions that are taken of a larger one


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One figure.

    Args:
        key: its name in a file.
        name: its name in print.
        value: NaN where it does not apply.
        reading: what it means, or why it does not apply.
        form: how it is printed.
    """

    key: str
    name: str
    value: float
    reading: str
    form: str = ".3f"

    @property
    def shown(self) -> str:
        """The value in print."""
        return "-" if math.isnan(self.value) else format(self.value, self.form)


_NAMES = {
    "symmetry_error_mean": "symmetry error, mean",
    "symmetry_error_max": "symmetry error, largest",
    "first_place": "advantage of the first place",
    "flip_rate": "flips on order swap",
    "ties": "ties",
    "cyclic_triples": "cyclic triples",
    "length_correlation": "correlation with length",
    "invalid": "invalid answers",
    "agreement": "agreement of members",
    "seconds_per_1000": "seconds per 1000 queries",
    "tokens_per_1000": "tokens per 1000 queries",
    "queries": "queries",
    "swapped": "asked about again",
}
_SHARES = ("flip_rate", "ties", "cyclic_triples", "invalid", "agreement")
_COUNTS = ("tokens_per_1000", "queries", "swapped")


def _diagnostic(key: str, value: float | Tensor, reading: str) -> Diagnostic:
    form = ".1%" if key in _SHARES else ".0f" if key in _COUNTS else ".3g"
    return Diagnostic(key, _NAMES[key], float(value), reading, form)


def of_answers(oracle: PreferenceOracle, answers: Answers) -> list[Diagnostic]:
    """All figures of an oracle that reads texts.

    Args:
        oracle: who was asked.
        answers: what it said.
    """
    return [
        *_symmetry(oracle, answers),
        _flips(flipped(answers.forward, answers.backward)),
        _ties(answers.probability),
        _cycles(answers.matrices()),
        _length(answers),
        _invalid(answers),
        _agreement(_shares(answers.members)),
        *_cost(answers),
    ]


def of_table(table: Tensor, support: Tensor, agreed: Agreement | None = None) -> list[Diagnostic]:
    """The figures of a table that apply to it.

    Args:
        table: P [C, N, N].
        support: which actions each prompt has, bool [C, N].
        agreed: how far the members of an ensemble agree.
    """
    matrices = [_part(P, exists) for P, exists in zip(table, support, strict=True)]
    sides = [upper(matrix) for matrix in matrices]
    forward, backward = (torch.cat(side) for side in zip(*sides, strict=True))
    error = asymmetry(forward, backward).abs()
    lone = "a table shows no texts in an order"
    return [
        _diagnostic("symmetry_error_mean", mean(error), "of P and its transpose"),
        _diagnostic("symmetry_error_max", _largest(error), _rounded(error)),
        _diagnostic("first_place", math.nan, lone),
        _diagnostic("flip_rate", math.nan, lone),
        _ties(forward),
        _cycles(matrices),
        _diagnostic("length_correlation", math.nan, "a table has no texts"),
        _diagnostic("invalid", math.nan, "every entry of a table is an answer"),
        _agreement([] if agreed is None else agreed.share),
        _diagnostic("seconds_per_1000", math.nan, "entries are looked up"),
        _diagnostic("tokens_per_1000", math.nan, "no judge reads anything"),
        _diagnostic("queries", 0, "the table itself was looked at"),
    ]


def drawn_actions(num: int, most: int = _MOST_ACTIONS) -> Tensor:
    """All of so many actions, or some that are drawn, in order.

    Args:
        num: how many there are.
        most: how many are taken.
    """
    if num <= most:
        return torch.arange(num)
    rng = torch.Generator().manual_seed(_SEED)
    return torch.randperm(num, generator=rng)[:most].sort().values


def _part(P: Tensor, exists: Tensor) -> Tensor:
    """One prompt's preference among the actions that it has, float64."""
    actions = exists.nonzero().flatten().cpu()
    actions = actions[drawn_actions(len(actions))]
    found: Tensor = P.cpu()[actions[:, None], actions].double()
    return found


def upper(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """P(a > b) and P(b > a) of each pair.

    Args:
        matrix: P [N, N].
    """
    num = len(matrix)
    rows, columns = torch.triu_indices(num, num, offset=1)
    return matrix[rows, columns], matrix[columns, rows]


def _largest(values: Tensor) -> float:
    known = values[~values.isnan()]
    return float(known.max()) if known.numel() else math.nan


def _rounded(error: Tensor) -> str:
    return (
        "rounding" if _largest(error) <= _FLOAT else "P + P^T is not 1: the table is no preference"
    )


def _symmetry(oracle: PreferenceOracle, answers: Answers) -> list[Diagnostic]:
    asymmetric = asymmetry(answers.forward, answers.backward)
    error = asymmetric.abs()
    most, first = _largest(error), float(mean(asymmetric)) / 2
    if math.isnan(most):
        reading = "no pair has an answer in both orders"
    elif most <= oracle.tolerance + _FLOAT:
        reading = "it does not matter which response is shown first"
    else:
        reading = "what is shown first matters: " + _remedy(answers)
    side = "first" if first > 0 else "second"
    place = f"the {side} response gains {abs(first):.3f} by its place, on average"
    return [
        _diagnostic("symmetry_error_mean", mean(error), "|P(a > b) + P(b > a) - 1|, as shown"),
        _diagnostic("symmetry_error_max", most, reading),
        _diagnostic("first_place", first, place if abs(first) > _FLOAT else "none on average"),
    ]


def _remedy(answers: Answers) -> str:
    """What is done about the order, or can be."""
    both = (answers.forward + 1 - answers.backward) / 2
    if _largest((answers.probability - both).abs()) <= _FLOAT:
        return "its answers average both orders"
    if _largest((answers.probability - answers.forward).abs()) <= _FLOAT:
        return "ask about both orders: by its option `order`, or of a rule by OrderSwap"
    return "a coin says who is first, and that counts in each answer"


def _flips(flips: Tensor) -> Diagnostic:
    num = int((~flips.isnan()).sum())
    reading = f"{int(flips.nansum())} of {num} pairs have another winner in the other order"
    return _diagnostic("flip_rate", mean(flips), reading)


def _ties(probability: Tensor) -> Diagnostic:
    known = probability[~probability.isnan()]
    share = (known == 0.5).double()
    reading = f"{int(share.sum())} of {len(known)} pairs have no winner"
    return _diagnostic("ties", mean(share), reading)


def _cycles(matrices: Sequence[Tensor]) -> Diagnostic:
    counts = [torch.stack(cyclic_triples(matrix)) for matrix in matrices]
    cyclic, triples = torch.stack(counts).sum(0).tolist()
    if not triples:
        return _diagnostic("cyclic_triples", math.nan, "no three responses all have a winner")
    reading = f"{cyclic:.0f} of {triples:.0f}; "
    if cyclic:
        reading += "no reward model says this (of random verdicts a quarter are cycles)"
    else:
        reading += "a ranking of the responses explains every winner"
    return _diagnostic("cyclic_triples", cyclic / triples, reading)


def _length(answers: Answers) -> Diagnostic:
    characters = [len(one.first) - len(one.second) for one in answers.questions]
    found = float(length_correlation(answers.probability, torch.tensor(characters)))
    if math.isnan(found):
        reading = "preferences or lengths do not vary"
    elif abs(found) < 0.2:
        reading = "the number of characters says little"
    else:
        reading = f"the {'longer' if found > 0 else 'shorter'} response tends to win, in characters"
    return _diagnostic("length_correlation", found, reading)


def _invalid(answers: Answers) -> Diagnostic:
    missing = answers.probability[answers.asked].isnan().double()
    reading = f"{int(missing.sum())} of {len(missing)} pairs have no answer"
    return _diagnostic("invalid", mean(missing), reading)


def _shares(members: Sequence[Tensor]) -> list[list[float]]:
    """On what share of the pairs each two members have the same winner, M lists of M."""
    return [[float(mean(agreement(one, other))) for other in members] for one in members]


def _agreement(shares: Tensor | Sequence[Sequence[float]]) -> Diagnostic:
    if not len(shares):
        return _diagnostic("agreement", math.nan, "no ensemble")
    pairs = [(float(shares[i][j]), i + 1, j + 1) for i, j in combinations(range(len(shares)), 2)]
    known = [pair for pair in pairs if not math.isnan(pair[0])]
    if not known:
        return _diagnostic("agreement", math.nan, "no two members name a winner of one pair")
    least, one, other = min(known)
    reading = f"same winner, mean of every two; least {least:.1%}, of members {one} and {other}"
    return _diagnostic("agreement", sum(share for share, _, _ in known) / len(known), reading)


def _cost(answers: Answers) -> list[Diagnostic]:
    cost, total = answers.cost, answers.total
    queries, hits = cost.get("queries", 0), cost.get("cache_hits", 0)
    cached = f"{hits} answers came from a cache, and are not counted" if hits else ""
    read, wrote = cost.get("prompt_tokens", 0), cost.get("reply_tokens", 0)

    def per_1000(amount: float) -> float:
        return 1000 * amount / queries if queries else math.nan

    tokens = per_1000(read + wrote) if read + wrote else math.nan
    told = f"{per_1000(read):.0f} read, {per_1000(wrote):.0f} written" if read + wrote else ""
    again = total.get("swapped", 0)
    return [
        _diagnostic(
            "seconds_per_1000", per_1000(answers.seconds), cached or "of the answers alone"
        ),
        _diagnostic("tokens_per_1000", tokens, told or "the oracle counts no tokens"),
        _diagnostic(
            "queries",
            total.get("queries", 0),
            "distinct pairs" + (", each of every member" if answers.members else ""),
        ),
        _diagnostic("swapped", again, "in the other order, or as shown: these are no queries"),
    ]
