"""``nlhf compare``: what it writes is what was played, and what it cannot play it refuses first."""

import contextlib
import copy
import csv
import html
import io
import logging
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from paths import CONFIGS
from slow import slow_unless
from tqdm import tqdm

from nlhf_zoo.algorithms import EGPO
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds, thread_limit
from nlhf_zoo.callbacks import read_history
from nlhf_zoo.cli.compare import command, runs
from nlhf_zoo.cli.compare.configuration import BudgetLimits, read_configuration
from nlhf_zoo.cli.compare.entries import Entry, read_entries
from nlhf_zoo.cli.compare.tables import COLUMNS
from nlhf_zoo.cli.main import main
from nlhf_zoo.data.tables.games import comal, uniform_random
from nlhf_zoo.policies import NormalReference
from nlhf_zoo.solvers import exploitability, regularised_nash, trajectory_metrics


def block(name: str, **arguments: object) -> dict:
    return {"class_path": name} | ({"init_args": arguments} if arguments else {})


REFERENCE = block("NormalReference")
UNIFORM = {"oracle": block("UniformRandom", num_games=3, num_actions=4), "reference": REFERENCE}
CYCLE = {"oracle": block("Cyclic", num_actions=3), "reference": REFERENCE}


def fit_file(name: str) -> str:
    return str(CONFIGS / "tabular" / f"{name}.yaml")


def small() -> dict:
    """A comparison that takes a second."""
    return {
        "output": "out", "budget": {"queries": 7}, "betas": [0.1], "seeds": [0, 1],
        "games": copy.deepcopy({"uniform": UNIFORM, "cycle": CYCLE}),
        "algorithms": {name: {"config": fit_file(name.lower())} for name in ("EGPO", "SPPO")},
    }  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(content: object, *arguments: str, run: Callable = lambda *args: main([*args])) -> Any:
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    Path("compare.yaml").write_text(text)
    return run("compare", "--config", "compare.yaml", *arguments)


def entries_of(path: Path) -> list[Entry]:
    """The entries of a comparison at one temperature, which is not played."""
    read = read_configuration(["--config", str(path), "--betas", "[0.1]"])
    return read_entries(read.games, read.algorithms, read.betas, 0, lambda: None)


def entries_in(content: dict) -> list[Entry]:
    Path("compare.yaml").write_text(yaml.safe_dump(content))
    return entries_of(Path("compare.yaml"))


def rows(output: str | Path = "out") -> list[dict[str, str]]:
    with (Path(output) / "results.csv").open() as file:
        return list(csv.DictReader(file))


def numbers(found: list[dict[str, str]], column: str) -> np.ndarray:
    return np.array([float(row[column]) for row in found])


def without_seconds(found: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row | {"seconds": ""} for row in found]


def targets() -> dict[str, dict[str, str]]:
    with open("out/queries_to_target.csv") as file:
        return {row["algorithm"]: row for row in csv.DictReader(file)}


