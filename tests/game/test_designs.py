"""Comparison designs: how much is asked, of whom, and that it is unbiased."""

import re

import pytest
import torch
from zoo import Spy

from nlhf_zoo.data.tables.games import uniform_random
from nlhf_zoo.game import designs
from nlhf_zoo.oracles import MatrixOracle, TextOracle
from nlhf_zoo.records import Prompts, Responses

DRAWS = 20_000
AMONG = [(3, 2), (4, 1), (4, 2), (4, 3), (5, 2), (5, 4), (6, 3), (8, 2), (8, 5), (2, 1)]
AGAINST = [(1, 3, 2), (4, 5, 2), (4, 2, 2), (3, 1, 1), (6, 4, 3), (5, 7, 1)]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def preferences(rows: int, columns: int) -> torch.Tensor:
    """Any numbers in [0, 1], a table of a generator of its own."""
    return torch.rand(rows, columns, generator=stream(7), dtype=torch.float64)


def antisymmetric(num: int) -> torch.Tensor:
    lower = preferences(num, num).tril(-1)
    return lower + (1 - lower.mT).triu(1) + torch.eye(num, dtype=torch.float64) / 2


@pytest.mark.parametrize(("num", "degree"), AMONG)
def test_each_response_is_in_so_many_pairs_and_no_pair_is_asked_twice(num, degree):
    asked = designs.among_themselves(500, num, degree, stream())
    assert (asked.sum((1, 2)) == num * degree // 2).all()
    assert not (asked & asked.mT).any()
    assert ((asked | asked.mT).sum(-1) == degree).all()
    if degree % 2 == 0:  # each stands first as often as second
        assert (asked.sum(-1) == degree // 2).all()
    assert asked.shape == (500, num, num)


@pytest.mark.parametrize(("num", "others", "degree"), AGAINST)
def test_each_response_meets_so_many_opponents(num, others, degree):
    met = designs.with_opponents(500, num, others, degree, stream())
    assert met.shape == (500, num, others)
    assert (met.sum(-1) == degree).all()
    often = met.sum(1)
    assert (often.amax(-1) - often.amin(-1) <= 1).all()


def assert_as_likely(share: torch.Tensor, expected: float) -> None:
    """Within five standard errors: one table in ten thousand would fail, and the seed is fixed."""
    error = (expected * (1 - expected) / DRAWS) ** 0.5
    assert (share - expected).abs().max() <= 5 * error


@pytest.mark.parametrize(("num", "degree"), AMONG)
def test_every_pair_is_as_likely_in_either_order(num, degree):
    asked = designs.among_themselves(DRAWS, num, degree, stream())
    off = ~torch.eye(num, dtype=torch.bool)
    assert_as_likely(asked.double().mean(0)[off], degree / (2 * (num - 1)))


@pytest.mark.parametrize(("num", "others", "degree"), AGAINST)
def test_every_opponent_is_as_likely(num, others, degree):
    met = designs.with_opponents(DRAWS, num, others, degree, stream())
    assert_as_likely(met.double().mean(0), degree / others)


@pytest.mark.parametrize(("num", "degree"), AMONG)
def test_weighted_sums_are_unbiased_for_those_over_all_pairs(num, degree):
    """Of anything that depends on the pair; the error is that of so many draws."""
    asked = designs.among_themselves(DRAWS, num, degree, stream())
    weight = (asked | asked.mT).double() / (num * degree)
    value = preferences(num, num)
    estimates = (weight * value).sum((1, 2))
    off = ~torch.eye(num, dtype=torch.bool)
    error = estimates.std() / DRAWS**0.5
    assert (estimates.mean() - value[off].mean()).abs() <= 5 * error + 1e-12


@pytest.mark.parametrize(("num", "degree"), AMONG)
def test_payoffs_of_responses_are_unbiased_for_those_by_all_pairs(num, degree):
    """By the share that the game gives each pair, (K - 1) / (K d), oneself included with 1/2."""
    asked = designs.among_themselves(DRAWS, num, degree, stream())
    table = antisymmetric(num)
    known = (asked | asked.mT).double()
    payoff = 0.5 + (num - 1) / (num * degree) * (known * (table - 0.5)).sum(-1)
    error = payoff.std(0) / DRAWS**0.5
    assert ((payoff.mean(0) - table.mean(-1)).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize(("num", "degree"), [(3, 2), (4, 2), (5, 4), (8, 6)])
def test_a_constant_bias_to_a_place_cancels_in_each_payoff(num, degree):
    """An oracle that says 1/2 + 0.2 of whatever stands first: all payoffs are 1/2."""
    asked = designs.among_themselves(50, num, degree, stream()).double()
    payoff = (asked * 0.7).sum(-1) + (asked.mT * 0.3).sum(-1)
    torch.testing.assert_close(payoff / degree, torch.full_like(payoff, 0.5))


def test_negative_control_a_bias_stays_where_one_response_always_stands_first():
    fixed = torch.ones(3, 3, dtype=torch.double).triu(1)
    payoff = ((fixed * 0.7).sum(-1) + (fixed.mT * 0.3).sum(-1)) / 2
    assert (payoff - 0.5).abs().max() > 0.1


def drawn(prompts: int, num: int, seed: int) -> Responses:
    """Responses of one token, 0 to 5."""
    tokens = torch.randint(6, (prompts, num, 1), generator=stream(seed))
    weight = torch.full((prompts, num), 1 / num, dtype=torch.float64)
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight)


@pytest.mark.parametrize("among", [True, False])
def test_an_oracle_is_asked_about_these_pairs_and_no_others(among):
    table = Spy(MatrixOracle(uniform_random(3, 6, seed=0)))
    prompts, first = Prompts(torch.tensor([2, 0, 1, 2])), drawn(4, 5, seed=1)
    second = first if among else drawn(4, 3, seed=2)
    asked = (
        designs.among_themselves(4, 5, 2, stream())
        if among
        else designs.with_opponents(4, 5, 3, 2, stream())
    )
    whole = table.oracle(prompts, first, second)
    found = designs.ask(table, prompts, first, second, asked)
    assert torch.equal(found.valid, asked)
    assert torch.equal(found.preference[asked], whole.preference[asked])
    assert table.asked == [(1, 1, False)]
    if among:
        known = designs.both_ways(found)
        assert torch.equal(known.valid, asked | asked.mT)
        torch.testing.assert_close(known.preference[known.valid], whole.preference[known.valid])


class Longer(TextOracle):
    """The longer text is better; of two neighbours it has no answer. It keeps what it was asked."""

    fingerprint = "longer"

    def __init__(self):
        super().__init__()
        self.heard = []

    def answers(self, questions):
        self.count(questions)
        for number, question in enumerate(questions):
            one, other = len(question.first), len(question.second)
            self.heard.append((one, other))
            yield number, float("nan") if abs(one - other) == 1 else float(one > other)


def test_an_oracle_of_texts_is_asked_in_the_order_of_the_design():
    oracle, prompts = Longer(), Prompts(torch.arange(2), text=["x", "y"])
    tokens = torch.arange(5).expand(2, -1)[:, :, None]
    words = [["a" * (1 + i) for i in range(5)]] * 2
    weight = torch.full((2, 5), 0.2, dtype=torch.float64)
    responses = Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight, text=words)
    asked = designs.among_themselves(2, 5, 2, stream(3))
    found = designs.ask(oracle, prompts, responses, responses, asked)
    pairs = [(k + 1, other + 1) for _, k, other in asked.nonzero().tolist()]
    assert oracle.heard == pairs
    assert oracle.ledger["queries"] == len(pairs) == 10
    missing = sum(abs(one - other) == 1 for one, other in pairs)
    assert (asked & ~found.valid).sum() == oracle.ledger["invalid"] == missing > 0


def test_a_design_is_drawn_from_the_stream_alone():
    first, again, other = (designs.among_themselves(5, 8, 2, stream(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row.flatten().tolist()) for row in first}) == 5  # prompts differ


def test_questions_of_each_prompt_are_one_number():
    asked = designs.among_themselves(3, 6, 2, stream())
    assert designs.questions(asked) == 6
    asked[1] = False
    with pytest.raises(ValueError, match=r"as many questions .* this one \[6, 0, 6\]"):
        designs.questions(asked)


def test_designs_by_name():
    assert [designs.degree_of(name) for name in ("all", "circle", "regular(7)")] == [None, 2, 7]


@pytest.mark.parametrize(
    "name", ["", "rings", "regular", "regular(0)", "regular(-1)", "regular(1.5)", "regular(2) "]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"pairs must be all, circle, or regular\(d\)"):
        designs.degree_of(name)


@pytest.mark.parametrize(
    ("pairs", "num", "sentence"),
    [
        ("circle", 2, "a circle needs three responses, and num_responses is 2: set it to 3"),
        ("regular(4)", 4, "each of 4 responses has 3 others, so that pairs cannot be regular(4)"),
        ("regular(3)", 5, "5 responses cannot each be in 3 pairs, for both numbers are odd"),
    ],
)
def test_designs_that_do_not_exist_are_refused(pairs, num, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        designs.check_among_themselves(pairs, num)


def test_designs_that_exist_are_not():
    for num, degree in AMONG:
        designs.check_among_themselves(f"regular({degree})", num)
    designs.check_among_themselves("circle", 3)
    designs.check_among_themselves("all", 2)
    for _, others, degree in AGAINST:
        designs.check_with_opponents(f"regular({degree})", others)
    designs.check_with_opponents("all", 1)
    with pytest.raises(ValueError, match="each response meets 2 opponents, and num_opponents is 1"):
        designs.check_with_opponents("circle", 1)
