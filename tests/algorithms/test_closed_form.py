"""The closed form against formulas of the papers, and against the rates of the theory."""

import math
from functools import partial
from itertools import count, islice

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from zoo import (
    BETA,
    CLOSED_FORM,
    AgainstOne,
    TwoSteps,
    engine,
    normal_logits,
    scores_of,
    small_games,
)

from nlhf_zoo import algorithms
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables import games
from nlhf_zoo.solvers import exploitability, kl_to_nash, regularised_nash

ROUNDS = 5  # by hand

# ---- each algorithm by hand: a second implementation, from the papers' formulas ----
#
# x and mu are log-policies of one game, P its preference; each function yields log-policies for
# ever, one a round. "+ const" is left out: softmax normalises them where they meet an opponent.


def nash_mp(P, mu, x, beta, eta=None, kappa=1.0, inner_steps=1):
    """log pi_{k+1/2} = [log pi_k + eta log mu + (eta/beta) P pi_k] / (1 + eta), and again."""
    if eta == "adaptive":
        yield from adaptive_step(P, mu, x, beta)
    eta = eta or 2 * beta
    anchor = x
    while True:
        half = (anchor + eta * mu + eta / beta * P @ softmax(anchor)) / (1 + eta)
        x = (anchor + eta * mu + eta / beta * P @ softmax(half)) / (1 + eta)
        anchor = (1 - kappa) * log_softmax(anchor) + kappa * log_softmax(x)
        yield x


def nash_prox(P, mu, x, beta, eta=None, inner_rounds=3, kappa=1.0, weight=1.0):
    """Mirror descent at beta (1 + 1/eta) to mu^(eta/(1 + eta)) anchor^(1/(1 + eta))."""
    eta = eta or 2 * beta
    tau, anchor = beta * (1 + 1 / eta), x
    for t in count(1):
        x = (1 - weight) * x + weight * ((eta * mu + anchor) / (1 + eta) + P @ softmax(x) / tau)
        if t % inner_rounds == 0:
            anchor = (1 - kappa) * log_softmax(anchor) + kappa * log_softmax(x)
        yield x


def egpo(P, mu, x, beta, eta=None, scored=None):
    """theta_{t+1/2} = (1 - eta beta) theta_t + eta beta (theta_mu + P pi_t / beta), and again."""
    if eta == "adaptive":
        yield from adaptive_step(P, mu, x, beta)
    eta = eta or 2 / (1 + 2 * beta)
    while True:
        half = (1 - eta * beta) * x + eta * beta * (mu + P @ softmax(x) / beta)
        x = (1 - eta * beta) * x + eta * beta * (mu + P @ softmax(half) / beta)
        yield x


def inpo(P, mu, x, beta, eta=0.3):
    """pi_{t+1} ~ pi_t exp(eta (P pi_t - beta log(pi_t / mu)))."""
    while True:
        x = log_softmax(x)
        x = x + eta * (P @ np.exp(x) - beta * (x - mu))
        yield x


def mnpo(P, mu, x, beta, eta=0.3):
    """pi_{t+1} ~ mu^w (pi_t pi_{t-1})^((1 - w)/2) exp(eta P (pi_t + pi_{t-1})/2), w = eta beta."""
    before = x
    while True:
        pi, old = softmax(x), softmax(before)
        mixed = np.exp(mu) ** (eta * beta) * (pi * old) ** ((1 - eta * beta) / 2)
        before, x = x, np.log(mixed) + eta * P @ (pi + old) / 2
        yield x


def online_ipo(P, mu, x, beta, eta=0.1, self_play=True, scored=None):
    """Mirror descent: pi_{t+1} ~ pi_t^(1 - eta beta) mu^(eta beta) exp(eta P pi_t)."""
    while True:
        product = (
            softmax(x) ** (1 - eta * beta)
            * np.exp(mu) ** (eta * beta)
            * np.exp(eta * P @ softmax(x))
        )
        x = np.log(product / product.sum())
        yield x


