"""Nash-EMA: which parameters are averaged, and what that is on a table."""

import lightning as L
import torch
import zoo

from nlhf_zoo.algorithms import IPOMD, NashEMA, NashMD, OnlineIPO
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.policies import MLPPolicy
from nlhf_zoo.records import PLAIN

WEIGHT = 0.3


def test_on_a_table_it_is_nash_md_with_its_mixture():
    """Where it starts at the reference; elsewhere the start takes the reference's place."""
    P, mu = zoo.small_games()
    start = zoo.normal_logits(*mu.shape, seed=4)
    found = zoo.engine(NashEMA(0.3, WEIGHT), P, mu, mu).run(0, 50).log_policy.log_softmax(-1)
    for rival in (NashMD(0.3, WEIGHT), IPOMD(0.3, WEIGHT)):
        expected = zoo.engine(rival, P, mu, mu).run(0, 50).log_policy.log_softmax(-1)
        assert (found - expected).abs().max() < 1e-12
    found, expected = (
        zoo.engine(each, P, mu, start).run(0, 50).log_policy.log_softmax(-1)
        for each in (NashEMA(0.3, WEIGHT), NashMD(0.3, WEIGHT))
    )
    assert (found - expected).abs().max() > 1e-2


def test_without_a_weight_it_is_online_ipo():
    P, mu = zoo.small_games()
    start = zoo.normal_logits(*mu.shape, seed=4)
    found, expected = (
        zoo.engine(each, P, mu, start).run(0, 50).log_policy.log_softmax(-1)
        for each in (NashEMA(0.3, 0.0), OnlineIPO(0.3))
    )
    assert (found - expected).abs().max() < 1e-12
    assert NashEMA(0.3, 0.0).last_iterate
    assert not NashEMA().last_iterate


class Opponents(L.Callback):
    """After each round: how far the opponent's parameters are from the average."""

    def __init__(self):
        self.apart = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        policy, anchor, start = (
            [*pl_module.policy.networks[player].parameters()]
            for player in ("policy", "anchor", "start")
        )
        each = zip(policy, anchor, start, strict=True)
        self.apart.append(
            max((o - (1 - WEIGHT) * p - WEIGHT * s).abs().max().item() for p, o, s in each)
        )


def test_on_a_network_parameters_are_averaged_and_no_laws():
    """And the opponents that are drawn are the average's; the start stays what it was."""
    P, mu = zoo.small_games()
    torch.manual_seed(0)
    game = OnlineGame(
        MLPPolicy(zoo.TensorReference(mu)), MatrixOracle(P), NashEMA(0.3, WEIGHT), zoo.BETA,
        rollout=Sample(8, 4), realisation=GradientSteps(),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    )  # fmt: skip
    first = [p.clone() for p in game.policy.networks["start"].parameters()]
    drawn, sample = [], game.policy.sample
    game.policy.sample = lambda who, *rest: drawn.append(dict(who)) or sample(who, *rest)
    opponents = Opponents()
    zoo.fit(game, rounds=4, callbacks=[opponents])
    assert len(opponents.apart) == 4
    assert max(opponents.apart) < 1e-12
    assert drawn == [{"policy": 1.0}, {"anchor": 1.0}] * 4
    now = [*game.policy.networks["start"].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, now, strict=True))
    prompts = zoo.all_prompts(game)
    average = game.policy.distribution({"anchor": 1.0}, prompts, PLAIN)
    mixture = game.policy.distribution({"policy": 1 - WEIGHT, "start": WEIGHT}, prompts, PLAIN)
    assert (average - mixture).abs().max() > 1e-2
