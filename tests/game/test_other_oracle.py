"""A checkpoint in the hands of a game whose oracle is another than the run's."""

import copy

import torch
from language_models import refused
from zoo import small_games

from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.oracles import BernoulliLabels, MatrixOracle
from nlhf_zoo.policies import TabularPolicy


def game_of(labels, loads_oracle=True):
    P, _ = small_games(2)
    oracle = MatrixOracle(P)
    game = OnlineGame(
        TabularPolicy(), BernoulliLabels(oracle, seed=0) if labels else oracle, NashMP(),
        realisation=GradientSteps(),
    )  # fmt: skip
    game.loads_oracle = loads_oracle
    return game


def test_nothing_of_another_oracle_is_loaded():
    run = game_of(labels=True)
    run.oracle.calls += 5
    run.progress.round = 3
    saved = {"state_dict": run.state_dict()}
    run.on_save_checkpoint(saved)
    saved["online_game"]["products"] = {("policy",): torch.ones(2)}
    same, other = game_of(labels=True), game_of(labels=True, loads_oracle=False)
    for game, calls, products in ((same, 5, 1), (other, 0, 0)):
        checkpoint = copy.deepcopy(saved)
        game.on_load_checkpoint(checkpoint)
        game.load_state_dict(checkpoint["state_dict"], strict=False)
        assert int(game.oracle.calls) == calls
        assert len(game.estimator.products) == products
        assert game.progress.round == 3
    plain = game_of(labels=False)
    bare = {"state_dict": plain.state_dict()}
    plain.on_save_checkpoint(bare)
    refused("lacks 1 of its parameters, oracle.calls", same.on_load_checkpoint, bare)
    other.on_load_checkpoint(bare)