def nash_ema(P, mu, x, beta, eta=0.1, mixture=0.125):
    """pi_{t+1} ~ pi_t^(1 - eta beta) mu^(eta beta) exp(eta P pi_t^(1 - w) pi_0^w)."""
    start = x
    while True:
        opponent = softmax((1 - mixture) * x + mixture * start)
        x = (1 - eta * beta) * x + eta * beta * mu + eta * P @ opponent
        yield x


def nash_md(P, mu, x, beta, eta=None, mixture=None):
    """pi_t^mu ~ pi_t^(1 - eta beta) mu^(eta beta); pi_{t+1} ~ pi_t^mu exp(eta P pi_t^mu)."""
    for t in count():
        step = eta or 2 / (beta * (t + 2))
        weight = step * beta if mixture is None else mixture
        opponent = softmax((1 - weight) * x + weight * mu)
        x = (1 - step * beta) * x + step * beta * mu + step * P @ opponent
        yield x


def sppo(P, mu, x, beta, eta=0.3, self_play=True, inner_steps=1):
    """pi_{t+1} ~ pi_t exp(eta P pi_t)."""
    while True:
        x = log_softmax(x + eta * P @ softmax(x))
        yield x


def rebel(P, mu, x, beta, eta=1.0, regularised=False, inner_steps=1):
    """pi_{t+1} ~ pi_t^(1 - eta beta) mu^(eta beta) exp(eta r), r here six times the mean of P."""
    weight = eta * beta if regularised else 0.0
    while True:
        x = (1 - weight) * x + weight * mu + eta * 6 * P.mean(-1)
        yield x


def optimistic_mirror_descent(P, mu, x, beta, eta=0.1, regularised=True):
    """log pi_{t+1} = (1 - w) log pi_t + w log mu + 2 eta P pi_t - eta P pi_{t-1}."""
    weight = eta * beta if regularised else 0.0
    previous = x
    while True:
        new = (
            (1 - weight) * x + weight * mu + 2 * eta * P @ softmax(x) - eta * P @ softmax(previous)
        )
        previous, x = x, new
        yield x


def moving_magnet(P, mu, x, beta, inner, every):
    """The algorithm inside, begun anew every so many rounds with the policy for mu."""
    while True:
        stretch = BY_HAND[inner.algorithm](P, mu, x, beta, **inner.kwargs)
        for x in islice(stretch, every):
            yield x
        mu = log_softmax(x)


def adaptive_step(P, mu, x, beta):
    """Mirror prox with the accept test, in probabilities; the step size is this function's own."""

    def step(product):
        policy = np.exp(log_softmax(x) * (1 - s * beta) + s * beta * mu + s * product)
        return policy / policy.sum()

    safe = 2 * (np.sqrt(1 + beta**2) - beta)
    s = safe
    while True:
        old, h = softmax(x), step(P @ softmax(x))
        n = step(P @ h)
        cost = (1 - s * beta) * rel_entr(h, old).sum() + rel_entr(n, h).sum()
        if s <= safe or s * (P @ h - P @ old) @ (n - h) <= cost:
            x, s = np.log(n), min(1.2 * s, 0.9 / beta)
        else:
            s = max(s / 2, safe)
        yield x


BY_HAND = {
    algorithms.NashMP: nash_mp,
    algorithms.NashProx: nash_prox,
    algorithms.EGPO: egpo,
    algorithms.INPO: inpo,
    algorithms.MNPO: mnpo,
    algorithms.OnlineIPO: online_ipo,
    algorithms.PairwiseGRPO: online_ipo,
    algorithms.NashEMA: nash_ema,
    algorithms.IPOMD: partial(nash_md, mixture=0.125),
    algorithms.RSPO: partial(online_ipo, eta=0.3),
    algorithms.NashMD: nash_md,
    algorithms.SPPO: sppo,
    algorithms.REBEL: rebel,
    algorithms.DNO: sppo,  # the same steps, by another loss
    algorithms.OptimisticMirrorDescent: optimistic_mirror_descent,
    algorithms.MovingMagnet: moving_magnet,
}


def three_action_games():
    """Rock, paper, scissors at two strengths and COMAL's game; reference and start differ."""
    P = torch.cat([games.cyclic(3, 0.9), games.cyclic(3, 0.6), games.comal()])
    return P, normal_logits(3, 3, seed=5).log_softmax(-1), normal_logits(3, 3, seed=6)


