r"""Comparison designs: which pairs of responses an oracle is asked about.

K responses need not all be compared with each other. A design of degree d draws K d / 2 of the
K (K - 1) / 2 pairs so that each response is in d of them and every pair is as likely as any other,

    P(k and l are compared) = d / (K - 1)

and sums over the pairs that were asked, each with the weight 1 / (K d), are unbiased for those over
all pairs. A *circle* is the design of degree 2: K questions, in which each response stands once
first and once second, so that an oracle's constant bias to a place cancels in each response's mean
at no question more. Among L opponents each response meets d, K d questions.

A pair that a design leaves out is not wanted; it is no invalid answer. A *knockout* is no design of
these: what it asks depends on what was answered (``knockout.py``), and of a *best_worst* what is
trained on (``best_worst.py``).
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.records import Comparison, Prompts, Responses

KNOCKOUT = "knockout"
BEST_WORST = "best_worst"
CHOSEN = (KNOCKOUT, BEST_WORST)  # pairs that are chosen by the answers
_CIRCLE = 2  # its degree


def degree_of(pairs: str, num_responses: float = math.inf) -> float | None:
    """Pairs that each of K responses is in, by the name of a design; None of all pairs.

    Of a knockout it is the mean, 3 - 2/K; for the best and the worst all are asked about, K - 1.

    Raises:
        ValueError: the name is none of these.
    """
    if pairs == "all":
        return None
    if pairs == "circle":
        return _CIRCLE
    if pairs == KNOCKOUT:
        return 3 - 2 / num_responses
    if pairs == BEST_WORST:
        return num_responses - 1
    if (found := re.fullmatch(r"regular\((\d{1,4})\)", pairs)) and int(found[1]) > 0:
        return int(found[1])
    raise ValueError(
        f"pairs must be all, circle, or regular(d) with a whole number d of at least 1, or "
        f"knockout or best_worst, but it is {pairs!r:.60}"
    )


def check_among_themselves(pairs: str, num_responses: int) -> None:
    """Refuse a design that K responses among themselves do not have.

    Raises:
        ValueError: what does not fit.
    """
    degree = degree_of(pairs)
    if degree is None:
        return
    if pairs == KNOCKOUT:
        if num_responses < 4 or num_responses & (num_responses - 1):
            raise ValueError(
                f"a knockout needs 4, 8, 16, ... responses, and num_responses is {num_responses}: "
                "set it to one of these, or pairs to all"
            )
        return
    if pairs == BEST_WORST:
        if num_responses < 3:
            raise ValueError(
                f"a best_worst chooses two of three or more responses, and num_responses is "
                f"{num_responses}: raise it, or set pairs to all"
            )
        return
    if pairs == "circle" and num_responses < 3:
        raise ValueError(
            f"a circle needs three responses, and num_responses is {num_responses}: set it to 3 or "
            "more, or pairs to all"
        )
    if degree >= num_responses:
        raise ValueError(
            f"each of {num_responses} responses has {num_responses - 1} others, so that pairs "
            f"cannot be {pairs}: lower its number, or set pairs to all"
        )
    if degree * num_responses % 2:
        raise ValueError(
            f"{num_responses} responses cannot each be in {degree} pairs, for both numbers are "
            "odd: change one of num_responses and pairs"
        )


def check_with_opponents(pairs: str, num_opponents: int) -> None:
    """Refuse a design that responses and L opponents do not have.

    Raises:
        ValueError: what does not fit.
    """
    if pairs in CHOSEN:
        raise ValueError(
            f"a {pairs} is among the responses themselves, and these meet opponents of their own: "
            "set self_play to true, or pairs to all"
        )
    degree = degree_of(pairs)
    if degree is not None and degree > num_opponents:
        raise ValueError(
            f"with pairs {pairs} each response meets {degree} opponents, and num_opponents is "
            f"{num_opponents}: raise it, or set pairs to all"
        )


def among_themselves(
    num_prompts: int, num_responses: int, degree: int, rng: torch.Generator
) -> Tensor:
    """Which pairs of K responses are asked about, in which order, bool [B, K, K].

    True at [b, k, l] asks about k, which stands first, and l; the pair then has no other question.
    Each response stands first as often as second where the degree is even.

    Args:
        num_prompts: B.
        num_responses: K.
        degree: pairs that each response is in, d; `check_among_themselves` says which there are.
        rng: the game's random stream.
    """
    place = torch.arange(num_responses, device=rng.device)
    ahead = (place - place[:, None]) % num_responses
    # On a ring each meets the next d / 2; of an odd degree also who sits opposite.
    asked = (ahead >= 1) & (ahead <= degree // 2)
    if degree % 2:
        asked |= (2 * ahead == num_responses) & (2 * place[:, None] < num_responses)
    seats = orders(num_prompts, num_responses, rng)
    return asked[seats[:, :, None], seats[:, None, :]]


def with_opponents(
    num_prompts: int, num_responses: int, num_opponents: int, degree: int, rng: torch.Generator
) -> Tensor:
    """Which of L opponents each of K responses meets, bool [B, K, L].

    Opponents are met as often as each other, give or take one.

    Args:
        num_prompts: B.
        num_responses: K.
        num_opponents: L.
        degree: opponents that each response meets, d, at most L.
        rng: the game's random stream.
    """
    # Each in turn takes the next d of a ring.
    first = degree * torch.arange(num_responses, device=rng.device)
    opponent = torch.arange(num_opponents, device=rng.device)
    met = (opponent - first[:, None]) % num_opponents < degree
    rows = orders(num_prompts, num_responses, rng)
    columns = orders(num_prompts, num_opponents, rng)
    return met[rows[:, :, None], columns[:, None, :]]


def questions(asked: Tensor) -> int:
    """Questions of each prompt of a design [B, K, L].

    Raises:
        ValueError: prompts differ in it, and could not be counted by one number.
    """
    each = asked.sum((1, 2))
    if (each != each[0]).any():
        raise ValueError(
            "a comparison design asks as many questions about each prompt, but this one "
            f"{each.tolist()}"
        )
    return int(each[0])


def ask(
    oracle: PreferenceOracle, prompts: Prompts, first: Responses, second: Responses, asked: Tensor
) -> Comparison:
    """Ask about some pairs alone; of others nothing is valid.

    Each pair is handed over as a prompt of its own with two responses, so that any oracle can be
    asked, and is asked of nothing else.

    Args:
        oracle: who judges.
        prompts: B prompts.
        first: K responses a prompt, which stand first.
        second: L responses a prompt.
        asked: which pairs, bool [B, K, L].

    Returns:
        preference and validity [B, K, L].
    """
    rows, ours, theirs = asked.nonzero().unbind(1)
    found = _of_pairs(oracle, prompts, (first, ours), (second, theirs), rows)
    preference = found.preference.new_full(asked.shape, 0.5)
    preference[asked] = found.preference[:, 0, 0]
    valid = torch.zeros_like(asked)
    valid[asked] = found.valid[:, 0, 0]
    return Comparison(preference, valid)


def ask_in_pairs(
    oracle: PreferenceOracle, prompts: Prompts, first: Responses, second: Responses
) -> tuple[Tensor, Tensor]:
    """Ask about the k-th of the first responses and the k-th of the second, and no other pair.

    Args:
        oracle: who judges.
        prompts: B prompts.
        first: K responses a prompt.
        second: K responses a prompt.

    Returns:
        preference and validity, bool, [B, K] each.
    """
    shape, device = first.weight.shape, first.weight.device
    rows, places = (torch.arange(number, device=device) for number in shape)
    which = places.repeat(len(rows))
    asked = rows.repeat_interleave(len(places))
    found = _of_pairs(oracle, prompts, (first, which), (second, which), asked)
    return found.preference.view(shape), found.valid.view(shape)


def _of_pairs(
    oracle: PreferenceOracle,
    prompts: Prompts,
    first: tuple[Responses, Tensor],
    second: tuple[Responses, Tensor],
    rows: Tensor,
) -> Comparison:
    """Pairs as prompts of their own, [Q, 1, 1]: which responses, and of which prompts [Q]."""
    ours, theirs = (singled(responses, rows, which) for responses, which in (first, second))
    found: Comparison = oracle(prompts.take(rows.tolist()), ours, theirs)
    return found


def both_ways(comparison: Comparison) -> Comparison:
    """What is known of responses among themselves [B, K, K]: P(l > k) is 1 - P(k > l)."""
    valid, preference = comparison.valid, comparison.preference
    known = torch.where(valid, preference, 1 - preference.mT)
    return Comparison(known, valid | valid.mT)


def singled(responses: Responses, rows: Tensor, which: Tensor) -> Responses:
    """Some responses, each as the only one to its prompt, [Q, 1]."""
    text, truncated = responses.text, responses.truncated
    pairs = zip(rows.tolist(), which.tolist(), strict=True)
    return Responses(
        tokens=responses.tokens[rows, which][:, None],
        mask=responses.mask[rows, which][:, None],
        weight=torch.ones_like(responses.weight[rows, which])[:, None],
        text=None if text is None else [[text[row][number]] for row, number in pairs],
        version=responses.version,
        truncated=None if truncated is None else truncated[rows, which][:, None],
    )


def orders(num_rows: int, num: int, rng: torch.Generator) -> Tensor:
    """Uniform random orders of 0 to num - 1, [num_rows, num]."""
    return torch.rand(num_rows, num, generator=rng, device=rng.device).argsort(-1)
