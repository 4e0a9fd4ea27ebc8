"""What a run has trained is looked at before it is kept: an end for what is no number any more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from nlhf_zoo.errors import DivergenceError
from nlhf_zoo.game.checkpointing import checkpoint_keys
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.metrics.processes import sum_over_processes
from nlhf_zoo.records.finite import not_finite


def refuse_not_finite(
    trainer: L.Trainer, module: L.LightningModule, replaced: Path | None = None
) -> None:
    """Refuse to keep weights, or an optimiser's state, that are not finite.

    The moments of an optimiser overflow before weights do: what is divided by infinity moves no
    more, and the run would go on without learning.

    All processes call this, and all refuse: of what is sharded, each sees a part.

    Args:
        trainer: whose optimisers are looked at.
        module: what it trains; of a game, all players and the start of the round.
        replaced: the checkpoint in whose place they would be kept.

    Raises:
        DivergenceError: which tensor is not finite, of which player, after which step.
    """
    name = not_finite(dict(_trained(trainer, module)))
    if not sum_over_processes(trainer, [name is not None])[0]:
        return
    name = name or "what another process holds"
    step, player, stays = f"after optimiser step {trainer.global_step}", "", ""
    if isinstance(module, OnlineGame):
        step += f", in round {module.progress.round},"
        path = re.search(r"(?<!\S)policy\.(\S+)", name)
        parts = path[1].split(".") if path else []
        player = "".join(f" of the player {p}" for p in module.policy.players if p in parts)
    if replaced is not None and replaced.is_file():
        stays = f"; {replaced} stays as it was"
    raise DivergenceError(
        f"training diverged: {step} {name}{player} is not finite, so lower the learning rate or "
        f"the step size{stays}"
    )


def _trained(trainer: L.Trainer, module: L.LightningModule) -> Iterator[tuple[str, Tensor]]:
    """All of it, by the words of a message."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    start: Mapping[str, Any] = {}
    if isinstance(module, OnlineGame):
        trained, start = checkpoint_keys(module), module.round_start
    yield from ((name, p) for name, p in module.named_parameters() if name in trained)
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            yield from _worded(state, f"of {names.get(id(parameter), 'the optimiser')}")
    yield from _worded(start.get("policy", {}), "at the start of the round")
    for index, state in start.get("optimizer", {}).items():
        yield from _worded(state, f"of parameter {index} at the start of the round")


def _worded(state: Mapping[str, Any], where: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield f"{name} {where}", value
