"""NashPG is a moving magnet around policy gradients, and goes to the unregularised equilibrium."""

import pytest
import torch
import zoo

from nlhf_zoo.algorithms import MovingMagnet, OnlineIPO, PairwiseGRPO
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.data.tables import games
from nlhf_zoo.records import Batch

START = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()


class Players(dict):
    """Log-policies by name, which a round's end moves."""

    def copy_(self, source, target):
        self[target] = self[source]


def gradient_steps(algorithm, P, rounds, lr):
    """Exploitability of the unregularised game after each gradient step over all responses."""
    logits, found = START.clone().requires_grad_(), []
    players = Players(reference=START, magnet=START)
    for number in range(rounds):
        log_prob = logits.log_softmax(-1)
        players["policy"] = log_prob.detach()
        (step,) = algorithm.steps(zoo.BETA, number)
        centre = sum(weight * players[player] for player, weight in step.centre.items())
        weight = log_prob.detach().exp()
        payoff = (P @ weight[:, :, None])[:, :, 0]
        given = centre, players[step.reference], payoff, weight, zoo.BETA, True
        loss = algorithm.loss(step, Batch(log_prob, *given)).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= lr * gradient
        players["policy"] = logits.detach().log_softmax(-1)
        algorithm.end_round(players, number)
        found.append((P @ players["policy"].exp()[:, :, None]).amax().item() - 0.5)
    return found


@pytest.mark.parametrize(
    "inner", [PairwiseGRPO(), OnlineIPO(surrogate=policy_gradient)], ids=lambda a: type(a).__name__
)
def test_policy_gradients_around_a_moving_magnet_solve_the_unregularised_game(inner):
    """On the game of COMAL, where a magnet that stays leaves the solution at beta."""
    P = games.comal()
    moving = gradient_steps(MovingMagnet(inner, every=20), P, 250, lr=3.0)
    assert max(moving[-20:]) < 1e-5
    assert moving[0] > 0.1
    still = gradient_steps(inner, P, 250, lr=3.0)
    assert still[-1] == pytest.approx(0.0389, abs=1e-3)


def test_a_step_by_hand():
    """g = grad log pi(y) [r - beta log(pi/magnet)(y)], and no word of the reference."""
    (step,) = MovingMagnet(PairwiseGRPO(0.3), every=2).steps(zoo.BETA, 1)
    assert dict(step.centre) == {"policy": 1 - 0.03, "magnet": 0.03}
    assert step.reference == "magnet"
    log_prob = START.clone().requires_grad_()
    magnet = torch.tensor([[0.2, 0.2, 0.6]], dtype=torch.float64).log()
    q = torch.tensor([[0.7, 0.4, 0.1]], dtype=torch.float64)
    centre = (0.97 * log_prob + 0.03 * magnet).detach()
    weight = START.exp()
    batch = Batch(log_prob, centre, magnet, q, weight, zoo.BETA, True)
    loss = MovingMagnet(PairwiseGRPO(0.3), every=2).loss(step, batch).sum()
    (found,) = torch.autograd.grad(loss, log_prob)
    value = q - zoo.BETA * (START - magnet)
    torch.testing.assert_close(found, -weight * (value - (weight * value).sum()))
