"""Games that pay a function of the preference: what is asked, solved, measured and refused."""

import math

import pytest
import rows
import torch
import zoo
from judges import FairJudge, Judge, actions, opinion, prompts, responses
from torch.utils.data import DataLoader

from nlhf_zoo.algorithms import NashMP, OnlineDPO, surrogates
from nlhf_zoo.callbacks import CollapseWatch, ExploitabilityEstimate
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.metrics.validation import SampledWinRate
from nlhf_zoo.oracles import (
    BernoulliLabels,
    BudgetedOracle,
    EnsembleOracle,
    JudgeOracle,
    MatrixOracle,
    SmallLanguage,
    Transformed,
)
from nlhf_zoo.oracles.served.description import refuse_unservable
from nlhf_zoo.records import Responses
from nlhf_zoo.solvers import exploitability, regularised_nash, score_interval
from nlhf_zoo.solvers.lower_bound import bound_of_draws


def cube(margin):
    return 40 * margin**3


def log_odds(P, bound):
    return 0.5 + (P / (1 - P)).log().clamp(-bound, bound)


BY_HAND = {
    "identity": (("identity",), lambda P: P),
    "sign": (("sign",), lambda P: 0.5 + 0.5 * (P - 0.5).sign()),
    "log_odds": (("log_odds", 3.0), lambda P: log_odds(P, 3.0)),
    "a function": ((cube,), lambda P: 0.5 + 40 * (P - 0.5) ** 3),
}
BOUNDS = {"identity": 0.5, "sign": 0.5, "log_odds": 3.0, "a function": 5.0}
P, LOG_REFERENCE = zoo.small_games(3)


def enumerated(num_prompts, num_actions, seed):
    weight = zoo.normal_logits(num_prompts, num_actions, seed=seed).softmax(-1)
    tokens = torch.arange(num_actions).expand(num_prompts, -1)[..., None]
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight, enumerated=True)


# ---- what is answered ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_HAND)
def test_all_ways_to_ask_a_table_give_payoffs(name):
    arguments, by_hand = BY_HAND[name]
    oracle = Transformed(MatrixOracle(P), *arguments)
    expected = by_hand(P)
    assert oracle.payoff_bound == pytest.approx(BOUNDS[name])
    assert oracle.answers_table
    torch.testing.assert_close(oracle.table, expected)
    all_of, few = enumerated(3, 6, 0), actions([0, 3], [5, 1], [2, 2])
    other = enumerated(3, 6, 1)
    for first in (all_of, few):
        for second in (other, few):
            rows_ = expected[torch.arange(3)[:, None, None], first.actions[..., None]]
            pairs = rows_.gather(-1, second.actions[:, None, None].expand(-1, first.num, 1, -1))
            pairs = pairs[:, :, 0]
            found = oracle(oracle.prompts, first, second)
            torch.testing.assert_close(found.preference, pairs)
            product, valid = oracle.expected(oracle.prompts, first, second)
            torch.testing.assert_close(product, (pairs * second.weight[:, None]).sum(-1))
            assert valid.all()


def test_texts_are_transformed_and_what_is_invalid_stays_so():
    oracle = Transformed(FairJudge(silent="c"), "log_odds", 2.0)
    given = responses(["a", "b", "c"])
    found = oracle(prompts("x"), given, given)
    c = torch.tensor([False, False, True])
    assert torch.equal(found.valid[0], c[:, None] == c)
    chance = torch.tensor(opinion("x", "a", "b"), dtype=torch.float64)
    assert found.preference[0, 0, 1].item() == pytest.approx(log_odds(chance, 2.0).item())
    assert found.preference[0, 0, 1] + found.preference[0, 1, 0] == pytest.approx(1)
    product, valid = oracle.expected(prompts("x"), given, given)
    assert product[0, 0].item() == pytest.approx((0.5 + log_odds(chance, 2.0).item()) / 2)
    assert valid.all()


def test_words_of_the_small_language_are_found():
    within = SmallLanguage(num_letters=4, length=2)
    oracle = Transformed(within, "log_odds", 4.0)
    words = within.action_names[0]
    given = responses([words[3], words[7]], [words[0], words[1]])
    asked = within.prompts
    found = oracle(asked, given, given).preference
    assert found[0, 0, 1].item() == pytest.approx(oracle.table[0, 3, 7].item())
    assert found[1, 0, 1].item() == pytest.approx(oracle.table[1, 0, 1].item())


