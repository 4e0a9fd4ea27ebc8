"""``nlhf report``: one page that loads nothing, from the folders of runs."""

import base64
import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
import zoo
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from nlhf_zoo import Budget, Dashboard, ExactMetrics, GameFigures
from nlhf_zoo.algorithms import EGPO, NashMP
from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.report import sections
from nlhf_zoo.cli.report.hiding import shown
from nlhf_zoo.cli.report.page import note, number, structured, text
from nlhf_zoo.cli.report.reading import last_round, read_events
from nlhf_zoo.cli.resuming import keep_versions

SECTIONS = [
    "Summary", "Curves", "Figures", "Certificate", "Tournament", "Samples", "Ledger",
    "Configuration", "Versions",
]  # fmt: skip
HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(1)>\ud800\x00 & \"'"
KEY = "sk-a1b2c3d4e5f6g7h8i9j0k1l2"


class Page(HTMLParser):
    """What a browser would see: elements, sections, cells of tables, addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.sections: list[str] = []
        self.cells: list[list[str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.elements.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("img", "meta", "!doctype"):
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag  # what is not closed as it was opened was broken into

    def handle_data(self, data) -> None:
        self.words.append(data)
        if "h2" in self.open:
            self.sections.append(data)
        if {"td", "th"} & {*self.open}:
            self.cells[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """The cells of the first row of that name."""
        return next(cells[1:] for cells in self.cells if cells[0] == name)


def make_run(folder: Path, name: str, algorithm, **config) -> Path:
    """What `nlhf fit` leaves of a run of two hundred queries on one game of three actions."""
    game = zoo.small_game(algorithm, num_games=2)
    logger = TensorBoardLogger(folder, name, 0, default_hp_metric=False)
    callbacks = [ExactMetrics(), Dashboard(), Budget(queries=200)]
    callbacks += [GameFigures()] if name == "first" else []
    player = zoo.rows.trainer(devices=1, limit_val_batches=0, callbacks=callbacks, logger=logger)
    player.fit(game, zoo.TablePrompts())
    logger.finalize("success")
    run = Path(logger.log_dir)
    kind = f"nlhf_zoo.algorithms.{type(algorithm).__name__}"
    parts = {"beta": 0.1, "algorithm": {"class_path": kind}, "policy": "nlhf_zoo.TabularPolicy"}
    content = {"seed_everything": 3, "model": {"init_args": parts | config}, "data": "TablePrompts"}
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    keep_versions(run / "versions.json")
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Two runs, one of which has all that a page can show."""
    folder = tmp_path_factory.mktemp("runs")
    oracle = {
        "class_path": "nlhf_zoo.JudgeOracle",
        "init_args": {
            "base_url": f"https://me:{KEY}@judge.example/v1?token={KEY}",
            "api_key_env": "JUDGE_KEY",
            "headers": {"Authorization": f"Bearer {KEY}"}, "template": f"{HOSTILE!r}\nsecond line",
        },
    }  # fmt: skip
    first = make_run(folder, "first", NashMP(), oracle=oracle)
    second = make_run(folder, "second", EGPO(), oracle="nlhf_zoo.MatrixOracle")
    rows = [{"round": number, "prompt": "why?", "response": HOSTILE, "preference": 0.25,
             "opponent": f"answer of {number}"} for number in (1, 2)]  # fmt: skip
    lines = [json.dumps(row).replace("answer of", "answer\u2028of") for row in rows]
    lines.append('{"round": 2, "prom')  # as a kill leaves it
    (first / "responses.jsonl").write_text("\n".join(lines))
    certificate, tournament = first / "certificate", first / "tournament"
    certificate.mkdir()
    (certificate / "certificate.json").write_text(
        json.dumps(
            {
                "oracle": f"https://me:{KEY}@host/v1",
                "exploitability": 0.125,
                "interval": {"low": 0.1, "high": 0.15},
                HOSTILE: 1,
            }
        )
    )
    tournament.mkdir()
    (tournament / "ratings.csv").write_text(
        f'entrant,elo\n"{HOSTILE[:40]}",1016.5\nreference,984\n'
    )
    Image.new("RGB", (2, 2)).save(tournament / "wins.png")
    return first, second


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Page:
    """Of both runs, of which a checkpoint stands for the first."""
    output = tmp_path_factory.mktemp("page") / "page.html"
    checkpoint = made[0] / "checkpoints/last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    main(["report", str(checkpoint), str(made[1]), f"--output={output}"])
    return Page(output)


def test_a_page_has_every_section_and_loads_nothing(page):
    assert page.sections == SECTIONS
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "base", "form"} & {*page.elements}
    assert [one for one in page.addresses if not one.startswith(("data:image/", "#"))] == []
    assert "default-src 'none'" in page.source
    assert not re.search(r"@import|url\(", page.source)


def test_what_others_wrote_is_shown_and_does_nothing(page):
    said = HOSTILE.replace("\ud800", "?").replace("\x00", "�")
    assert ["2", "why?", said, "0.25", "answer\ufffdof 2"] in page.cells
    assert [said, "1"] in page.cells
    assert "of 1" not in page.source  # an earlier round's
    assert [HOSTILE[:40], "1016"] in page.cells  # four digits of a figure
    assert page.elements.count("table") == page.source.count("<table>")


