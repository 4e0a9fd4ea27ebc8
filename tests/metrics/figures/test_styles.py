"""An algorithm has one colour in every figure, whatever else is in it."""

import re
from itertools import pairwise
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from paths import CONFIGS, ROOT

from nlhf_zoo import algorithms
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.cli.main import main
from nlhf_zoo.metrics.figures.styles import colour_of, dashes_of

PARTS = {"oracle": "Cyclic", "reference": "NormalReference"}
OURS = [
    name
    for name in algorithms.__all__
    if isinstance(kind := getattr(algorithms, name), type)
    and issubclass(kind, PolicyOptimizer)
    and kind is not PolicyOptimizer
]


def test_algorithms_have_colours_of_their_own():
    assert len(OURS) >= 8
    assert len({colour_of(name) for name in OURS}) == len(OURS)
    assert colour_of("Mine") not in {colour_of(name) for name in OURS}


def test_of_lines_that_coincide_both_are_seen():
    """Closed forms: EGPO is Nash-MP at its step, and a magnet that has not moved is its inner."""
    assert len(set(dashes_of(["NashMP", "EGPO", "MovingMagnet"]))) == 3
    assert len(set(dashes_of(["SPPO", "NashMD", "SPPO", "SPPO"]))) == 3


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """Mean and worst of each line of a comparison of these algorithms, by their label."""
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **kw: drawn.append(f) or save(f, *a, **kw))

    def compare(**files: str) -> dict[str, Any]:
        kinds = {name: {"config": str(CONFIGS / f"tabular/{file}")} for name, file in files.items()}
        game = {key: {"class_path": name} for key, name in PARTS.items()}
        content = {
            "output": f"out_{len(drawn)}", "budget": {"queries": 4}, "betas": [0.1],
            "games": {"cycle": game}, "algorithms": kinds,
        }  # fmt: skip
        (tmp_path / "compare.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        main(["compare", "--config", "compare.yaml"])
        shown = drawn[-1].axes[0].lines
        return {
            mean.get_label(): (mean, worst)
            for mean, worst in pairwise(shown)
            if mean.get_label() in files
        }

    return compare


def test_an_algorithm_has_one_colour_whatever_else_is_drawn(lines):
    first = lines(EGPO="egpo.yaml", SPPO="sppo.yaml")
    second = lines(a="sppo.yaml", b="online_ipo.yaml", EGPO="egpo.yaml", c="sppo.yaml")
    colours = {name: mean.get_color() for name, (mean, _) in second.items()}
    assert colours["a"] == colours["c"] == first["SPPO"][0].get_color()
    assert colours["EGPO"] == first["EGPO"][0].get_color()
    assert len(set(colours.values())) == 3
    assert second["a"][0].get_linestyle() != second["c"][0].get_linestyle()
    everything = [*first.values(), *second.values()]
    assert all(mean.get_color() == worst.get_color() for mean, worst in everything)
    ((thick, thin),) = {(mean.get_linewidth(), worst.get_linewidth()) for mean, worst in everything}
    assert thick > thin


def test_the_documentation_has_no_colours_of_its_own():
    scripts = [*(ROOT / "docs/figures").glob("*.py")]
    assert scripts
    for script in scripts:
        assert not re.search(r"#[0-9A-Fa-f]{6}\b", script.read_text(encoding="utf-8")), script