def test_bounds_go_through_what_stands_around():
    one, other = Transformed(MatrixOracle(P), "log_odds", 3.0), MatrixOracle(P)
    assert EnsembleOracle([one, other], [3.0, 1.0]).payoff_bound == pytest.approx(2.375)
    assert BudgetedOracle(one, max_queries=5).payoff_bound == 3.0
    assert not Transformed(BudgetedOracle(other, max_queries=5), "sign").answers_table
    # The majority of a mean is not the mean of majorities.
    judges = [MatrixOracle(torch.tensor([[0.5, p], [1 - p, 0.5]])) for p in (0.6, 0.6, 0.1)]
    assert Transformed(EnsembleOracle(judges), "sign").table[0, 0, 1] == 0
    mean = EnsembleOracle([Transformed(judge, "sign") for judge in judges]).table[0, 0, 1]
    assert mean.item() == pytest.approx(2 / 3)


# ---- labels --------------------------------------------------------------------------------------


def test_labels_within_are_refused_unless_the_payoff_is_linear():
    """The sign of a label is the label, and its mean the probability: the game of the margins."""
    labels = BernoulliLabels(MatrixOracle(P), seed=0)
    for payoff in ("sign", "log_odds", cube):
        with pytest.raises(UserError, match="of BernoulliLabels are drawn, and the mean of"):
            Transformed(EnsembleOracle([labels, MatrixOracle(P)]), payoff, 2.0)
    for payoff in ("identity", lambda d: 3 * d):
        Transformed(labels, payoff)
    given = {"model": "judge", "base_url": "http://127.0.0.1:1/v1", "api_key_env": None}
    with pytest.raises(UserError, match=r"JudgeOracle are drawn.*temperature 0 or verdict log"):
        Transformed(JudgeOracle(**given, temperature=1.0), "sign")
    Transformed(JudgeOracle(**given), "sign")
    Transformed(JudgeOracle(**given, temperature=1.0, verdict="logprobs"), "sign")


@pytest.mark.parametrize("payoff", [("sign",), (cube, 0.5)])
def test_labels_of_payoffs_that_are_probabilities_have_them_as_their_mean(payoff):
    """Of 2,500 draws a pair: 5 standard errors, which 1e-5 of all seeds exceed."""
    within = Transformed(MatrixOracle(P[:1]), *payoff)
    labels = BernoulliLabels(within, seed=0)
    some, others = actions([0, 1, 2]), actions([3, 4, 5, 0])
    total, number = 0.0, 2_500
    for _ in range(number):
        total = total + labels(labels.prompts, some, others).preference
    error = 5 * 0.5 / math.sqrt(number)
    expected = within(within.prompts, some, others).preference
    assert ((total / number - expected).abs() < error).all()


