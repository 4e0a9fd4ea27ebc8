"""An optimiser is what it says, and computes the loss once in a step: queries are counted so."""

import pytest
import torch
from torch import nn
from zoo import fit, small_game

from nlhf_zoo.algorithms import EGPO
from nlhf_zoo.algorithms.torch_optimizers import configure, refuse_failing_steps
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.realisation import GradientSteps

CPU = torch.device("cpu")


class Sometimes(torch.optim.SGD):
    """Computes the loss a second time, but not in its first step."""

    steps = 0

    def step(self, closure=None):
        type(self).steps += 1
        if closure is not None and type(self).steps > 2:
            closure()
        return super().step(closure)


def parameters():
    return [nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(7, dtype=torch.float64))]


@pytest.mark.parametrize("optimizer", ["LBFGS", Sometimes], ids=str)
def test_a_loss_that_is_computed_again_ends_the_run(optimizer):
    """LBFGS asked for 160,000 queries, where 10,000 were counted."""
    if optimizer == "LBFGS":
        optimizer = torch.optim.LBFGS
    Sometimes.steps = 0
    game = small_game(EGPO(), realisation=GradientSteps())
    game.optimizer = lambda given: optimizer(given, lr=0.1)
    with pytest.raises(UserError, match="computes the loss several times in a step"):
        fit(game, rounds=5)


def test_one_evaluation_a_step_is_counted_right():
    """Of a single iteration, where L-BFGS is gradient descent."""
    game = small_game(EGPO(), realisation=GradientSteps())
    game.optimizer = lambda given: torch.optim.LBFGS(given, lr=0.1, max_iter=1)
    fit(game, rounds=3)
    assert game.progress.queries_per_prompt == 3 * game.queries_per_round()


def test_what_is_looked_at_stays_as_it_is():
    given, state = parameters(), torch.get_rng_state()
    made = []

    class Noisy(torch.optim.SGD):
        def step(self, closure=None):
            torch.rand(3)
            return super().step(closure)

    def make(tensors):
        made.append([tuple(tensor.shape) for tensor in tensors])
        return Noisy(tensors, lr=0.1)

    assert isinstance(configure(given, make, None), Noisy)
    refuse_failing_steps(given, make, None, CPU, None)
    assert made == [[(3, 5), (7,)], [(2,), (2, 2)], [(2,), (2, 2)]]  # each kind once, small
    assert all((tensor == 1).all() and tensor.grad is None for tensor in given)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_optimiser_of_torch_takes_a_step_or_is_refused():
    given = [nn.Parameter(torch.ones(3, 5))]
    refused = {}
    for name, kind in vars(torch.optim).items():
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            try:
                configure(given, kind, None)
                refuse_failing_steps(given, kind, None, CPU, None)
            except (UserError, TypeError, NotImplementedError) as error:
                refused[name] = str(error)
    assert refused.keys() == {"LBFGS", "SparseAdam", "Optimizer"}  # the last is abstract
    assert "several times" in refused["LBFGS"]
    assert "cannot take a step: SparseAdam" in refused["SparseAdam"]


def test_a_schedule_is_one():
    with pytest.raises(UserError, match="lr_scheduler made 'ExponentialLR', and not a schedule"):
        configure(parameters(), torch.optim.Adam, lambda optimizer: "ExponentialLR")
    with pytest.raises(UserError, match=r"optimizer made None, and not a torch\.optim\.Opt"):
        configure(parameters(), lambda given: None, None)


SCHEDULES = torch.optim.lr_scheduler
ENDING = {
    "one cycle": (lambda optimizer: SCHEDULES.OneCycleLR(optimizer, 0.1, total_steps=10), 10),
    "decay every 0 steps": (lambda optimizer: SCHEDULES.StepLR(optimizer, step_size=0), 1),
    "cosine of no length": (lambda optimizer: SCHEDULES.CosineAnnealingLR(optimizer, T_max=0), 1),
}


@pytest.mark.parametrize("kind", ENDING)
def test_a_schedule_that_fails_within_the_run_is_refused_before_it(kind):
    make, last = ENDING[kind]
    with pytest.raises(UserError, match=r"model.lr_scheduler fails in step \d+ of the run"):
        refuse_failing_steps(parameters(), torch.optim.SGD, make, CPU, last + 1)
    if kind == "one cycle":
        refuse_failing_steps(parameters(), torch.optim.SGD, make, CPU, last - 1)
