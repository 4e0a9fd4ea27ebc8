"""The knock-out tournament: who is chosen, what is asked and counted, and what that does."""

import itertools
import math

import pytest
import torch
import zoo

from nlhf_zoo.algorithms import INPO, SPPO, NashMP, OnlineDPO
from nlhf_zoo.data.tables import games
from nlhf_zoo.errors import UserError
from nlhf_zoo.game import designs, knockout
from nlhf_zoo.game.knockout import Knockout
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.health import HealthCheck
from nlhf_zoo.health.chosen_pairs import chosen_pairs
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.records import Prompts, Responses

GAMES = 3


def drawn(actions):
    """Responses that are these actions [B, K]."""
    weight = torch.full(actions.shape, 1 / actions.shape[1], dtype=torch.float64)
    tokens = actions[:, :, None]
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight)


def ladder(num):
    """P [1, N, N] in which each action beats those before it, the more the further."""
    place = torch.arange(num, dtype=torch.float64)
    return torch.sigmoid(place[:, None] - place)[None]


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def make_game(algorithm, rollout, **parts):
    return zoo.small_game(algorithm, GAMES, rollout=rollout, realisation=GradientSteps(), **parts)


@pytest.mark.parametrize("num", [4, 8, 16])
def test_the_best_and_the_worst_are_found_and_no_more_is_asked(num):
    """Where preferences are transitive; each prompt has an order of its own."""
    prompts = Prompts(torch.zeros(50, dtype=torch.long))
    actions = designs.orders(50, num, stream(1))
    oracle = zoo.Spy(MatrixOracle(ladder(num)))
    played = knockout.drawn(50, num, stream(2))
    found, invalid = played.ask(oracle, prompts, drawn(actions))
    rows, first, second = found.valid.nonzero().unbind(1)
    chosen = torch.stack([actions[rows, first], actions[rows, second]], -1)
    assert chosen.sort(-1).values.tolist() == [[0, num - 1]] * 100
    high = torch.where(chosen[:, 0] > chosen[:, 1], 1.0, -1.0)
    expected = torch.sigmoid(high.double() * (num - 1))
    torch.testing.assert_close(found.preference[rows, first, second], expected)
    assert (len(oracle.asked), invalid) == (math.log2(num) + 1, 0)
    assert played.questions == 3 * num // 2 - 1 < num * (num - 1) // 2
    assert num * designs.degree_of("knockout", num) / 2 == played.questions


class Heard(MatrixOracle):
    """It keeps the pairs that it was asked about, in their order."""

    def forward(self, prompts, first, second):
        self.heard = [
            *getattr(self, "heard", []),
            *zip(first.actions[:, 0].tolist(), second.actions[:, 0].tolist(), strict=True),
        ]
        return super().forward(prompts, first, second)


def test_who_meets_whom_by_hand():
    """Of four: 2 and 3 meet and so do 0 and 1; then 3 and 1, 2 and 0; then 3 and 0 are told."""
    oracle, one = Heard(ladder(4)), Prompts(torch.zeros(1, dtype=torch.long))
    Knockout(torch.tensor([[2, 3, 0, 1]])).ask(oracle, one, drawn(torch.arange(4)[None]))
    assert sorted(oracle.heard[:2]) == [(0, 1), (2, 3)]
    assert sorted(oracle.heard[2:4]) == [(2, 0), (3, 1)]
    assert oracle.heard[4:] == [(0, 3)]  # the later seat stands first
    oracle.heard = []
    Knockout(torch.tensor([[0, 3, 1, 2]])).ask(oracle, one, drawn(torch.arange(4)[None]))
    assert oracle.heard[4:] == [(3, 0)]  # they have met in the first round, in the other order


def test_a_prompt_with_a_missing_answer_has_no_pair():
    game = make_game(SPPO(), Sample(8, pairs="knockout"), wrap=lambda o: zoo.Silent(o, prompts=[1]))
    prompts = zoo.all_prompts(game)
    responses, payoffs = game.play_and_judge(game.step, prompts)
    assert payoffs.valid.sum(-1).tolist() == [2, 0, 2]
    assert payoffs.invalid == 11
    assert (payoffs.queries, payoffs.answers) == (11, 11)
    assert game.improve(game.step, prompts, responses, payoffs).isfinite()
    assert game.progress.unjudged == 1


