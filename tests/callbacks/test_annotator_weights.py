"""Annotators weighted by the game: its fixed point, what samples say, and what is refused."""

import pytest
import rows
import torch
import zoo
from zoo import normal_logits

from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.callbacks import AnnotatorWeights, Budget, ExactMetrics
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import ClosedForm, GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import (
    BernoulliLabels,
    BudgetedOracle,
    EnsembleOracle,
    MatrixOracle,
    Transformed,
)
from nlhf_zoo.policies import TabularPolicy
from nlhf_zoo.solvers import regularised_nash, win_rate

PRIOR = [2.0, 1.0, 1.0]
LOG_REFERENCE = normal_logits(2, 5, seed=1).log_softmax(-1)
SCORES = normal_logits(3, 2, 5, seed=0)
TABLES = torch.sigmoid(2 * (SCORES[..., None] - SCORES[..., None, :]))


def made(wrap=MatrixOracle, around=lambda oracle: oracle, algorithm=None, **parts):
    oracle = around(EnsembleOracle([wrap(P) for P in TABLES], PRIOR))
    policy = TabularPolicy(zoo.TensorReference(LOG_REFERENCE))
    parts = {"realisation": ClosedForm(rounds_per_step=1), "beta": 0.3} | parts
    return OnlineGame(policy, oracle, algorithm or NashMP(), **parts)


def budgeted(P):
    return BudgetedOracle(MatrixOracle(P), max_queries=10**9)


def of_different_range(P):
    return Transformed(MatrixOracle(P), "log_odds", bound=1.0 if torch.equal(P, TABLES[0]) else 4.0)


def adversary(log_policy, tau):
    """Weights and values in the closed form, by hand."""
    laws = log_policy.double(), LOG_REFERENCE
    values = torch.stack([(win_rate(P, *laws) - 0.5).mean() for P in TABLES])
    return torch.softmax(torch.tensor(PRIOR).double().log() - values / tau, -1), values


def test_a_run_goes_to_the_equilibrium_of_its_own_weights():
    game, callback = made(), AnnotatorWeights(tau=0.1)
    exact = ExactMetrics(every=30)
    trainer = rows.trainer(callbacks=[callback, exact, Budget(rounds=90)], limit_val_batches=0)
    trainer.fit(game, TablePrompts())
    weights, values = adversary(game.log_policy(), 0.1)
    found = torch.tensor(game.oracle.weights, dtype=torch.float64)
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-4)
    table = (weights[:, None, None, None] * TABLES).sum(0)
    nash = regularised_nash(table, LOG_REFERENCE, 0.3).log_policy
    torch.testing.assert_close(game.log_policy().double().exp(), nash.exp(), rtol=0, atol=1e-4)
    assert exact.latest["exploitability"] < 1e-7  # of the game that is played
    # With the weights that were given somebody would be served worse.
    shares = torch.tensor(PRIOR).double()[:, None, None, None] / sum(PRIOR)
    fixed = regularised_nash((shares * TABLES).sum(0), LOG_REFERENCE, 0.3).log_policy
    assert adversary(fixed, 0.1)[1].min() < values.min() - 1e-3
    torch.testing.assert_close(game.oracle.table.double(), table, rtol=0, atol=1e-4)


def test_a_large_temperature_is_the_population_itself():
    game = made()
    callbacks = [AnnotatorWeights(tau=1e6), Budget(rounds=2)]
    rows.trainer(callbacks=callbacks, limit_val_batches=0).fit(game, TablePrompts())
    assert game.oracle.weights == pytest.approx([0.5, 0.25, 0.25], abs=1e-5)


def test_at_a_small_temperature_the_worst_served_counts_alone():
    """Weights of the others round to 0, and the run goes on."""
    game = made()
    trainer = rows.trainer(callbacks=[AnnotatorWeights(tau=1e-6)], max_steps=5, limit_val_batches=0)
    trainer.fit(game, TablePrompts())
    assert sorted(game.oracle.weights) == [0, 0, 1]


