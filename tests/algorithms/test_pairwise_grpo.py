"""Pairwise GRPO: what it is equal to, and what clipping, lengths and the division do to it."""

from dataclasses import replace

import pytest
import torch
import zoo

from nlhf_zoo import losses
from nlhf_zoo.algorithms import MovingMagnet, OnlineIPO, PairwiseGRPO
from nlhf_zoo.algorithms.surrogates import policy_gradient, proximal_regression
from nlhf_zoo.data.tables import games
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.health import HealthCheck, run_checks
from nlhf_zoo.records import Batch, ProximalStep
from nlhf_zoo.solvers import exploitability

PLAIN, NORMALISED = PairwiseGRPO(), PairwiseGRPO(normalise=True)
(STEP,) = PLAIN.steps(zoo.BETA, 0)
(DIVIDED,) = NORMALISED.steps(zoo.BETA, 0)


def a_batch(num=4, **fields):
    """Four sampled responses to two prompts, of a policy that has left its reference."""

    def numbers(seed):
        return zoo.normal_logits(2, num, seed=seed)

    log_prob = numbers(0).requires_grad_()
    weight = torch.full((2, num), 1 / num, dtype=torch.float64)
    centre = (0.99 * log_prob + 0.01 * numbers(1)).detach()
    given = {"payoff": numbers(2).sigmoid(), "weight": weight} | fields
    return Batch(log_prob, centre, numbers(1), beta=zoo.BETA, enumerated=False, **given)


def gradient(algorithm, step, batch):
    (found,) = torch.autograd.grad(algorithm.loss(step, batch).sum(), batch.log_prob)
    return found


def test_without_its_terms_it_is_online_ipo_by_policy_gradients():
    """SPO with a KL: in closed form and in every sampled gradient."""
    rival = OnlineIPO(surrogate=policy_gradient)
    assert [*rival.steps(zoo.BETA, 0)] == [STEP]
    batch = a_batch()
    assert torch.equal(gradient(PLAIN, STEP, batch), gradient(rival, STEP, batch))


def test_a_step_by_hand():
    """g = grad log pi(y) [r - beta log(pi/mu) - mean of the others], r over its deviation."""
    batch = a_batch()
    q, kl = batch.payoff, zoo.BETA * (batch.log_prob - batch.reference_log_prob).detach()
    for algorithm, step in ((PLAIN, STEP), (NORMALISED, DIVIDED)):
        reward = q / q.std(-1, keepdim=True) if algorithm.normalise else q
        value = reward - kl
        others = (value.sum(-1, keepdim=True) - value) / 3
        torch.testing.assert_close(gradient(algorithm, step, batch), -(value - others) / 4)


def test_of_two_responses_the_division_leaves_who_won():
    """By how much is lost: one wins by 0.001 or by 0.4, and the gradient is the same."""
    close, clear = (
        torch.tensor([[0.5 + margin, 0.5 - margin]], dtype=torch.float64) for margin in (1e-3, 0.4)
    )
    weight = torch.full((1, 2), 0.5, dtype=torch.float64)
    first, second = (losses.standardised(q, weight, False) for q in (close, clear))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first - 0.5, torch.tensor([[1, -1]]) * 0.5**0.5, check_dtype=False)


def test_equal_payoffs_and_missing_ones_are_no_advantage():
    """Neither rounding nor what is said of an invalid response is blown up."""
    weight = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]], dtype=torch.float64)
    payoff = torch.tensor([[0.3, 0.3 + 1e-16, 0.1 + 0.2, 0.9]], dtype=torch.float64)
    assert (losses.standardised(payoff, weight, False)[:, :3] == 0.5).all()
    batch = a_batch(weight=weight.expand(2, -1))
    lie = replace(batch, payoff=torch.where(batch.weight > 0, batch.payoff, torch.nan))
    found, expected = (gradient(NORMALISED, DIVIDED, each) for each in (lie, batch))
    assert torch.equal(found, expected)
    assert (found[:, 3] == 0).all()


def test_a_group_of_self_play_alone_is_normalised():
    with pytest.raises(ValueError, match="within the group of self-play alone"):
        ProximalStep({"policy": 1.0}, ((1.0, {"policy": 1.0}),), 0.1, normalised=True)


