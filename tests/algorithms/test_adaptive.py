"""The adaptive step: its identity and its bound, what it counts, and where it may be used."""

import math
from functools import cache

import numpy as np
import pytest
import torch
import zoo
from scipy.optimize import root
from scipy.special import log_softmax, rel_entr, softmax
from zoo import engine, normal_logits

from nlhf_zoo.algorithms import EGPO, MovingMagnet, NashMP
from nlhf_zoo.algorithms import adaptive as module
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.callbacks import Budget
from nlhf_zoo.data.tables import games
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.realisation import ClosedForm, GradientSteps
from nlhf_zoo.health.preservation import restored_after
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.policies import TabularPolicy
from nlhf_zoo.solvers import exploitability

ADAPTIVE = [EGPO("adaptive"), NashMP("adaptive")]
each = pytest.mark.parametrize("algorithm", ADAPTIVE, ids=lambda a: type(a).__name__)


@cache
def family(name):
    """Four games: P [C, N, N] and log mu [C, N]."""
    crowd = {"num_annotators": 101, "cycle": 5}
    P = {
        "random": lambda: games.uniform_random(4, 10, seed=10),
        "rock, paper, scissors": lambda: torch.cat([games.cyclic(3, 1.0)] * 4),
        "blocks": lambda: torch.cat([games.cyclic_blocks(10)] * 4),
        "annotators": lambda: torch.cat([games.annotators(10, **crowd, seed=i) for i in range(4)]),
    }[name]()
    return P, normal_logits(*P.shape[:2], seed=2).log_softmax(-1)


FAMILIES = ["random", "rock, paper, scissors", "blocks", "annotators"]
every_family = pytest.mark.parametrize("name", FAMILIES)


def equilibrium(P, mu, beta):
    """pi* [N] of log pi = log mu + P pi / beta + const, by scipy's root finder.

    It goes on from temperature to temperature: there is no algorithm of ours in it.
    """
    x = mu
    for b in np.geomspace(max(beta, 10.0), beta, 60):
        found = root(
            lambda z, b=b: log_softmax(mu + P @ softmax(z) / b) - z,
            log_softmax(x),
            jac=lambda z, b=b: _jacobian(P, mu, z, b),
            tol=1e-14,
        )
        x = found.x
    residual = np.abs(log_softmax(mu + P @ softmax(x) / beta) - log_softmax(x)).max()
    assert residual < 1e-11
    return softmax(x)


def _jacobian(P, mu, z, beta):
    p, q = softmax(z), softmax(mu + P @ softmax(z) / beta)
    slope = P @ (np.diag(p) - np.outer(p, p)) / beta
    return slope - np.outer(np.ones_like(q), q @ slope) - np.eye(len(z))


# ---- the theory ----


@every_family
@pytest.mark.parametrize("beta", [0.1, 0.01])
def test_an_accepted_round_contracts_by_its_step(name, beta):
    """KL(pi* || n) <= (1 - s beta) KL(pi* || old), as long as KL says something."""
    P, mu = family(name)
    nash = [equilibrium(P[i].numpy(), mu[i].numpy(), beta) for i in range(len(P))]
    play, accepted, grown = engine(EGPO("adaptive"), P, mu, mu, beta), 0, 0
    before = np.array([rel_entr(nash[i], mu[i].exp().numpy()).sum() for i in range(len(P))])
    for number in range(int(12 / beta)):
        sizes = play.step_size.tolist()
        played = play.run(number, 1)
        policy = played.log_policy[0].softmax(-1).numpy()
        after = np.array([rel_entr(nash[i], policy[i]).sum() for i in range(len(P))])
        for i, size in enumerate(sizes):
            if before[i] > 1e-10 and played.queries[0, i] >= 2 + (number == 0):
                assert after[i] <= (1 - size * beta) * before[i] * (1 + 1e-9) + 1e-15
                accepted += 1
                grown += size > module.safe_step_size(beta)
        before = after
        if before.max() < 1e-10:
            break
    assert before.max() < 1e-10
    assert accepted > 20
    assert grown > 5  # of steps that the theory does not accept unseen


def half_steps(P, mu, old, beta, s):
    """The half step h and the new policy n, by numpy."""
    log_c = (1 - s * beta) * np.log(old) + s * beta * mu
    h = softmax(log_c + s * (P @ old))
    return h, softmax(log_c + s * (P @ h))


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_excess_is_what_is_missing_to_the_contraction(beta):
    """KL(pi* || n) + s beta KL(h || pi*) = (1 - s beta) KL(pi* || old) + excess, at any step."""
    P, mu = family("random")
    rng, signs = np.random.default_rng(0), set()
    for i in range(len(P)):
        table, log_mu = P[i].numpy(), mu[i].numpy()
        nash = equilibrium(table, log_mu, beta)
        for s in rng.uniform(0, 0.99 / beta, 10):
            old = softmax(rng.normal(size=len(log_mu)))
            h, n = half_steps(table, log_mu, old, beta, s)
            found = excess(s, beta, old, h, n, table)
            left = rel_entr(nash, n).sum() + s * beta * rel_entr(h, nash).sum()
            right = (1 - s * beta) * rel_entr(nash, old).sum() + found
            assert left == pytest.approx(right, abs=1e-9)
            signs.add(found > 0)
    assert signs == ({True, False} if beta < 1 else {False})  # at beta 1 all steps are small


