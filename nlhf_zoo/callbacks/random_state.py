"""Random state in the checkpoint, which Lightning leaves out."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from typing_extensions import override


class ResumeState(L.Callback):
    """Save and restore the global random state of Python, NumPy and PyTorch.

    The game's own draws come from streams keyed by seed, process and step; this is for what users
    add.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The random state, in types that a checkpoint may hold."""
        name, keys, *rest = np.random.get_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "torch": torch.get_rng_state(),
            "cuda": cuda,
            "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
            "python": random.getstate(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts: what is set up before then draws too."""
        self._loaded = state_dict

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._loaded is None:
            return
        torch.set_rng_state(self._loaded["torch"])
        if self._loaded["cuda"]:
            # a run may go on with fewer devices than it had
            torch.cuda.set_rng_state_all(self._loaded["cuda"][: torch.cuda.device_count()])
        name, keys, *rest = self._loaded["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, internal, gauss = self._loaded["python"]
        random.setstate((version, tuple(internal), gauss))
        self._loaded = None
