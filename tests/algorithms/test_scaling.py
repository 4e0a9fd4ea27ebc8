"""Payoffs of another range: the same run at another temperature, and the rate that it has."""

import pytest
import torch
import zoo

from nlhf_zoo.algorithms import EGPO, RSPO, MovingMagnet, NashMP
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.algorithms.scaling import scaled_steps
from nlhf_zoo.data.tables.games import cyclic
from nlhf_zoo.solvers import exploitability, kl, regularised_nash


def played(algorithm, beta, table, log_reference, payoff_bound, rounds, scores=None):
    """The closed form from the reference."""
    names = ("policy", *algorithm.players)
    players = {name: log_reference.clone() for name in names}
    engine = ClosedFormRounds(
        algorithm, beta, table, log_reference, players, payoff_bound=payoff_bound, scores=scores
    )
    return engine.run(0, rounds)


@pytest.mark.parametrize("range_", [0.2, 20.0])
@pytest.mark.parametrize("row", zoo.CLOSED_FORM, ids=str)
def test_a_larger_payoff_is_a_lower_temperature(row, range_):
    """Payoffs c A at beta c, those of A at beta: one run, whatever the algorithm and its options.

    Its exploitability is c times that of the other.
    """
    P, log_reference = zoo.small_games(3)
    table, bound = 0.5 + range_ * (P - 0.5), range_ / 2
    scores = zoo.scores_of(P)
    plain = played(row.make(), zoo.BETA, P, log_reference, 0.5, 25, scores)
    beta = zoo.BETA * range_
    found = played(row.make(), beta, table, log_reference, bound, 25, range_ * scores)
    torch.testing.assert_close(
        found.log_policy.log_softmax(-1), plain.log_policy.log_softmax(-1), rtol=0, atol=1e-9
    )
    assert torch.equal(found.queries, plain.queries)
    of_plain = exploitability(P, plain.log_policy[-1], log_reference, zoo.BETA)
    of_other = exploitability(table, found.log_policy[-1], log_reference, zoo.BETA * range_)
    torch.testing.assert_close(of_other, range_ * of_plain, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("range_", [0.2, 1.0, 20.0])
def test_a_temperature_of_an_algorithm_is_in_units_of_the_payoff(range_):
    """RSPO whose reverse KL is given as beta solves the game at beta, whatever the payoffs."""
    P, log_reference = zoo.small_games(3)
    table, beta = 0.5 + range_ * (P - 0.5), zoo.BETA * range_
    found = played(RSPO(reverse_kl=beta), beta, table, log_reference, range_ / 2, 4000)
    left = exploitability(table, found.log_policy[-1], log_reference, beta)
    assert left.max() < 1e-9 * range_
    inside = MovingMagnet(RSPO(reverse_kl=beta), every=7)
    (step,) = scaled_steps(inside, beta, 0, range_ / 2)
    (expected,) = scaled_steps(MovingMagnet(RSPO(), every=7), beta, 0, range_ / 2)
    assert step.step_size == expected.step_size
    assert step.centre == pytest.approx(expected.centre)


@pytest.mark.parametrize("beta", [0.02, 0.3])
@pytest.mark.parametrize("range_", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("algorithm", [NashMP, EGPO])
def test_the_rate_of_the_default_step(algorithm, range_, beta):
    """KL(pi* || pi_k) <= (1 + 2 beta / c)^-k KL(pi* || mu), on games that use the whole range.

    Below 1e-13 float64 rounds.
    """
    rounds = 300
    random = zoo.normal_logits(3, 9, 9, seed=4)
    games = torch.cat([cyclic(9), 0.5 + 0.5 * (random - random.mT).sign()])
    table = 0.5 + range_ * (games - 0.5)
    log_reference = zoo.normal_logits(4, 9, seed=5).log_softmax(-1)
    nash = regularised_nash(table, log_reference, beta).log_policy
    run = played(algorithm(), beta, table, log_reference, range_ / 2, rounds)
    divergence = kl(nash, run.log_policy)
    k = torch.arange(1, rounds + 1)[:, None]
    allowed = (1 + 2 * beta / range_) ** -k.double() * kl(nash, log_reference)
    seen = allowed > 1e-13
    assert seen.any()
    assert (divergence <= 1.0001 * allowed)[seen].all()


def test_the_default_step_of_a_preference_leaves_larger_payoffs():
    """Without the range it diverges from their equilibrium: the bound of a payoff is no detail."""
    table = 0.5 + 8 * (cyclic(9) - 0.5)
    log_reference = zoo.normal_logits(1, 9, seed=5).log_softmax(-1)
    nash = regularised_nash(table, log_reference, 0.02).log_policy
    lost = played(NashMP(), 0.02, table, log_reference, 0.5, 300)
    kept = played(NashMP(), 0.02, table, log_reference, 4.0, 300)
    assert kl(nash, lost.log_policy[-1]) > kl(nash, log_reference)
    assert kl(nash, kept.log_policy[-1]) < 0.3 * kl(nash, log_reference)


def test_steps_by_hand():
    """s = 2 / (c + 2 beta) of both, and Nash-MP's eta = 2 beta / c; of c = 1 the plan itself."""
    for algorithm in (NashMP(), EGPO()):
        for step in scaled_steps(algorithm, 0.3, 0, payoff_bound=2.5):
            assert step.step_size == pytest.approx(2 / (5 + 0.6))
            assert step.centre["reference"] == pytest.approx(0.3 * 2 / (5 + 0.6))
        assert scaled_steps(algorithm, 0.3, 0, 0.5) == algorithm.steps(0.3, 0)
    eta = 2 * 0.3 / 5
    assert scaled_steps(NashMP(), 0.3, 0, 2.5)[0].step_size == pytest.approx(
        eta / (0.3 * (1 + eta))
    )
    given = scaled_steps(NashMP(eta=0.7), 0.3, 0, 2.5)
    assert given[0].step_size == pytest.approx(NashMP(eta=0.7).steps(0.3, 0)[0].step_size)
