"""The ``.npz`` of ``nlhf solve``; docs/command_line.md says what it holds, and in which shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nlhf_zoo import __version__
from nlhf_zoo.cli.solve import bootstrap, structure
from nlhf_zoo.cli.solve.solved import Solved
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written


def arrays_of(solved: Solved) -> dict[str, Any]:
    """What the file holds."""
    game, nash, ends, run = solved.game, solved.nash, solved.ends, solved.run
    games, num = game.support.shape
    arrays: dict[str, Any] = {
        "log_policy": (nash if run is None else run).log_policy.numpy(),
        "nash_log_policy": nash.log_policy.numpy(),
        "nash_exploitability": nash.exploitability.numpy(),
        "nash_unique": nash.unique.numpy(),
        "nash_dimension": nash.dimension.numpy(),
        "nash_least": ends[0].numpy(),
        "nash_most": ends[1].numpy(),
        "names": np.array([own + [""] * (num - len(own)) for own in game.names]),
        **structure.arrays_of(solved.structure),
    }
    if solved.bootstrap is not None:
        arrays |= bootstrap.arrays_of(solved.bootstrap)
    if games == 1:  # a single game stands without a dimension of its own
        arrays = {name: array[0] for name, array in arrays.items()}
    if run is not None:
        which = 0 if games == 1 else slice(None)
        arrays |= {name: curve.numpy()[:, which] for name, curve in run.curves.items()}
        own = run.queries.dim() == 2  # each game's
        arrays["queries"] = run.queries.numpy()[:, which] if own else run.queries.numpy()
    return arrays


def save(output: Path, arrays: dict[str, Any], arguments: str) -> None:
    """Write the file, whole or not at all, with the version and the arguments."""
    arrays |= {"version": __version__, "arguments": arguments}
    try:
        with written(output) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"--output {output} could not be written: {error.strerror}") from error