def test_no_key_is_in_it(page):
    assert KEY not in page.source
    assert KEY[3:15] not in page.source
    assert "JUDGE_KEY" in page.source
    assert "judge.example/v1" in page.source


def test_the_last_figures_stand_in_the_summary(page, made):
    last = {run: {tag: values[-1] for tag, (_, values) in read_events(run).items()} for run in made}
    tag = "game/exploitability"
    expected = [f"{last[run][tag]:.4g}" for run in made]
    given = page.row("exploitability, mean over prompts")
    assert [float(cell) for cell in given] == pytest.approx([*map(float, expected)], rel=1e-3)
    assert page.row("algorithm") == ["NashMP", "EGPO"]
    assert page.row("share of the budget") == ["1", "1"]
    assert page.row("preference queries per prompt") == ["200", "200"]
    assert page.row("model.init_args.oracle")[1] == "nlhf_zoo.MatrixOracle"
    assert page.row("exploitability") == ["0.125"]
    assert page.row("torch")[0] == page.row("torch")[1] != ""


def test_charts_have_axes_with_units_and_a_line_for_each_run(page):
    drawn = [one.partition("base64,")[2] for one in page.addresses if "svg+xml" in one]
    texts = ["".join(ET.fromstring(base64.b64decode(one)).itertext()) for one in drawn]
    assert len(texts) >= 6
    first = next(one for one in texts if "exploitability" in one and "queries per prompt" in one)
    assert "first/version_0" in first
    assert "second/version_0" in first
    assert any("KL to the reference, nats" in one and "queries per prompt" in one for one in texts)


def test_pages_are_not_written_over(made, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(sections, "curves", lambda runs: note("not drawn here"))
    output = tmp_path / "page.html"
    output.write_text("mine")
    _, said = refused("report", made[1], "--output", output)
    assert said == f"--output {output} exists: give another name, or --overwrite"
    assert output.read_text() == "mine"
    main(["report", str(made[1]), "--output", str(output), "--overwrite"])
    assert Page(output).sections == SECTIONS


def test_what_is_no_run_is_said_in_a_sentence(made, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = made[1]
    refusals = {
        (): "there is no run: give the folder",
        ("nowhere",): "there is no run nowhere: give the folder of a run of `nlhf fit`",
        (tmp_path,): "has no config.yaml, which every run has",
        (
            run.parent,
        ): f"has no config.yaml, which every run has: give one of its runs, such as {run}",
        (run, run): "is given twice: give each once",
        (run, "--output", "no/page.html"): "the folder no does not exist, create it first",
        (run, "--output", "."): "is a folder: give the name of a file in it",
        (run, "--certificate", "[nowhere]"): "there is no folder nowhere: give one that `nlhf cert",
        (run, "--tournament", "[.]"): "has no results: give a folder that `nlhf tournament` has",
        (run, "--outputt", "x"): "outputt",
    }
    for given, sentence in refusals.items():
        assert sentence in refused("report", *given)[1]
    assert [*tmp_path.iterdir()] == []
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    for name, content, sentence in (
        ("responses.jsonl", "{}\n[\n{}\n", "line 2 is no record: move the file away"),
        ("versions.json", "{", "versions.json is no JSON, or damaged"),
        ("config.yaml", "a: [", "is not YAML"),
    ):
        (broken / name).write_text(content)
        assert sentence in refused("report", broken)[1]
        (broken / name).unlink()
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("key", "value", "seen"),
    [
        ("base_url", "http://user:pw@host:80/v1?k=secret#part", "http://[hidden]@host:80/v1?[hidden]"),
        ("base_url", "http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("api_key", "plain", "[hidden]"),
        ("api_key_env", "OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("token_file", "/home/me/token", "/home/me/token"),
        ("token", "word", "[hidden]"),
        ("eos_token", "</s>", "[hidden]"),
        ("max_new_tokens", 64, 64),
        ("model", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
        ("note", f"use {KEY} here", "use [hidden] here"),
        ("template", "two\nlines  of words", "two\nlines  of words"),
    ],
)  # fmt: skip
def test_configurations_are_shown_without_secrets(key, value, seen):
    assert shown({"part": [{key: value}]}) == {"part": [{key: seen}]}


def test_numbers_and_records_are_read_as_they_are():
    assert [number(x) for x in (0.0, 1234567.0, 0.123456, float("nan"), float("inf"), 1e-9)] == [
        "0", "1,234,567", "0.1235", "–", "inf", "1e-09",
    ]  # fmt: skip
    rows = [{"round": 1}, {"round": 2, "a": 1}, {"round": 2, "a": 2}]
    assert last_round(rows) == rows[1:]
    assert last_round([{"a": 1}, {"b": 2}]) == [{"a": 1}, {"b": 2}]
    assert last_round([]) == []
    assert "characters more" in text("x" * 5000)
    assert structured({"a": {"b": [{"c": 1}, {"d": "<"}]}}).count("<table>") == 1


def test_versions_are_kept_behind_those_of_before(tmp_path):
    path = tmp_path / "versions.json"
    path.write_text(json.dumps([{"torch": "1.0"}]))
    for _ in range(2):
        keep_versions(path)
    before, now = json.loads(path.read_text())
    assert before == {"torch": "1.0"}
    assert now["torch"] == zoo.torch.__version__
