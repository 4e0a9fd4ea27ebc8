"""Figures of an oracle, each with what it means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from nlhf_zoo.health.oracles.asking import MOST_ACTIONS, Answers, TableAnswers, both_orders
from nlhf_zoo.solvers.preference import asymmetry, cyclic_triples, flipped, length_correlation, mean

ROUNDING = 1e-6  # of P and 1 - P in float32
ROWS = {  # all figures in their order: name and format in print
    "symmetry_error_mean": ("symmetry error, mean", ".3g"),
    "symmetry_error_max": ("symmetry error, largest", ".3g"),
    "first_place": ("advantage of the first place", ".3g"),
    "flip_rate": ("flips on order swap", ".1%"),
    "ties": ("ties", ".1%"),
    "cyclic_triples": ("cyclic triples", ".1%"),
    "length_correlation": ("correlation with length", ".3g"),
    "invalid": ("invalid answers", ".1%"),
    "agreement": ("agreement of members", ".1%"),
    "seconds_per_1000": ("seconds per 1000 queries", ".3g"),
    "tokens_per_1000": ("tokens per 1000 queries", ".0f"),
    "queries": ("queries", ".0f"),
    "swapped": ("asked about again", ".0f"),
}
_Figure = tuple[float | Tensor, str]  # value and reading


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One figure."""

    key: str  # its name in a file
    name: str  # its name in print
    format: str  # of the value in print
    value: float  # NaN where the answers do not tell
    reading: str  # what it means, or why there is none

    @property
    def formatted(self) -> str:
        """The value as the report prints it."""
        return "-" if math.isnan(self.value) else format(self.value, self.format)


def diagnose(answers: Answers | TableAnswers) -> list[Diagnostic]:
    """All figures of what `ask` or `read_table` gives; a table has fewer than texts have."""
    figures = _of_table(answers) if isinstance(answers, TableAnswers) else _of_texts(answers)
    if answers.agreement is not None:
        figures["agreement"] = _agreement(answers.agreement.share)
    return [
        Diagnostic(key, *row, float(figures[key][0]), figures[key][1])
        for key, row in ROWS.items()
        if key in figures
    ]


def _of_table(answers: TableAnswers) -> dict[str, _Figure]:
    matrices = answers.matrices(num_actions=MOST_ACTIONS)
    forward, backward = both_orders(matrices)
    error = asymmetry(forward, backward).abs()
    most = _largest(error)
    reading = "rounding" if most <= ROUNDING else "P + P^T is not 1: the table is no preference"
    return {
        "symmetry_error_mean": (mean(error), "of P and its transpose"),
        "symmetry_error_max": (most, reading),
        "ties": _ties(forward),
        "cyclic_triples": _cycles(matrices),
        "queries": (0, "the table itself was looked at"),
    }


def _of_texts(answers: Answers) -> dict[str, _Figure]:
    asymmetric = asymmetry(answers.forward, answers.backward)
    missing = answers.probability[answers.asked].isnan().double()
    flips = flipped(answers.forward, answers.backward)
    reading = "|P(a > b) + P(b > a) - 1|, as shown"
    return {
        "symmetry_error_mean": (mean(asymmetric.abs()), reading),
        "symmetry_error_max": _symmetry(answers, _largest(asymmetric.abs())),
        "first_place": _first_place(float(mean(asymmetric)) / 2),
        "flip_rate": _share(flips, "have another winner in the other order"),
        "ties": _ties(answers.probability),
        "cyclic_triples": _cycles(answers.matrices()),
        "length_correlation": _length(answers),
        "invalid": _invalid(missing, answers.last_words),
        **_cost(answers),
    }


def _largest(values: Tensor) -> float:
    """The largest that is not NaN; NaN where all are."""
    known = values[~values.isnan()]
    return float(known.max()) if known.numel() else math.nan


def _share(pairs: Tensor, what: str) -> _Figure:
    """The share of the pairs that are 1, of those that are not NaN."""
    num = int((~pairs.isnan()).sum())
    return mean(pairs), f"{int(pairs.nansum())} of {num} pairs {what}"


