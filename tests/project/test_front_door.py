"""One import gives every public name, late; what moved is found under its old name."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
from paths import ROOT

import nlhf_zoo

FOLDERS = [*nlhf_zoo._PUBLIC]
PARTS = "algorithms callbacks data game health metrics oracles policies preference_models records"


@pytest.mark.parametrize("name", nlhf_zoo.__all__)
def test_a_public_name_is_that_of_its_folder(name: str):
    folder = importlib.import_module(f"nlhf_zoo.{nlhf_zoo._FOLDER_OF[name]}")
    assert getattr(nlhf_zoo, name) is getattr(folder, name)
    assert name in dir(nlhf_zoo)


def test_type_checkers_see_the_same():
    stub = ast.parse((ROOT / "nlhf_zoo/__init__.pyi").read_text()).body
    imports = [node for node in stub if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    assert seen == {name: f"nlhf_zoo.{folder}" for name, folder in nlhf_zoo._FOLDER_OF.items()}
    assert (ROOT / "nlhf_zoo/py.typed").is_file()


@pytest.mark.parametrize("folder", PARTS.split())
def test_what_a_folder_hands_on_is_at_the_door_or_meant_for_authors(folder: str):
    """Parts that configurations name are all at the door; helpers need not be."""
    face = importlib.import_module(f"nlhf_zoo.{folder}")
    classes = {n for n in face.__all__ if isinstance(getattr(face, n), type)}
    for_authors = {"Check", "GameMetric", "History", "Note", "Probe", "Question"}
    assert classes - for_authors <= set(nlhf_zoo.__all__)


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'nlhf_zoo' has no attribute 'NashPM'"):
        nlhf_zoo.NashPM  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Budgets'"):
        importlib.import_module("nlhf_zoo.callbacks").Budgets  # noqa: B018


@pytest.mark.parametrize("old", nlhf_zoo.MOVED)
def test_a_module_is_found_under_its_old_name(old: str):
    assert importlib.import_module(old) is importlib.import_module(nlhf_zoo.MOVED[old])
    assert not (ROOT / f"{old.replace('.', '/')}.py").exists()


def test_callbacks_that_became_checks_of_health_are_found():
    callbacks, health = (importlib.import_module(f"nlhf_zoo.{n}") for n in ("callbacks", "health"))
    assert callbacks.HealthCheck is health.HealthCheck
    assert callbacks.ReferenceFingerprint is health.ReferenceFingerprint


def test_the_root_holds_three_modules_and_fourteen_folders():
    here = ROOT / "nlhf_zoo"
    modules = {path.stem for path in here.glob("*.py")} - {"__init__", "__main__"}
    folders = [path for path in here.iterdir() if (path / "__init__.py").is_file()]
    assert len(modules) <= 3
    assert len(folders) <= 14
    text = (ROOT / "pyproject.toml").read_text()
    (layers,) = re.findall(r"layers = \[(.*?)\]", text, flags=re.DOTALL)
    assert len(re.findall(r'"([^"]+)"', layers)) == 8
    assert set(re.findall(r"\w+", layers)) == modules | {folder.name for folder in folders}
