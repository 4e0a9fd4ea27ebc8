"""FSDP2 as a strategy of Lightning's Trainer, with checkpoints as every other strategy has them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from lightning_utilities.core.apply_func import apply_to_collection
from torch.distributed.constants import default_pg_timeout
from typing_extensions import override

from nlhf_zoo.records.shards import is_sharded, like, whole


class FSDP2Strategy(ModelParallelStrategy):
    """Spread the weights of a language model over all processes by FSDP2, arXiv 2304.11277.

    With LoRA the base model is sharded, and each process holds all adapters; without, every player
    is. A checkpoint is one file, which the first process writes: whole tensors of what trains, by
    the names and numbers that other strategies give them, so that a run goes on with another number
    of processes or with DDP, and `nlhf export` reads it. On a CPU it works as on GPUs.

    Args:
        layerwise: gather a block at a time while responses are drawn, too. By default all of a
            model is gathered once for each rollout, so that each process draws without the others;
            where it has no room for that, this costs a gathering of each block for each token.
        process_group_backend: of torch; by default the one for the device.
        timeout: how long processes wait for each other.
    """

    def __init__(
        self,
        layerwise: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(1, 1, False, process_group_backend, timeout)
        self.layerwise = layerwise

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Gather what is sharded, tensor by tensor, in main memory of the process that writes."""
        keeps = self.is_global_zero

        def gather(tensor: torch.Tensor) -> torch.Tensor | None:
            found = whole(tensor) if is_sharded(tensor) else tensor
            return found.to("cpu") if keeps else None

        gathered = apply_to_collection(checkpoint, torch.Tensor, gather, allow_frozen=True)
        Strategy.save_checkpoint(self, gathered, filepath, storage_options)

    @override
    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file whose tensors stay on disk until they are looked at: each process cuts."""
        path = self.broadcast(checkpoint_path)
        if not Path(path).is_file():
            return Strategy.load_checkpoint(self, path, weights_only)
        content: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=weights_only, mmap=True
        )
        return content

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {
            name: like(value, own[name]) if name in own else value
            for name, value in checkpoint["state_dict"].items()
        }
        Strategy.load_model_state_dict(self, {**checkpoint, "state_dict": state}, strict)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = []
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = {
                index: {name: like(value, parameters[index]) for name, value in of.items()}
                for index, of in saved["state"].items()
            }
            states.append({**saved, "state": sharded})
        Strategy.load_optimizer_state_dict(self, {**checkpoint, "optimizer_states": states})


StrategyRegistry.register("fsdp2", FSDP2Strategy, "Weights of a language model sharded by FSDP2")
StrategyRegistry.register(
    "fsdp2_layerwise",
    FSDP2Strategy,
    "As fsdp2, and gathered block by block for drawing, too",
    layerwise=True,
)
