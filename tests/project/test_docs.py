"""The documentation is true: its commands and examples run, its tables agree with the code."""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from html import unescape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from algorithms import test_contracts as contracts
from paths import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import save_tiny
from zoo import BETA, Row, small_games, snake_case

import nlhf_zoo
from nlhf_zoo import algorithms
from nlhf_zoo.algorithms import EGPO, PolicyOptimizer
from nlhf_zoo.callbacks.exact_metrics import TAGS
from nlhf_zoo.cli.compare.tables import COLUMNS
from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.solvers import regularised_nash

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FOLDERS = [ROOT / name for name in ("configs", "docs", "tests")]
MARKDOWN = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))]
HEADINGS = ("Equation", "How it is realised", "What is approximated", "Logged metrics", "Curve")
ALGORITHMS = [
    getattr(algorithms, name) for name in algorithms.__all__ if name != PolicyOptimizer.__name__
]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, kind: str) -> list[str]:
    """The code blocks of a kind in a page."""
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", text_of(page), re.M | re.S)


def commands(page: str) -> list[str]:
    """The commands of nlhf in a page, in order."""
    lines = "\n".join(blocks(page, "bash")).splitlines()
    return [line for line in lines if line.startswith("nlhf ")]


# ---- pages ---------------------------------------------------------------------------------------


def nav_files(nav):
    for entry in nav:
        for value in entry.values():
            yield from nav_files(value) if isinstance(value, list) else [value]


