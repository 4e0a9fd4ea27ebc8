"""Who may import whom, and how long a file may be.

The layers themselves stand in pyproject.toml. What they cannot say is what an import drags in at
run time; that is asked here, each time in a fresh interpreter.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from nlhf_zoo import data

PACKAGE = ROOT / "nlhf_zoo"
HEAVY = {"lightning", "pytorch_lightning", "torchmetrics", "transformers", "peft", "jsonargparse"}
HEAVY |= {"openai"}


def is_algorithm(path: Path) -> bool:
    """Whether a file defines a subclass of ``PolicyOptimizer``."""
    return any(
        isinstance(node, ast.ClassDef) and "PolicyOptimizer" in map(ast.unparse, node.bases)
        for node in ast.parse(path.read_text()).body
    )


ALGORITHMS = sorted(filter(is_algorithm, (PACKAGE / "algorithms").glob("*.py")))


def run_python(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def loaded_after(code: str, modules: set[str]) -> set[str]:
    """Which of ``modules`` a fresh interpreter has imported once it has run ``code``."""
    probe = f"import sys; print('', *({modules!r} & sys.modules.keys()))"
    return set(run_python("-c", f"{code}\n{probe}").splitlines()[-1].split())


def test_the_probe_sees_an_import():
    assert loaded_after("import json", {"json", "torch"}) == {"json"}


@pytest.mark.parametrize("package", ["algorithms", "losses", "oracles"])
def test_light_packages_stay_light(package: str):
    assert loaded_after(f"import nlhf_zoo.{package}", HEAVY) == set()


def test_data_modules_are_imported_when_they_are_asked_for():
    assert loaded_after("import nlhf_zoo.data", {"torch", "lightning"}) == set()
    readers = "import nlhf_zoo.data.tables, nlhf_zoo.data.texts"
    assert loaded_after(readers, HEAVY) == set()
    assert [getattr(data, name).__name__ for name in data.__all__] == data.__all__
    with pytest.raises(AttributeError, match=r"'nlhf_zoo\.data' has no attribute 'Nothing'"):
        data.Nothing  # noqa: B018


def test_help_does_not_import_torch():
    code = """
from nlhf_zoo.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code, end.code
"""
    assert loaded_after(code, {"torch", "lightning", "transformers", "peft"}) == set()


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import nlhf_zoo", {"torch", "numpy", "lightning"}),
        ("import nlhf_zoo.data", {"torch", "numpy", "lightning"}),
        ("import nlhf_zoo; nlhf_zoo.NashMP, nlhf_zoo.solve", HEAVY),
        ("import nlhf_zoo; nlhf_zoo.MatrixOracle", {"lightning", "transformers", "peft", "openai"}),
    ],
)
def test_names_are_imported_when_they_are_asked_for(code: str, unwanted: set[str]):
    assert loaded_after(code, unwanted) == set()


@pytest.mark.parametrize(
    "mistake", [["--config", "none.yaml"], ["--model.betta", "1"], ["--model.algorithm", "NashPM"]]
)
def test_a_mistake_is_refused_before_anything_heavy_is_imported(mistake: list[str]):
    code = f"""
from nlhf_zoo.cli import main
try:
    main(["fit", *{mistake!r}])
except SystemExit as end:
    assert end.code == 2
"""
    assert loaded_after(code, {"torch", "numpy", "lightning", "jsonargparse"}) == set()


def test_layers():
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    assert "0 broken" in run_python("-c", lint, "--no-cache")


def test_there_are_algorithms():
    assert len(ALGORITHMS) >= 6


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda path: path.stem)
def test_an_algorithm_fits_in_100_lines(path: Path):
    assert len(path.read_text().splitlines()) <= 100


def test_the_training_step_fits_on_one_screen():
    steps = [
        node
        for node in ast.walk(ast.parse((PACKAGE / "game/online_game.py").read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "training_step"
    ]
    assert len(steps) == 1
    assert steps[0].end_lineno - steps[0].lineno < 50
