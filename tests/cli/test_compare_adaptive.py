"""``nlhf compare`` where each game asks for itself: an adaptive step beside the default one."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from paths import CONFIGS

from nlhf_zoo.callbacks import read_history
from nlhf_zoo.cli.compare.tables import _by_queries
from nlhf_zoo.cli.main import main

GAP, BUDGET = 1e-5, 600


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Path:
    """Three random games at a small temperature, from two seeds."""
    folder = tmp_path_factory.mktemp("adaptive")
    content = {
        "output": str(folder / "out"), "budget": {"queries": BUDGET}, "betas": [0.01],
        "seeds": [0, 1], "target": {"duality_gap": GAP},
        "games": {
            "random": {
                "oracle": {
                    "class_path": "UniformRandom",
                    "init_args": {"num_games": 3, "num_actions": 4},
                },
                "reference": {"class_path": "NormalReference"},
            }
        },
        "algorithms": {
            "default": {"config": str(CONFIGS / "tabular/nash_mp.yaml")},
            "adaptive": {"config": str(CONFIGS / "tabular/adaptive/nash_mp.yaml")},
        },
    }  # fmt: skip
    (folder / "compare.yaml").write_text(yaml.safe_dump(content))
    main(["compare", "--config", str(folder / "compare.yaml")])
    return folder / "out"


def histories(played: Path, name: str) -> list[dict[str, np.ndarray]]:
    return [read_history(played / "random" / name / f"seed_{seed}") for seed in (0, 1)]


def test_the_target_is_reached_by_each_games_own_queries(played: Path):
    with (played / "queries_to_target.csv").open() as file:
        table = {row["algorithm"]: row for row in csv.DictReader(file)}
    own = []
    for history in histories(played, "adaptive"):
        asked, gap = history["queries_of_games"], 2 * history["exploitability"]
        np.testing.assert_array_equal(asked.max(1), history["queries"])
        assert asked[-1].max() <= BUDGET
        own += [asked[gap[:, game] < GAP, game][0] for game in range(3)]
    assert float(table["adaptive"]["median_queries"]) == np.median(own)
    assert int(table["adaptive"]["reached"]) == 6
    assert np.median(own) < float(table["default"]["median_queries"])
    assert "queries_of_games" not in histories(played, "default")[0]


def test_a_curve_is_drawn_by_the_queries_of_each_game(played: Path):
    both = histories(played, "adaptive")
    queries, curves = _by_queries(both, "exploitability")
    assert curves.shape == (len(queries), 6)
    assert queries[0] == 0
    assert queries[-1] == min(history["queries_of_games"][-1].min() for history in both)
    for number, history in enumerate(both):
        for game in range(3):
            asked = history["queries_of_games"][:, game]
            for at in (0, 10, 57, int(queries[-1])):
                last = np.flatnonzero(asked <= queries[queries <= at][-1])[-1]
                found = curves[queries <= at, 3 * number + game][-1]
                assert found == history["exploitability"][last, game]
