"""Golden trajectories: what every algorithm did on one small game when it was last looked at.

Exact forms are checked elsewhere; this guards against a change that nobody meant. An update needs a
reason in the pull request: the file is written anew by

    PYTHONPATH=.:tests python tests/algorithms/test_golden.py
"""

import json

import numpy as np
import pytest
import torch
from paths import DATA
from zoo import ROWS, scores_of

from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables.games import uniform_random
from nlhf_zoo.solvers import trajectory_metrics

GOLDEN = DATA / "golden.json"
BETA, EVERY, ROUNDS = 0.1, 10, 100


def exploitabilities(algorithm):
    """Exploitability of three games of five actions, every ten rounds [11, 3]."""
    table = uniform_random(3, 5, seed=0)
    generator = torch.Generator().manual_seed(0)
    log_mu = torch.randn(3, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    players = dict.fromkeys(("policy", *algorithm.players), log_mu)
    scores = scores_of(table)
    engine = ClosedFormRounds(algorithm, BETA, table, log_mu, players, scores=scores)
    rounds = torch.cat([log_mu[None], engine.run(0, ROUNDS).log_policy])
    return trajectory_metrics(table, rounds[::EVERY], log_mu, BETA)["exploitability"].numpy()


EXACT = {str(row): row for row in ROWS if row.make().closed_form}


@pytest.mark.parametrize("name", EXACT)
def test_trajectories_are_what_they_were(name):
    golden = np.array(json.loads(GOLDEN.read_text())["exploitability"][name])
    residual = exploitabilities(EXACT[name].make()) - golden
    assert np.abs(residual).max() < 1e-9
    assert abs(residual.mean()) < 1e-10  # a drift to one side is the signature of a real change


def test_every_algorithm_has_its_trajectory():
    assert set(json.loads(GOLDEN.read_text())["exploitability"]) == set(EXACT)


def write():
    """Write the file anew."""
    golden = {
        "made_with": f"torch {torch.__version__.split('+')[0]}",
        "game": "uniform_random(3, 5, seed=0), mu normal of seed 0, beta 0.1, every 10 rounds",
        "exploitability": {n: exploitabilities(r.make()).tolist() for n, r in EXACT.items()},
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    write()
