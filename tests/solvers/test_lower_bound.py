"""The lower bound by draws: unbiased, and below the exploitability as often as it says.

Statistics: of 1,000 intervals of 95 % at least 92.8 %
and at most 97.2 % hold their mean, which correct ones miss with probability 2e-3; seeds are fixed.
"""

import math

import pytest
import torch
import zoo
from scipy import stats

from nlhf_zoo import solvers
from nlhf_zoo.solvers.lower_bound import bound_of_draws, mean_interval

BETA = 0.1


@pytest.fixture(scope="module")
def game():
    """P [C, N, N], log mu, log pi and log pi' [C, N]."""
    P, mu = zoo.small_games()
    policy, other = (zoo.normal_logits(*mu.shape, seed=s).log_softmax(-1) for s in (7, 8))
    return P, mu, policy, other


def drawn(game, response, num, seed=0):
    """z of ``num`` draws a game [C, num]."""
    policy = game[2]
    rng = torch.Generator().manual_seed(seed)
    ours, theirs, opponents = (
        torch.multinomial(law.exp(), num, replacement=True, generator=rng)
        for law in (response, policy, policy)
    )
    scored = torch.stack([ours, theirs], -1)
    return each_draw(game, response, scored, opponents)


def each_draw(game, response, scored, opponents, **kwargs):
    """z of responses [C, n, 2] that meet opponents [C, n]."""
    P, mu, policy, _ = game
    games = torch.arange(len(P))[:, None, None]
    ratios = ((law - mu)[games, scored] for law in (response, policy))
    return bound_of_draws(P[games, scored, opponents[..., None]], *ratios, BETA, **kwargs)


def exact(game, response):
    """P(pi' > pi) - beta KL(pi' || mu) + beta KL(pi || mu) - 1/2 of each game."""
    P, mu, policy, _ = game
    costs = solvers.kl(policy, mu) - solvers.kl(response, mu)
    return solvers.win_rate(P, response, policy) - 0.5 + BETA * costs


def expected(game, response, **kwargs):
    """The mean of z over all draws there are [C], by their probabilities."""
    P, policy = game[0], game[2]
    all_draws = torch.cartesian_prod(*[torch.arange(P.shape[-1])] * 3)
    ours, theirs, opponents = all_draws.expand(len(P), -1, -1).unbind(-1)
    z = each_draw(game, response, torch.stack([ours, theirs], -1), opponents, **kwargs)
    parts = zip((response, policy, policy), (ours, theirs, opponents), strict=True)
    return (sum(law.gather(1, drawn) for law, drawn in parts).exp() * z).sum(-1)


def test_draws_are_unbiased_and_attain_the_exploitability_by_the_best_response_alone(game):
    P, mu, policy, other = game
    best = solvers.best_response(P, policy, mu, BETA)
    exploitability = solvers.exploitability(P, policy, mu, BETA)
    for response in (other, best, mu):
        torch.testing.assert_close(expected(game, response), exact(game, response))
    torch.testing.assert_close(expected(game, best), exploitability)
    assert (expected(game, other) < exploitability - 0.01).all()


def test_where_the_two_are_one_every_draw_is_0_and_near_it_the_spread_is_as_small(game):
    policy, other = game[2], game[3]
    assert drawn(game, policy, 100).abs().max() < 1e-15
    spreads = [
        drawn(game, ((1 - w) * policy + w * other).log_softmax(-1), 2000).std() for w in (0.1, 0.01)
    ]
    assert (spreads[0] / spreads[1]).item() == pytest.approx(10, rel=0.2)


def test_a_response_that_leaves_some_out_is_bounded_too(game):
    """Neither of them needs the other's support."""
    response = game[3].clone()
    response[:, 0] = -torch.inf
    response = response.log_softmax(-1)
    P, mu, policy, _ = game
    wins = torch.einsum("ci,cij,cj->c", response.exp(), P, policy.exp())
    costs = solvers.kl(policy, mu) - solvers.kl(response, mu)
    torch.testing.assert_close(expected(game, response), wins - 0.5 + BETA * costs)


def test_what_could_not_be_had_is_the_worst_that_it_could_be(game):
    P, mu, policy, other = game
    scored, opponents = torch.tensor([0, 3]).expand(5, 1, 2), torch.full((5, 1), 2)
    for place in (0, 1):
        valid = torch.tensor([place != 0, place != 1])
        found = each_draw(game, other, scored, opponents, valid=valid)
        lowest = torch.full_like(found, torch.inf)
        for answer in (0.0, 1.0):
            told = P.clone()
            told[:, [0, 3][place], 2] = answer
            lowest = torch.minimum(
                lowest, each_draw((told, mu, policy, other), other, scored, opponents)
            )
        torch.testing.assert_close(found, lowest)


def test_an_interval_of_one_prompt_is_students():
    draws = zoo.normal_logits(1, 12, seed=3)
    found = mean_interval(draws, level=0.9)
    expected = stats.ttest_1samp(draws[0], 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert math.isnan(found.low_of_law)


def test_an_interval_of_two_prompts_is_welchs_and_over_prompts_students():
    """The mean of two is the difference of one and minus the other, over 2."""
    first, second = zoo.normal_logits(8, seed=4), 3 * zoo.normal_logits(8, seed=5)
    found = mean_interval(torch.stack([first, second]))
    welch = stats.ttest_ind(first, -second, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((welch.low / 2, welch.high / 2), rel=1e-12)
    means = [first.mean().item(), second.mean().item()]
    over = stats.ttest_1samp(means, 0).confidence_interval()
    assert (found.low_of_law, found.high_of_law) == pytest.approx((over.low, over.high), rel=1e-9)


def test_draws_without_spread_have_an_interval_without_width():
    found = mean_interval(torch.full((3, 4), 0.25))
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match=r"^an interval needs at least 2 draws a prompt, not 1$"):
        mean_interval(torch.zeros(3, 1))


@pytest.mark.parametrize("of_law", [False, True], ids=["these prompts", "their law"])
def test_intervals_hold_the_mean_as_often_as_they_say(game, of_law):
    """Of these five prompts; and of prompts that are each drawn from them."""
    values, repetitions = exact(game, game[3]), 1000
    draws = drawn(game, game[3], 32 * repetitions).view(len(values), repetitions, 32)
    rng, held = torch.Generator().manual_seed(1), 0
    for repetition in range(repetitions):
        rows = torch.randint(5, (100,), generator=rng) if of_law else torch.arange(5)
        found = mean_interval(_apart(draws, rows, repetition))
        ends = (found.low_of_law, found.high_of_law) if of_law else (found.low, found.high)
        held += ends[0] <= values.mean() <= ends[1]
    assert 0.928 <= held / repetitions <= 0.972


def _apart(draws, rows, repetition):
    """Draws of each row, others for a row that comes twice."""
    places = (repetition + torch.arange(len(rows))) % draws.shape[1]
    return draws[rows, places]
