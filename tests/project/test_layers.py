"""Who may import whom, and how long a file may be.

The layers themselves stand in pyproject.toml. What they cannot say is what an import drags in at
run time; that is asked here, each time in a fresh interpreter.
"""

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
    """Whether a file defines a final subclass of ``PolicyOptimizer``."""
    bases = [
        {*map(ast.unparse, node.bases)}
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    return any(each & {"PolicyOptimizer", "Extragradient"} and "ABC" not in each for each in bases)


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


def test_nothing_is_imported_before_it_is_asked_for():
    unwanted = {"torch", "numpy", "lightning"}
    assert loaded_after("import nlhf_zoo, nlhf_zoo.data", unwanted) == set()
    assert [getattr(data, name).__name__ for name in data.__all__] == data.__all__
    with pytest.raises(AttributeError, match=r"'nlhf_zoo\.data' has no attribute 'Nothing'"):
        data.Nothing  # noqa: B018


def test_light_parts_stay_light():
    code = """
import nlhf_zoo.algorithms, nlhf_zoo.losses, nlhf_zoo.oracles
import nlhf_zoo.data.tables, nlhf_zoo.data.texts
nlhf_zoo.NashMP, nlhf_zoo.solve, nlhf_zoo.MatrixOracle
"""
    assert loaded_after(code, HEAVY) == set()


def test_help_and_refused_mistakes_import_nothing_heavy():
    code = """
from nlhf_zoo.cli import main
mistakes = ["--config none.yaml", "--model.betta 1", "--model.algorithm NashPM"]
for arguments in ["--help", *(f"fit {mistake}" for mistake in mistakes)]:
    code = 0
    try:
        main(arguments.split())
    except SystemExit as end:
        code = end.code or 0
    assert code == (0 if arguments == "--help" else 2), arguments
"""
    assert loaded_after(code, {*HEAVY, "torch", "numpy"}) == set()


def test_layers():
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    assert "0 broken" in run_python("-c", lint, "--no-cache")


def test_an_algorithm_fits_in_100_lines():
    lines = {path.stem: len(path.read_text().splitlines()) for path in ALGORITHMS}
    assert len(lines) >= 6
    assert {name for name, number in lines.items() if number > 100} == set()


def test_the_training_step_fits_on_one_screen():
    steps = [
        node
        for node in ast.walk(ast.parse((PACKAGE / "game/online_game.py").read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "training_step"
    ]
    assert len(steps) == 1
    assert steps[0].end_lineno - steps[0].lineno < 50
