"""Best of K against worst of K: who is chosen, what is asked and counted, and what that does."""

from collections import Counter
from itertools import combinations_with_replacement
from math import factorial, prod

import pytest
import torch
import zoo

from game.test_knockout import GAMES, drawn, make_game, minimiser
from nlhf_zoo.algorithms import INPO, SPPO, NashMP, OnlineDPO, OnlineIPO
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.data.tables import games
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.best_worst import BestWorst
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.health.chosen_pairs import chosen_pairs
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.records import Prompts


def test_the_highest_and_the_lowest_win_rate_are_chosen():
    """Four responses of which two are one action, by hand; of equal ones the first and the last."""
    P = torch.full((1, 3, 3), 0.5, dtype=torch.float64)
    P[0, 0, 1], P[0, 1, 0], P[0, 1, 2], P[0, 2, 1], P[0, 0, 2], P[0, 2, 0] = (
        0.9, 0.1, 0.6, 0.4, 0.3, 0.7,
    )  # fmt: skip
    oracle, prompts = zoo.Spy(MatrixOracle(P.expand(2, -1, -1))), Prompts(torch.arange(2))
    actions = torch.tensor([[1, 0, 2, 1], [2, 2, 2, 2]])
    found, invalid = BestWorst(4).ask(oracle, prompts, drawn(actions))
    # Win rates (.1 + .6 + .5) / 3, (.9 + .3 + .9) / 3, (.4 + .7 + .4) / 3 and the first once more.
    assert found.valid[0].nonzero().tolist() == [[1, 3], [3, 1]]
    assert found.preference[0, 1, 3] == 0.9
    assert found.valid[1].nonzero().tolist() == [[0, 3], [3, 0]]
    assert (oracle.asked, invalid) == ([(4, 4, True)], 0)
    assert BestWorst(4).questions == 6


@pytest.mark.parametrize("algorithm", [INPO(), SPPO(), OnlineDPO()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("epochs", [None, 2])
def test_what_is_counted_is_what_is_asked_and_what_is_declared(algorithm, epochs):
    game = make_game(algorithm, Sample(5, epochs=epochs, pairs="best_worst"), wrap=zoo.Spy)
    assert game.queries_per_round() == 10
    zoo.fit(game, rounds=2)
    assert game.progress.queries_per_prompt == 2 * 10
    assert game.progress.queries == 2 * 10 * GAMES
    assert game.oracle.asked == 2 * [(5, 5, True)]
    assert game.progress.invalid == game.progress.unjudged == 0


def test_what_could_not_be_answered_is_counted_and_chooses_nobody():
    wrap = lambda oracle: zoo.Silent(oracle, prompts=[1], action=0)  # noqa: E731
    game = make_game(SPPO(), Sample(6, pairs="best_worst"), wrap=wrap)
    responses, payoffs = game.play_and_judge(game.step, zoo.all_prompts(game))
    silent = (responses.actions == 0) | (torch.arange(GAMES) == 1)[:, None]
    pairs = [(~s[:, None] & ~s[None]).sum() - (~s).sum() for s in silent]
    assert payoffs.invalid == sum(15 - int(number) // 2 for number in pairs)
    assert not (payoffs.valid & silent).any()
    assert payoffs.valid.sum(-1)[1] == 0


def test_a_loss_on_pairs_is_that_of_the_chosen_pair():
    """- p log sigma(beta D) - (1 - p) log sigma(-beta D) of best and worst alone."""
    game = make_game(OnlineDPO(), Sample(6, pairs="best_worst"))
    zoo.scatter_players(game)
    prompts, step = zoo.all_prompts(game), game.step
    responses, payoffs = game.play_and_judge(step, prompts)
    found = game.improve(step, prompts, responses, payoffs)
    ratio, expected = game.log_policy() - game.log_policy("reference"), 0.0
    for row in range(GAMES):
        a, b = (responses.actions[row, place] for place in payoffs.valid[row].nonzero()[:, 0])
        p, d = game.oracle.table[row, a, b], zoo.BETA * (ratio[row, a] - ratio[row, b])
        expected -= (p * d.sigmoid().log() + (1 - p) * (-d).sigmoid().log()) / GAMES
    torch.testing.assert_close(found.detach(), expected)


def shares(policy, P, num):
    """How likely each pair of actions is the best and the worst of so many draws [N, N]."""
    groups = [*combinations_with_replacement(range(len(policy)), num)]
    actions, prompts = torch.tensor(groups), Prompts(torch.zeros(len(groups), dtype=torch.long))
    found, _ = BestWorst(num).ask(MatrixOracle(P[None]), prompts, drawn(actions))
    ways = [factorial(num) / prod(map(factorial, Counter(g).values())) for g in groups]
    chance = policy[actions].prod(-1) * torch.tensor(ways, dtype=torch.float64) / 2
    rows, first, second = found.valid.nonzero().unbind(1)
    places = actions[rows, first], actions[rows, second]
    return torch.zeros_like(P).index_put(places, chance[rows], accumulate=True)


def test_chosen_pairs_take_another_step_than_independent_ones():
    """Exactly, over all draws: of two responses the minimiser is the step s P pi, of more not."""
    P, step = games.uniform_random(1, 4, seed=2)[0], 0.3
    policy = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    right = step * P @ policy
    right = right - right.mean()
    for num in (2, 4, 8):
        weight = shares(policy, P, num)
        assert weight.sum().item() == pytest.approx(1)
        gap = (minimiser(weight, P, step) - right).abs().max() / right.abs().max()
        assert gap < 1e-12 if num == 2 else gap > 0.1


@pytest.mark.parametrize("pairs", ["best_worst", "knockout"])
def test_what_chosen_pairs_are_not_for(pairs):
    """They are no draws of the policy: neither for its gradient nor for its divergence."""
    with pytest.raises(UserError, match="nor chosen by the answers"):
        make_game(OnlineIPO(surrogate=policy_gradient), Sample(8, pairs=pairs))
    with pytest.raises(UserError, match=f"a {pairs} is among the responses themselves"):
        make_game(NashMP(), Sample(8, pairs=pairs))
    game = make_game(OnlineIPO(), Sample(8, pairs=pairs))
    zoo.fit(game, rounds=1)
    assert "train/kl" not in game.trainer.callback_metrics
    assert f"chosen by a {pairs}, so that" in str(chosen_pairs(game))


def test_of_two_there_is_nothing_to_choose():
    with pytest.raises(UserError, match="chooses two of three or more responses"):
        make_game(OnlineDPO(), Sample(2, pairs="best_worst"))
