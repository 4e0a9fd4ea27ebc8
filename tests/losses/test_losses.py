"""The pure losses: numbers by hand, gradients, minimisers, and what they do at the edges."""

import math
from itertools import pairwise

import pytest
import torch
from torch.autograd import gradcheck
from zoo import normal_logits

from nlhf_zoo import losses
from nlhf_zoo.algorithms import surrogates
from nlhf_zoo.records import Batch, ProximalStep

B, K = 3, 4


def weights(seed=0, enumerated=True):
    """Probabilities [B, K], or 1 / K."""
    if not enumerated:
        return torch.full((B, K), 1 / K, dtype=torch.float64)
    return normal_logits(B, K, seed=seed).softmax(-1)


def pairs(weight, enumerated):
    """Weights of pairs [B, K, K], written a second time."""
    if enumerated:
        return torch.einsum("bk,bl->bkl", weight, weight)
    return torch.stack([(1 - torch.eye(K).double()) / (K * (K - 1))] * B)


both = pytest.mark.parametrize("enumerated", [True, False], ids=["enumerated", "sampled"])


# ---- values ----


def test_pair_regression_by_hand():
    # d = (1, 3), weights (1/4, 3/4): the pairs (1, 3) and (3, 1) have weight 3/16 and square 4
    # each: 2 * 3/16 * 4 = 3/2.
    d, weight = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.25, 0.75]])
    assert losses.pair_regression(d, weight, True).item() == pytest.approx(1.5)
    # Sampled, the only pair of distinct responses counts whole: (1 - 3)^2 = 4.
    assert losses.pair_regression(d, torch.tensor([[0.5, 0.5]]), False).item() == pytest.approx(4.0)


def test_pointwise_regression_by_hand():
    # Errors (1 - 0, 3 - 1) with weights (1/4, 3/4): 1/4 + 3 = 13/4.
    loss = losses.pointwise_regression(
        torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25, 0.75]])
    )
    assert loss.item() == pytest.approx(3.25)


def test_policy_gradient_by_hand():
    # v = (1, 3), weights (1/4, 3/4): baseline 5/2, advantages (-3/2, 1/2); the loss is
    # 3/8 log p1 - 3/8 log p2.
    log_prob, value = torch.tensor([[-1.0, -2.0]]), torch.tensor([[1.0, 3.0]])
    loss = losses.policy_gradient(log_prob, value, torch.tensor([[0.25, 0.75]]), True)
    assert loss.item() == pytest.approx(3 / 8 * (-1.0 + 2.0))
    # Sampled, each one's baseline is the other's value: advantages (-2, 2), weights 1/2, so
    # log p1 - log p2 = 1.
    loss = losses.policy_gradient(log_prob, value, torch.tensor([[0.5, 0.5]]), False)
    assert loss.item() == pytest.approx(-1.0 + 2.0)
    # One response alone has the baseline 1/2: - (1 - 1/2) log p.
    alone = losses.policy_gradient(log_prob[:, :1], value[:, :1], torch.ones(1, 1), False)
    assert alone.item() == pytest.approx(0.5)


@pytest.mark.parametrize("enumerated", [True, False])
def test_no_gradient_flows_through_a_value(enumerated):
    """It may be computed from the same parameters, as log pi - log c is."""
    log_prob = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    value = 3 * log_prob
    weight = torch.tensor([[0.2, 0.5, 0.3]])
    losses.policy_gradient(log_prob, value, weight, enumerated).sum().backward()
    fixed = value.detach()
    baseline = (weight * fixed).sum() if enumerated else (fixed.sum() - fixed) / 2
    torch.testing.assert_close(log_prob.grad, -weight * (fixed - baseline))


def test_logistic_by_hand():
    # beta D = 0.5 (1 - 3) = -1, p = 0.8: - 0.8 log sigma(-1) - 0.2 log sigma(1) for the pair
    # (1, 2), and the same for (2, 1).
    p = torch.tensor([[[0.5, 0.8], [0.2, 0.5]]])
    pair_weight = torch.tensor([[[0.0, 0.5], [0.5, 0.0]]])
    loss = losses.logistic(torch.tensor([[1.0, 3.0]]), p, pair_weight, 0.5)
    expected = 0.8 * math.log1p(math.exp(1)) + 0.2 * math.log1p(math.exp(-1))
    assert loss.item() == pytest.approx(expected)


@both
def test_pair_regression_is_the_sum_over_pairs(enumerated):
    d, weight = normal_logits(B, K, seed=1), weights(2, enumerated)
    brute = (pairs(weight, enumerated) * (d[:, :, None] - d[:, None, :]) ** 2).sum((-2, -1))
    torch.testing.assert_close(losses.pair_regression(d, weight, enumerated), brute)


# ---- gradients ----


