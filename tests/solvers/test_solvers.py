"""The solvers against brute force, closed forms, linear programmes and the laws of the game."""

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nlhf_zoo.data.tables import games as generated
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers import (
    best_response,
    check_preference,
    check_reference,
    duality_gap,
    exploitability,
    kl,
    kl_to_nash,
    prepare_game,
    regularised_nash,
    solve,
    span,
    trajectory_metrics,
    unregularised_nash,
    win_rate,
    win_rates,
)

BETAS = (0.001, 0.01, 0.1, 1.0)


def random_game(num, seed, games=()):
    generator = torch.Generator().manual_seed(seed)
    P = generated.complete(torch.rand(*games, num, num, dtype=torch.float64, generator=generator))
    log_mu = torch.randn(*games, num, dtype=torch.float64, generator=generator).log_softmax(-1)
    return P, log_mu


def log_policies(shape, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


# Games by their number of actions; on the last, of rank 4, Newton's path is hardest to follow.
STRUCTURED = {
    "cyclic": lambda num: generated.cyclic(num)[0],
    "cloned": lambda num: generated.cyclic_blocks(num, num_blocks=1, block_size=3)[0],
    "bradley_terry": lambda num: generated.bradley_terry(1, num, seed=num)[0],
    "smooth": lambda num: generated.sine_game(num, seed=num)[0],
}


@st.composite
def games(draw, min_actions=2, max_actions=6):
    """Small games: P, log mu, log pi, with extreme probabilities among them."""
    num = draw(st.integers(min_actions, max_actions))
    unit = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
    logit = st.floats(-8, 8)
    lower = draw(st.lists(unit, min_size=num * num, max_size=num * num))
    mu, pi = (draw(st.lists(logit, min_size=num, max_size=num)) for _ in range(2))
    return (
        generated.complete(torch.tensor(lower, dtype=torch.float64).reshape(num, num)),
        torch.tensor(mu, dtype=torch.float64).log_softmax(-1),
        torch.tensor(pi, dtype=torch.float64).log_softmax(-1),
    )


betas = st.sampled_from([0.0, 0.01, 0.1, 1.0, 10.0])


def value(P, log_pi, log_rival, log_mu, beta):
    """V(pi, pi') as the design writes it, in numpy."""
    P, log_pi, log_rival, log_mu = map(np.asarray, (P, log_pi, log_rival, log_mu))
    pi, rival = np.exp(log_pi), np.exp(log_rival)
    plain = pi @ P @ rival
    return plain - beta * pi @ (log_pi - log_mu) + beta * rival @ (log_rival - log_mu)


def textbook(P, log_pi, log_mu, beta):
    """e(pi) as the design writes it, in decimal arithmetic of 60 digits."""
    getcontext().prec = 60
    P, log_pi, log_mu = (np.vectorize(Decimal)(np.asarray(x)) for x in (P, log_pi, log_mu))
    P = (P - P.T) / 2
    pi = np.array([x.exp() for x in log_pi])
    pi, log_pi = pi / pi.sum(), log_pi - pi.sum().ln()
    mu = np.array([x.exp() for x in log_mu])
    mu, log_mu = mu / mu.sum(), log_mu - mu.sum().ln()
    beta, payoff = Decimal(beta), P @ pi
    top = max(payoff)
    partition = sum(m * ((q - top) / beta).exp() for m, q in zip(mu, payoff, strict=True))
    return beta * partition.ln() + top + beta * (pi @ (log_pi - log_mu))


# ---------------------------------------------------------------- laws of the game


@given(games(), betas)
@settings(max_examples=100, deadline=None)
def test_exploitability_is_the_gain_of_the_best_response(game, beta):
    P, log_mu, log_pi = game
    answer = best_response(P, log_pi, log_mu, beta)
    if beta == 0:
        gain = float(win_rates(P, log_pi)[answer.argmax()] - 0.5)
        assert float(win_rate(P, answer, log_pi)) == pytest.approx(gain + 0.5, abs=1e-14)
        assert gain == pytest.approx(float((P @ log_pi.exp()).max()) - 0.5, abs=1e-14)
    else:
        gain = value(P, answer, log_pi, log_mu, beta) - 0.5
    computed = float(exploitability(P, log_pi, log_mu, beta))
    assert computed == pytest.approx(gain, rel=1e-10, abs=1e-13)
    assert computed >= -1e-16 if beta == 0 else computed >= 0
    assert float(duality_gap(P, log_pi, log_mu, beta)) == 2 * computed


@pytest.mark.parametrize("beta", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_exploitability_equals_a_numerical_maximum(seed, beta):
    P, log_mu = random_game(4, seed)
    log_pi = log_policies((4,), seed + 100).log_softmax(-1)

    def loss(logits):
        rival = logits - np.logaddexp.reduce(logits)
        return -value(P, rival, log_pi, log_mu, beta)

    found = max(
        -minimize(loss, start, tol=1e-12).fun
        for start in np.random.default_rng(seed).normal(size=(3, 4))
    )
    assert float(exploitability(P, log_pi, log_mu, beta)) == pytest.approx(found - 0.5, abs=1e-7)


@given(games(), betas, st.randoms(use_true_random=False), st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_relabelling_batching_and_constants_change_nothing(game, beta, random, constant):
    P, log_mu, log_pi = game
    order = list(range(len(P)))
    random.shuffle(order)
    plain = exploitability(P, log_pi, log_mu, beta)
    relabelled = exploitability(P[order][:, order], log_pi[order], log_mu[order], beta)
    shifted = exploitability(P, log_pi + constant, log_mu - constant, beta)
    batched = exploitability(P.expand(3, -1, -1), log_pi.expand(3, -1), log_mu, beta)
    many = exploitability(P.expand(3, -1, -1), log_pi.expand(2, 3, -1), log_mu, beta)
    for other in (relabelled, shifted, batched, many):
        torch.testing.assert_close(other, plain.expand(other.shape), rtol=1e-9, atol=1e-13)
    assert many.shape == (2, 3)


@given(games())
@settings(max_examples=60, deadline=None)
def test_kl_and_span_by_their_definitions(game):
    _, log_p, log_q = game
    direct = (log_p.exp() * (log_p - log_q)).sum()
    torch.testing.assert_close(kl(log_p, log_q), direct, rtol=1e-10, atol=1e-14)
    assert kl(log_p, log_q) >= 0
    difference = log_p - log_q
    torch.testing.assert_close(span(log_p, log_q), difference.max() - difference.min())
    assert kl_to_nash(log_p, log_q + 3) == pytest.approx(
        float(kl(log_p, log_q)), rel=1e-9, abs=1e-14
    )


# ---------------------------------------------------------------- exact near the solution


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("beta", [0.001, 0.1, 1.0])
def test_small_exploitability_has_correct_digits(beta, size):
    """Near the equilibrium the textbook form in float64 would have none left."""
    P, log_mu = random_game(5, 3)
    nash = regularised_nash(P, log_mu, beta).log_policy
    log_pi = nash + size * log_policies((5,), 1)
    exact = float(textbook(P, log_pi, log_mu, beta))
    assert exact < size
    # u has rounding errors of 1e-16 / beta, which is what limits the digits
    assert float(exploitability(P, log_pi, log_mu, beta)) == pytest.approx(
        exact, rel=1e-13 / (beta * size) + 1e-9
    )


@pytest.mark.parametrize("beta", [0.001, 0.1])
@pytest.mark.parametrize("mu_scale", [1.0, 2000.0])
def test_forms_agree_far_from_the_solution(beta, mu_scale):
    """Probabilities down to e^-4000: exp(-u) overflows, and the whole sum where mu is peaked."""
    P, log_mu = random_game(6, 4)
    for scale in (1.0, 30.0, 300.0, 2000.0):
        log_pi = log_policies((6,), 9, scale)
        exact = float(textbook(P, log_pi, mu_scale * log_mu, beta))
        computed = exploitability(P, log_pi, mu_scale * log_mu, beta)
        assert float(computed) == pytest.approx(exact, rel=1e-12)


def test_only_the_antisymmetric_part_counts():
    P, log_mu = random_game(6, 14)
    log_pi = log_policies((6,), 15)
    symmetric = log_policies((6, 6), 16)
    other = P + symmetric + symmetric.mT
    for beta in (0.0, 0.1):
        torch.testing.assert_close(
            exploitability(other, log_pi, log_mu, beta), exploitability(P, log_pi, log_mu, beta)
        )
    torch.testing.assert_close(win_rates(other, log_pi), P @ log_pi.softmax(-1))


def test_small_kl_has_correct_digits():
    log_p = log_policies((8,), 0).log_softmax(-1)
    direction = log_policies((8,), 1)
    for size in (1e-3, 1e-5, 1e-7):
        second_order = (
            (log_p.exp() * (direction - log_p.exp() @ direction) ** 2).sum() * size**2 / 2
        )
        computed = kl(log_p, log_p + size * direction)
        assert float(computed / second_order) == pytest.approx(1, abs=10 * size + 1e-16 / size * 20)


# ---------------------------------------------------------------- actions that do not exist


def pad(P, *logs):
    """The same game with two actions more that do not exist."""
    num = len(P)
    padded = torch.full((num + 2, num + 2), 0.5, dtype=torch.float64)
    padded[:num, :num] = P
    return padded, *(torch.cat([x, x.new_full((2,), -torch.inf)]) for x in logs)


@given(games(), betas)
@settings(max_examples=60, deadline=None)
def test_absent_actions_change_nothing(game, beta):
    P, log_mu, log_pi = game
    padded, big_mu, big_pi = pad(P, log_mu, log_pi)
    torch.testing.assert_close(
        exploitability(padded, big_pi, big_mu, beta),
        exploitability(P, log_pi, log_mu, beta),
        rtol=1e-12,
        atol=0,
    )
    torch.testing.assert_close(kl(big_pi, big_mu), kl(log_pi, log_mu), rtol=1e-12, atol=0)
    torch.testing.assert_close(span(big_pi, big_mu), span(log_pi, log_mu), rtol=1e-12, atol=0)
    answer = best_response(padded, big_pi, big_mu, beta)
    assert torch.isneginf(answer[len(P) :]).all()
    torch.testing.assert_close(answer[: len(P)], best_response(P, log_pi, log_mu, beta))


@pytest.mark.parametrize("beta", [0.001, 0.1, 1.0])
def test_a_policy_that_never_plays_an_action(beta):
    """Its exploitability is the limit, not that of a smaller game."""
    P, log_mu = random_game(5, 5)
    log_pi = log_policies((5,), 6).log_softmax(-1)
    limit = exploitability(P, torch.where(torch.arange(5) == 2, -5000.0, log_pi), log_mu, beta)
    never = torch.where(torch.arange(5) == 2, -torch.inf, log_pi)
    torch.testing.assert_close(exploitability(P, never, log_mu, beta), limit, rtol=1e-12, atol=0)
    assert kl(log_mu, never) == torch.inf == span(never, log_mu) == span(log_mu, never)
    assert kl(never, log_mu).isfinite()
    assert exploitability(P, log_mu, never, beta) == torch.inf
    assert exploitability(P, log_mu, never, 0.0).isfinite()


# ---------------------------------------------------------------- many policies at once


@pytest.mark.parametrize("beta", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("ragged", [False, True])
def test_trajectory_metrics_equal_the_functions(beta, ragged, monkeypatch):
    P, log_mu = random_game(7, 8, games=(3,))
    trajectory = log_policies((11, 3, 7), 9, scale=5.0)
    if ragged:
        log_mu[1, 5:] = trajectory[:, 1, 5:] = -torch.inf
        P[1, 5:] = P[1, :, 5:] = 0.5
    nash = regularised_nash(P, log_mu, max(beta, 0.01)).log_policy
    # Chunks of two rounds, and one of one.
    monkeypatch.setattr("nlhf_zoo.solvers.game._CHUNK", 2 * 3 * 7)
    metrics = trajectory_metrics(P, trajectory, log_mu, beta, nash)
    expected = {
        "exploitability": exploitability(P, trajectory, log_mu, beta),
        "exploitability_unregularised": exploitability(P, trajectory, log_mu, 0.0),
        "kl_to_reference": kl(trajectory, log_mu),
        "kl_to_nash": kl_to_nash(nash, trajectory),
        "span": span(trajectory.log_softmax(-1), nash),
        "win_rate_vs_reference": win_rate(P, trajectory, log_mu),
    }
    assert metrics.keys() == expected.keys()
    for name, values in expected.items():
        assert metrics[name].shape == (11, 3)
        torch.testing.assert_close(metrics[name], values, rtol=1e-10, atol=1e-14, msg=name)
    one = torch.stack([exploitability(P[1], pi, log_mu[1], beta) for pi in trajectory[:, 1]])
    torch.testing.assert_close(metrics["exploitability"][:, 1], one, rtol=1e-10, atol=1e-14)
    assert "span" not in prepare_game(P, log_mu, beta).measure(trajectory)


# ---------------------------------------------------------------- the regularised equilibrium


def assert_solved(P, log_mu, beta, solution):
    certificate = exploitability(P, solution.log_policy, log_mu, beta)
    torch.testing.assert_close(solution.exploitability, certificate, rtol=0, atol=1e-26)
    assert float(certificate.max()) <= 1e-20  # to rounding: KL(pi* || pi) is about e / beta
    assert solution.log_policy.dtype == torch.float64


SMALL, LARGE = np.geomspace(3, 200, 25).round().astype(int).tolist(), (300, 500, 700, 1000)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("sizes", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)])
def test_random_games(beta, sizes):
    for seed, num in enumerate(sizes, start=1000):
        P, log_mu = random_game(num, seed)
        assert_solved(P, log_mu, beta, regularised_nash(P, log_mu, beta))


@pytest.mark.parametrize("make", STRUCTURED.values(), ids=STRUCTURED)
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("num", [3, 31, 101])
def test_games_with_structure(make, scale, num):
    P, log_mu = make(num), log_policies((num,), num, scale).log_softmax(-1)
    for beta in (*BETAS, 10.0):
        assert_solved(P, log_mu, beta, regularised_nash(P, log_mu, beta))


@pytest.mark.parametrize("beta", [0.01, 0.3])
def test_equilibrium_solves_its_equation(beta):
    """log pi* = log mu + P pi* / beta + const, checked outside the library's own certificate."""
    P, log_mu = random_game(20, 11)
    log_pi = regularised_nash(P, log_mu, beta).log_policy
    left = log_pi - log_mu - P @ log_pi.exp() / beta
    assert float(left.max() - left.min()) < 1e-11
    assert float(log_pi.exp().sum()) == pytest.approx(1, abs=1e-14)


def test_two_actions_in_closed_form():
    """With two actions the odds x solve log x = log odds(mu) + (P(a > b) - 1/2) / beta."""
    P = torch.tensor([[0.5, 0.8], [0.2, 0.5]], dtype=torch.float64)
    log_mu = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    for beta in (0.05, 0.5):
        log_pi = regularised_nash(P, log_mu, beta).log_policy
        # both actions meet the same opponent: (A pi)(a) - (A pi)(b) = 0.3 pi(b) + 0.3 pi(a) = 0.3
        assert float(log_pi[0] - log_pi[1]) == pytest.approx(
            math.log(3 / 7) + 0.3 / beta, abs=1e-12
        )


def test_batch_and_ragged_games_equal_one_by_one():
    P, log_mu = random_game(6, 12, games=(2, 2))
    log_mu[1, 0, 4:] = -torch.inf
    P[1, 0, 4:] = P[1, 0, :, 4:] = 0.5
    together = regularised_nash(P, log_mu, 0.05)
    assert together.log_policy.shape == (2, 2, 6)
    assert together.exploitability.shape == (2, 2)
    assert_solved(P, log_mu, 0.05, together)
    small = regularised_nash(P[1, 0, :4, :4], log_mu[1, 0, :4], 0.05)
    torch.testing.assert_close(together.log_policy[1, 0, :4], small.log_policy, rtol=0, atol=1e-11)
    assert torch.isneginf(together.log_policy[1, 0, 4:]).all()


def test_extragradient_steps_alone_find_the_same(monkeypatch):
    """Large games take this way; here a small one is made to."""
    P, log_mu = random_game(15, 13)
    newton = regularised_nash(P, log_mu, 0.1)
    monkeypatch.setattr("nlhf_zoo.solvers.nash._MOST_NEWTON_ACTIONS", 0)
    slow = regularised_nash(P, log_mu, 0.1)
    assert newton.iterations < 20 < slow.iterations
    assert float(slow.exploitability) <= 1e-14
    assert float(kl_to_nash(newton.log_policy, slow.log_policy)) < 1e-13


def test_a_beta_of_zero_is_refused():
    with pytest.raises(UserError, match="above 0"):
        regularised_nash(*random_game(3, 0), 0.0)


# ---------------------------------------------------------------- the linear programme


@pytest.mark.parametrize("weights", [(0.3, 0.3, 0.3), (0.1, 0.2, 0.4), (0.5, 0.01, 0.25)])
def test_rock_paper_scissors(weights):
    """Rock beats scissors by a, scissors beat paper by b, paper beats rock by c (over 1/2).

    Each is played in proportion to the margin between the other two.
    """
    a, b, c = weights
    margins = torch.tensor([[0, -c, a], [c, 0, -b], [-a, b, 0]], dtype=torch.float64)
    solution = unregularised_nash(0.5 + margins)
    expected = torch.tensor([b, a, c], dtype=torch.float64) / (a + b + c)
    torch.testing.assert_close(solution.log_policy.exp(), expected, rtol=0, atol=1e-12)
    assert float(solution.exploitability) <= 1e-12


def test_a_condorcet_winner_is_played_alone():
    solution = unregularised_nash(STRUCTURED["bradley_terry"](9))
    assert float(solution.log_policy.max()) == 0
    assert int(torch.isneginf(solution.log_policy).sum()) == 8


@given(games(max_actions=12))
@settings(max_examples=40, deadline=None)
def test_linear_programme_certificate(game):
    P, log_mu, _ = game
    solution = unregularised_nash(P)
    assert float(solution.exploitability) <= 1e-9
    certificate = float((P @ solution.log_policy.exp()).max()) - 0.5
    assert float(solution.exploitability) == pytest.approx(certificate, abs=1e-15)
    assert float(exploitability(P, solution.log_policy, log_mu, 0.0)) <= 1e-9


def test_linear_programme_keeps_to_the_support():
    """Without its best action a game has another solution, certified by existing actions only."""
    P = STRUCTURED["bradley_terry"](5)
    best = int(P.mean(1).argmax())
    exists = torch.arange(5) != best
    solution = unregularised_nash(torch.stack([P, P]), torch.stack([exists, exists | True]))
    assert torch.isneginf(solution.log_policy[0, best])
    assert int(solution.log_policy[1].argmax()) == best
    assert float(solution.exploitability.max()) <= 1e-10


@pytest.mark.parametrize(
    "P",
    [random_game(12, 21)[0], STRUCTURED["cyclic"](5), STRUCTURED["bradley_terry"](8)],
    ids=["random", "cyclic", "bradley_terry"],
)
def test_regularised_answers_approach_the_linear_programme(P):
    """Without regularisation a deviation gains at most beta KL(deviation || mu) <= beta log N."""
    log_mu = torch.zeros(len(P))
    assert float(unregularised_nash(P).exploitability) <= 1e-9
    for beta in (0.1, 0.01, 0.001, 0.0001):
        log_pi = regularised_nash(P, log_mu, beta).log_policy
        assert float(exploitability(P, log_pi, log_mu, 0.0)) <= beta * math.log(len(P)) + 1e-12


# ---------------------------------------------------------------- solve, and what it refuses


def test_solve_takes_arrays_lists_and_tensors():
    P, log_mu = random_game(4, 30)
    expected = regularised_nash(P, log_mu, 0.2).log_policy
    mu = log_mu.exp()
    for table, reference in ((P, mu), (P.numpy(), mu.numpy()), (P.tolist(), mu.tolist())):
        torch.testing.assert_close(solve(table, reference, 0.2).log_policy, expected)
    uniform = regularised_nash(P, torch.zeros(4), 0.1).log_policy
    torch.testing.assert_close(solve(P.numpy()).log_policy, uniform)
    torch.testing.assert_close(solve(P, beta=0).log_policy, unregularised_nash(P).log_policy)
    both = solve(torch.stack([P, P]), torch.stack([mu, mu]), 0.2)
    torch.testing.assert_close(both.log_policy, expected.expand(2, -1))


@pytest.mark.parametrize(("miss", "accepted"), [(0.9e-6, True), (1.1e-6, False)])
def test_the_tolerance_is_a_millionth(miss, accepted):
    """Sums may miss 1 by that and no more, for a matrix and for a reference."""
    table = torch.tensor([[0.5, 0.7 + miss], [0.3, 0.5]], dtype=torch.float64)
    mu = torch.tensor([0.3 + miss, 0.7], dtype=torch.float64)
    if accepted:
        fixed = check_preference(table)
        assert torch.equal(fixed + fixed.mT, torch.ones_like(table))
        assert float(check_reference(mu, 2).sum()) == pytest.approx(1, abs=1e-15)
    else:
        for check in (lambda: check_preference(table), lambda: check_reference(mu, 2)):
            with pytest.raises(UserError, match="1e-06"):
                check()


def test_float32_tables_are_made_exactly_antisymmetric():
    P = random_game(6, 31)[0]
    table = check_preference(P.float() + 3e-7 * torch.eye(6))
    assert torch.equal(table + table.mT, torch.ones_like(table))
    torch.testing.assert_close(table, P, rtol=0, atol=1e-6)


GOOD = [[0.5, 0.7], [0.3, 0.5]]
REFUSED = [
    ("P", [[0.5, 0.7, 0.1], [0.3, 0.5, 0.2]], r"shape \[2, 3\].*square"),
    ("P", [0.5, 0.5], r"shape \[2\].*square"),
    ("P", np.zeros((0, 0)), "empty"),
    ("P", [[0.5, 0.7], [0.4, 0.5]], r"\[0, 1\] is 0.7 and \[1, 0\] is 0.4.*miss it by 0.1"),
    ("P", [GOOD, [[0.5, 0.7], [0.4, 0.5]]], r"\[1, 1, 0\]"),
    ("P", [[0.6, 0.7], [0.3, 0.5]], r"diagonal entry \[0, 0\] is 0.6"),
    ("P", [[0.5, 1.2], [-0.2, 0.5]], r"entry \[0, 1\] is 1.2"),
    ("P", [[0.5, math.nan], [0.3, 0.5]], r"entry \[0, 1\] is nan"),
    ("P", [[0.5, math.inf], [0.3, 0.5]], r"entry \[0, 1\] is inf"),
    ("P", [[0.5, 0.7], [0.3]], "different lengths"),
    ("P", [["a", "b"], ["c", "d"]], "real numbers"),
    ("P", np.array(GOOD) + 0j, "real numbers"),
    ("P", torch.tensor(GOOD) + 0j, "real numbers"),
    ("mu", [0.5, 0.25, 0.25], r"shape \[3\].*2 actions"),
    ("mu", [0.5, 0.6], "sums to 1.1"),
    ("mu", [1.0, 0.0], r"action \[1\] probability 0"),
    ("mu", [1.5, -0.5], r"entry \[0\] is 1.5"),
    ("mu", [[0.5, 0.5]] * 3, "one for each game"),
    ("beta", -0.1, "beta must be"),
    ("beta", math.nan, "beta must be"),
    ("beta", math.inf, "beta must be"),
    ("beta", "0.1", "beta must be"),
]


@pytest.mark.parametrize(("argument", "value", "sentence"), REFUSED)
def test_refusals(argument, value, sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        solve(**{"P": GOOD, argument: value})
    assert "\n" not in str(refusal.value)


def test_refusals_name_the_source():
    with pytest.raises(UserError, match=r"^votes\.npy"):
        check_preference([[0.5, 0.7], [0.4, 0.5]], "votes.npy")
    with pytest.raises(UserError, match=r"^--reference mu\.npy"):
        check_reference([0.1, 0.1], 2, "--reference mu.npy")