def of(found: list[dict[str, str]], **wanted: str) -> list[dict[str, str]]:
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The small comparison, what it printed, and what it changed of this process."""
    folder, output, errors = tmp_path_factory.mktemp("played"), io.StringIO(), io.StringIO()
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    levels = {logger: logger.level for logger in loggers}
    with contextlib.chdir(folder), contextlib.redirect_stdout(output), thread_limit(False):
        torch.set_num_threads(2)
        with contextlib.redirect_stderr(errors):
            compare(small())
        changed = [logger.name for logger, level in levels.items() if logger.level != level]
        changed += ["threads"] if torch.get_num_threads() != 2 else []
    shown = {"output": output.getvalue(), "errors": errors.getvalue()}
    return SimpleNamespace(folder=folder, changed=changed, **shown)


@pytest.fixture
def earlier(here, played):
    """The same in the current folder, which may be changed."""
    shutil.copytree(played.folder, here, dirs_exist_ok=True)


def test_the_results_are_those_of_the_game(played):
    found = rows(played.folder / "out")
    assert tuple(found[0]) == COLUMNS
    games = [f"uniform[{i}]" for i in range(3)] + ["cycle"]
    assert {(r["game"], r["algorithm"], r["seed"]) for r in found} == {
        *product(games, ("EGPO", "SPPO"), ("0", "1"))
    }
    assert len(found) == 16
    # A round of EGPO costs two queries, and one that would exceed the budget of 7 is not begun.
    assert {(r["queries"], r["rounds"]) for r in of(found, algorithm="EGPO")} == {("6", "3")}
    assert {(r["queries"], r["rounds"]) for r in of(found, algorithm="SPPO")} == {("7", "7")}
    assert (numbers(found, "seconds") > 0).all()

    table = uniform_random(3, 4, seed=1)
    log_reference = NormalReference(seed=1).log_prob(torch.ones(3, 4, dtype=torch.bool))
    players = {"policy": log_reference, "lookahead": log_reference}
    last = ClosedFormRounds(EGPO(), 0.1, table, log_reference, players).run(0, 3).log_policy[-1:]
    nash = regularised_nash(table, log_reference, 0.1).log_policy
    expected = trajectory_metrics(table, last, log_reference, 0.1, nash)
    for i in range(3):
        (row,) = of(found, game=f"uniform[{i}]", algorithm="EGPO", seed="1")
        for name in ("exploitability", "kl_to_nash", "span"):
            assert float(row[name]) == pytest.approx(expected[name][0, i].item(), rel=1e-9)


def test_every_algorithm_plays_the_same_game(here):
    compare(small(), "--budget.queries", "0")
    for seed in (0, 1):
        starts = [read_history(f"out/uniform/{name}/seed_{seed}") for name in ("EGPO", "SPPO")]
        assert len(starts[0]["round"]) == 1
        for column in starts[0]:
            np.testing.assert_array_equal(starts[0][column], starts[1][column])
    found = of(rows(), game="uniform[0]", algorithm="EGPO")
    assert found[0]["exploitability"] != found[1]["exploitability"]  # the seed draws the game


def test_tables_figure_and_logs(played):
    output = played.folder / "out"
    assert "GPU" not in played.errors
    assert "litlogger" not in played.errors
    found = of(rows(output), algorithm="SPPO")
    uniform = numbers([r for r in found if r["game"].startswith("uniform")], "exploitability")
    mean, most = f"{uniform.mean():.2e}", f"{uniform.max():.2e}"
    lines = (output / "results.md").read_text().splitlines()
    assert "sweep" not in lines[0]
    (line,) = [x for x in lines if x.startswith("| uniform, β = 0.1") and "SPPO" in x]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:5] == ["SPPO", "7", mean, most]
    assert float(cells[-1]) < 1e-12  # the certificate of pi*
    (line,) = [x for x in played.output.splitlines() if x.split()[:3] == ["SPPO", "7", mean]]
    assert line.split()[3] == most
    assert "out/" in played.output
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page = (output / "report.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Results", "Curves", "Each game and seed", "Configuration", "Versions",
    ]  # fmt: skip
    assert html.escape(line) in page
    number = len((output / "results.csv").read_text().splitlines()) - 1
    assert f"<details><summary>{number} rows</summary>" in page
    assert not re.search(r"<td[^>]*>\d\.\d{9,}", page)  # figures for people
    assert [one for one in re.findall(r'src="(.{5})', page) if one != "data:"] == []
    for game, algorithm, seed in product(("uniform", "cycle"), ("EGPO", "SPPO"), (0, 1)):
        folder = output / game / algorithm / f"seed_{seed}"
        assert list(folder.glob("events.out.tfevents.*"))
        assert (folder / "history.bin").stat().st_size > 0
    assert not list(output.rglob("*.part"))


def test_lightning_and_threads_are_left_as_they_were(played):
    assert played.changed == []


def test_an_earlier_comparison_is_not_destroyed(earlier, refused):
    Path("out/uniform/notes.txt").write_text("mine")
    before = rows()
    assert "earlier comparison" in compare(small(), run=refused)[1]
    assert rows() == before
    again = "SPPO $^$ <b>"  # between two dollars matplotlib would read an equation
    compare(small() | {"algorithms": {again: {"config": fit_file("sppo")}}}, "--overwrite")
    assert {row["algorithm"] for row in rows()} == {again}
    assert "SPPO $^$ &lt;b&gt;" in Path("out/report.html").read_text()
    assert not Path("out/uniform/SPPO").exists()
    assert Path("out/uniform/notes.txt").read_text() == "mine"
    assert len(list(Path("out/cycle", again, "seed_0").glob("events*"))) == 1
    compare(small() | {"overwrite": True})
    assert without_seconds(rows()) == without_seconds(before)


def test_logs_of_an_interrupted_comparison_are_not_mixed_with_new_ones(earlier, refused):
    """Of a version that did not say what is compared; else it goes on, see the tests of that."""
    for name in ("results.csv", "results.md", "comparison.png", "report.html", "comparison.json"):
        Path("out", name).unlink()
    assert "earlier comparison" in compare(small(), run=refused)[1]


def test_a_divergence_is_reported_not_dropped(here, capsys):
    content = small() | {"games": {"cycle": CYCLE}}
    content["algorithms"]["SPPO"]["algorithm"] = block("SPPO", eta=1e308)
    compare(content)
    diverged = of(rows(), algorithm="SPPO")
    assert len(diverged) == 2
    for column in ("exploitability", "kl_to_nash", "span"):
        assert {row[column] for row in diverged} == {"inf"}
    lines = Path("out/results.md").read_text().splitlines()
    (line,) = [line for line in lines if "| SPPO " in line]
    assert line.split("|")[4].strip() == "inf"
    assert np.isfinite(numbers(of(rows(), algorithm="EGPO"), "exploitability")).all()
    assert "inf" in capsys.readouterr().out


def test_a_full_disk_is_told_in_one_sentence(here, refused, monkeypatch):
    monkeypatch.setattr(
        command.tables, "draw", Mock(side_effect=OSError(28, "No space left on device"))
    )
    _, sentence = compare(small(), "--budget.queries", "0", run=refused)
    assert sentence == "out could not be written to: No space left on device"


def test_several_betas(here):
    compare(small(), "--betas", "[0.1, 1e-2]", "--seeds", "[3]", "--queries_axis", "log")
    found = rows()
    cycles = {row["game"] for row in found if "cycle" in row["game"]}
    assert cycles == {"cycle beta=0.1", "cycle beta=0.01"}
    assert {row["seed"] for row in found} == {"3"}
    table = uniform_random(3, 4, 3)
    log_reference = NormalReference(seed=3).log_prob(torch.ones(3, 4, dtype=torch.bool))
    history = read_history("out/uniform beta=0.01/SPPO/seed_3")
    start = exploitability(table, log_reference, log_reference, 0.01)
    np.testing.assert_allclose(history["exploitability"][0], start.numpy(), rtol=1e-9)


def test_the_start_and_the_unregularised_exploitability(here):
    start = [0.5, 0.3, 0.2]
    game = {"oracle": block("Comal"), "start": block("GivenReference", probabilities=start)}
    content = small() | {"games": {"comal": game}, "seeds": [0]}
    content |= {"exploitability": "unregularised"}
    compare(content, "--budget.queries", "0")
    expected = (comal()[0] @ torch.tensor(start, dtype=torch.float64)).max().item() - 0.5
    assert numbers(rows(), "exploitability") == pytest.approx([expected] * 2, rel=1e-12)


def test_a_target_of_the_unregularised_game(here):
    content = small() | {"games": {"comal": {"oracle": block("Comal")}}, "seeds": [0]}
    content |= {"exploitability": "unregularised", "target": {"duality_gap": 1e-3}}
    files = {"COMAL": "moving_magnet", "EGPO": "egpo"}
    content["algorithms"] = {name: {"config": fit_file(file)} for name, file in files.items()}
    compare(content | {"budget": {"rounds": 20000}})
    table = targets()
    assert table["COMAL"]["reached"] == "1"
    assert table["EGPO"]["reached"] == "0"  # its equilibrium is the regularised one
    assert float(of(rows(), algorithm="COMAL")[0]["rounds"]) < 20000


def sweep(*values: float) -> dict:
    return {"config": fit_file("online_ipo"), "sweep": {"algorithm.eta": [*values]}}


def sweeping() -> dict:
    content = small() | {"games": {"uniform": UNIFORM}, "target": {"duality_gap": 1e-5}}
    content["algorithms"] = {"MD": sweep(0.1, 1.0, 1e-4), "SPPO": {"config": fit_file("sppo")}}
    return content | {"budget": {"queries": 3000}, "seeds": [0]}


def test_sweep_and_target(here, capsys):
    compare(sweeping())
    table = targets()
    history = read_history("out/uniform/MD (eta=1)/seed_0")
    gap = 2 * history["exploitability"]
    first = [history["queries"][np.flatnonzero(gap[:, i] < 1e-5)[0]] for i in range(3)]
    best = table["MD (eta=1)"]
    assert float(best["median_queries"]) == np.median(first)
    assert (best["best"], best["reached"], best["instances"]) == ("1", "3", "3")
    assert table["MD (eta=0.1)"]["best"] == "0"
    assert float(table["MD (eta=0.1)"]["median_queries"]) > np.median(first)
    assert float(table["MD (eta=0.0001)"]["median_queries"]) == np.inf
    assert table["SPPO"]["reached"] == "0"
    # A run ends with the training step of 1000 rounds in which all games are at the target.
    assert {r["queries"] for r in of(rows(), algorithm="MD (eta=1)")} == {"1000"}
    assert {r["queries"] for r in of(rows(), algorithm="SPPO")} == {"3000"}
    # Metrics of every round are kept for the best step alone; figures at the end of each.
    assert not Path("out/uniform/MD (eta=0.1)/seed_0/history.bin").exists()
    assert {r["algorithm"] for r in rows()} >= {"MD (eta=0.1)", "MD (eta=1)", "MD (eta=0.0001)"}
    shown = capsys.readouterr().out
    (line,) = [x for x in shown.splitlines() if x.startswith("| uniform")]
    assert line.split("|")[2].strip() == f"{np.median(first):g} (eta=1)"
    assert line.split("|")[3].strip() == "not in 3,000"


def held_out() -> dict:
    """A sweep that the first seed chooses by, and the others report."""
    content = small() | {"seeds": [0, 1, 2], "sweep_seeds": 1, "budget": {"queries": 40}}
    content["algorithms"]["MD"] = sweep(0.01, 1.0, 1e-4)
    return content


def test_the_seeds_that_choose_of_a_sweep_are_not_reported(here, capsys):
    compare(held_out())
    found = rows()
    seeds: dict[str, str] = {}
    for row in of(found, game="cycle"):
        seeds[row["algorithm"]] = seeds.get(row["algorithm"], "") + row["seed"]
    alone = {"MD (eta=0.01)": "0", "MD (eta=1)": "012", "MD (eta=0.0001)": "0"}
    assert seeds == alone | {"SPPO": "12", "EGPO": "12"}
    best = of(found, game="cycle", algorithm="MD (eta=1)")
    choosing, *reported = numbers(best, "exploitability")
    tried = of(found, game="cycle", seed="0")
    assert choosing == min(numbers(tried, "exploitability"))
    lines = Path("out/results.md").read_text().splitlines()
    (line,) = [line for line in lines if "cycle" in line and "MD (eta=1)" in line]
    assert line.split("|")[4].strip() == f"{np.mean(reported):.2e}"
    assert f"{choosing:.2e}" not in line
    assert "seeds 1, 2. Of a sweep the best value, chosen by other runs (seeds 0)." in lines[0]
    assert Path("out/cycle/MD (eta=1)/seed_2/history.bin").exists()
    assert not Path("out/cycle/MD (eta=0.01)/seed_0/history.bin").exists()


def test_a_sweep_over_two_arguments_plays_all_combinations(here):
    content = small() | {"games": {"uniform": UNIFORM}}
    two = {"algorithm.eta": [0.1, 0.3], "rollout.epochs": [1, 4]}
    algorithm = {"config": fit_file("sampled/egpo"), "sweep": two}
    content["algorithms"] = {"EGPO": algorithm}
    Path("comparison.yaml").write_text(yaml.safe_dump(content))
    configuration = read_configuration(["--config", "comparison.yaml"])
    entries = read_entries(configuration.games, configuration.algorithms, None, 0, list)
    played = [(entry.make().algorithm.eta, entry.make().rollout.epochs) for entry in entries]
    assert played == [(0.1, 1), (0.1, 4), (0.3, 1), (0.3, 4)]
    assert entries[1].label == "EGPO (eta=0.1, epochs=4)"


def test_what_chose_of_a_sweep_is_said(here):
    content = sweeping() | {"budget": {"queries": 5}}
    del content["target"]
    compare(content)
    assert "chosen by these same runs" in Path("out/results.md").read_text()


def sampled() -> dict:
    """Both kinds of runs, and a sweep: what is drawn, too, must not depend on where it is."""
    content = held_out() | {"games": {"uniform": UNIFORM}, "budget": {"queries": 600}}
    content["algorithms"]["sampled"] = {"config": fit_file("sampled/egpo")}
    return content


@pytest.mark.skipif("NLHF_ROUNDING" in os.environ, reason="rounds in this process alone")
def test_the_number_of_processes_changes_no_figure(here, capsys, monkeypatch):
    monkeypatch.setattr(command, "tqdm", lambda **options: tqdm(**options | {"delay": 0}))
    compare(sampled())
    capsys.readouterr()
    compare(sampled(), "--output", "side", "--processes", "2")
    shown = capsys.readouterr()
    assert "uniform, " in shown.err  # the bar names what runs
    assert "100%" in shown.err
    assert without_seconds(rows("side")) == without_seconds(rows())
    names = sorted(str(path.relative_to("out")) for path in Path("out").rglob("history.bin"))
    assert names == sorted(str(p.relative_to("side")) for p in Path("side").rglob("history.bin"))
    for name in names:
        assert Path("side", name).read_bytes() == Path("out", name).read_bytes()
    assert not multiprocessing.active_children()


def test_an_interruption_ends_all_processes(here, monkeypatch):
    def update(bar: tqdm, amount: int = 1) -> None:
        if multiprocessing.active_children():  # which play by now
            raise KeyboardInterrupt

    monkeypatch.setattr(tqdm, "update", update)
    with pytest.raises(KeyboardInterrupt):
        compare(small() | {"processes": 2})
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("asked", [True, False], ids=["at work", "idle"])
def test_a_process_ends_with_its_parent(here, monkeypatch, asked):
    monkeypatch.setattr(runs, "signal", Mock())  # it is this process, for once
    parent, worker = multiprocessing.Pipe()
    if asked:
        entry, budget = entries_in(small())[0], BudgetLimits(queries=7)
        parent.send(runs.Task(entry, 0, here / "out", budget, "regularised", None))
    parent.close()
    with thread_limit(False):
        runs._serve(worker)


FAULTY = """
import os
import signal
from multiprocessing import parent_process

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import Cyclic


