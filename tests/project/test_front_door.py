"""One import gives every public name, late; what moved is found under its old name."""

import ast
import importlib
import re
from typing import Generic, TypeVar

import pytest
from paths import ROOT

import nlhf_zoo


@pytest.mark.parametrize("name", nlhf_zoo.__all__)
def test_a_public_name_is_that_of_its_folder(name: str):
    folder = importlib.import_module(f"nlhf_zoo.{nlhf_zoo.public_names()[name]}")
    assert getattr(nlhf_zoo, name) is getattr(folder, name)
    assert name in dir(nlhf_zoo)


def test_type_checkers_see_the_same(tmp_path):
    """The stub gives the folders' names by star, and the others one by one."""
    stub = ast.parse((ROOT / "nlhf_zoo/__init__.pyi").read_text()).body
    imports = [node for node in stub if isinstance(node, ast.ImportFrom)]
    stars = {node.module for node in imports if node.names[0].name == "*"}
    others = {a.asname: node.module for node in imports for a in node.names if a.name != "*"}
    assert stars == {f"nlhf_zoo.{folder}" for folder in nlhf_zoo.FOLDERS}
    assert others == {name: f"nlhf_zoo.{folder}" for name, folder in nlhf_zoo._OTHERS.items()}
    assert (ROOT / "nlhf_zoo/py.typed").is_file()


def test_a_star_gives_all_of_them():
    scope: dict[str, object] = {}
    exec("from nlhf_zoo import *", scope)
    assert scope.keys() - {"__builtins__"} == set(nlhf_zoo.__all__)


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


def test_the_root_holds_three_modules_and_fifteen_folders():
    here = ROOT / "nlhf_zoo"
    modules = {path.stem for path in here.glob("*.py")} - {"__init__", "__main__"}
    folders = [path for path in here.iterdir() if (path / "__init__.py").is_file()]
    assert len(modules) <= 3
    assert len(folders) <= 15
    text = (ROOT / "pyproject.toml").read_text()
    (layers,) = re.findall(r"layers = \[(.*?)\]", text, flags=re.DOTALL)
    assert len(re.findall(r'"([^"]+)"', layers)) == 8
    assert set(re.findall(r"\w+", layers)) == modules | {folder.name for folder in folders}


@pytest.mark.parametrize("name", ["Policy", "PreferenceOracle"])
def test_a_subclass_may_have_other_bases_that_look_at_it(name):
    seen = []

    class Registered:
        def __init_subclass__(cls, key: str = "", **options: object) -> None:
            super().__init_subclass__(**options)
            seen.append(key)

    class Mine(getattr(nlhf_zoo, name), Registered, Generic[TypeVar("T")], key="mine"):
        pass

    assert seen == ["mine"]
    assert Mine[int]


@pytest.mark.parametrize(
    ("name", "old"),
    [("Policy", "kept_names"), ("TextOracle", "reads_cut"), ("TextOracle", "names")],
)
def test_what_is_overridden_under_its_old_name_is_refused(name, old):
    with pytest.raises(TypeError, match=rf"Mine\.{old} is called \w+ since version 0\.2"):
        type("Mine", (getattr(nlhf_zoo, name),), {old: None})
