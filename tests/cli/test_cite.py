"""What was run is cited by what its classes declare, from one file of entries."""

import re

import pytest
import yaml
from paths import CONFIGS, ROOT

from nlhf_zoo import __version__, algorithms
from nlhf_zoo.cli.cite.bibliography import OWN, entries
from nlhf_zoo.cli.cite.command import cite
from nlhf_zoo.errors import UserError

KEYS = r"^@\w+\{(.*),$"


def cited(capsys, *names):
    cite([str(name) for name in names])
    text = capsys.readouterr().out
    return re.findall(KEYS, text, re.M), re.findall(r"^% (.*)$", text, re.M)


def test_every_paper_of_the_zoo_has_an_entry():
    listed = set(re.findall(r"arxiv\.org/abs/(\d+\.\d+)", (ROOT / "docs/papers.md").read_text()))
    kinds = [getattr(algorithms, name) for name in algorithms.__all__]
    declared = {c.paper.removeprefix("arXiv:") for c in kinds if hasattr(c, "paper")}
    assert listed | declared <= entries().keys()
    keys = [entry.key for entry in entries().values()]
    assert (
        len(set(keys))
        == len(keys)
        == (ROOT / "nlhf_zoo/cli/cite/papers.bib").read_text().count("\n@")
    )


@pytest.mark.parametrize("number", [number for number in entries() if number != OWN])
def test_an_entry_is_whole(number):
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entries()[number].text, re.M))
    assert [*fields] == ["title", "author", "year", "eprint", "archivePrefix", "url"]
    assert fields["year"] == f"20{number[:2]}"
    assert fields["url"] == f"https://arxiv.org/abs/{number}"
    assert entries()[number].text.count("{") == entries()[number].text.count("}")


def test_the_package_is_cited_as_its_own_file_says(capsys):
    cite([str(CONFIGS / "tabular/nash_mp.yaml")])
    text = capsys.readouterr().out
    own = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    title = re.search(r"@software\{nlhf_zoo,\n  title = \{(.*)\},", text)[1]
    assert re.sub(r"[{}\\]", "", title) == own["title"]
    assert f"version = {{{__version__}}}" in text


def test_inner_algorithms_oracles_and_losses_are_cited(capsys, tmp_path):
    keys, said = cited(capsys, CONFIGS / "tabular/moving_magnet.yaml")
    assert keys == ["nlhf_zoo", "liu2024comal", "zhou2025egpo"]
    assert said[:2] == ["MovingMagnet: liu2024comal", "EGPO: zhou2025egpo"]
    loss = "nlhf_zoo.algorithms.surrogates.sppo_regression"
    (tmp_path / "a.yaml").write_text(f"model: {{oracle: Comal, surrogate: {loss}}}")
    assert cited(capsys, tmp_path / "a.yaml")[0] == ["nlhf_zoo", "liu2024comal", "wu2024sppo"]


def test_a_comparison_cites_each_of_its_algorithms(capsys):
    _, said = cited(capsys, CONFIGS / "compare/quickstart.yaml")
    file = yaml.safe_load((CONFIGS / "compare/quickstart.yaml").read_text())
    assert len([line for line in said if "NashMP" in line or "SPPO" in line]) == 2
    assert len(said) >= len({own["config"] for own in file["algorithms"].values()})


def test_files_are_stacked_and_runs_are_found(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("model: {algorithm: {class_path: nlhf_zoo.EGPO}}")
    above = tmp_path / "above.yaml"
    above.write_text("model: {algorithm: {class_path: nlhf_zoo.SPPO}}")
    assert cited(capsys, tmp_path)[0] == ["nlhf_zoo", "zhou2025egpo"]
    assert cited(capsys, tmp_path, above)[0] == ["nlhf_zoo", "wu2024sppo"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class Mine:\n    paper = 'Me, 2026'", "no entry here, but its paper is 'Me, 2026'"),
        ("class Mine:\n    paper: str = 'arXiv:2503.08942'", "zhou2025egpo"),
        ("class Mine: pass", "a class of your own that declares no paper: cite it by hand"),
        ("class Other: pass", "its source is not here: cite it by hand"),
        ("class Mine(", "its source is not here: cite it by hand"),
    ],
)  # fmt: skip
def test_a_class_of_ones_own_is_read_and_not_run(capsys, tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(f"open('run', 'w')\n{source}\n")
    (tmp_path / "a.yaml").write_text("model: {algorithm: {class_path: own.Mine}}")
    assert cited(capsys, "a.yaml")[1] == [f"own.Mine: {said}"]
    assert not (tmp_path / "run").exists()


def test_a_file_that_names_itself_is_read_once(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("model: {algorithm: EGPO, oracle: a.yaml}")
    assert cited(capsys, tmp_path / "a.yaml")[0] == ["nlhf_zoo", "zhou2025egpo"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "there is nothing to cite: give a configuration or a run's folder"),
        (["none.yaml"], "none.yaml"),
        ([str(ROOT / "docs")], "has no config.yaml, which every run has"),
    ],
)
def test_what_cannot_be_cited_is_said(given, said):
    with pytest.raises(UserError, match=re.escape(said)):
        cite(given)