class Faulty(Cyclic):
    answers_table = False

    def __init__(self, fault: str, everywhere: bool = False) -> None:
        super().__init__(num_actions=3)
        self.fault, self.everywhere = fault, everywhere

    def forward(self, prompts, first, second):
        if self.everywhere or parent_process() is not None:
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise (UserError if self.fault == "refused" else ZeroDivisionError)("no answer")
        return super().forward(prompts, first, second)
"""


def faulty(here: Path, monkeypatch: pytest.MonkeyPatch, **arguments: object) -> dict:
    """A comparison whose runs cannot be played."""
    (here / "faulty.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(here)
    game = {"oracle": block("faulty.Faulty", **arguments)}
    algorithm = {"config": fit_file("online_dpo"), "realisation": block("GradientSteps")}
    return small() | {"seeds": [5], "games": {"cycle": game}, "algorithms": {"DPO": algorithm}}


def test_a_run_whose_process_dies_is_named(here, refused, monkeypatch):
    content = faulty(here, monkeypatch, fault="killed") | {"processes": 2}
    message = "cycle, DPO, seed 5: its process died (exit code -9): lower processes"
    assert message in compare(content, run=refused)[1]
    assert not multiprocessing.active_children()


def traceback_of(content, capsys):
    """What the file holds that an unexpected error names."""
    with pytest.raises(SystemExit) as end:
        compare(content)
    assert end.value.code == 70
    file = re.search(r"the traceback is in (\S+):", capsys.readouterr().err)
    assert file is not None
    return Path(file[1]).read_text()


def test_a_run_that_fails_elsewhere_is_named(here, monkeypatch, capsys):
    content = faulty(here, monkeypatch, fault="broken") | {"processes": 2}
    text = traceback_of(content, capsys)
    assert "RuntimeError: the run cycle, DPO, seed 5 failed:" in text
    assert "ZeroDivisionError: no answer" in text


def test_a_run_that_fails_here_is_named(here, refused, monkeypatch, capsys):
    content = faulty(here, monkeypatch, fault="broken", everywhere=True)
    text = traceback_of(content, capsys)
    assert "ZeroDivisionError: no answer" in text
    assert "in the run cycle, DPO, seed 5" in text
    content = faulty(here, monkeypatch, fault="refused", everywhere=True)
    _, sentence = compare(content, "--overwrite", run=refused)
    assert sentence == "cycle, DPO, seed 5: no answer"


def test_the_theorys_rate_is_drawn_for_products_alone(here, monkeypatch):
    """It counts products P o; a query of samples is one pair."""
    from matplotlib.figure import Figure

    legend = Mock()
    monkeypatch.setattr(Figure, "legend", legend)
    compare(small())
    content = sampled()
    content["algorithms"] = {"sampled": content["algorithms"]["sampled"]}
    del content["sweep_seeds"]
    compare(content, "--output", "other")
    products, samples = ([*call.args[1]] for call in legend.call_args_list)
    assert len(products) == 3
    assert samples == ["sampled"]


def changed_file(name: str, path: str, to: object) -> str:
    """A file for ``nlhf fit`` with one value replaced."""
    content = yaml.safe_load(Path(fit_file(name)).read_text())
    Path("changed.yaml").write_text(yaml.safe_dump(changed(path, to, content)))
    return "changed.yaml"


def test_blocks_are_replaced_whole(here):
    """Arguments of the file's class must not slip into another class."""
    file = changed_file("sppo", "model init_args algorithm init_args", {"eta": 0.77})
    content = small() | {"algorithms": {"as in the file": {"config": file}}}
    content["algorithms"]["replaced"] = {"config": file, "algorithm": block("OnlineIPO")}
    first, second, *_ = entries_in(content)
    assert first.make().algorithm.eta == 0.77
    game = second.make()
    assert type(game.algorithm).__name__ == "OnlineIPO"
    assert game.algorithm.eta == 0.1