def test_the_navigation_names_every_page_once():
    config = re.sub(r"^plugins:.*?(?=^\S)", "", text_of("mkdocs.yml"), flags=re.M | re.S)
    nav = list(nav_files(yaml.safe_load(config)["nav"]))
    assert sorted(nav) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_every_figure_is_shown_and_has_a_command():
    shown = {
        (page.parent / name).resolve()
        for page in [*PAGES, ROOT / "README.md"]
        for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    assert shown == set((DOCS / "figures").glob("*.png"))
    script = text_of("docs/make_figures.sh")
    for source in re.findall(r"docs/figures/\w+\.py", script):
        assert (ROOT / source).is_file()
        script += text_of(source)
    for figure in shown:
        assert re.search(rf"\b{figure.stem}\b", script), f"nothing makes {figure}"


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_examples_in_python_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without a logger, Lightning takes the working directory for one
    for code in blocks(page, "{.python .run}"):
        with quiet():
            exec(compile(code, page, "exec"), {})


def test_there_are_examples_that_run():
    assert any(blocks(page.relative_to(ROOT).as_posix(), "{.python .run}") for page in PAGES)


@pytest.mark.parametrize("cls", ALGORITHMS, ids=lambda cls: cls.__name__)
def test_every_algorithm_has_a_page(cls):
    name = snake_case(cls.__name__)
    page = f"docs/algorithms/{name}.md"
    text = text_of(page)
    number = cls.paper.removeprefix("arXiv:")
    assert f"[arXiv:{number}](https://arxiv.org/abs/{number})" in text
    assert commands(page) == [f"nlhf fit --config configs/tabular/{name}.yaml"]
    assert {*HEADINGS} <= {*re.findall(r"^## (.*)$", text, re.M)}
    assert "(../metrics.md)" in text
    assert f"../figures/{name}.png" in text
    assert f"\n::: nlhf_zoo.algorithms.{cls.__name__}\n" in text
    assert f"(https://arxiv.org/abs/{number})" in text_of("docs/papers.md")


# ---- lines ---------------------------------------------------------------------------------------

ITEM = re.compile(r" *([-*+]|\d+\.) +")
NO_PROSE = re.compile(rf" *([#|<>:]|!\[|!!!|\?\?\?|\[\^|--8<--|$)| {{4}}(?!{ITEM.pattern})")


def prose(page: Path) -> list[str]:
    """The lines of a page; those of code, tables, headings, images and admonitions are empty."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^( *```).*?^\1$", "", text, flags=re.M | re.S)
    return ["" if NO_PROSE.match(line) else line for line in text.splitlines()]


def is_ragged(line: str, following: str) -> bool:
    """Whether a line is over 120, or ends early though the next word would have fit."""
    if len(line) > 120:
        return " " in ITEM.sub("", line, count=1).strip()  # one long word cannot be broken
    goes_on = line and following and not ITEM.match(following)
    return bool(goes_on) and len(f"{line} {following.split()[0]}") <= 120


def test_no_line_is_over_160():
    for page in MARKDOWN:
        lines = page.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if len(line) > 160] == [], page


def test_prose_is_wrapped_by_one_rule():
    for page in MARKDOWN:
        pairs = pairwise([*prose(page), ""])
        assert [line for line, following in pairs if is_ragged(line, following)] == [], page


# ---- the built site ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation as its readers see it, built as `make docs` does: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.parametrize(
    "page", [page.relative_to(DOCS).with_suffix("") for page in PAGES], ids=str
)
def test_a_page_is_what_its_source_says(page, site):
    """A fence that is none swallows headings, and three backticks come out."""
    html = (site / page.with_suffix(".html")).read_text(encoding="utf-8")
    (article,) = re.findall(r"<article.*?</article>", html, re.S)
    assert "```" not in article
    source = re.sub(r"^```.*?^```$", "", text_of(f"docs/{page}.md"), flags=re.M | re.S)
    wanted = [line.removeprefix("## ") for line in source.splitlines() if line.startswith("## ")]
    found = re.findall(r"<h2[^>]*>(.*?)<a class=\"headerlink", article, re.S)
    shown = [unescape(re.sub("<[^>]+>", "", heading)) for heading in found]
    bare = [re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in wanted]
    assert [heading for heading in shown if heading in bare] == bare


@pytest.mark.parametrize("folder", sorted({*nlhf_zoo.public_names().values()}))
def test_the_reference_has_every_public_name(folder, site):
    page = "index" if folder == "errors" else folder
    html = (site / f"reference/{page}.html").read_text(encoding="utf-8")
    names = [name for name, home in nlhf_zoo.public_names().items() if home == folder]
    constants = {"Answer", "Conversation", "GREEDY", "Mixture", "PLAIN", "GameMetric"}
    missing = [n for n in names if f'id="nlhf_zoo.{folder}.{n}"' not in html and n not in constants]
    assert missing == []


# ---- tables --------------------------------------------------------------------------------------


def make(cls):
    return cls(inner=EGPO()) if cls is algorithms.MovingMagnet else cls()


def test_the_table_of_algorithms_agrees_with_their_declarations():
    text = text_of("README.md")
    told = {}
    for row in re.findall(r"^\| (\[.*) \|$", text, re.M):
        name, *cells = row.split(" | ")
        told[re.search(r"\((docs/algorithms/\w+\.md)\)", name)[1]] = cells
    assert told == {
        f"docs/algorithms/{snake_case(cls.__name__)}.md": [
            "[{0}](https://arxiv.org/abs/{0})".format(cls.paper.removeprefix("arXiv:")),
            "yes" if make(cls).last_iterate else "no",
            "yes" if make(cls).closed_form else "no",
            str(make(cls).queries(0, 0, enumerated=True)),
        ]
        for cls in ALGORITHMS
    }
    in_one_line = re.findall(r"^- `(\w+)`: \w", text, re.M)
    assert [f"docs/algorithms/{snake_case(name)}.md" for name in in_one_line] == [*told]


@pytest.mark.parametrize(
    "command", ["ask", "init", "solve", "compare", "oracle", "serve-oracle", "report"]
)
def test_every_option_is_told(command):
    section = text_of("docs/command_line.md").split(f"\n## {command}\n")[1].split("\n## ")[0]
    shown = play(f"nlhf {command} --help")
    assert shown.code == 0
    options = set(re.findall(r"^  --(\w+)", shown.output, re.M))
    options -= {"help", "config", "print_config"}
    assert len(options) > 3
    for option in options:
        assert re.search(rf"^\| `(--)?{option}\b", section, re.M), f"--{option} is not told"


def test_the_files_of_the_commands_are_told(tmp_path):
    text = text_of("docs/command_line.md")
    assert f"`{','.join(COLUMNS)}`" in text
    matrix, output = tmp_path / "P.csv", tmp_path / "out.npz"
    matrix.write_text("0.5,0.9\n0.1,0.5\n")
    main(f"solve --matrix {matrix} --algorithm NashMP --updates 2 --output {output}".split())
    with np.load(output) as file:
        for key in file:
            assert f"`{key}`" in text


def test_the_figures_of_every_round_are_told():
    told = dict(re.findall(r"^\| `(\w+/\w+)` \| `(\w+)` \|", text_of("docs/metrics.md"), re.M))
    assert {name: tag for tag, name in told.items() if name != "queries"} == TAGS


# ---- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """A command that was run, and what it said."""

    command: str
    code: int
    output: str


def play(command: str) -> Played:
    """Run a command of the documentation in this process, on a small budget."""
    _, *args = shlex.split(command)
    shown = "--print_config" in args or any(arg.endswith(".help") for arg in args)
    if args[0] == "fit" and not shown:
        args += ["--trainer.callbacks+", "Budget", "--trainer.callbacks.rounds", "1"]
        args += ["--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
    if "configs/lm/own_model.yaml" in args:
        args += ["--model.policy.max_new_tokens", "8"]
    if args[0] == "compare":
        args += ["--budget.queries", "4", "--seeds", "[0]"]
    code, out = 0, io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main(args)
        except SystemExit as end:
            code = end.code or 0
    return Played(command, code, out.getvalue())


SAMPLED = (
    "nlhf fit --config configs/tabular/online_ipo.yaml --model.realisation GradientSteps "
    "--model.rollout Sample --trainer.logger.init_args.name sampled"
)


def bring_a_model(folder: Path) -> None:
    """What the README asks its reader to bring: a model, prompts, and the rule that it shows."""
    save_tiny(folder / "my_model", "llama", chat=True, max_position_embeddings=256)
    rows = [
        json.dumps({"prompt": prompt}) for prompt in ("name a fruit.", "a", "b?", "tell me") * 5
    ]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    (rule,) = re.findall(r"```python\n(def shorter_wins.*?)```", text_of("README.md"), re.S)
    (folder / "my_rules.py").write_text(rule)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The commands of the README and the quickstart, one after the other in one empty folder."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "configs").symlink_to(ROOT / "configs")
    bring_a_model(folder)
    todo = [*dict.fromkeys([*commands("docs/quickstart.md"), *commands("README.md")]), SAMPLED]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])  # `fit` adds the folder that it runs in
        return folder, [play(command) for command in todo]


def test_the_commands_run(played):
    _, runs = played
    assert len(runs) >= 12
    assert [run.command for run in runs if run.code] == []


def masked(text: str) -> list[str]:
    """Without figures near rounding, which may differ between machines."""
    return re.sub(r"\d(\.\d+)?e-\d+", "TINY", text).splitlines()


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_tables_of_solve_are_what_it_prints(played, page):
    pairs = re.findall(
        r"^```bash\n(nlhf solve [^\n]*)\n```\n\n```text\n(.*?)^```$", text_of(page), re.M | re.S
    )
    assert pairs
    printed = {run.command: run.output for run in played[1]}
    for command, shown in pairs:
        assert masked(shown) == masked(printed[command])


def test_every_logged_tag_is_explained(played):
    folder, _ = played
    events = list(folder.rglob("events.out.tfevents.*"))
    assert len(events) > 20
    logged = set()
    for file in events:
        accumulator = EventAccumulator(str(file))
        accumulator.Reload()
        logged |= set(accumulator.Tags()["scalars"])
    text = text_of("docs/metrics.md")
    rows = dict(re.findall(r"^\| `([\w/]+)` \|(.*)$", text, re.M))
    # What these pages run need not train on text, nor end a response, nor ask a population, nor
    # train on a rollout twice (tests/game/test_reuse.py has these tags), nor be certified, nor
    # explore (tests/algorithms/test_xpo.py), nor fit a model to answers (oracles/test_fitted.py),
    # nor wait for people (game/test_asked_ahead.py).
    kinds = "language models|TextPrompts|EnsembleOracle|with `epochs`|`ExploitabilityEstimate`|XPO"
    kinds += "|`FittedOracle`|`HumanOracle`"
    elsewhere = {tag for tag, row in rows.items() if re.search(kinds, row)}
    assert logged | elsewhere == set(rows)


# ---- the worked example --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The folder and the class of docs/add_an_algorithm.md."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "configs").symlink_to(ROOT / "configs")
    (code,) = blocks("docs/add_an_algorithm.md", '{.python title="slow_opponent.py"}')
    (folder / "slow_opponent.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder, importlib.import_module("slow_opponent").SlowOpponent
    del sys.modules["slow_opponent"]


def test_the_example_is_as_short_as_it_is_said_to_be():
    (code,) = blocks("docs/add_an_algorithm.md", '{.python title="slow_opponent.py"}')
    assert len(code.splitlines()) <= 100
    assert max(map(len, code.splitlines())) <= 100


def test_the_example_runs_from_the_command_line(example, monkeypatch):
    monkeypatch.chdir(example[0])
    todo = commands("docs/add_an_algorithm.md")
    assert [command.split()[1] for command in todo] == ["solve", "fit"]
    for run in map(play, todo):
        assert run.code == 0
    gradient = "--model.realisation GradientSteps --model.rollout Sample"
    assert play(f"{todo[1]} {gradient}").code == 0


def test_the_example_keeps_the_contracts(example):
    assert "    Row(algorithms.SlowOpponent, rounds=1000),\n" in text_of("docs/add_an_algorithm.md")
    row = Row(example[1], rounds=1000)
    P, log_reference = small_games()
    games = P, log_reference, regularised_nash(P, log_reference, BETA).log_policy
    contracts.test_plans_can_be_played_by_the_declared_players(row, BETA)
    contracts.test_scheduled_is_true_where_plans_differ(row)
    contracts.test_declared_queries_are_those_of_the_closed_form(row, games)
    for rollout in (Enumerate(), Sample(4, 3)):
        contracts.test_declared_queries_are_those_that_the_game_counts(row, games, rollout)
    assert contracts.claims_fixed_point(row.make())
    contracts.test_the_equilibrium_is_a_fixed_point_where_that_is_claimed(row, games)
    contracts.test_the_gradient_is_zero_at_the_equilibrium_where_that_is_claimed(row, games)
    contracts.test_the_last_iterate_goes_where_it_is_declared_to_go(row, games)
