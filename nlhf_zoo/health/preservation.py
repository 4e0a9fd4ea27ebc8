"""Leaving a game as it was: a check may scatter weights and play rounds, and nobody notices."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from nlhf_zoo.game.lightning_internals import trainer_of
from nlhf_zoo.game.micro_batches import StepTimer
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records.random_streams import random_stream
from nlhf_zoo.records.shards import local

# Standard deviation of what is added to weights: of the size of a large model's own, so that
# adapters which start at zero make another distribution.
_NOISE = 0.05


def kept_tensors(game: OnlineGame) -> dict[str, Tensor]:
    """What a checkpoint of the game holds of its tensors, copied to main memory.

    Of sharded ones, the part of this process.
    """
    state = _checkpoint(game)["state_dict"]
    return {name: local(value).to("cpu", copy=True) for name, value in state.items()}


def _checkpoint(game: OnlineGame) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {"state_dict": game.state_dict()}
    game.on_save_checkpoint(checkpoint)
    return checkpoint


@contextmanager
def restored_after(game: OnlineGame) -> Iterator[None]:
    """Put back, bit for bit, whatever happens inside.

    Weights of all players, gradients, what is trained and in which mode, the game's position and
    counters, what the oracle remembers, and the random state of the process. Weights that a
    checkpoint leaves out never move.
    """
    device, trainer = game.device, trainer_of(game)
    modes = [(module, module.training) for module in game.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in game.parameters()]
    numbers = [(module, _plain(module)) for module in game.oracle.modules()]
    budget = game.max_rounds, game.max_queries
    position = copy.deepcopy(_checkpoint(game)["online_game"])
    tensors, trajectory, timer = kept_tensors(game), game.trajectory, game.timer
    game.timer = StepTimer()
    numbers_drawn = isolate_rng()
    numbers_drawn.__enter__()
    try:
        yield
    finally:
        numbers_drawn.__exit__(None, None, None)  # by `with`, an exception would leave them moved
        game.to(device)
        game.trainer = trainer
        game.timer, game.trajectory = timer, trajectory
        game.set_budget(*budget)
        state = game.state_dict()
        with torch.no_grad():
            for name, value in tensors.items():
                local(state[name]).copy_(value)
        game.on_load_checkpoint({"state_dict": tensors, "online_game": position})
        for module, training in modes:
            module.training = training  # not by `train`, which policies and oracles act upon
        for module, plain in numbers:
            vars(module).update(plain)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def _plain(module: nn.Module) -> dict[str, Any]:
    """Numbers that an oracle keeps outside its state: calls so far, checks that are left."""
    return {n: v for n, v in vars(module).items() if isinstance(v, (bool, int, float, str))}


@torch.no_grad()
def scatter(policy: Policy) -> None:
    """Give every player but the reference weights of its own: none is as it started.

    A check on adapters that are still zero could not fail.
    """
    weights = policy.snapshot()
    others = [player for player in policy.players if player not in ("policy", "reference")]
    for number, player in enumerate([*others, "policy"]):
        rngs: dict[torch.device, torch.Generator] = {}
        for value in map(local, weights.values()):
            if value.is_floating_point():
                if value.device not in rngs:
                    rngs[value.device] = random_stream(0, 0, number, value.device, "players")
                rng = rngs[value.device]
                noise = torch.randn(value.shape, generator=rng, device=value.device)
                value.add_(_NOISE * noise.to(value.dtype))
        policy.restore(weights)
        if player != "policy":
            policy.copy_("policy", player)
