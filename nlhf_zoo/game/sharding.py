"""A game whose policy's weights are spread over processes, where the Trainer's strategy does."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.strategies import FSDP2Strategy
from nlhf_zoo.policies.base import Policy


def refuse_strategy(strategy: Strategy, policy: Policy) -> None:
    """Refuse strategies that a game does not run under, and policies that one does not shard.

    Raises:
        UserError: what does not go together, and what to do.
    """
    if isinstance(strategy, FSDP2Strategy):
        policy.refuse_sharding(strategy.layerwise)
        if strategy.precision_plugin.precision == "16-mixed":
            # A scaler looks for overflows before the gradients of adapters are averaged: a process
            # without one would step along another's infinities.
            raise UserError(
                "trainer.precision 16-mixed does not go with fsdp2, where each process would look "
                "for overflows by itself: set it to bf16-mixed or 32-true, or trainer.strategy to "
                "ddp"
            )
    elif isinstance(strategy, ModelParallelStrategy | FSDPStrategy | DeepSpeedStrategy):
        raise UserError(of_no_use(type(strategy).__name__))


def of_no_use(name: str) -> str:
    """Why a game does not run under a strategy, and what to take in its place."""
    return (
        f"trainer.strategy {name} keeps weights or an optimiser's state where no game can copy, "
        "average and put back players: set it to fsdp2, which shards them too, or to ddp"
    )


class ShardedModule(L.LightningModule):
    """What a game does under a strategy that shards its policy; under others nothing.

    Attributes:
        policy: who plays.
    """

    policy: Policy

    @override
    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        refuse_strategy(strategy, self.policy)
        if isinstance(strategy, FSDP2Strategy):
            self.policy.shard(strategy.device_mesh["data_parallel"], strategy.layerwise)

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average what the strategy does not: once a step, behind accumulation, before clipping."""
        self.policy.mean_gradients()