def excess(s, beta, old, h, n, P):
    logs = (torch.from_numpy(np.log(x))[None] for x in (old, h, n))
    products = tuple(torch.from_numpy(P @ x + 3.0)[None] for x in (old, h))  # up to a constant
    return module.excess(torch.tensor([s]), beta, *logs, products).item()


@pytest.mark.parametrize("beta", [0.001, 0.1, 1.0, 10.0])
def test_steps_up_to_the_safe_one_are_always_accepted(beta):
    """s <= 2 (sqrt(1 + beta^2) - beta), on games of zeros and ones and policies of any kind."""
    rng = np.random.default_rng(1)
    safe, largest, beyond = 2 * (math.sqrt(1 + beta**2) - beta), -math.inf, -math.inf
    assert safe > 2 / (1 + 2 * beta)
    for _ in range(200):
        num = rng.integers(2, 6)
        lower = np.tril(rng.integers(0, 2, (num, num)).astype(float), -1)
        P = lower + np.triu(1 - lower.T, 1) + np.eye(num) / 2
        mu, old = (log_softmax(rng.normal(size=num) * rng.choice([0.1, 1, 5])) for _ in "ab")
        for s, kind in (
            (safe * rng.choice([0.1, 0.5, 1.0]), "safe"),
            (min(0.99 / beta, 5), "beyond"),
        ):
            h, n = half_steps(P, mu, np.exp(old), beta, s)
            found = excess(s, beta, np.exp(old), h, n, P)
            if kind == "safe":
                largest = max(largest, found)
            else:
                beyond = max(beyond, found)
    assert largest < 1e-13
    if beta <= 0.1:  # else the largest step that there is is nearly safe
        assert beyond > 1e-3


def test_small_divergences_keep_their_digits():
    """They decide near the equilibrium, where sums of p log(p / q) are rounding alone."""
    p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    shift = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    for size in (1e-3, 1e-8, 1e-11):
        q = p + size * shift
        exact = (size * shift) ** 2 / (2 * p) - (size * shift) ** 3 / (3 * p**2)
        found = module._divergence(p.log(), (p.log() + torch.log1p(size * shift / p)))
        assert found.item() == pytest.approx(exact.sum().item(), rel=1e-4)
        assert q.sum().item() == pytest.approx(1)
    far = torch.tensor([[0.0, -2000.0, -math.inf]], dtype=torch.float64)
    other = torch.tensor([[-1000.0, 0.0, -math.inf]], dtype=torch.float64)
    assert module._divergence(far, other).item() == pytest.approx(1000.0)
    assert module._divergence(far, far).item() == 0


def test_nash_mp_and_egpo_are_one_map_with_an_adaptive_step():
    for beta in (1.0, 0.01):
        P, mu = family("rock, paper, scissors")
        first, second = (engine(a, P, mu, mu, beta).run(0, 30) for a in ADAPTIVE)
        assert torch.equal(first.queries, second.queries)
        torch.testing.assert_close(first.log_policy, second.log_policy, atol=1e-9, rtol=0)


@each
@pytest.mark.parametrize("beta", [10.0, 1e6])
def test_at_a_large_temperature_it_is_the_default_step(algorithm, beta):
    P, mu = family("random")
    found = engine(algorithm, P, mu, mu, beta).run(0, 5)
    default = engine(type(algorithm)(), P, mu, mu, beta).run(0, 5)
    torch.testing.assert_close(
        found.log_policy.log_softmax(-1), default.log_policy.log_softmax(-1), atol=1e-12, rtol=0
    )
    assert (found.queries == 2 * torch.arange(1, 6)[:, None] + 1).all()


# ---- what is counted ----


@each
def test_each_product_is_counted_once_and_a_rejected_round_repeats_the_policy(
    algorithm, monkeypatch
):
    P, mu = family("rock, paper, scissors")
    asked, ask = [], ClosedFormRounds._ask
    monkeypatch.setattr(ClosedFormRounds, "_ask", lambda *a: asked.append(1) or ask(*a))
    play, before, total, rejected = engine(algorithm, P[:1], mu[:1], mu[:1], 0.01), mu[:1], 0, 0
    for number in range(40):
        size = play.step_size.item()
        played = play.run(number, 1)
        total += played.queries[0, 0].item()
        assert total == len(asked)
        policy = played.log_policy[0].log_softmax(-1)
        if played.queries[0, 0] == 1:
            rejected += 1
            torch.testing.assert_close(policy, before, atol=1e-14, rtol=0)
            assert play.step_size.item() == max(size / 2, module.safe_step_size(0.01))
        else:
            assert played.queries[0, 0] == (3 if number == 0 else 2)
            assert (policy - before).abs().max() > 1e-9
            assert play.step_size.item() == min(1.2 * size, 0.9 / 0.01)
        before = policy
    assert 5 < rejected < 20


