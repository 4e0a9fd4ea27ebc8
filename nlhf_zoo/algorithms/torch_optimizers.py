"""The optimiser of what trains, and its schedule: made by a user's callables, and looked at."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from nlhf_zoo.algorithms.schedules import followers
from nlhf_zoo.errors import UserError, cause

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]

_REHEARSED = 10_000  # steps of a schedule, in a tenth of a second

SEVERAL_CALLS = (
    "the optimiser computes the loss several times in a step, and responses would be drawn and "
    "judged anew each time: give model.optimizer one that computes it once, such as Adam"
)


def configure(
    parameters: Sequence[nn.Parameter],
    make_optimizer: MakeOptimizer,
    make_schedule: MakeSchedule | None,
    spent: Callable[[], float] | None = None,
) -> Any:
    """Make both, as ``configure_optimizers`` returns them; the schedule moves with each step.

    Args:
        parameters: what is trained.
        make_optimizer: makes the optimiser.
        make_schedule: makes its schedule, if there is one.
        spent: says which part of the budget is spent, to a `BudgetLR`; None where there is none.

    Raises:
        UserError: one of them is something else, the optimiser calls its closure several times, or
            there is no budget to follow.
    """
    optimizer = make_optimizer(parameters)
    _require(optimizer, Optimizer, "model.optimizer", "a torch.optim.Optimizer")
    if _calls_in_a_step(parameters, make_optimizer) > 1:
        raise UserError(SEVERAL_CALLS)
    if make_schedule is None:
        return optimizer
    schedule = make_schedule(optimizer)
    kinds = (LRScheduler, ReduceLROnPlateau)
    _require(schedule, kinds, "model.lr_scheduler", "a schedule of torch.optim.lr_scheduler")
    for follower in followers(schedule):
        if spent is None:
            raise UserError(
                "model.lr_scheduler BudgetLR follows the budget of a game that takes gradient "
                "steps, and this is none: choose a schedule of torch.optim.lr_scheduler"
            )
        follower.follow(spent)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def refuse_failing_steps(
    parameters: Sequence[nn.Parameter],
    make_optimizer: MakeOptimizer,
    make_schedule: MakeSchedule | None,
    device: torch.device,
    steps: int | None,
) -> None:
    """Refuse an optimiser that cannot take a step, as SparseAdam, and a schedule that ends early.

    Args:
        parameters: what it is to train; they stay as they are.
        make_optimizer: makes it.
        make_schedule: makes its schedule, if there is one.
        device: where it will train.
        steps: so many there will be at most, where that is known.

    Raises:
        UserError: what fails, and in which step of the schedule.
    """
    try:
        optimizer, _ = _rehearse(parameters, make_optimizer, device)
    except Exception as error:  # of a user's own optimiser: of any kind
        raise UserError(f"model.optimizer cannot take a step: {cause(error)}") from error
    if make_schedule is None:
        return
    planned, taken = min(_REHEARSED, 2 if steps is None else steps), 0
    try:
        schedule: Any = make_schedule(optimizer)
        with warnings.catch_warnings(action="ignore"):  # the optimiser has stepped before it
            while taken < planned and not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()
                taken += 1
    except Exception as error:  # likewise
        raise UserError(
            f"model.lr_scheduler fails in step {taken + 1} of the run: {cause(error)}"
        ) from error


def _require(made: object, kinds: Any, option: str, wanted: str) -> None:
    if not isinstance(made, kinds):
        raise UserError(f"{option} made {made!r:.60}, and not {wanted}: name another")


def _calls_in_a_step(parameters: Sequence[nn.Parameter], make_optimizer: MakeOptimizer) -> int:
    """How often an optimiser calls its closure in its first step; 0 where that step fails here."""
    try:
        return _rehearse(parameters, make_optimizer, torch.device("cpu"))[1]
    except Exception:  # it may need another device; where it trains, it will say what is wrong
        return 0


def _rehearse(
    parameters: Sequence[nn.Parameter], make_optimizer: MakeOptimizer, device: torch.device
) -> tuple[Optimizer, int]:
    """Take a step on small twins of the parameters.

    Returns:
        the optimiser of the twins, and how often the loss was computed in that step.
    """
    kinds = {(parameter.ndim, parameter.dtype) for parameter in parameters}
    calls = 0
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        twins = [
            nn.Parameter(torch.zeros([2] * ndim, dtype=dtype, device=device))
            for ndim, dtype in sorted(kinds, key=str)
        ]
        optimizer: Any = make_optimizer(twins)

        def closure() -> Tensor:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = torch.stack([(twin - 1).square().sum().float() for twin in twins]).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return optimizer, calls