def test_a_round_with_the_division_by_hand():
    """Also where some actions do not exist; products are asked for once."""
    P, mu = zoo.small_games(3, 5)
    start = zoo.normal_logits(3, 5, seed=7)
    whole = torch.full((3, 7, 7), 0.9, dtype=torch.float64)
    whole[:, :5, :5] = P
    missing = torch.full((3, 2), -torch.inf, dtype=torch.float64)
    played = [
        zoo.engine(NORMALISED, P, mu, start).run(0, 2),
        zoo.engine(NORMALISED, whole, torch.cat([mu, missing], 1), torch.cat([start, missing], 1))
        .run(0, 2),
    ]  # fmt: skip
    x = start.log_softmax(-1)
    for number in range(2):
        pi = x.exp()
        q = (P @ pi[:, :, None])[:, :, 0]
        deviation = (pi * (q - 0.5) ** 2).sum(-1, keepdim=True).sqrt()
        x = (0.99 * x + 0.01 * mu + 0.1 * q / deviation).log_softmax(-1)
        for found in played:
            row = found.log_policy[number].log_softmax(-1)[:, :5]
            torch.testing.assert_close(row, x, atol=1e-12, rtol=0)
            assert found.queries.tolist() == [1, 2]


def test_the_division_makes_the_exact_update_circle():
    """Without it the update converges; with it no game does, nor from beside the equilibrium."""
    P, mu = games.uniform_random(10, 10, seed=0), zoo.normal_logits(10, 10, seed=1).log_softmax(-1)

    def curve(algorithm, start, rounds):
        played = zoo.engine(algorithm, P, mu, start).run(0, rounds).log_policy.log_softmax(-1)
        return exploitability(P, played, mu, zoo.BETA)

    solved = zoo.engine(PLAIN, P, mu, mu).run(0, 3000).log_policy[-1].log_softmax(-1)
    assert exploitability(P, solved, mu, zoo.BETA).max() < 1e-12
    for start in (mu, solved):
        tail = curve(NORMALISED, start, 1500)[-1000:]
        assert (tail.amin(0) > 0.005).all()
        assert (tail.amax(0) > exploitability(P, mu, mu, zoo.BETA)).all()
        assert (tail.amax(0) > 2 * tail.amin(0)).all()


def test_a_mean_over_tokens_is_a_sum_over_the_length():
    length = torch.tensor([[1, 2, 5, 10]] * 2)
    batch = a_batch(length=length)
    plain, mean = (gradient(PairwiseGRPO(length=flag), STEP, batch) for flag in (False, True))
    torch.testing.assert_close(mean, plain / length)
    one = replace(batch, length=torch.ones_like(length))
    assert torch.equal(gradient(PairwiseGRPO(length=True), STEP, one), plain)
    sampler = batch.log_prob.detach() - 0.05  # of an earlier policy
    held = replace(batch, sampler_log_prob=sampler)
    plain, mean = (gradient(PairwiseGRPO(length=flag), STEP, held) for flag in (False, True))
    torch.testing.assert_close(mean, plain / length)


@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: MovingMagnet(inner, 2)])
def test_a_ratio_is_clipped_where_that_is_asked_for(wrap):
    """The rollout says where, and the share that is clipped is logged."""
    shares = []
    for clip in (False, True):
        rollout = Sample(6, epochs=3, held_out=0.0, clip=0.01)
        game = zoo.small_game(
            wrap(PairwiseGRPO(clip=clip)), rollout=rollout, realisation=GradientSteps(), lr=3.0
        )
        shares.append(zoo.fit(game, rounds=2).trainer.callback_metrics["rollout/clipped"])
    assert shares[0] == 0
    assert shares[1] > 0


def test_terms_of_the_policy_gradient_are_refused_with_another_loss():
    for terms in ({"clip": True}, {"length": True}):
        with pytest.raises(ValueError, match="clip and length need PairwiseGRPO's own"):
            PairwiseGRPO(surrogate=proximal_regression, **terms)


# ---- what is said of the division ----


def warnings_of(algorithm, capsys):
    """What a fit and the doctor say."""
    parts = {"rollout": Sample(4), "realisation": GradientSteps()}
    game = zoo.small_game(algorithm, **parts)
    capsys.readouterr()
    zoo.fit(game, rounds=1, callbacks=[HealthCheck()])
    said = capsys.readouterr().err
    game = zoo.small_game(algorithm, **parts)
    notes = [str(one) for _, found in run_checks(game, zoo.all_prompts(game)) for one in found]
    return said, [note for note in notes if "a warning" in note]


def test_a_run_and_the_doctor_warn_of_the_division_once(capsys):
    said, notes = warnings_of(PairwiseGRPO(normalise=True), capsys)
    assert said.count("does not solve the game") == said.count("\n") == 1
    (note,) = notes
    assert said.strip() in note
    inside, notes = warnings_of(MovingMagnet(PairwiseGRPO(normalise=True), 2), capsys)
    assert inside == said
    assert len(notes) == 1
    assert warnings_of(PairwiseGRPO(clip=True), capsys) == ("", [])


def test_samples_are_compared_with_each_other():
    with pytest.raises(UserError, match="PairwiseGRPO compares responses with each other"):
        zoo.small_game(PLAIN, rollout=Sample(1), realisation=GradientSteps())
