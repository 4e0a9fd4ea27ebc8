"""Policies over a table: mixtures, decoding, sampling, players, and what gradients reach."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from zoo import TensorReference, decoded_by_hand, normal_logits

from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.policies import (
    GivenReference,
    MLPPolicy,
    NormalReference,
    TabularPolicy,
    UniformReference,
)
from nlhf_zoo.records import PLAIN, Decoding, Prompts
from nlhf_zoo.records.random_streams import random_stream

C, N = 3, 5
PLAYERS = ("policy", "anchor", "lookahead")
RAGGED = torch.tensor([[True] * 5, [True, False, True, True, False], [True] * 2 + [False] * 3])
CPU = torch.device("cpu")


def make_policy(kind=TabularPolicy, support=None, dtype="float64", **kwargs):
    """A policy whose players all differ, from each other and from the reference."""
    support = torch.ones(C, N, dtype=torch.bool) if support is None else support
    policy = kind(TensorReference(normal_logits(C, N, seed=0)), dtype=dtype, **kwargs)
    policy.bind(PLAYERS[1:], support)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += noise if kind is TabularPolicy else 0.3 * noise
    return policy


def everything(policy):
    return Prompts(torch.arange(len(policy.support)))


def log_probs(policy, who, decoding=PLAIN):
    """[C, N]."""
    prompts = everything(policy)
    return policy.log_prob(who, prompts, policy.enumerate(prompts), decoding)


def parameters_of(policy, player):
    return [p.detach().clone() for p in policy.networks[player].parameters()]


def probabilities(policy, who, decoding=PLAIN):
    return log_probs(policy, who, decoding).exp().detach().numpy()


each_kind = pytest.mark.parametrize("kind", [TabularPolicy, MLPPolicy])
each_support = pytest.mark.parametrize("support", [None, RAGGED], ids=["whole", "ragged"])
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


# ---- players and mixtures ----


@each_kind
@each_support
@each_dtype
def test_players_differ_and_mixtures_lie_between(kind, support, dtype):
    """The test that would have caught a reference that is the adapted policy."""
    policy = make_policy(kind, support, dtype)
    found = {player: log_probs(policy, {player: 1.0}) for player in policy.players}
    found["half"] = log_probs(policy, {"policy": 0.5, "reference": 0.5})
    assert set(policy.players) == {*PLAYERS, "reference"}
    names = list(found)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert (found[one].exp() - found[other].exp()).abs().amax(-1).min() > 1e-3, (one, other)
    assert all(x.dtype == getattr(torch, dtype) for x in found.values())


@each_kind
@each_support
def test_a_mixture_of_weight_one_is_that_player_exactly(kind, support):
    policy = make_policy(kind, support)
    plain = {player: log_probs(policy, {player: 1.0}) for player in ("policy", "reference")}
    assert torch.equal(log_probs(policy, {"policy": 1.0, "reference": 0.0}), plain["policy"])
    assert torch.equal(log_probs(policy, {"policy": 0.0, "reference": 1.0}), plain["reference"])
    expected = TensorReference(normal_logits(C, N, seed=0)).log_prob(policy.support)
    torch.testing.assert_close(plain["reference"], expected, atol=1e-14, rtol=0)


@each_kind
@each_support
def test_a_mixture_is_the_normalised_geometric_mean(kind, support):
    policy = make_policy(kind, support)
    weights = {"policy": 0.2, "reference": 0.5, "anchor": 0.3}
    players = [probabilities(policy, {player: 1.0}) ** w for player, w in weights.items()]
    product = np.prod(players, axis=0)
    expected = product / product.sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities(policy, weights), expected, atol=1e-14)


@each_kind
@each_support
def test_gradient_reaches_the_policy_and_no_other_player(kind, support):
    policy = make_policy(kind, support)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("networks.policy.") for name in trained)
    # Finite numbers only go into the sum: a NaN of an absent action would show.
    log_prob = log_probs(policy, {"policy": 0.5, "anchor": 0.25, "reference": 0.25})
    log_prob[policy.support].square().sum().backward()
    for name, parameter in policy.named_parameters():
        if name in trained:
            assert torch.isfinite(parameter.grad).all()
        else:
            assert parameter.grad is None
    assert any(p.grad is not None and p.grad.norm() > 0 for p in policy.parameters())
    assert not log_probs(policy, {"anchor": 1.0}).requires_grad
    assert not log_probs(policy, {"reference": 1.0}).requires_grad


@each_kind
def test_copies_and_averages(kind):
    policy = make_policy(kind)
    before = {p: log_probs(policy, {p: 1.0}).detach() for p in policy.players}
    parameters = {p: parameters_of(policy, p) for p in PLAYERS}
    storage = [x.data_ptr() for x in policy.networks["policy"].parameters()]
    policy.copy_("policy", "lookahead")
    assert torch.equal(log_probs(policy, {"lookahead": 1.0}), before["policy"])
    policy.lerp_("policy", "anchor", 0.25)
    pairs = zip(parameters["anchor"], parameters["policy"], strict=True)
    expected = [0.75 * anchor + 0.25 * source for anchor, source in pairs]
    torch.testing.assert_close(parameters_of(policy, "anchor"), expected)
    policy.lerp_("policy", "anchor", 1.0)
    assert torch.equal(log_probs(policy, {"anchor": 1.0}), before["policy"])
    # The policy trains on where it was; its copies do not follow it.
    assert torch.equal(log_probs(policy, {"policy": 1.0}), before["policy"])
    with torch.no_grad():
        for parameter in policy.networks["policy"].parameters():
            parameter += 1.5 * torch.randn_like(parameter)
    assert torch.equal(log_probs(policy, {"lookahead": 1.0}), before["policy"])
    assert storage == [x.data_ptr() for x in policy.networks["policy"].parameters()]
    for source, target in [("policy", "reference"), ("reference", "anchor")]:
        with pytest.raises(ValueError, match="never moves"):
            policy.copy_(source, target)


@each_kind
def test_a_snapshot_is_restored_bit_for_bit(kind):
    policy = make_policy(kind)
    before = parameters_of(policy, "policy")
    others = log_probs(policy, {"anchor": 1.0})
    snapshot = policy.snapshot()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    moved = log_probs(policy, {"anchor": 1.0})
    policy.restore(snapshot)
    pairs = zip(before, parameters_of(policy, "policy"), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(moved, others)
    # A snapshot is of the policy alone.
    assert torch.equal(log_probs(policy, {"anchor": 1.0}), moved)


# ---- starts ----


@each_kind
@each_support
@each_dtype
def test_a_policy_starts_at_the_reference_exactly(kind, support, dtype):
    policy = kind(NormalReference(seed=1), dtype=dtype)
    policy.bind(("anchor",), torch.ones(C, N, dtype=torch.bool) if support is None else support)
    reference = log_probs(policy, {"reference": 1.0})
    rounding = torch.finfo(reference.dtype).eps * 10
    for player in ("policy", "anchor"):
        found = log_probs(policy, {player: 1.0}).detach()
        torch.testing.assert_close(found, reference, atol=rounding, rtol=0)


@each_kind
def test_a_policy_starts_where_it_is_told(kind):
    policy = kind(UniformReference(), GivenReference([0.1, 0.2, 0.3, 0.15, 0.25]))
    policy.bind((), torch.ones(C, N, dtype=torch.bool))
    expected = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]] * C, dtype=torch.float64)
    torch.testing.assert_close(log_probs(policy, {"policy": 1.0}).exp(), expected)
    uniform = torch.full((C, N), 0.2).double()
    torch.testing.assert_close(log_probs(policy, {"reference": 1.0}).exp(), uniform)


def test_games_of_an_mlp_policy_have_networks_of_their_own():
    policy = make_policy(MLPPolicy, width=4, layers=2)
    log_probs(policy, {"policy": 1.0})[1, 0].backward()
    for parameter in policy.networks["policy"].parameters():
        assert parameter.grad[[0, 2]].norm() == 0
    assert any(p.grad[1].norm() > 0 for p in policy.networks["policy"].parameters())


def test_an_mlp_is_the_perceptron_that_it_says_it_is():
    """Ones -> linear -> relu -> linear -> relu -> linear, added to the start's logits."""
    policy = make_policy(MLPPolicy, width=4, layers=3)
    network = policy.networks["policy"]
    assert [tuple(w.shape[1:]) for w in network.weights] == [(4, 4), (4, 4), (4, N)]
    for game in range(C):
        x = np.ones(4)
        for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            x = x @ weight[game].detach().numpy() + bias[game, 0].detach().numpy()
            x = np.maximum(x, 0) if layer < 2 else x
        start = normal_logits(C, N, seed=0).log_softmax(-1)[game].numpy()
        found = network(torch.tensor([game]))[0].detach().numpy()
        np.testing.assert_allclose(found, start + x, atol=1e-13)