def test_samples_give_the_values_that_tables_have():
    """Of 1,000 responses to two prompts: 5 standard errors, which 1e-5 of all seeds exceed."""
    game = made(budgeted, realisation=GradientSteps(), rollout=Sample(4, 4))
    zoo.scatter_players(game)
    callback = AnnotatorWeights(num_responses=1000)
    found = callback.values(game, zoo.all_prompts(game))
    _, values = adversary(game.log_policy(), 1.0)
    assert ((found - values).abs() < 5 * 0.5 / (2 * 1000) ** 0.5).all()


def test_a_round_that_is_resumed_keeps_its_weights():
    weights, game = [0.2, 0.3, 0.5], made(realisation=GradientSteps())
    callback = AnnotatorWeights()
    callback.load_state_dict({"prior": PRIOR, "weights": weights})
    callback.on_train_start(rows.trainer(), game)
    assert game.oracle.weights == [0.5, 0.25, 0.25]  # between rounds they are worked out anew
    game.progress.step = 1
    callback.on_train_start(rows.trainer(), game)
    assert game.oracle.weights == pytest.approx(weights)
    callback.on_train_batch_start(rows.trainer(), game, zoo.all_prompts(game), 0)
    assert game.oracle.weights == pytest.approx(weights)
    game.progress.step = 0
    game.estimator.products["of other weights"] = torch.zeros(2, 5)
    AnnotatorWeights().setup(rows.trainer(), game, "fit")
    callback.on_train_batch_start(rows.trainer(), game, zoo.all_prompts(game), 0)
    assert not game.estimator.products
    weights = adversary(LOG_REFERENCE, 0.1)[0].tolist()
    assert game.oracle.weights == pytest.approx(weights)
    again = AnnotatorWeights()
    again.load_state_dict(callback.state_dict())
    assert again.state_dict() == {"prior": PRIOR, "weights": pytest.approx(weights)}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: made(realisation=ClosedForm()), "rounds_per_step to 1"),
        (lambda: made(algorithm=NashMP(eta="adaptive")), "adaptive step remembers"),
        (lambda: made(around=lambda one: Transformed(one, "sign")), "paid by Transformed: put"),
        (lambda: zoo.small_game(NashMP()), "paid by Scored: put"),
        (lambda: made(wrap=of_different_range), "theirs have different ranges"),
    ],
)
def test_refusals(make, sentence):
    with pytest.raises(UserError, match=sentence):
        AnnotatorWeights().setup(rows.trainer(), make(), "fit")


def test_arguments_that_are_none():
    for options in ({"tau": 0.0}, {"tau": float("nan")}, {"num_responses": 0}):
        with pytest.raises(UserError, match=f"AnnotatorWeights.{next(iter(options))} must be"):
            AnnotatorWeights(**options)


def test_labels_of_a_population_may_stand_around():
    game = made(around=lambda one: BernoulliLabels(one, seed=0), realisation=GradientSteps())
    AnnotatorWeights().setup(rows.trainer(), game, "fit")


def test_a_resumed_run_goes_on_as_it_would_have(tmp_path):
    """Stopped in the middle of a round, whose weights are in the checkpoint."""

    def play(steps, **given):
        game = made(realisation=GradientSteps(), algorithm=NashMP(inner_steps=2))
        callback = AnnotatorWeights(tau=0.05)
        limits = {"max_steps": steps, "limit_val_batches": 0}
        trainer = rows.trainer(callbacks=[callback], **limits)
        trainer.fit(game, TablePrompts(), **given)
        return trainer, game

    _, whole = play(10)  # of four steps a round
    trainer, half = play(6)
    assert not half.between_rounds
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = play(10, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.oracle.weights == pytest.approx(whole.oracle.weights, abs=1e-12)
    torch.testing.assert_close(resumed.log_policy(), whole.log_policy(), rtol=0, atol=1e-9)
    assert resumed.oracle.weights != [0.5, 0.25, 0.25]