def test_labels_of_larger_payoffs_are_refused():
    with pytest.raises(UserError, match=r"payoffs as far as 2 from 1/2: leave BernoulliL"):
        BernoulliLabels(Transformed(MatrixOracle(P), "log_odds", 2.0))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Transformed(MatrixOracle(P), "log_odds"), r"infinite .* set Transformed\.bound"),
        (lambda: Transformed(MatrixOracle(P), torch.exp), "exp must be odd"),
        (
            lambda: Transformed(Transformed(Judge(), cube), "sign"),
            "Transformed answers with payoffs already",
        ),
        (
            lambda: refuse_unservable(EnsembleOracle([Judge(), Transformed(Judge(), "sign")])),
            "put Transformed around ServedOracle",
        ),
        (
            lambda: made(OnlineDPO(), realisation=GradientSteps(), rollout=Sample(4, 1)),
            "logistic loss fits probabilities",
        ),
    ],
)
def test_refusals(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


# ---- the game ------------------------------------------------------------------------------------


def made(algorithm, payoff=("log_odds", 3.0), **parts):
    return zoo.small_game(algorithm, 3, wrap=lambda one: Transformed(one, *payoff), **parts)


def test_labels_of_the_likelier_winner_need_no_probability():
    assert made(OnlineDPO(hard=True), realisation=GradientSteps(), rollout=Sample(4, 1)).step


@pytest.mark.parametrize("name", BY_HAND)
def test_a_run_in_closed_form_goes_to_the_equilibrium_of_the_payoffs(name):
    arguments, by_hand = BY_HAND[name]
    for eta in (None, "adaptive"):
        game = made(NashMP(eta=eta), arguments, beta=0.5)
        zoo.fit(game, rounds=400)
        nash = regularised_nash(by_hand(P), LOG_REFERENCE, 0.5)
        torch.testing.assert_close(
            game.log_policy().double(), nash.log_policy, rtol=0, atol=1e-4, msg=f"{name} {eta}"
        )


def test_gradients_take_the_step_of_the_closed_form():
    """Where the closed form goes, the regression on pairs of the same step is 0."""
    start = zoo.normal_logits(3, 6, seed=9)
    parts = {"start": start, "beta": 0.5, "realisation": GradientSteps()}
    game = made(NashMP(surrogate=surrogates.proximal_regression), **parts)
    step, asked = game.step, zoo.all_prompts(game)
    assert step.step_size == pytest.approx(2 / (6 + 2 * 0.5))
    payoffs = (log_odds(P, 3.0) @ start.softmax(-1)[..., None])[..., 0]
    share = step.step_size * 0.5
    new = (1 - share) * start + share * LOG_REFERENCE + step.step_size * payoffs
    played = game.play_and_judge(step, asked)
    assert game.improve(step, asked, *played).item() > 1e-3
    with torch.no_grad():
        game.policy.networks["policy"].logits.copy_(new)
    assert game.improve(step, asked, *played).item() < 1e-10


# ---- what is measured ----------------------------------------------------------------------------


def test_the_estimate_from_samples_is_near_the_exact_figure():
    """The doubled interval misses it in 1e-4 of all seeds."""
    for form in ("pairs", "embeddings"):
        game = made(NashMP(), realisation=GradientSteps(), beta=1.5)
        zoo.scatter_players(game)
        ours, theirs = (game.log_policy(player).double() for player in ("policy", "reference"))
        exact = exploitability(game.oracle.table.double(), ours, theirs, 1.5).mean().item()
        callback = ExploitabilityEstimate(num_responses=400, num_opponents=60)
        trainer = rows.trainer()
        trainer.callbacks.append(callback)
        batches = DataLoader([zoo.all_prompts(game)], batch_size=None)
        (found,) = trainer.validate(game, batches, verbose=False)
        low, high = (found[f"val/exploitability_{end}"] for end in ("low", "high"))
        assert low < found["val/exploitability"] < high
        assert abs(found["val/exploitability"] - exact) <= high - low, form
        # The win rate is the mean payoff, which may lie anywhere within the bound of 1/2.
        won = 0.5 + (ours.exp()[:, None] @ (game.oracle.table - 0.5) @ theirs.exp()[..., None])
        assert found["val/win_rate"] == pytest.approx(won.mean().item(), rel=1e-4)
        assert found["val/win_rate_low"] < found["val/win_rate"] < found["val/win_rate_high"]


def test_the_interval_of_payoffs_is_that_of_figures_between_0_and_1():
    payoffs = torch.tensor([-1.2, 0.3, 2.4, 1.9])
    metric = SampledWinRate(payoff_bound=3.0)
    metric.update(payoffs)
    figures = ((payoffs.double() - 0.5) / 6 + 0.5).tolist()
    ends = score_interval(sum(figures), sum(f * f for f in figures), 4)
    found = metric.compute()
    assert found["mean"].item() == pytest.approx(payoffs.mean().item())
    assert found["low"].item() == pytest.approx(0.5 + 6 * (ends[0] - 0.5))
    assert found["high"].item() == pytest.approx(0.5 + 6 * (ends[1] - 0.5))


def test_a_missing_payoff_counts_as_the_worst_that_it_could_be():
    ratios = zoo.normal_logits(2, 20, 2, seed=3)
    payoff = 0.5 + 6 * (torch.rand(20, 2, generator=torch.Generator().manual_seed(0)) - 0.5)
    valid = torch.zeros(20, 2, dtype=torch.bool)
    found = bound_of_draws(payoff, *ratios, 0.1, valid, payoff_bound=3.0)
    ends = [
        bound_of_draws(torch.tensor([one, other]).expand(20, 2), *ratios, 0.1)
        for one in (-2.5, 3.5)
        for other in (-2.5, 3.5)
    ]
    torch.testing.assert_close(found, torch.stack(ends).amin(0))


def test_a_policy_of_large_payoffs_has_not_collapsed(capsys):
    """The equilibrium itself is further from the reference than any of preferences can be."""
    nash = regularised_nash(log_odds(P, 3.0), LOG_REFERENCE, 0.5).log_policy
    ratio = nash - LOG_REFERENCE
    assert (ratio.amax(-1) - ratio.amin(-1)).max() > 1.1 / 0.5
    game = made(NashMP(), beta=0.5, start=nash, lr=1e-9, realisation=GradientSteps())
    zoo.fit(game, rounds=3, callbacks=[CollapseWatch()])
    assert "collapsed" not in capsys.readouterr().err
