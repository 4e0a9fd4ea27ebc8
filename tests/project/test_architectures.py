"""The table of architectures: each row is right, or refused in one sentence, as the page says."""

import importlib.util
import re
import sys

import pytest
from architectures import RECIPES
from paths import ROOT

# Of each kind of layer and cache, one: attention, windows, soft caps, recurrent layers, both in one
# layer, experts in one tensor, routers that return tuples, shared weights, positions by a bias.
DOZEN = [
    "bloom", "deepseek_v3", "falcon_h1", "gemma3_text", "gpt_neox", "jamba", "lfm2", "mixtral",
    "mpt", "phimoe", "qwen3_next", "zamba",
]  # fmt: skip


@pytest.fixture(scope="module")
def script():
    path = ROOT / "docs" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures_page", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table():
    """The cells of the page, by architecture."""
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows if len(row) == 9}


def assert_as_told(script, table, name, columns):
    row = script.examine(name, columns)
    assert row.faults == {}
    for column, cell in row.cells.items():
        told = table[name][script.COLUMNS.index(column)]
        assert re.sub(r" \[\d+\]", "", told) == cell
    for sentence in row.refusals.values():
        assert "\n" not in sentence
        assert len(sentence) < 500


@pytest.mark.parametrize("name", DOZEN)
def test_a_dozen_are_as_the_page_says(script, table, name):
    assert_as_told(script, table, name, ("padding", "K > 1", "mixtures", "merged export"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_all_are_as_the_page_says(script, table, name):
    assert_as_told(script, table, name, script.COLUMNS)


def test_the_page_has_all_and_more_than_a_hundred(script, table):
    assert [name for name in table if name != "architecture"] == [*RECIPES]
    assert len(RECIPES) > 100
    for name, cells in table.items():
        if name != "architecture":
            assert not [cell for cell in cells if cell.startswith(("fault", "off", "fails"))]


def test_what_is_off_is_a_fault_or_refused(script, monkeypatch):
    """A generator that draws from another law than the policy's."""
    from nlhf_zoo.policies.language_model import generation

    mix = generation.mix

    def sharper(laws, weights):
        return mix([2 * law for law in laws], weights)

    monkeypatch.setattr(generation, "mix", sharper)
    columns = ("padding", "cache", "mixtures")
    refused = script.examine("llama", columns)
    assert refused.cells == dict.fromkeys(columns, "refused")
    monkeypatch.setattr(script, "refuse_unhealthy", lambda game, prompts: None)
    off = script.examine("llama", columns)
    assert off.cells["padding"] == "right"
    assert {*off.faults} == {"cache", "mixtures"}