@both
def test_gradcheck(enumerated):
    x = normal_logits(B, K, seed=3).requires_grad_()
    target, weight = normal_logits(B, K, seed=4), weights(5, enumerated)
    preference = torch.sigmoid(normal_logits(B, K, K, seed=6))
    pair_weight = pairs(weight, enumerated)
    assert gradcheck(lambda d: losses.pair_regression(d, weight, enumerated), x)
    assert gradcheck(lambda d: losses.pointwise_regression(d, target, weight), x)
    assert gradcheck(lambda d: losses.logistic(d, preference, pair_weight, 0.3), x)
    assert gradcheck(lambda d: losses.policy_gradient(d, target, weight, enumerated), x)


def simple_game(num_actions=K):
    """Logits, log mu, log c and payoffs, [B, N] each."""
    parts = [normal_logits(B, num_actions, seed=10 + i) for i in range(4)]
    return parts[0], parts[1].log_softmax(-1), parts[2].log_softmax(-1), torch.sigmoid(parts[3])


def batch_of(logits, log_mu, log_centre, payoff, weight=None, beta=0.1, **other):
    """A batch over all actions; weighted by the policy unless told otherwise."""
    log_prob = logits.log_softmax(-1)
    weight = log_prob.detach().exp() if weight is None else weight
    return Batch(log_prob, log_centre, log_mu, payoff, weight, beta, enumerated=True, **other)


def step_of(step_size=0.7):
    return ProximalStep({"anchor": 1.0}, ((1.0, {"policy": 1.0}),), step_size)


def gradient(loss, at):
    return torch.autograd.grad(loss.sum(), at, retain_graph=True)[0]


def test_the_policy_gradient_is_the_gradient_of_the_objective():
    """Autograd of -(E_pi[q] - KL(pi || c) / s), which knows no score function."""
    logits, log_mu, log_centre, payoff = simple_game()
    logits.requires_grad_()
    found = gradient(
        surrogates.policy_gradient(step_of(), batch_of(logits, log_mu, log_centre, payoff)), logits
    )
    log_prob = logits.log_softmax(-1)
    objective = (log_prob.exp() * (payoff - (log_prob - log_centre) / 0.7)).sum(-1)
    torch.testing.assert_close(found, gradient(-objective, logits))


@both
def test_the_policy_gradient_is_the_regression_over_four_steps(enumerated):
    """4 s grad(policy gradient) = grad(pair regression), at any policy.

    Sampled, with the leave-one-out baseline, draw by draw and not in the mean alone.
    """
    logits, log_mu, log_centre, payoff = simple_game(6)
    logits.requires_grad_()
    batch, step = batch_of(logits, log_mu, log_centre, payoff), step_of()
    if not enumerated:
        actions = torch.tensor([[0, 3, 3, 5], [1, 2, 3, 4], [0, 0, 0, 1]])
        drawn = [x.gather(1, actions) for x in (batch.log_prob, log_centre, log_mu, payoff)]
        batch = Batch(*drawn, weights(enumerated=False), 0.1, enumerated=False)
    by_score = gradient(surrogates.policy_gradient(step, batch), logits)
    by_pairs = gradient(surrogates.proximal_regression(step, batch), logits)
    torch.testing.assert_close(4 * 0.7 * by_score, by_pairs)


def test_ipo_with_two_responses_in_self_play_is_the_formula_of_the_paper():
    """(D log(pi/mu) - (P(y > y') - 1/2) / beta)^2, arXiv 2403.08635; value and gradient."""
    p, beta = torch.tensor([0.9, 0.3, 0.5]).double(), 0.1
    log_ratio = normal_logits(B, 2, seed=7).requires_grad_()
    # q averages over both responses, oneself with 1/2.
    payoff = torch.stack([(0.5 + p) / 2, (1 - p + 0.5) / 2], -1)
    half, zero = torch.full((B, 2), 0.5).double(), torch.zeros(B, 2).double()
    batch = Batch(log_ratio, zero, zero, payoff, half, beta, enumerated=False, self_play=True)
    loss = surrogates.ipo_regression(step_of(), batch)
    paper = (log_ratio[:, 0] - log_ratio[:, 1] - (p - 0.5) / beta) ** 2
    torch.testing.assert_close(loss, paper)
    torch.testing.assert_close(gradient(loss, log_ratio), gradient(paper, log_ratio))


# ---- minimisers ----


def minimise(loss_at, start):
    """The logits where a loss is least."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-14, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = loss_at(logits).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)


@pytest.mark.parametrize("sampler", ["uniform", "other", "policy"])
def test_the_minimiser_of_the_regression_is_the_step_for_any_sampler(sampler):
    logits, log_mu, log_centre, payoff = simple_game(5)
    weight = {
        "uniform": torch.full((B, 5), 0.2).double(),
        "other": normal_logits(B, 5, seed=20).softmax(-1),
        "policy": logits.softmax(-1),
    }[sampler]
    step = step_of(1.3)

    def loss(x):
        batch = batch_of(x, log_mu, log_centre, payoff, weight)
        return surrogates.proximal_regression(step, batch)

    exact = (log_centre + 1.3 * payoff).log_softmax(-1)
    torch.testing.assert_close(minimise(loss, logits), exact, atol=1e-7, rtol=0)


def total_variation_of_sppo(step_size):
    """Between the minimiser of SPPO's loss and the step, on rock, paper, scissors."""
    P = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]).double()
    log_start = torch.tensor([[0.6, 0.3, 0.1]]).double().log()
    payoff = log_start.exp() @ P.T
    step, weight = step_of(step_size), log_start.exp()

    def loss(x):
        return surrogates.sppo_regression(step, batch_of(x, log_start, log_start, payoff, weight))

    exact = (log_start + step_size * payoff).softmax(-1)
    return (minimise(loss, log_start).exp() - exact).abs().sum().item() / 2