@pytest.mark.parametrize("row", CLOSED_FORM, ids=str)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_rounds_equal_the_formula_by_hand(row, beta):
    P, mu, start = three_action_games()
    log_policies = engine(row.make(), P, mu, start, beta).run(0, ROUNDS).log_policy.log_softmax(-1)
    for game in range(len(P)):
        arrays = (P[game].numpy(), mu[game].numpy(), start[game].numpy())
        by_hand = islice(BY_HAND[row.algorithm](*arrays, beta, **row.kwargs), ROUNDS)
        expected = np.stack([log_softmax(x) for x in by_hand])
        np.testing.assert_allclose(log_policies[:, game].numpy(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_step_starts_where_the_step_before_it_ended(weight):
    """Where two steps have one centre and the first moves a player of it, the second sees that."""
    P, mu, start = three_action_games()
    found = engine(TwoSteps(weight), P, mu, start).run(0, 3).log_policy[-1].log_softmax(-1)
    lookahead = policy = start
    for _ in range(3):
        payoff = torch.einsum("cij,cj->ci", P, policy.softmax(-1))
        lookahead = (1 - weight) * lookahead + weight * mu + 0.5 * payoff
        policy = (1 - weight) * lookahead + weight * mu + 0.5 * payoff
    torch.testing.assert_close(found, policy.log_softmax(-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("opponent", "first", "later"),
    [
        ({"anchor": 1.0}, 1, 1),
        ({"anchor": 0.25, "reference": 0.75}, 1, 1),
        ({"reference": 0.5, "anchor": 0.5}, 1, 1),
        ({"reference": 1.0}, 1, 0),
        ({"lookahead": 0.5, "anchor": 0.5}, 2, 2),  # which the first step moves
    ],
    ids=str,
)
@pytest.mark.parametrize("pieces", [(6,), (1, 2, 3)], ids=str)
def test_a_product_of_an_opponent_that_stays_is_asked_for_once(opponent, first, later, pieces):
    """Of a mixture it was asked for at each step, though it was declared as remembered."""
    P, mu, start = three_action_games()
    made, queries, state = engine(AgainstOne(opponent), P, mu, start), [], ()
    for number in pieces:
        if state:
            made = ClosedFormRounds(AgainstOne(opponent), BETA, P, mu, *state, from_start=False)
        part = made.run(0, number)
        before = queries[-1] if queries else 0
        queries += [before + int(asked) for asked in part.queries]
        state = made.logits(), made.products()
    players = {"lookahead": start, "anchor": start, "reference": mu}
    for _ in range(6):
        for writes in ("lookahead", "policy"):
            of = sum(weight * players[player] for player, weight in opponent.items()).softmax(-1)
            players[writes] = players["anchor"] + 0.5 * torch.einsum("cij,cj->ci", P, of)
        players["anchor"] = players["policy"]
    found = part.log_policy[-1].log_softmax(-1)
    torch.testing.assert_close(found, players["policy"].log_softmax(-1), atol=1e-12, rtol=0)
    assert AgainstOne(opponent).queries(2, 2, enumerated=True) == later
    assert queries == [first + later * number for number in range(6)]


def test_constants_do_not_pile_up_in_the_logits():
    """Each round of SPPO adds about -eta / 2 to every logit, which would cost digits in the end."""
    P, mu = small_games()
    log_policy = engine(algorithms.SPPO(eta=1.0), P, mu, mu).run(0, 3000).log_policy
    assert log_policy.logsumexp(-1).abs().max() < 256


def test_a_table_of_formulas_covers_every_closed_form():
    assert set(BY_HAND) == {row.algorithm for row in CLOSED_FORM}


def test_an_algorithm_without_a_closed_form_is_refused():
    P, mu = small_games()
    with pytest.raises(ValueError, match="OnlineDPO has no closed form"):
        engine(algorithms.OnlineDPO(), P, mu, mu)


# ---- how rounds are cut must not matter ----


@pytest.mark.parametrize("row", CLOSED_FORM, ids=str)
def test_rounds_in_one_go_are_rounds_in_pieces(row):
    """Bit for bit, past a normalisation; players and products go on as from a checkpoint."""
    P, mu = small_games()
    whole = engine(row.make(), P, mu, mu).run(0, 300)
    rows, queries, played, before = [], [], 0, engine(row.make(), P, mu, mu)
    for number in (1, 2, 250, 3, 44):
        part = before.run(played, number)
        rows.append(part.log_policy)
        queries.append(part.queries + (queries[-1][-1] if played else 0))
        assert part.first_round == played + 1
        played += number
        state = before.logits(), before.products()
        before = ClosedFormRounds(
            row.make(), BETA, P, mu, *state, from_start=False, step_size=before.step_size,
            scores=scores_of(P),
        )  # fmt: skip
    assert torch.equal(torch.cat(rows), whole.log_policy)
    # The only query more: an opponent that is remembered by two names at the cut.
    assert torch.equal(torch.cat(queries), whole.queries)


@pytest.mark.parametrize("row", CLOSED_FORM, ids=str)
def test_games_of_a_batch_do_not_meet(row):
    P, mu = small_games()
    whole = engine(row.make(), P, mu, mu).run(0, 20).log_policy
    for game in range(len(P)):
        pick = slice(game, game + 1)
        alone = engine(row.make(), P[pick], mu[pick], mu[pick]).run(0, 20).log_policy
        torch.testing.assert_close(alone, whole[:, pick], atol=1e-11, rtol=0)


@pytest.mark.parametrize("row", CLOSED_FORM, ids=str)
def test_relabelled_actions_and_constants_change_nothing(row):
    P, mu = small_games()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    plain = engine(row.make(), P, mu, mu).run(0, 20).log_policy.log_softmax(-1)
    relabelled = engine(row.make(), P[:, order][:, :, order], mu[:, order], mu[:, order] + 17.0)
    other = relabelled.run(0, 20).log_policy.log_softmax(-1)
    torch.testing.assert_close(other, plain[:, :, order], atol=1e-11, rtol=0)


@pytest.mark.parametrize("row", CLOSED_FORM, ids=str)
def test_actions_that_do_not_exist_change_nothing(row):
    """A game padded with absent actions, whose entries say nothing, is played as it is alone."""
    P, mu = small_games(3, 4)
    padded = torch.full((3, 6, 6), 0.5, dtype=torch.float64)
    padded_mu = torch.full((3, 6), -math.inf, dtype=torch.float64)
    padded[:, :4, :4], padded_mu[:, :4] = P, mu
    padded[:, 4:, :4], padded[:, :4, 4:] = 0.9, 0.1  # they would win
    small = engine(row.make(), P, mu, mu).run(0, 300).log_policy.log_softmax(-1)
    padded = engine(row.make(), padded, padded_mu, padded_mu).run(0, 300).log_policy.log_softmax(-1)
    assert (padded[:, :, 4:] == -math.inf).all()
    torch.testing.assert_close(padded[:, :, :4], small, atol=1e-9, rtol=0)


@pytest.mark.parametrize("row", CLOSED_FORM, ids=str)
def test_single_precision_follows_double(row):
    P, mu = small_games()
    double = engine(row.make(), P, mu, mu).run(0, 50).log_policy.log_softmax(-1)
    single = engine(row.make(), P.float(), mu.float(), mu.float()).run(0, 50).log_policy
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.log_softmax(-1).double(), double, atol=1e-3, rtol=1e-4)


# ---- theory ----


@pytest.mark.parametrize("beta", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.0])
def test_nash_mp_and_egpo_are_one_map(beta, ratio):
    """Nash-MP(eta) = EGPO(eta / (beta (1 + eta))) to 1e-10 at every update, eta = ratio beta."""
    eta = ratio * beta
    for num_actions in (3, 30):
        P, mu = small_games(5, num_actions)
        pair = algorithms.NashMP(eta), algorithms.EGPO(eta / (beta * (1 + eta)))
        runs = [engine(algorithm, P, mu, mu, beta).run(0, 500) for algorithm in pair]
        first, second = (run.log_policy.log_softmax(-1) for run in runs)
        assert (first - second).abs().max() < 1e-10


def bound_ratios(P, mu, beta):
    """Of each game the largest KL(pi* || pi_k) over its bound (1 + 2 beta)^-k KL(pi* || mu).

    Only while the bound exceeds 1e-13; and how many updates these are.
    """
    solution = regularised_nash(P, mu, beta)
    assert solution.exploitability.max() / beta < 1e-16, (
        "the equilibrium must be better than what is compared with it"
    )
    start = kl_to_nash(solution.log_policy, mu)
    last = math.ceil(math.log(start.max().item() / 1e-13) / math.log1p(2 * beta))
    play, played = engine(algorithms.NashMP(), P, mu, mu, beta), 0
    worst = torch.zeros(len(P), dtype=torch.float64)
    while played < last:
        rounds = min(1000, last - played)
        log_policies = play.run(played, rounds).log_policy
        updates = torch.arange(played + 1, played + rounds + 1).double()[:, None]
        bound = start * (-updates * math.log1p(2 * beta)).exp()
        ratio = kl_to_nash(solution.log_policy, log_policies) / bound
        worst = torch.maximum(worst, ratio.where(bound > 1e-13, torch.zeros(())).amax(0))
        played += rounds
    return worst, last


@pytest.mark.parametrize("beta", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("num_actions", [3, 10, 30, 100])
def test_nash_mp_keeps_its_bound_at_every_update(beta, num_actions):
    """KL(pi* || pi_k) <= (1 + 2 beta)^-k KL(pi* || mu), on five random games of each size."""
    P = games.uniform_random(5, num_actions, seed=num_actions)
    mu = normal_logits(5, num_actions, seed=1 + num_actions).log_softmax(-1)
    worst, updates = bound_ratios(P, mu, beta)
    assert worst.max() <= 1 + 1e-9
    assert updates > 10


def test_the_bound_can_be_missed():
    """By half the step, to which the theory gives another rate."""
    P, mu = small_games(5, 30)
    solution = regularised_nash(P, mu, 0.001)
    log_policies = engine(algorithms.NashMP(0.0005), P, mu, mu, 0.001).run(0, 3000).log_policy
    bound = kl_to_nash(solution.log_policy, mu) * 1.002 ** -torch.arange(1, 3001).double()[:, None]
    assert (kl_to_nash(solution.log_policy, log_policies) > bound).any()


@pytest.mark.nightly
@pytest.mark.parametrize("beta", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize(
    ("num_actions", "num_games"), [(3, 25), (10, 25), (30, 20), (100, 15), (300, 10), (1000, 5)]
)
def test_nash_mp_keeps_its_bound_on_a_hundred_games(beta, num_actions, num_games):
    P = games.uniform_random(num_games, num_actions, seed=1000 + num_actions)
    mu = normal_logits(num_games, num_actions, seed=2000 + num_actions).log_softmax(-1)
    worst, _ = bound_ratios(P, mu, beta)
    assert worst.max() <= 1 + 1e-9


def uniform(P):
    return torch.full(P.shape[:2], 1 / P.shape[-1], dtype=P.dtype).log()


def updates_to(P, log_nash, beta=BETA, goal=1e-6, most=2000):
    """Updates of Nash-MP from the uniform reference to KL(pi* || pi_k) below `goal`."""
    mu = uniform(P)
    play, played = engine(algorithms.NashMP(), P, mu, mu, beta), 0
    while played < most:
        divergence = kl_to_nash(log_nash, play.run(played, 10).log_policy)[:, 0]
        if (divergence < goal).any():
            return played + 1 + int((divergence < goal).nonzero()[0])
        played += 10
    raise AssertionError(f"not in {most} updates")


def uniform_nash(P):
    solution = regularised_nash(P, uniform(P), BETA)
    assert solution.exploitability.max() < 1e-12
    return solution.log_policy


every_family = pytest.mark.parametrize(
    "family", [games.cyclic_blocks, partial(games.sine_game, seed=0)], ids=["blocks", "sines"]
)


@every_family
def test_updates_do_not_depend_on_the_number_of_actions(family):
    counts = {n: updates_to(P := family(n), uniform_nash(P)) for n in (10, 100, 1000)}
    assert max(counts.values()) < 1.1 * min(counts.values()), counts


@pytest.mark.slow
@every_family
def test_updates_do_not_depend_on_the_number_of_actions_up_to_ten_thousand(family):
    counts = {n: updates_to(P := family(n), uniform_nash(P)) for n in (10, 10_000)}
    assert max(counts.values()) < 1.1 * min(counts.values()), counts


def test_updates_on_uniform_random_games_are_shown_beside(record_property):
    """No equality is claimed: with more actions these are other games. All keep the bound."""
    counts = {}
    for num_actions in (10, 100, 1000):
        P = games.uniform_random(1, num_actions, seed=0)
        log_nash = uniform_nash(P)
        counts[num_actions] = updates_to(P, log_nash)
        most = math.log(kl_to_nash(log_nash, uniform(P)).item() / 1e-6) / math.log1p(2 * BETA)
        assert counts[num_actions] <= math.ceil(most)
    record_property("updates to KL < 1e-6 on uniform random games", counts)
    print("updates to KL < 1e-6 on uniform random games, by actions:", counts)


def queries_to(algorithm, P, mu, beta, goal=1e-5, most=6000):
    """Products P pi until the duality gap of each game is below `goal`; `most` if it is not."""
    trajectory = engine(algorithm, P, mu, mu, beta).run(
        0, most // algorithm.queries(0, 0, enumerated=True)
    )
    gap = 2 * exploitability(P, trajectory.log_policy, mu, beta)
    first = [(curve < goal).nonzero()[:1, 0].tolist() for curve in gap.T]
    return sorted(int(trajectory.queries[i[0]]) if i else most for i in first)[len(first) // 2]


STEPS = [1.0, 0.3, 0.1, 0.03, 0.01]


@pytest.mark.parametrize(
    ("beta", "ranking"),
    [
        (0.1, ["mirror descent", "extragradient", "Nash-MD falling", "Nash-MD constant"]),
        (0.01, ["extragradient", "Nash-MD constant", "mirror descent", "Nash-MD falling"]),
    ],
)
def test_the_extra_query_pays_at_small_beta_only(beta, ranking):
    """The ranking of methods by oracle calls, each with its best step, median of five games."""
    P, mu = games.uniform_random(5, 10, seed=0), normal_logits(5, 10, seed=0).log_softmax(-1)
    steps = [2 / (1 + 2 * beta), *STEPS]
    counts = {
        "mirror descent": min(queries_to(algorithms.OnlineIPO(eta), P, mu, beta) for eta in steps),
        "extragradient": queries_to(algorithms.EGPO(), P, mu, beta),
        "Nash-MD constant": min(queries_to(algorithms.NashMD(eta), P, mu, beta) for eta in steps),
        "Nash-MD falling": queries_to(algorithms.NashMD(), P, mu, beta),
    }
    assert sorted(counts, key=counts.get) == ranking, counts


def test_comal_solves_the_unregularised_game_where_others_cycle_or_are_biased():
    """COMAL's game from (.5, .3, .2): unregularised duality gaps, arXiv 2410.23223."""
    P, start = games.comal(), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()

    def gaps(algorithm, beta=0.1):
        log_policies = engine(algorithm, P, start, start, beta).run(0, 20_000).log_policy
        return 2 * exploitability(P, log_policies, start, 0.0)[:, 0]

    cycle = gaps(algorithms.SPPO(0.1))[-5000:]
    assert cycle.min() < 0.3
    assert cycle.max() > 0.6
    assert gaps(algorithms.OnlineIPO(0.1))[-1] == pytest.approx(0.078, abs=0.005)
    assert gaps(algorithms.MovingMagnet(algorithms.OnlineIPO(0.1), every=400))[-1] < 1e-12
    optimistic = gaps(algorithms.OptimisticMirrorDescent(0.1, regularised=False))
    assert optimistic[-1] < 5e-3
    assert optimistic[-1000:].max() < optimistic[-11_000:-10_000].max()
