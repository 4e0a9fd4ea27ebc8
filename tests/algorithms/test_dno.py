"""DNO: the step that its cross-entropy takes, and what samples make of it."""

import pytest
import torch
import zoo
from torch.nn.functional import logsigmoid

from algorithms.test_gradients import all_draws, enumerated_gradient, gradients
from nlhf_zoo.algorithms import DNO
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.losses import pair_weight
from nlhf_zoo.records.random_streams import random_stream

ETA = 0.7


def logits_of(game):
    return game.policy.networks["policy"].logits


@pytest.mark.parametrize("eta", [0.1, ETA, 20.0])
def test_enumerated_the_minimiser_is_the_step(eta):
    """At the closed form's policy the gradient is zero, and beside it it is not."""
    P, mu = zoo.small_games()
    start = mu + 0.5 * zoo.normal_logits(6, seed=2)
    new = zoo.engine(DNO(eta), P, mu, start).run(0, 1).log_policy[0]
    game = zoo.small_game(DNO(eta), realisation=GradientSteps(), start=start.log_softmax(-1))
    played = game.rollout.play(game.step, game.policy, zoo.all_prompts(game), None)
    norms = []
    for beside in (0.0, 0.01):
        with torch.no_grad():
            logits_of(game).copy_(new + beside * zoo.normal_logits(6, seed=3))
        norms.append(gradients(game, game.step, *played).norm().item())
    assert norms[0] < 1e-12
    assert norms[1] > 1e-6


def test_one_step_by_hand():
    """Of five responses of the anchor, the last of which nobody can say anything about."""
    game = zoo.small_game(
        DNO(ETA), rollout=Sample(5), realisation=GradientSteps(), lr=0.5,
        wrap=lambda oracle: zoo.Silent(oracle, action=2),
    )  # fmt: skip
    zoo.scatter_players(game)
    logits, anchor = (
        game.policy.networks[player].logits.detach().clone() for player in ("policy", "anchor")
    )
    logits.requires_grad_()
    rng = random_stream(0, 0, 0, torch.device("cpu"))
    drawn = torch.multinomial(anchor.softmax(-1), 5, True, generator=rng)
    assert (drawn == 2).any()
    loss = 0
    for row, actions in enumerate(drawn):
        kept = [a for a in actions.tolist() if a != 2]
        num, p = len(kept), game.oracle.table[row]
        assert num > 1
        q = {a: sum(p[a, b] for b in kept) / num for a in kept}
        d = logits[row].log_softmax(-1) - anchor[row].log_softmax(-1)
        for i, a in enumerate(kept):
            for j, b in enumerate(kept):
                target, z = torch.sigmoid(q[a] - q[b]), (d[a] - d[b]) / ETA
                entropy = -target * logsigmoid(z) - (1 - target) * logsigmoid(-z)
                loss = loss + (entropy / (num * (num - 1)) if i != j else 0)
    expected = logits - 0.5 * torch.autograd.grad(loss / len(drawn), logits)[0]
    zoo.fit(game, 1)
    torch.testing.assert_close(logits_of(game).detach(), expected.detach(), rtol=1e-9, atol=1e-12)


# ---- the bias of sampled payoffs, which its row declares ----


def bias(num_opponents):
    """Of the expected gradient of one step [3], exactly; and the game that it was taken in."""
    algorithm = DNO(ETA, self_play=False)
    (step,) = algorithm.steps(zoo.BETA, 0)
    game, ours, theirs, probability = all_draws(step, 3, 2, num_opponents, algorithm)
    found = probability @ gradients(game, game.plan[0], ours, theirs)
    return found - enumerated_gradient(algorithm, 0, 3), game


@pytest.mark.parametrize("num_opponents", [4, 8])
def test_sampled_payoffs_bias_it_by_their_variance(num_opponents):
    """By sigma'' var(q - q') / 2 in each pair's target, to second order; the rest falls, too."""
    found, game = bias(num_opponents)
    anchor = game.policy.networks["anchor"].logits[0].softmax(-1).detach()
    P = game.oracle.table[0]
    difference = P[:, None, :] - P[None, :, :]  # of y and y', against each opponent
    mean = difference @ anchor
    variance = (difference - mean[..., None]).square() @ anchor / num_opponents
    sigma = torch.sigmoid(mean)
    shift = sigma * (1 - sigma) * (1 - 2 * sigma) * variance / 2
    expected = -2 / ETA * anchor * (shift @ anchor)
    assert found.norm() > 1e-4 / num_opponents
    torch.testing.assert_close(found, expected, rtol=0.8 / num_opponents, atol=1e-7)


@pytest.mark.parametrize("row", [row for row in zoo.GRADIENT if row.biased], ids=str)
def test_a_row_that_is_declared_biased_is(row):
    """In self-play, too, and as one over the number of responses."""
    found = {}
    for num in (4, 8):
        algorithm = row.make()
        game, ours, theirs, probability = all_draws(game_step(row), 3, num, 1, algorithm)
        mean = probability @ gradients(game, game.plan[0], ours, theirs)
        found[num] = (mean - enumerated_gradient(algorithm, 0, 3)).norm().item()
    assert found[8] > 1e-6
    assert found[4] / found[8] == pytest.approx(2, rel=0.35)


def game_step(row):
    (step,) = row.make().steps(zoo.BETA, 0)
    return step


# ---- weights of pairs ----


def test_pairs_of_valid_responses_weigh_the_same():
    weight = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.25] * 4, [0, 0, 0, 1.0], [0.0] * 4])
    found = pair_weight(weight, enumerated=False)
    assert found[0, 0, 2] == found[0, 2, 0] == 0.5
    assert found.sum((1, 2)).tolist() == pytest.approx([1, 1, 0, 0])
    assert (found.diagonal(dim1=1, dim2=2) == 0).all()
    probability = torch.tensor([[0.7, 0.3]])
    assert torch.equal(pair_weight(probability, enumerated=True)[0], probability.T @ probability)


def test_one_sampled_response_is_no_pair():
    with pytest.raises(ValueError, match="needs two responses a prompt"):
        pair_weight(torch.ones(1, 1), enumerated=False)