def test_the_minimiser_of_sppo_is_the_step_to_second_order():
    """log Z / s = 1/2 + O(s), so the target is off by O(s^2)."""
    distances = [total_variation_of_sppo(s) for s in (0.1, 0.2, 0.4)]
    assert distances[0] > 0
    for small, large in pairwise(distances):
        assert small <= large / 4 * 1.2  # at least second order
    assert distances[2] < 1e-3
    assert total_variation_of_sppo(10.0) > 1e-2


# ---- edges ----


def all_losses(x, weight, enumerated):
    target = torch.linspace(0, 1, x.shape[-1]).double().expand(x.shape)
    used = (weight > 0).double()
    pair_weight = used[:, :, None] * used[:, None, :]
    pair_weight = pair_weight / pair_weight.sum((-2, -1), keepdim=True).clamp(min=1)
    preference = torch.full(pair_weight.shape, 0.7).double()
    yield losses.pair_regression(x - target, weight, enumerated)
    yield losses.pointwise_regression(x, target, weight)
    yield losses.policy_gradient(x, target - x.detach(), weight, enumerated)
    yield losses.logistic(x, preference, pair_weight, 0.1)


@both
def test_extreme_log_probabilities_are_finite(enumerated):
    x = torch.tensor([[-1e4, 0.0, -3.0, -1e4]]).double().requires_grad_()
    weight = torch.tensor([[0.1, 0.5, 0.2, 0.2] if enumerated else [0.25] * 4]).double()
    for loss in all_losses(x, weight, enumerated):
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient(loss, x)).all()


@both
def test_absent_responses_leave_no_trace(enumerated):
    """-inf of weight 0 changes neither loss nor gradient, and makes no NaN."""
    present, weight = torch.tensor([[-1.0, -2.0]]).double(), torch.tensor([[0.25, 0.75]]).double()
    weight = weight if enumerated else torch.full((1, 2), 0.5).double()
    x = present.clone().requires_grad_()
    padded_x = torch.cat([present, torch.full((1, 2), -math.inf).double()], 1).requires_grad_()
    padded_weight = torch.cat([weight, torch.zeros(1, 2).double()], 1)

    def losses_of(x, weight):
        yield losses.pair_regression(x, weight, enumerated)
        yield losses.pointwise_regression(x, torch.zeros_like(x), weight)
        yield losses.policy_gradient(x, 1 - x.detach(), weight, enumerated)

    pairs = zip(losses_of(padded_x, padded_weight), losses_of(x, weight), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other)
        found = gradient(one, padded_x)
        torch.testing.assert_close(found[:, :2], gradient(other, x))
        assert (found[:, 2:] == 0).all()


def test_absent_responses_leave_no_trace_in_the_logistic_loss():
    x = torch.tensor([[-1.0, -2.0, -math.inf]]).double().requires_grad_()
    pair_weight = torch.tensor([[[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]]).double()
    preference = [[0.5, 0.8, math.nan], [0.2, 0.5, math.nan], [math.nan] * 3]
    preference = torch.tensor([preference]).double()
    loss = losses.logistic(x, preference, pair_weight, 0.1)
    small = losses.logistic(x[:, :2], preference[:, :2, :2], pair_weight[:, :2, :2], 0.1)
    torch.testing.assert_close(loss, small)
    found = gradient(loss, x)
    assert torch.isfinite(found).all()
    assert found[0, 2] == 0


@both
def test_a_prompt_without_answers_has_no_loss_and_no_gradient(enumerated):
    x = torch.tensor([[-1.0, -2.0, -3.0, -4.0]]).double().requires_grad_()
    for loss in all_losses(x, torch.zeros(1, 4).double(), enumerated):
        assert loss.item() == 0
        assert (gradient(loss, x) == 0).all()


def test_surrogates_that_do_not_fit_say_so():
    logits, log_mu, log_centre, payoff = simple_game()
    batch = batch_of(logits, log_mu, log_centre, payoff)
    with pytest.raises(ValueError, match="compares responses with each other"):
        surrogates.logistic(step_of(), batch)
    foreign = ProximalStep({"anchor": 1.0}, ((1.0, {"policy": 1.0}),), 1.0, sampler={"anchor": 1.0})
    with pytest.raises(ValueError, match="responses of the policy itself"):
        surrogates.policy_gradient(foreign, batch)