@each_kind
@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_precisions_are_refused(kind, dtype):
    with pytest.raises(ValueError, match="float32 or float64"):
        kind(dtype=dtype)


# ---- decoding ----


DECODINGS = [
    PLAIN,
    *(Decoding(temperature=temperature) for temperature in (2.0, 0.3, math.inf)),
    *(Decoding(top_k=top_k) for top_k in (1, 3, 50)),
    *(Decoding(top_p=top_p) for top_p in (0.6, 0.01)),
    Decoding(min_p=0.3),
    Decoding(temperature=2.0, top_k=4, top_p=0.8, min_p=0.2),
]


@each_kind
@each_support
@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_decoding_is_what_brute_force_finds(kind, support, decoding):
    policy, who = make_policy(kind, support), {"policy": 0.5, "reference": 0.5}
    found = probabilities(policy, who, decoding)
    expected = [decoded_by_hand(plain, decoding) for plain in probabilities(policy, who)]
    np.testing.assert_allclose(found, expected, atol=1e-14)
    assert (found[~policy.support.numpy()] == 0).all()


@each_kind
@each_support
@pytest.mark.parametrize("decoding", [DECODINGS[0], DECODINGS[3], DECODINGS[-1]], ids=str)
def test_samples_come_from_the_log_probabilities(kind, support, decoding):
    """Chi-square against `log_prob`, at an error rate of 1e-4 for each of 3 x 12 tests."""
    policy, who, num = make_policy(kind, support), {"policy": 0.7, "reference": 0.3}, 20_000
    drawn = policy.sample(who, everything(policy), num, decoding, random_stream(0, 0, 0, CPU))
    assert torch.equal(drawn.weight, torch.full((C, num), 1 / num, dtype=torch.float64))
    assert not drawn.enumerated
    probability = probabilities(policy, who, decoding)
    for game in range(C):
        counts = np.bincount(drawn.actions[game].numpy(), minlength=N)
        there = probability[game] > 0
        assert counts[~there].sum() == 0
        if there.sum() > 1:
            assert stats.chisquare(counts[there], num * probability[game][there]).pvalue > 1e-4
            # The test can fail: uniform samples would not pass where the policy is not uniform.
            if decoding.temperature == 1 and support is None:
                assert stats.chisquare(counts[there]).pvalue < 1e-4


