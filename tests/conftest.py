import gc
import os
import sys

# Before anything imports them: no window, and no network for a model that was forgotten in a test.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests are small: waking a second thread costs more than it saves, by far on a shared machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# Of the server of forked runs, which alone does what it does when it is imported.
collect_ignore = ["forked_server.py", "cli/trl_dumps/script.py"]

# The same examples in every run, and no deadline: a busy machine is not a bug.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("NLHF_ROUNDING"):
        from rounding import RoundedByShape

        RoundedByShape().__enter__()  # for the whole session


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first, so that no process waits for another at the end."""
    items.sort(key=lambda item: "project" not in item.path.parts)


def pytest_collection_finish() -> None:
    """What is imported stays: looking through it for garbage takes most of a second, each time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def _global_state():
    """Each test starts from one seed, and leaves the number format and its threads as they were."""
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(0)
    os.environ.pop("PL_GLOBAL_SEED", None)  # by which games find theirs, of an earlier test
    yield
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic)
    # A strategy of several processes that was made in this one leaves its rank behind, and a later
    # logger of another rank than 0 writes nothing.
    if (ranks := sys.modules.get("lightning_utilities.core.rank_zero")) is not None:
        ranks.rank_zero_only.rank = 0