def test_a_game_replaces_reference_and_start_of_the_file(here):
    given = block("GivenReference", probabilities=[0.5, 0.3, 0.2])
    arguments = {"reference": given, "start": given}
    file = changed_file("sppo", "model init_args policy init_args", arguments)
    content = small() | {"games": {"cycle": {"oracle": CYCLE["oracle"]}}}
    (entry,) = entries_in(content | {"algorithms": {"SPPO": {"config": file}}})
    uniform = torch.full((1, 3), 1 / 3, dtype=torch.float64).log()
    for player in ("reference", "policy"):
        torch.testing.assert_close(entry.make().log_policy(player), uniform)


# Many entries, each with a language model of its own.
SLOW = ("language", "language_epochs", "small_beta")
SHIPPED = sorted((CONFIGS / "compare").glob("*.yaml"))


@slow_unless("path", lambda path: path.stem not in SLOW, SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_comparison_can_be_made(here, path):
    found = entries_of(path)
    names = set(yaml.safe_load(path.read_text())["algorithms"])
    assert {entry.algorithm for entry in found} == names


def test_the_quickstart_runs(here):
    path = CONFIGS / "compare" / "quickstart.yaml"
    main(["compare", "--config", str(path), "--budget.queries", "4", "--seeds", "[0]"])
    names = {row["algorithm"] for row in rows("runs/compare/quickstart")}
    assert names == set(yaml.safe_load(path.read_text())["algorithms"])


@pytest.mark.slow  # the ledger plays this game by default
def test_comals_game_by_one_command(here):
    """The duality gaps after 20,000 rounds, twice the exploitability."""
    main(["compare", "--config", str(CONFIGS / "compare" / "comal.yaml")])
    gap = {row["algorithm"]: 2 * float(row["exploitability"]) for row in rows("runs/compare/comal")}
    assert gap["INPO, fixed reference"] == pytest.approx(0.078, abs=5e-4)
    assert gap["COMAL (moving magnet)"] < 1e-13
    assert gap["optimistic"] == pytest.approx(2.2e-3, abs=5e-5)
    history = read_history("runs/compare/comal/COMAL's game/SPPO/seed_0")
    cycle = 2 * history["exploitability_unregularised"][-5000:]
    assert 0.15 < cycle.min() < 0.25
    assert 0.75 < cycle.max() < 0.85


@pytest.mark.slow
def test_oracle_calls_by_one_command(here):
    """The ranking at each beta: the second query pays where beta is small, and only there."""
    main(["compare", "--config", str(CONFIGS / "compare" / "oracle_calls.yaml")])
    with open("runs/compare/oracle_calls/queries_to_target.csv") as file:
        best = [row for row in csv.DictReader(file) if row["best"] == "1"]
    ranking = {}
    for beta in ("0.001", "0.01", "0.1"):
        own = [row for row in best if row["beta"] == beta and row["median_queries"] != "inf"]
        own.sort(key=lambda row: float(row["median_queries"]))
        ranking[beta] = [row["algorithm"].split(" (")[0] for row in own]
    constant, falling = "Nash-MD, constant step", "Nash-MD, falling step"
    assert ranking == {
        "0.001": ["Nash-MP"],
        "0.01": ["Nash-MP", constant, "mirror descent", falling],
        "0.1": ["mirror descent", "Nash-MP", falling, constant],
    }


def changed(path: str, to: object, content: dict | None = None) -> dict:
    """A comparison, the small one, with one value replaced or, by None, left out."""
    content = content or small()
    *outer, last = path.split()
    inner = content
    for key in outer:
        inner = inner[key]
    inner[last] = to
    if to is None:
        del inner[last]
    return content


ORACLE, EGPO_BLOCK = "games cycle oracle", "algorithms EGPO algorithm"
CONFIG, SWEEP = "algorithms EGPO config", "algorithms EGPO sweep"
LANGUAGE = str(CONFIGS / "language" / "egpo.yaml")
NO_REFERENCE = "the game gives a reference, but CausalLMPolicy takes none: leave it out of the game"

# What is replaced, by what, and what is then said.
CHANGES = [
    ("seed", 0, "'seed' is not accepted"),
    ("output", None, "output"),
    ("output", "/nowhere/at/all", "does not exist"),
    ("output", "compare.yaml", "is a file"),
    ("budget", None, "budget"),
    ("budget", {}, "set budget.queries or budget.rounds"),
    ("budget", 3, "budget must be a mapping"),
    ("budget", {"steps": 3}, "steps"),
    ("budget queries", -1, "budget.queries must be at least 0"),
    ("budget queries", "many", "got 'many'"),
    ("games", {}, "there are no games"),
    ("games", [CYCLE], "games must name each"),
    ("games cycle", {}, "games.cycle lacks oracle"),
    ("games cycle", "rps", "games.cycle must be a mapping"),
    ("games cycle refrence", {}, "'refrence' is not accepted"),
    ("games a/b", CYCLE, "without slashes"),
    ("games ..", CYCLE, "without slashes"),
    (ORACLE, block("RockPaper"), "RockPaper"),
    (ORACLE, block("Cyclic", n=3), "'n' is not accepted"),
    (ORACLE, block("Cyclic", num_actions=4), "must be odd"),
    (ORACLE, block("MatrixOracle", path="no.npy"), "matrix no.npy does not exist"),
    (ORACLE, {"class_path": "Cyclic", "num_actions": 3}, "put arguments under init_args"),
    (ORACLE, {"class_path": "Cyclic", "init_args": [3]}, "init_args must be a mapping"),
    (ORACLE, "Cyclic", "oracle must be {class_path: ..., init_args: ...}, but it is 'Cyclic'"),
    ("games cycle reference", block("GivenReference", probabilities=[0.5, 0.5]), "[2]"),
    ("algorithms", {}, "there are no algorithms"),
    ("algorithms EGPO", {}, "lacks config"),
    (CONFIG, 3, "config must be the path of a file"),
    (CONFIG, "none.yaml", "there is no file"),
    (CONFIG, "compare.yaml", "no section `model`"),
    (CONFIG, LANGUAGE, NO_REFERENCE),
    (EGPO_BLOCK, block("EPGO"), "EPGO"),
    (EGPO_BLOCK, block("EGPO", eta=-1), "eta must be a finite number above 0"),
    (EGPO_BLOCK, block("EGPO", eta="${.x}"), "interpolation"),
    (EGPO_BLOCK, block("OnlineDPO"), "no closed form"),
    ("algorithms EGPO rollout", block("Sample"), "closed form"),
    (SWEEP, {}, "must name arguments"),
    (SWEEP, [0.1], "must name arguments"),
    (SWEEP, {"algorithm.eta": [1], "optimizer.lr": []}, "sweep.optimizer.lr is empty"),
    (SWEEP, {"eta": [1]}, "such as algorithm.eta"),
    (SWEEP, {"algorithm.eta": ["small"]}, "list of numbers"),
    (SWEEP, {"algorithm.eta": [1, 1.0000001]}, "EGPO (eta=1) on cycle stands twice"),
    (SWEEP, {"algorithm.step": [1]}, "'step' is not accepted"),
    (SWEEP, {"lr_scheduler.gamma": [1]}, "there is no lr_scheduler"),
    ("betas", [0.0], "above 0"),
    ("betas", [float("inf")], "finite"),
    ("betas", [], "betas is empty"),
    ("betas", [0.1, 0.1], "twice"),
    ("seeds", [], "there are no seeds"),
    ("seeds", [-1], "seeds must lie between"),
    ("seeds", [1, 1], "stands twice"),
    ("target", {"duality_gap": 0}, "target.duality_gap"),
    ("exploitability", "exact", "exploitability"),
    ("processes", 0, "processes must be at least 1"),
    ("sweep_seeds", 1, "no algorithm has a sweep"),
]
CONTENTS = [
    *(pytest.param(changed(at, to), error, id=f"{at}: {error}") for at, to, error in CHANGES),
    pytest.param("output: [", "cannot be read", id="not YAML"),
    pytest.param("", "holds no configuration", id="empty"),
    pytest.param("- 1", "holds no configuration", id="a list"),
    pytest.param("? [a, b]\n: 1", "no plain name", id="a list as a key"),
    pytest.param("- {a: 1, a: 2}", "'a' stands twice", id="a key twice"),
    (yaml.safe_dump(small()).replace("  SPPO:", "  EGPO:"), "'EGPO' stands twice"),
    (changed("sweep_seeds", 0, held_out()), "sweep_seeds must be at least 1"),
    (changed("sweep_seeds", 3, held_out()), "leave a seed to report of the 3"),
]


@pytest.mark.parametrize(("content", "message"), CONTENTS)
def test_what_cannot_be_compared_is_refused(here, refused, content, message):
    out, sentence = compare(content, run=refused)
    assert message in sentence
    assert out == ""
    assert sorted(path.name for path in here.iterdir()) == ["compare.yaml"]  # before anything ran


def test_an_oracle_without_a_table_is_refused(here, refused):
    np.save("e.npy", np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32))
    content = changed(ORACLE, block("EmbeddingOracle", embeddings="e.npy"))
    assert "EmbeddingOracle does not" in compare(content, run=refused)[1]
    realisation = block("GradientSteps")
    content["algorithms"] = {"DPO": {"config": fit_file("online_dpo"), "realisation": realisation}}
    assert "EmbeddingOracle holds no table" in compare(content, run=refused)[1]


