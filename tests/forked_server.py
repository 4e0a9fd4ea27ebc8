"""What a server of forked runs has done before the first of them: imports, and parsers.

Both take longer than most runs. jsonargparse makes a parser of each class that a configuration
names, from its source, and keeps it; nothing else is left of a configuration that is printed.
"""

import contextlib
import gc
import io
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as a command does, before torch is there

import matplotlib.pyplot  # noqa: F401
import openai  # noqa: F401
import peft.utils.transformers_weight_conversion  # noqa: F401
import preference_runs
import pytest  # noqa: F401  # what is planted in a run lies in modules of tests
import runs
import tensorboard.plugins.hparams.api_pb2  # noqa: F401
import torch.utils.serialization.config
import torch.utils.tensorboard  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
import zoo  # noqa: F401
from paths import CONFIGS

import nlhf_zoo.cli.compare.command  # noqa: F401
from nlhf_zoo.cli.main import main


def _parse(*files: Path) -> None:
    """Print configurations to nobody."""
    for file in files:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            main(["fit", "--config", str(file), "--print_config"])


path = [*sys.path]  # to which a command adds the folder that it runs in
with tempfile.TemporaryDirectory() as folder:
    cases = [Path(folder) / name for name in ("closed-egpo", "sampled-nash_mp", "language-egpo")]
    for case in cases:
        runs.write(case, runs.CASES[case.name])
    model = preference_runs.write(Path(folder), preference_runs.configuration(Path(folder)))
    _parse(*(case / "game.yaml" for case in cases), Path(model))
_parse(CONFIGS / "tabular/online_dpo.yaml", CONFIGS / "lm/own_model.yaml")
sys.path[:] = path
gc.collect()
gc.freeze()  # else looking for garbage copies what the runs share