@each_kind
def test_log_prob_of_samples_is_that_of_their_actions(kind):
    policy, prompts = make_policy(kind), Prompts(torch.tensor([2, 0, 2]))
    drawn = policy.sample({"policy": 1.0}, prompts, 7, PLAIN, random_stream(0, 0, 0, CPU))
    table = log_probs(policy, {"anchor": 1.0})
    expected = table[prompts.ids[:, None], drawn.actions]
    assert torch.equal(policy.log_prob({"anchor": 1.0}, prompts, drawn), expected)


def test_random_streams_are_repeatable_and_apart():
    def draw(*key):
        return tuple(torch.rand(4, generator=random_stream(*key, CPU)).tolist())

    keys = [*itertools.product((0, 1, 2), (0, 1, 2), (-1, 0, 1, 2))]  # seeds, ranks, steps
    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({draw(*key) for key in keys}) == len(keys)


# ---- rollouts ----


@each_support
def test_enumerated_responses_weigh_what_is_probable(support):
    policy = make_policy(support=support)
    who, decoding = {"anchor": 1.0}, Decoding(top_k=2)
    responses = Enumerate().responses(policy, who, everything(policy), 0, decoding)
    assert responses.enumerated
    assert torch.equal(responses.actions, torch.arange(N).expand(C, N))
    torch.testing.assert_close(responses.weight, log_probs(policy, who, decoding).exp())
    assert not responses.weight.requires_grad
    pairs = responses.pair_weight()
    torch.testing.assert_close(pairs, responses.weight[:, :, None] * responses.weight[:, None, :])