def test_games_have_verdicts_of_their_own():
    """As if each were played alone, with what it asks for itself."""
    P, mu = family("rock, paper, scissors")
    whole = engine(EGPO("adaptive"), P, mu, mu, 0.001).run(0, 40)
    assert len({*whole.queries[-1].tolist()}) > 1
    for i in range(len(P)):
        alone = engine(EGPO("adaptive"), P[[i]], mu[[i]], mu[[i]], 0.001).run(0, 40)
        assert torch.equal(alone.queries[:, 0], whole.queries[:, i])
        torch.testing.assert_close(
            alone.log_policy[:, 0], whole.log_policy[:, i], atol=1e-9, rtol=0
        )
    assert torch.equal(whole.most_queries, whole.queries.amax(1))


def test_inside_a_moving_magnet():
    """It solves the unregularised game, with an adaptive step inside."""
    P, mu = family("rock, paper, scissors")
    magnet = MovingMagnet(NashMP("adaptive"), every=10)
    play = engine(magnet, P, mu, mu, 0.1)
    log_policy = play.run(0, 300).log_policy[-1].softmax(-1)
    assert (P @ log_policy[..., None]).amax() < 0.5 + 1e-3
    assert (play.step_size > module.safe_step_size(0.1)).any()


def products_to(algorithm, P, mu, beta, gap=1e-5):
    """Products that each game asks for until its duality gap is below `gap` [C]."""
    rounds = int((1.2 if algorithm.adaptive else 2.4) / beta) + 12
    played = engine(algorithm, P, mu, mu, beta).run(0, rounds)
    below = 2 * exploitability(P, played.log_policy, mu, beta) < gap
    asked = played.queries.reshape(rounds, -1).expand(below.shape).double()
    return torch.where(below, asked, math.inf).amin(0)


@pytest.mark.parametrize(("beta", "most"), [(1.0, 1.0), (0.1, 0.55), (0.01, 0.55)])
def test_it_asks_for_less_than_the_default_step(beta, most):
    """On sixteen games; `benchmarks/adaptive.py` has more of them, of 100 actions too."""
    default, adaptive = (
        torch.cat([products_to(EGPO(eta), *family(name), beta) for name in FAMILIES])
        for eta in (None, "adaptive")
    )
    assert adaptive.isfinite().all()
    assert adaptive.median() <= most * default.median()
    assert (adaptive / default).max() <= 1.4


# ---- the game ----


def adaptive_game(algorithm=None, **parts):
    P, mu = family("rock, paper, scissors")
    policy = TabularPolicy(zoo.TensorReference(mu))
    algorithm = algorithm or EGPO("adaptive")
    return zoo.OnlineGame(policy, MatrixOracle(P), algorithm, 0.01, **parts)


@each
@pytest.mark.parametrize("queries", [0, 1, 2, 3, 4, 5, 30, 31])
def test_no_game_exceeds_the_budget(algorithm, queries):
    game = adaptive_game(algorithm, realisation=ClosedForm(rounds_per_step=5))
    zoo.fit(game, None, callbacks=[Budget(queries=queries)])
    asked = game.progress.queries_per_prompt
    assert asked <= queries
    assert asked == 0 if queries < 3 else asked >= queries - 1
    P, mu = family("rock, paper, scissors")
    if rounds := game.progress.round:
        whole = engine(algorithm, P, mu, mu, 0.01).run(0, rounds)
        assert asked == whole.queries[-1].max()
        assert game.progress.queries == whole.queries[-1].sum()
        torch.testing.assert_close(
            game.log_policy(), whole.log_policy[-1].log_softmax(-1), atol=1e-12, rtol=0
        )


def test_a_realisation_takes_nothing_from_a_game_to_the_next():
    realisation, found = ClosedForm(rounds_per_step=5), []
    for _ in "ab":
        game = zoo.fit(adaptive_game(realisation=realisation), 12)
        found.append((game.progress.queries_per_prompt, game.progress.queries))
    assert found[0] == found[1]


def test_a_check_of_a_run_leaves_step_sizes_and_counts_as_they_were():
    game = zoo.fit(adaptive_game(realisation=ClosedForm(rounds_per_step=5)), 12)
    before = {name: t.clone() for name, t in game.realisation.state_dict().items()}
    assert before.keys() == {"step_size", "queries"}
    with restored_after(game):
        zoo.fit(game, 30)
        assert not torch.equal(game.realisation.state_dict()["queries"], before["queries"])
    for name, tensor in game.realisation.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_gradient_steps_are_refused():
    with pytest.raises(UserError, match='NashMP with eta "adaptive" needs exact products'):
        adaptive_game(NashMP("adaptive"), realisation=GradientSteps())
    with pytest.raises(UserError, match='MovingMagnet with eta "adaptive"'):
        adaptive_game(MovingMagnet(EGPO("adaptive")), realisation=GradientSteps())


def test_numbers_that_do_not_go_with_it_are_refused():
    with pytest.raises(ValueError, match=r"leave kappa at 1, not 0\.5"):
        NashMP("adaptive", kappa=0.5)
    with pytest.raises(ValueError, match='number, null or "adaptive", but it is "fast"'):
        EGPO("fast")
