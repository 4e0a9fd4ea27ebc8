"""Rows of text in files, and a Trainer that keeps quiet, for tests of what is read."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from nlhf_zoo.data.texts import message

system, user, assistant = (partial(message, role) for role in ("system", "user", "assistant"))


def write(path: Path, *rows: Any) -> str:
    """A file of one row a line: text as it stands, other rows as JSON."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def trainer(**options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "use_distributed_sampler": False, "max_epochs": -1}
    return L.Trainer(**quiet | {"accelerator": "cpu", "num_sanity_val_steps": 0} | options)