def test_sampled_pairs_weigh_the_same_off_the_diagonal():
    policy, rng = make_policy(), random_stream(0, 0, 0, CPU)
    drawn = Sample(3, 1).responses(policy, {"policy": 1.0}, everything(policy), 3, PLAIN, rng)
    pairs = drawn.pair_weight()
    torch.testing.assert_close(pairs.sum((1, 2)), torch.ones(C).double())
    torch.testing.assert_close(pairs[0], (1 - torch.eye(3).double()) / 6)


# ---- invariances ----


def test_constants_added_to_logits_change_nothing():
    policy = make_policy()
    who = {"policy": 0.4, "anchor": 0.6}
    before = log_probs(policy, who).detach()
    with torch.no_grad():
        policy.networks["policy"].logits += torch.tensor([[3.0], [-50.0], [1000.0]])
        policy.networks["anchor"].logits -= 7.0
    torch.testing.assert_close(log_probs(policy, who).detach(), before, atol=1e-12, rtol=0)


def test_relabelled_actions_are_relabelled_probabilities():
    order = torch.tensor([4, 2, 0, 1, 3])
    policy = make_policy(support=RAGGED)
    other = TabularPolicy(TensorReference(normal_logits(C, N, seed=0)[:, order]))
    other.bind(PLAYERS[1:], RAGGED[:, order])
    with torch.no_grad():
        for player in PLAYERS:
            other.networks[player].logits.copy_(policy.networks[player].logits[:, order])
    for who in ({"policy": 1.0}, {"policy": 0.3, "reference": 0.7}):
        for decoding in (PLAIN, DECODINGS[-1]):
            expected = log_probs(policy, who, decoding)[:, order]
            torch.testing.assert_close(log_probs(other, who, decoding), expected)


@each_kind
@each_support
def test_a_prompt_does_not_depend_on_its_batch(kind, support):
    policy, who = make_policy(kind, support), {"policy": 0.5, "reference": 0.5}
    table = log_probs(policy, who)
    for ids in ([1], [2, 0], [1, 1, 0, 2]):
        prompts = Prompts(torch.tensor(ids))
        found = policy.log_prob(who, prompts, policy.enumerate(prompts))
        torch.testing.assert_close(found, table[ids], atol=1e-14, rtol=0)


@each_kind
def test_absent_actions_are_never_played_and_have_no_weight(kind):
    policy = make_policy(kind, RAGGED)
    absent = ~RAGGED
    for who in ({"policy": 1.0}, {"reference": 1.0}, {"policy": 0.5, "reference": 0.5}):
        assert (log_probs(policy, who)[absent] == -math.inf).all()
        torch.testing.assert_close(log_probs(policy, who).exp().sum(-1), torch.ones(C).double())
    assert (policy.enumerate(everything(policy)).weight[absent] == 0).all()
    assert all(torch.isfinite(p).all() for p in policy.parameters())


def test_a_policy_needs_a_table():
    with pytest.raises(ValueError, match="needs an oracle over a table"):
        TabularPolicy().bind((), None)


WRONG = {"temperature": (0.0, math.nan), "top_k": (-1,), "top_p": (0.0, 1.1), "min_p": (1.0,)}


@pytest.mark.parametrize(("name", "wrong"), [(name, v) for name in WRONG for v in WRONG[name]])
def test_decodings_out_of_range_are_refused(name, wrong):
    with pytest.raises(ValueError, match=name):
        Decoding(**{name: wrong})