def test_an_optimiser_of_several_calls_is_refused_before_anything_runs(here, refused):
    own = {"config": fit_file("online_dpo"), "optimizer": block("torch.optim.LBFGS")}
    content = small() | {"algorithms": {"DPO": own}}
    assert "computes the loss several times in a step" in compare(content, run=refused)[1]
    assert sorted(path.name for path in here.iterdir()) == ["compare.yaml"]


FILES = [
    ("model init_args beta", 0.2, "two games"),
    ("data init_args", {"batch_size": 1}, "all prompts at once"),
    ("data", block("TextPrompts", path="prompts.jsonl"), "sets data to TextPrompts"),
    ("model init_args policy", None, "the file has no model.init_args.policy"),
    ("trainer precision", "12", "changed.yaml, trainer:"),
    ("trainer accumulate_grad_batches", 0, "accumulate_grad_batches must be at least 1"),
]


@pytest.mark.parametrize(("path", "to", "message"), FILES)
def test_files_of_other_games_are_refused(here, refused, path, to, message):
    """Of another game than the other algorithm's, or of none that a comparison could play."""
    content = changed("betas", None)
    content["algorithms"]["SPPO"] = {"config": changed_file("sppo", path, to)}
    assert message in compare(content, run=refused)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no file"),
        (["--config"], "expected one argument"),
        (["--config", "none.yaml"], "No such file"),
        (["--config", "."], "directory"),
        (["--config", "/dev/zero"], "/dev/zero is a device and no file"),
        (["--config", "a.yaml", "--config", "b.yaml"], "more than once"),
        (["--config", "compare.yaml", "--seedz", "1"], "--seedz"),
        (["--config", "compare.yaml", "--seeds", "one"], "seeds"),
        (["--config", "compare.yaml", "--budget.queries", "-3"], "at least 0"),
    ],
)
def test_arguments_that_are_refused(here, refused, arguments, message):
    Path("compare.yaml").write_text(yaml.safe_dump(small()))
    assert message in refused("compare", *arguments)[1]