@pytest.mark.parametrize(
    "algorithm", [INPO(inner_steps=2), SPPO(), OnlineDPO()], ids=lambda a: type(a).__name__
)
@pytest.mark.parametrize("epochs", [None, 2])
def test_what_is_counted_is_what_is_asked_and_what_is_declared(algorithm, epochs):
    if epochs and getattr(algorithm, "inner_steps", 1) > 1:
        return
    game = make_game(algorithm, Sample(8, epochs=epochs, pairs="knockout"), wrap=zoo.Spy)
    steps = getattr(algorithm, "inner_steps", 1)
    assert game.queries_per_round() == 11 * steps
    zoo.fit(game, rounds=2)
    assert game.progress.queries_per_prompt == 2 * 11 * steps
    assert game.progress.queries == 2 * 11 * steps * GAMES
    assert game.progress.invalid == game.progress.unjudged == 0
    assert len(game.oracle.asked) == 2 * 4 * steps


@pytest.mark.parametrize(
    ("algorithm", "num", "words"),
    [
        (INPO(), 6, "does not fit INPO: a knockout needs 4, 8, 16, ... responses"),
        (INPO(), 2, "and num_responses is 2"),
        (NashMP(), 8, "a knockout is among the responses themselves"),
    ],
    ids=["six", "two", "opponents"],
)
def test_tournaments_that_there_are_not(algorithm, num, words):
    with pytest.raises(UserError) as error:
        make_game(algorithm, Sample(num, pairs="knockout"))
    assert words in str(error.value)


def test_the_loss_is_that_of_the_chosen_pair():
    """(D log pi - D log c - s (P(best > worst) - 1/2))^2, and no other response is in it."""
    algorithm = INPO(eta=0.7)
    game = make_game(algorithm, Sample(8, pairs="knockout"))
    zoo.scatter_players(game)
    prompts, step = zoo.all_prompts(game), game.step
    responses, payoffs = game.play_and_judge(step, prompts)
    found = game.improve(step, prompts, responses, payoffs)
    log_c = sum(w * game.log_policy(player) for player, w in step.centre.items())
    expected = 0.0
    for row in range(GAMES):
        one, other = payoffs.valid[row].nonzero()[:, 0].tolist()
        a, b = (responses.actions[row, place] for place in (one, other))
        d = game.log_policy()[row] - log_c[row]
        target = 0.7 * (game.oracle.table[row, a, b] - 0.5)
        expected += (d[a] - d[b] - target) ** 2 / GAMES
    torch.testing.assert_close(found.detach(), expected)


def shares(policy, P):
    """How likely each pair of actions is chosen of four, over all draws and seats [N, N]."""
    draws = torch.tensor([*itertools.product(range(len(policy)), repeat=4)])
    seats = torch.tensor([*itertools.permutations(range(4))])
    actions = draws.repeat_interleave(len(seats), 0)
    prompts = Prompts(torch.zeros(len(actions), dtype=torch.long))
    found, _ = Knockout(seats.repeat(len(draws), 1)).ask(
        MatrixOracle(P[None]), prompts, drawn(actions)
    )
    rows, first, second = found.valid.nonzero().unbind(1)
    chance = policy[draws].prod(-1).repeat_interleave(len(seats)) / len(seats) / 2
    places = actions[rows, first], actions[rows, second]
    return torch.zeros_like(P).index_put(places, chance[rows], accumulate=True)


def minimiser(weight, P, step):
    """argmin_d sum_kl w_kl (d_k - d_l - s (P_kl - 1/2))^2, without its constant [N]."""
    weight = (weight + weight.T) / 2
    laplacian = weight.sum(1).diag() - weight
    return torch.linalg.pinv(laplacian) @ (step * weight * (P - 0.5)).sum(1)


def test_chosen_pairs_are_not_independent_and_take_another_step():
    """Exactly: the minimiser over independent pairs is s P pi, and over chosen ones it is not."""
    P, step = games.uniform_random(1, 4, seed=2)[0], 0.3
    policy = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    right = step * P @ policy
    right = right - right.mean()
    independent = minimiser(policy[:, None] * policy, P, step)
    torch.testing.assert_close(independent, right, atol=1e-12, rtol=0)
    chosen = shares(policy, P)
    assert chosen.sum().item() == pytest.approx(1)
    assert (minimiser(chosen, P, step) - right).abs().max() > 0.1 * right.abs().max()


def test_the_doctor_and_a_run_say_that_pairs_are_chosen(capsys):
    chosen, others = (make_game(INPO(), Sample(8, pairs=p)) for p in ("knockout", "circle"))
    zoo.fit(others, rounds=1, callbacks=[HealthCheck()])
    assert chosen_pairs(others) is None
    assert "Pairs are" not in capsys.readouterr().err
    zoo.fit(chosen, rounds=2, callbacks=[HealthCheck()])
    assert "not two independent responses" in str(chosen_pairs(chosen))
    assert capsys.readouterr().err.count("Pairs are chosen by a knockout") == 1
