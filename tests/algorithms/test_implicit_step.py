"""Nash Prox and its implicit step: known members of the family, and the claims of its paper."""

import pytest
import torch
from zoo import BETA, engine, normal_logits, small_games

from nlhf_zoo.algorithms import EGPO, NashMP, NashProx, OnlineIPO
from nlhf_zoo.data.tables import games
from nlhf_zoo.solvers import kl_to_nash, regularised_nash


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("beta", [0.01, 0.1])
@pytest.mark.parametrize("eta", [None, 0.05])
def test_one_iteration_is_online_ipo_and_two_are_egpo_and_nash_mp(beta, eta):
    """From the same start, at every outer round; a rival's round is K rounds of the family."""
    P, mu = small_games()
    start = normal_logits(*mu.shape, seed=4)
    given = 2 * beta if eta is None else eta
    step = given / (beta * (1 + given))
    for iterations, rival in [(1, OnlineIPO(step)), (2, EGPO(step)), (2, NashMP(given))]:
        family = NashProx(eta, inner_rounds=iterations)
        found = engine(family, P, mu, start, beta).run(0, 20 * iterations)
        expected = engine(rival, P, mu, start, beta).run(0, 20)
        rows = slice(iterations - 1, None, iterations)
        torch.testing.assert_close(
            found.log_policy[rows].log_softmax(-1),
            expected.log_policy.log_softmax(-1),
            atol=1e-12,
            rtol=0,
        )
        assert torch.equal(found.queries[rows], expected.queries)


@pytest.mark.parametrize("num_actions", [3, 10, 100, 1000])
@pytest.mark.parametrize(("eta", "weight"), [(0.2, 1.0), (0.5, 0.26)])
def test_exact_outer_rounds_contract_whatever_the_number_of_actions(num_actions, eta, weight):
    """(1 + eta) KL(pi* || p) + eta KL(p || pi*) + KL(p || pi_k) = KL(pi* || pi_k), p = pi_{k+1}.

    So KL(pi* || pi_k) <= (1 + eta)^-k KL(pi* || mu), and KL(pi* || mu) <= 1 / (2 beta).
    """
    num_games = 5 if num_actions <= 100 else 1
    P = games.uniform_random(num_games, num_actions, seed=0)
    mu = normal_logits(num_games, num_actions, seed=1).log_softmax(-1)
    nash = regularised_nash(P, mu, BETA).log_policy
    assert kl_to_nash(nash, mu).max() <= 1 / (2 * BETA)
    inner, outer = 80, 4
    play = engine(NashProx(eta, inner_rounds=inner, weight=weight), P, mu, mu)
    rounds = play.run(0, inner * outer).log_policy[inner - 1 :: inner].log_softmax(-1)
    before = torch.cat([mu[None], rounds[:-1]])
    found = (1 + eta) * kl(nash, rounds) + eta * kl(rounds, nash) + kl(rounds, before)
    torch.testing.assert_close(found, kl(nash, before), atol=1e-10, rtol=1e-8)


def test_negative_control_one_inner_round_is_no_exact_outer_round():
    P, mu = small_games()
    nash, eta = regularised_nash(P, mu, BETA).log_policy, 0.2
    new = engine(NashProx(eta, inner_rounds=1), P, mu, mu).run(0, 1).log_policy[0].log_softmax(-1)
    found = (1 + eta) * kl(nash, new) + eta * kl(new, nash) + kl(new, mu)
    assert ((found - kl(nash, mu)).abs() > 1e-3).all()


@pytest.mark.parametrize(
    ("eta", "weight", "shrinks"),
    [(2 * BETA, 1.0, None), (2 * BETA, 4 / 9, 5 / 9), (20 * BETA, 0.0825, 0.9175)],
)
def test_inner_rounds_contract_in_the_worst_game(eta, weight, shrinks):
    """In rock, paper, scissors that always wins: by 1 / (2 tau) in l1 and by 1 - w in KL."""
    P, mu = games.cyclic(3, 1.0), normal_logits(1, 3, seed=1).log_softmax(-1)
    tau = BETA * (1 + 1 / eta)
    play = engine(
        NashProx(eta, inner_rounds=1000, weight=weight), P, mu, normal_logits(1, 3, seed=2)
    )
    rounds = play.run(0, 999).log_policy.log_softmax(-1)[:, 0]
    end = rounds[-1]
    if shrinks is None:
        distance = (rounds.exp() - end.exp()).abs().sum(-1)
        shrinks = 1 / (2 * tau)
    else:
        assert weight <= 4 * tau**2 / (1 + 4 * tau**2) + 1e-9
        distance = kl(end, rounds)
    used = distance[1:] > 1e-12
    assert used.sum() > 3
    assert (distance[1:][used] <= shrinks * distance[:-1][used] * (1 + 1e-6)).all()
