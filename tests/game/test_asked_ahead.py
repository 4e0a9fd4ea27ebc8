"""Further passes over the rollout that is judged, while the next one is being answered."""

import pytest
import torch
import zoo

from game.test_ahead import by_hand, language_game
from game.test_held_rollouts import counting_questions
from game.test_reuse import C, N, adam
from nlhf_zoo.algorithms import OnlineIPO
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.oracles import BernoulliLabels, EnsembleOracle, MatrixOracle, SmallLanguage
from nlhf_zoo.policies import TabularPolicy
from nlhf_zoo.policies.language_model.generation import TransformersGenerator


class Slow(MatrixOracle):
    """People who have answered what they were asked ahead when somebody has looked so often."""

    asks_ahead = True

    def __init__(self, table, looks=()):
        super().__init__(table)
        self.looks, self.asked = [*looks], []

    def ask_ahead(self, prompts, first, second):
        self.asked.append(prompts.ids.tolist())
        left = [self.looks.pop(0)]

        def is_answered():
            left[0] -= 1
            return left[0] < 0

        return is_answered


class Around(MatrixOracle):
    """Has people within, and answers itself."""

    def __init__(self, table):
        super().__init__(table)
        self.people = Slow(table)


class Asked(SmallLanguage):
    """As the small language; it keeps what it is asked ahead, and has answered it."""

    asks_ahead = True

    def __init__(self, **options):
        super().__init__(**options)
        self.asked, self.texts = [], []

    def ask_ahead(self, prompts, first, second):
        self.asked.append(prompts.ids.tolist())
        self.texts.append(first.text)
        return lambda: True


def table_game(oracle, rollout, **kwargs):
    """A game of tables, whose oracle is made from these."""
    table, log_mu = zoo.small_games(C, N)
    options = {"realisation": GradientSteps(), "optimizer": adam} | kwargs
    policy = TabularPolicy(zoo.TensorReference(log_mu))
    return OnlineGame(
        policy, oracle(table), OnlineIPO(eta=0.7), zoo.BETA, rollout=rollout, **options
    )


def slow_game(looks, micro_batches=1, **options):
    rollout = Sample(6, **({"epochs": 3, "held_out": 0, "ahead": True} | options))
    return table_game(lambda table: Slow(table, looks), rollout, micro_batches=micro_batches)


# What the next rollout's answers keep waiting, and how many passes each rollout has by that.
WAITS = [((0, 0, 0), (3, 3, 3, 3)), ((0, 2, 1), (3, 5, 4, 3)), ((9, 1, 0), (7, 4, 3, 3))]


@pytest.mark.parametrize(("looks", "epochs"), WAITS)
def test_a_rollout_is_passed_over_until_the_next_one_is_answered(looks, epochs):
    """And a step is the one that so many passes would have been, had they been planned."""
    game = slow_game(looks, max_epochs=7)
    expected = by_hand(game, 4, epochs)
    zoo.fit(game, rounds=4)
    torch.testing.assert_close(game.policy.networks["policy"].logits.detach(), expected)
    assert game.progress.extra_epochs == sum(epochs) - 12
    assert game.trainer.callback_metrics["rollout/extra_epochs"] == sum(epochs) - 12
    assert len(game.oracle.asked) == 3  # none of a round that the budget has not


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_prompt_is_left_out_while_others_wait(accumulate):
    """The stream of prompts stands still: each round has the prompts that it would have had."""
    asked = {}
    for looks in ([0] * 9, [1, 0, 3, 0, 0, 2, 0, 1, 1]):
        game = slow_game(looks, micro_batches=2, minibatch=1, epochs=2)
        asked[sum(looks)] = counting_questions(game)
        data = TablePrompts(batch_size=4 // accumulate, shuffle=True)
        zoo.fit(game, rounds=4, data=data, accumulate_grad_batches=accumulate)
        assert game.oracle.asked == asked[sum(looks)][2:]  # of the second round on
    assert asked[0] == asked[8]
    assert game.progress.extra_epochs > 0


def test_each_member_of_a_population_is_asked_ahead():
    looks = {"first": [0, 2, 0], "second": [1, 0, 0]}
    slow = {}

    def population(table):
        slow.update({name: Slow(table, each) for name, each in looks.items()})
        return EnsembleOracle([*slow.values(), MatrixOracle(table)])

    rollout = Sample(6, epochs=2, held_out=0, ahead=True)
    game = zoo.fit(table_game(population, rollout), rounds=4)
    assert slow["first"].asked == slow["second"].asked == [[0, 1, 2, 3]] * 3
    assert game.progress.extra_epochs == 3


@pytest.mark.filterwarnings("ignore:Found .* module")
def test_the_engine_that_trains_draws_before_it_goes_on():
    plain = language_game(TransformersGenerator(), oracle=Asked)
    asked = counting_questions(plain)
    zoo.fit(plain, rounds=3)
    assert plain.oracle.asked == asked[1:]
    assert all(texts for texts in plain.oracle.texts)


REFUSED = [
    (Sample(6, epochs=2), Slow, "set model.rollout.epochs and ahead, or wait to true"),
    (Enumerate(), Slow, "Slow with wait false has the next rollout answered"),
    (
        Sample(6),
        lambda table: BernoulliLabels(Slow(table)),
        "Slow with wait false has the next rollout answered",
    ),
    (
        Sample(6, epochs=2, ahead=True),
        Around,
        "and Around around it asks when it is asked itself: set wait to true",
    ),
    (
        Sample(6, epochs=2, ahead=True, max_epochs=4),
        MatrixOracle,
        "MatrixOracle has nobody to wait for: leave it out",
    ),
]


@pytest.mark.parametrize(("rollout", "oracle", "sentence"), REFUSED)
def test_nobody_answers_what_is_not_drawn(rollout, oracle, sentence):
    with pytest.raises(UserError, match=sentence):
        table_game(oracle, rollout)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_epochs": 4, "epochs": 2}, "set ahead too, or leave max_epochs out"),
        ({"max_epochs": 1, "epochs": 2, "ahead": True}, "between epochs, 2, and 1,000,000, not 1"),
    ],
)
def test_a_limit_below_what_is_planned_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sample(6, **options)