def _invalid(missing: Tensor, last_words: str) -> _Figure:
    share, reading = _share(missing, "have no answer")
    return share, reading + last_words * bool(share)


def _symmetry(answers: Answers, most: float) -> _Figure:
    if math.isnan(most):
        return most, "no pair has an answer in both orders"
    if most <= answers.tolerance + ROUNDING:
        return most, "it does not matter which response is shown first"
    both = (answers.forward + 1 - answers.backward) / 2
    if _largest((answers.probability - both).abs()) <= ROUNDING:
        remedy = "its answers average both orders"
    elif _largest((answers.probability - answers.forward).abs()) <= ROUNDING:
        remedy = "ask about both orders: by its option `order`, or of a rule by OrderSwap"
    else:
        remedy = "a coin says who is first, and that counts in each answer"
    return most, f"what is shown first matters: {remedy}"


def _first_place(gain: float) -> _Figure:
    if not abs(gain) > ROUNDING:  # NaN among them
        return gain, "none on average"
    side = "first" if gain > 0 else "second"
    return gain, f"the {side} response gains {abs(gain):.3f} by its place, on average"


def _ties(probability: Tensor) -> _Figure:
    ties = (probability == 0.5).double().masked_fill(probability.isnan(), torch.nan)
    return _share(ties, "have no winner")


def _cycles(matrices: Sequence[Tensor]) -> _Figure:
    counts = [torch.stack(cyclic_triples(matrix)) for matrix in matrices]
    cyclic, triples = torch.stack(counts).sum(0).tolist()
    if not triples:
        return math.nan, "no three responses all have a winner"
    if cyclic:
        reading = "no reward model says this (of random verdicts a quarter are cycles)"
    else:
        reading = "a ranking of the responses explains every winner"
    return cyclic / triples, f"{cyclic:.0f} of {triples:.0f}; {reading}"


def _length(answers: Answers) -> _Figure:
    characters = [len(one.first) - len(one.second) for one in answers.questions]
    found = float(length_correlation(answers.probability, torch.tensor(characters)))
    if math.isnan(found):
        return found, "preferences or lengths do not vary"
    if abs(found) < 0.2:
        return found, "the number of characters says little"
    kind = "longer" if found > 0 else "shorter"
    return found, f"the {kind} response tends to win, in characters"


def _agreement(shares: Tensor) -> _Figure:
    """Of the M members of an ensemble, from the shares [M, M] of pairs with one winner."""
    pairs = [(float(shares[i, j]), i + 1, j + 1) for i, j in combinations(range(len(shares)), 2)]
    known = [pair for pair in pairs if not math.isnan(pair[0])]
    if not known:
        return math.nan, "no two members name a winner of one pair"
    least, one, other = min(known)
    reading = f"same winner, mean of every two; least {least:.1%}, of members {one} and {other}"
    return sum(share for share, _, _ in known) / len(known), reading


def _cost(answers: Answers) -> dict[str, _Figure]:
    cost, total = answers.cost, answers.total

    def per_1000(amount: float) -> float:
        return 1000 * amount / cost["queries"] if cost["queries"] else math.nan

    cached = f"{cost['cache_hits']} answers came from a cache, and are not counted"
    timed = cached if cost["cache_hits"] else "of the answers alone"
    read, wrote = cost["prompt_tokens"], cost["reply_tokens"]
    tokens: _Figure = math.nan, "the oracle counts no tokens"
    if read + wrote:
        parts = f"{per_1000(read):.0f} read, {per_1000(wrote):.0f} written"
        tokens = per_1000(read + wrote), parts
    pairs = "distinct pairs" + ("" if answers.agreement is None else ", each of every member")
    return {
        "seconds_per_1000": (per_1000(answers.seconds), timed),
        "tokens_per_1000": tokens,
        "queries": (total["queries"], pairs),
        "swapped": (total["swapped"], "in the other order, or as shown: these are no queries"),
    }
