"""``nlhf compare``: what it writes is what was played, and what it cannot play it refuses first."""

from __future__ import annotations

import copy
import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from paths import CONFIGS

from nlhf_zoo.algorithms import EGPO
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.callbacks import read_history
from nlhf_zoo.cli.compare.configuration import read_configuration
from nlhf_zoo.cli.compare.entries import Entry, read_entries
from nlhf_zoo.cli.compare.tables import COLUMNS
from nlhf_zoo.cli.main import main
from nlhf_zoo.data.tables.games import comal, uniform_random
from nlhf_zoo.policies import NormalReference
from nlhf_zoo.solvers import exploitability, regularised_nash, trajectory_metrics

UNIFORM = {
    "oracle": {"class_path": "UniformRandom", "init_args": {"num_games": 3, "num_actions": 4}},
    "reference": {"class_path": "NormalReference"},
}
CYCLE = {
    "oracle": {"class_path": "Cyclic", "init_args": {"num_actions": 3}},
    "reference": {"class_path": "NormalReference"},
}


def fit_file(name: str) -> str:
    return str(CONFIGS / "tabular" / f"{name}.yaml")


def small() -> dict:
    """A comparison that takes a second."""
    return {
        "output": "out",
        "budget": {"queries": 7},
        "betas": [0.1],
        "seeds": [0, 1],
        "games": copy.deepcopy({"uniform": UNIFORM, "cycle": CYCLE}),
        "algorithms": {
            "EGPO": {"config": fit_file("egpo")},
            "SPPO": {"config": fit_file("sppo")},
        },
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(content: object, *arguments: str) -> None:
    Path("compare.yaml").write_text(
        content if isinstance(content, str) else yaml.safe_dump(content)
    )
    main(["compare", "--config", "compare.yaml", *arguments])


def entries_of(content: dict | Path, *arguments: str) -> list[Entry]:
    """The entries of a comparison, which is not played."""
    path = content
    if isinstance(content, dict):
        path = Path("compare.yaml")
        path.write_text(yaml.safe_dump(content))
    read = read_configuration(["--config", str(path), *arguments])
    return read_entries(read.games, read.algorithms, read.betas, 0, lambda: None)


def rows(output: str | Path = "out") -> list[dict[str, str]]:
    with (Path(output) / "results.csv").open() as file:
        return list(csv.DictReader(file))


def numbers(found: list[dict[str, str]], column: str) -> np.ndarray:
    return np.array([float(row[column]) for row in found])


def of(found: list[dict[str, str]], **wanted: str) -> list[dict[str, str]]:
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


def test_the_results_are_those_of_the_game(here):
    compare(small())
    found = rows()
    assert tuple(found[0]) == COLUMNS
    games = {f"uniform[{i}]" for i in range(3)} | {"cycle"}
    assert {(r["game"], r["algorithm"], r["seed"]) for r in found} == {
        (game, algorithm, seed)
        for game in games
        for algorithm in ("EGPO", "SPPO")
        for seed in ("0", "1")
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


def test_tables_figure_and_logs(here, capsys):
    compare(small())
    shown = capsys.readouterr()
    assert "GPU" not in shown.err
    assert "litlogger" not in shown.err
    found = of(rows(), algorithm="SPPO")
    uniform = numbers([r for r in found if r["game"].startswith("uniform")], "exploitability")
    mean, most = f"{uniform.mean():.2e}", f"{uniform.max():.2e}"
    (line,) = [
        line
        for line in Path("out/results.md").read_text().splitlines()
        if line.startswith("| uniform, β = 0.1") and "SPPO" in line
    ]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:5] == ["SPPO", "7", mean, most]
    assert float(cells[-1]) < 1e-12  # the certificate of pi*
    (line,) = [line for line in shown.out.splitlines() if line.split()[:3] == ["SPPO", "7", mean]]
    assert line.split()[3] == most
    assert "out/" in shown.out
    assert Path("out/comparison.png").read_bytes().startswith(b"\x89PNG")
    for folder in (
        f"{g}/{a}/seed_{s}" for g in ("uniform", "cycle") for a in ("EGPO", "SPPO") for s in (0, 1)
    ):
        assert list(Path("out", folder).glob("events.out.tfevents.*"))
        assert Path("out", folder, "history.bin").stat().st_size > 0
    assert not list(Path("out").rglob("*.part"))


def test_lightning_is_left_as_it_was(here):
    levels = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}
    threads = torch.get_num_threads()
    compare(small())
    for name, level in levels.items():
        assert logging.getLogger(name).level == level
    assert torch.get_num_threads() == threads


def test_an_earlier_comparison_is_not_destroyed(here, capsys):
    compare(small())
    Path("out/uniform/notes.txt").write_text("mine")
    before = rows()
    refused(capsys, lambda: compare(small()), "earlier comparison")
    assert rows() == before
    other = small()
    other["algorithms"] = {"SPPO again": other["algorithms"]["SPPO"]}
    compare(other, "--overwrite")
    assert {row["algorithm"] for row in rows()} == {"SPPO again"}
    assert not Path("out/uniform/SPPO").exists()
    assert Path("out/uniform/notes.txt").read_text() == "mine"
    assert len(list(Path("out/cycle/SPPO again/seed_0").glob("events*"))) == 1
    again = small()
    again["overwrite"] = True
    compare(again)
    for column in set(COLUMNS) - {"seconds"}:
        assert [row[column] for row in rows()] == [row[column] for row in before]


def test_logs_of_an_interrupted_comparison_are_not_mixed_with_new_ones(here, capsys):
    compare(small())
    for name in ("results.csv", "results.md", "comparison.png"):
        Path("out", name).unlink()
    refused(capsys, lambda: compare(small()), "earlier comparison")


def test_a_divergence_is_reported_not_dropped(here, capsys):
    content = small()
    content["games"] = {"cycle": CYCLE}
    content["algorithms"]["SPPO"]["algorithm"] = {
        "class_path": "SPPO",
        "init_args": {"eta": 1e308},
    }
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


def test_several_betas(here):
    compare(small(), "--betas", "[0.1, 1e-2]", "--seeds", "[3]")
    found = rows()
    assert {row["game"] for row in found if "cycle" in row["game"]} == {
        "cycle beta=0.1",
        "cycle beta=0.01",
    }
    assert {row["seed"] for row in found} == {"3"}
    table, log_reference = (
        uniform_random(3, 4, 3),
        NormalReference(seed=3).log_prob(torch.ones(3, 4, dtype=torch.bool)),
    )
    history = read_history("out/uniform beta=0.01/SPPO/seed_3")
    start = exploitability(table, log_reference, log_reference, 0.01)
    np.testing.assert_allclose(history["exploitability"][0], start.numpy(), rtol=1e-9)


def test_the_start_and_the_unregularised_exploitability(here):
    content = small()
    start = [0.5, 0.3, 0.2]
    content["games"] = {
        "comal": {
            "oracle": {"class_path": "Comal"},
            "start": {"class_path": "GivenReference", "init_args": {"probabilities": start}},
        }
    }
    content |= {"exploitability": "unregularised", "seeds": [0]}
    compare(content, "--budget.queries", "0")
    expected = (comal()[0] @ torch.tensor(start, dtype=torch.float64)).max().item() - 0.5
    assert numbers(rows(), "exploitability") == pytest.approx([expected] * 2, rel=1e-12)


def test_a_target_of_the_unregularised_game(here):
    content = small() | {"games": {"comal": {"oracle": {"class_path": "Comal"}}}, "seeds": [0]}
    content |= {"exploitability": "unregularised", "target": {"duality_gap": 1e-3}}
    content |= {"budget": {"rounds": 20000}}
    content["algorithms"] = {
        "COMAL": {"config": fit_file("moving_magnet")},
        "EGPO": {"config": fit_file("egpo")},
    }
    compare(content)
    with open("out/queries_to_target.csv") as file:
        table = {row["algorithm"]: row for row in csv.DictReader(file)}
    assert table["COMAL"]["reached"] == "1"
    assert table["EGPO"]["reached"] == "0"  # its equilibrium is the regularised one
    assert float(of(rows(), algorithm="COMAL")[0]["rounds"]) < 20000


def sweeping() -> dict:
    content = small()
    content["games"] = {"uniform": UNIFORM}
    content |= {"budget": {"queries": 3000}, "seeds": [0], "target": {"duality_gap": 1e-5}}
    content["algorithms"] = {
        "MD": {"config": fit_file("online_ipo"), "sweep": {"algorithm.eta": [0.1, 1.0, 1e-4]}},
        "SPPO": {"config": fit_file("sppo")},
    }
    return content


def test_sweep_and_target(here, capsys):
    compare(sweeping())
    with open("out/queries_to_target.csv") as file:
        table = {row["algorithm"]: row for row in csv.DictReader(file)}
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
    content = small()
    content |= {"seeds": [0, 1, 2], "sweep_seeds": 1, "budget": {"queries": 40}}
    content["algorithms"]["MD"] = {
        "config": fit_file("online_ipo"),
        "sweep": {"algorithm.eta": [0.01, 1.0, 1e-4]},
    }
    return content


def test_the_seeds_that_choose_of_a_sweep_are_not_reported(here, capsys):
    compare(held_out())
    found = rows()
    seeds = {
        name: [] for name in ("MD (eta=0.01)", "MD (eta=1)", "MD (eta=0.0001)", "SPPO", "EGPO")
    }
    for row in of(found, game="cycle"):
        seeds[row["algorithm"]].append(row["seed"])
    assert seeds == {
        "MD (eta=0.01)": ["0"],
        "MD (eta=1)": ["0", "1", "2"],
        "MD (eta=0.0001)": ["0"],
        "SPPO": ["1", "2"],
        "EGPO": ["1", "2"],
    }
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


def test_what_chose_of_a_sweep_is_said(here):
    content = sweeping() | {"budget": {"queries": 5}}
    del content["target"]
    compare(content)
    assert "chosen by these same runs" in Path("out/results.md").read_text()
    compare(small(), "--overwrite")
    assert "sweep" not in Path("out/results.md").read_text()


def sampled() -> dict:
    """Both kinds of runs, and a sweep: what is drawn, too, must not depend on where it is."""
    content = held_out()
    content["games"] = {"uniform": UNIFORM}
    content["algorithms"]["sampled"] = {"config": fit_file("sampled/egpo")}
    return content | {"budget": {"queries": 600}}


def test_the_number_of_processes_changes_no_figure(here, capsys):
    compare(sampled())
    capsys.readouterr()
    compare(sampled(), "--output", "side", "--processes", "2")
    shown = capsys.readouterr()
    assert "uniform, " in shown.err  # the bar names what runs
    assert "100%" in shown.err
    for column in set(COLUMNS) - {"seconds"}:
        assert [row[column] for row in rows("side")] == [row[column] for row in rows()]
    names = sorted(str(path.relative_to("out")) for path in Path("out").rglob("history.bin"))
    assert names == sorted(str(p.relative_to("side")) for p in Path("side").rglob("history.bin"))
    for name in names:
        assert Path("side", name).read_bytes() == Path("out", name).read_bytes()


FAULTY = """
import os
import signal
from multiprocessing import parent_process

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import Cyclic, PreferenceOracle


class Faulty(PreferenceOracle):
    def __init__(self, fault: str, everywhere: bool = False) -> None:
        super().__init__()
        self.oracle, self.fault, self.everywhere = Cyclic(num_actions=3), fault, everywhere

    @property
    def support(self):
        return self.oracle.support

    @property
    def table(self):
        return self.oracle.table

    @property
    def answers_table(self):
        return False

    def forward(self, prompts, first, second):
        if self.everywhere or parent_process() is not None:
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise (UserError if self.fault == "refused" else ZeroDivisionError)("no answer")
        return self.oracle(prompts, first, second)
"""


def faulty(here: Path, monkeypatch: pytest.MonkeyPatch, **arguments: object) -> dict:
    """A comparison whose runs cannot be played."""
    (here / "faulty.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(here)
    content = small() | {"seeds": [5]}
    content["games"] = {
        "cycle": {"oracle": {"class_path": "faulty.Faulty", "init_args": arguments}}
    }
    content["algorithms"] = {
        "DPO": {"config": fit_file("online_dpo"), "realisation": {"class_path": "GradientSteps"}}
    }
    return content


def test_a_run_whose_process_dies_is_named(here, capsys, monkeypatch):
    content = faulty(here, monkeypatch, fault="killed") | {"processes": 2}
    message = "cycle, DPO, seed 5: its process died (exit code -9): lower processes"
    refused(capsys, lambda: compare(content), message)


def test_a_run_that_fails_elsewhere_is_named(here, capsys, monkeypatch):
    content = faulty(here, monkeypatch, fault="broken") | {"processes": 2}
    with pytest.raises(RuntimeError, match="the run cycle, DPO, seed 5 failed:") as end:
        compare(content)
    assert "ZeroDivisionError: no answer" in str(end.value)


def test_a_run_that_fails_here_is_named(here, capsys, monkeypatch):
    content = faulty(here, monkeypatch, fault="broken", everywhere=True)
    with pytest.raises(ZeroDivisionError) as end:
        compare(content)
    assert end.value.__notes__ == ["in the run cycle, DPO, seed 5"]
    content = faulty(here, monkeypatch, fault="refused", everywhere=True)
    message = "cycle, DPO, seed 5: no answer"
    refused(capsys, lambda: compare(content, "--overwrite"), message)


def test_the_theorys_rate_is_drawn_for_products_alone(here, monkeypatch):
    """It counts products P o; a query of samples is one pair."""
    from matplotlib.figure import Figure

    labels = []
    legend = Figure.legend
    monkeypatch.setattr(
        Figure,
        "legend",
        lambda self, *args, **k: labels.append([*args[1]]) or legend(self, *args, **k),
    )
    compare(small())
    content = sampled()
    content["algorithms"] = {"sampled": content["algorithms"]["sampled"]}
    del content["sweep_seeds"]
    compare(content, "--output", "other")
    products, samples = labels
    assert len(products) == 3
    assert samples == ["sampled"]


def test_blocks_are_replaced_whole(here):
    """Arguments of the file's class must not slip into another class."""
    content = small()
    file = yaml.safe_load(Path(fit_file("sppo")).read_text())
    file["model"]["init_args"]["algorithm"]["init_args"] = {"eta": 0.77}
    Path("sppo.yaml").write_text(yaml.safe_dump(file))
    content["algorithms"] = {
        "as in the file": {"config": "sppo.yaml"},
        "replaced": {"config": "sppo.yaml", "algorithm": {"class_path": "OnlineIPO"}},
    }
    first, second, *_ = entries_of(content)
    assert first.make().algorithm.eta == 0.77
    game = second.make()
    assert type(game.algorithm).__name__ == "OnlineIPO"
    assert game.algorithm.eta == 0.1


def test_a_game_replaces_reference_and_start_of_the_file(here):
    file = yaml.safe_load(Path(fit_file("sppo")).read_text())
    given = {"class_path": "GivenReference", "init_args": {"probabilities": [0.5, 0.3, 0.2]}}
    file["model"]["init_args"]["policy"]["init_args"] = {"reference": given, "start": given}
    Path("sppo.yaml").write_text(yaml.safe_dump(file))
    content = small()
    content["games"] = {"cycle": {"oracle": CYCLE["oracle"]}}
    content["algorithms"] = {"SPPO": {"config": "sppo.yaml"}}
    (entry,) = entries_of(content)
    uniform = torch.full((1, 3), 1 / 3, dtype=torch.float64).log()
    for player in ("reference", "policy"):
        torch.testing.assert_close(entry.make().log_policy(player), uniform)


@pytest.mark.parametrize("path", sorted((CONFIGS / "compare").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_comparison_can_be_made(here, path):
    found = entries_of(path, "--betas", "[0.1]")
    assert {entry.algorithm for entry in found} == set(
        yaml.safe_load(path.read_text())["algorithms"]
    )


def test_the_quickstart_runs(here):
    path = CONFIGS / "compare" / "quickstart.yaml"
    main(["compare", "--config", str(path), "--budget.queries", "4", "--seeds", "[0]"])
    names = {row["algorithm"] for row in rows("runs/compare/quickstart")}
    assert names == set(yaml.safe_load(path.read_text())["algorithms"])


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


def refused(capsys, command, message: str) -> None:
    """The command ends with exit code 2 and one sentence."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command()
    error = capsys.readouterr().err.split("\r")[-1]  # on a slow machine a progress bar was there
    assert end.value.code == 2
    assert error.startswith("nlhf: error: ")
    assert len(error.strip().splitlines()) == 1
    assert message in error


def changed(*path: str, to: object) -> dict:
    """The small comparison with one value replaced."""
    content = small()
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return content


REFUSALS = {
    "not YAML": ("output: [", "cannot be read"),
    "an empty file": ("", "holds no configuration"),
    "an unknown key": (changed("seed", to=0), "'seed' is not accepted"),
    "no output": ({k: v for k, v in small().items() if k != "output"}, "output"),
    "no budget": ({k: v for k, v in small().items() if k != "budget"}, "budget"),
    "an empty budget": (changed("budget", to={}), "set budget.queries or budget.rounds"),
    "a negative budget": (changed("budget", "queries", to=-1), "budget.queries must be at least 0"),
    "a budget of words": (changed("budget", "queries", to="many"), "got 'many'"),
    "a budget that is a number": (changed("budget", to=3), "budget must be a mapping"),
    "an unknown budget": (changed("budget", to={"steps": 3}), "steps"),
    "no games": (changed("games", to={}), "there are no games"),
    "games without names": (changed("games", to=[CYCLE]), "games must name each"),
    "a game without oracle": (changed("games", "cycle", to={}), "games.cycle lacks oracle"),
    "a game that is a word": (changed("games", "cycle", to="rps"), "games.cycle must be a mapping"),
    "a game's unknown key": (
        changed("games", "cycle", "refrence", to={}),
        "'refrence' is not accepted",
    ),
    "an unknown oracle": (
        changed("games", "cycle", "oracle", to={"class_path": "RockPaper"}),
        "RockPaper",
    ),
    "an oracle's unknown argument": (
        changed("games", "cycle", "oracle", to={"class_path": "Cyclic", "init_args": {"n": 3}}),
        "'n' is not accepted",
    ),
    "an impossible oracle": (
        changed("games", "cycle", "oracle", "init_args", to={"num_actions": 4}),
        "must be odd",
    ),
    "arguments beside init_args": (
        changed("games", "cycle", "oracle", to={"class_path": "Cyclic", "num_actions": 3}),
        "put arguments under init_args",
    ),
    "a reference of another size": (
        changed(
            "games",
            "cycle",
            "reference",
            to={"class_path": "GivenReference", "init_args": {"probabilities": [0.5, 0.5]}},
        ),
        "[2]",
    ),
    "a game's name with a slash": (changed("games", "a/b", to=CYCLE), "without slashes"),
    "a game's name that climbs": (changed("games", "..", to=CYCLE), "without slashes"),
    "no algorithms": (changed("algorithms", to={}), "there are no algorithms"),
    "an algorithm without a file": (changed("algorithms", "EGPO", to={}), "lacks config"),
    "an algorithm's missing file": (
        changed("algorithms", "EGPO", "config", to="none.yaml"),
        "there is no file",
    ),
    "an algorithm's file without a model": (
        changed("algorithms", "EGPO", "config", to="compare.yaml"),
        "no section `model`",
    ),
    "an algorithm that is unknown": (
        changed("algorithms", "EGPO", "algorithm", to={"class_path": "EPGO"}),
        "EPGO",
    ),
    "a step below zero": (
        changed(
            "algorithms", "EGPO", "algorithm", to={"class_path": "EGPO", "init_args": {"eta": -1}}
        ),
        "eta must be a finite number above 0",
    ),
    "no closed form": (
        changed("algorithms", "EGPO", "algorithm", to={"class_path": "OnlineDPO"}),
        "no closed form",
    ),
    "samples in closed form": (
        changed("algorithms", "EGPO", "rollout", to={"class_path": "Sample"}),
        "closed form",
    ),
    "a sweep of nothing": (changed("algorithms", "EGPO", "sweep", to={}), "must name one argument"),
    "a sweep of two": (
        changed("algorithms", "EGPO", "sweep", to={"algorithm.eta": [1], "optimizer.lr": [1]}),
        "must name one argument",
    ),
    "a sweep of no block": (
        changed("algorithms", "EGPO", "sweep", to={"eta": [1]}),
        "such as algorithm.eta",
    ),
    "a sweep of words": (
        changed("algorithms", "EGPO", "sweep", to={"algorithm.eta": ["small"]}),
        "list of numbers",
    ),
    "a sweep of an unknown argument": (
        changed("algorithms", "EGPO", "sweep", to={"algorithm.step": [1]}),
        "'step' is not accepted",
    ),
    "beta 0": (changed("betas", to=[0.0]), "above 0"),
    "beta not finite": (changed("betas", to=[float("inf")]), "finite"),
    "no betas": (changed("betas", to=[]), "betas is empty"),
    "beta twice": (changed("betas", to=[0.1, 0.1]), "twice"),
    "no seeds": (changed("seeds", to=[]), "there are no seeds"),
    "a negative seed": (changed("seeds", to=[-1]), "seeds must lie between"),
    "a seed twice": (changed("seeds", to=[1, 1]), "stands twice"),
    "a target of zero": (changed("target", to={"duality_gap": 0}), "target.duality_gap"),
    "another exploitability": (changed("exploitability", to="exact"), "exploitability"),
    "an output in no folder": (changed("output", to="/nowhere/at/all"), "does not exist"),
    "an output that is a file": (changed("output", to="compare.yaml"), "is a file"),
    "an algorithm twice": (
        yaml.safe_dump(small()).replace("  SPPO:", "  EGPO:"),
        "'EGPO' stands twice",
    ),
    "no processes": (changed("processes", to=0), "processes must be at least 1"),
    "no seeds that choose": (held_out() | {"sweep_seeds": 0}, "sweep_seeds must be at least 1"),
    "no seeds to report": (held_out() | {"sweep_seeds": 3}, "leave a seed to report of the 3"),
    "seeds that choose of nothing": (changed("sweep_seeds", to=1), "no algorithm has a sweep"),
    "a reference for a language model": (
        changed("algorithms", "EGPO", "config", to=str(CONFIGS / "language" / "egpo.yaml")),
        "the game gives a reference, but CausalLMPolicy takes none: leave it out of the game",
    ),
    "an interpolation of nothing": (
        changed(
            "algorithms",
            "EGPO",
            "algorithm",
            to={"class_path": "EGPO", "init_args": {"eta": "${.x}"}},
        ),
        "interpolation",
    ),
}


@pytest.mark.parametrize(("content", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_compared_is_refused(here, capsys, content, message):
    refused(capsys, lambda: compare(content), message)
    assert sorted(path.name for path in here.iterdir()) == ["compare.yaml"]  # before anything ran


def test_an_oracle_without_a_table_is_refused(here, capsys):
    np.save("e.npy", np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32))
    oracle = {"class_path": "EmbeddingOracle", "init_args": {"embeddings": "e.npy"}}
    content = changed("games", "cycle", "oracle", to=oracle)
    refused(capsys, lambda: compare(content), "EmbeddingOracle does not")
    gradients = {"class_path": "GradientSteps"}
    content["algorithms"] = {"DPO": {"config": fit_file("online_dpo"), "realisation": gradients}}
    refused(capsys, lambda: compare(content), "EmbeddingOracle holds no table")


def test_files_that_play_different_games_are_refused(here, capsys):
    content = small()
    del content["betas"]
    file = yaml.safe_load(Path(fit_file("sppo")).read_text())
    file["model"]["init_args"]["beta"] = 0.2
    Path("sppo.yaml").write_text(yaml.safe_dump(file))
    content["algorithms"]["SPPO"] = {"config": "sppo.yaml"}
    refused(capsys, lambda: compare(content), "two games")
    file["data"]["init_args"] = {"batch_size": 1}
    Path("sppo.yaml").write_text(yaml.safe_dump(file))
    refused(capsys, lambda: compare(content), "all prompts at once")
    file["data"] = {"class_path": "TextPrompts", "init_args": {"path": "prompts.jsonl"}}
    Path("sppo.yaml").write_text(yaml.safe_dump(file))
    refused(capsys, lambda: compare(content), "sets data to TextPrompts")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no file"),
        (["--config"], "expected one argument"),
        (["--config", "none.yaml"], "No such file"),
        (["--config", "."], "directory"),
        (["--config", "a.yaml", "--config", "b.yaml"], "more than once"),
        (["--config", "compare.yaml", "--seedz", "1"], "--seedz"),
        (["--config", "compare.yaml", "--seeds", "one"], "seeds"),
        (["--config", "compare.yaml", "--budget.queries", "-3"], "at least 0"),
    ],
)
def test_arguments_that_are_refused(here, capsys, arguments, message):
    Path("compare.yaml").write_text(yaml.safe_dump(small()))
    refused(capsys, lambda: main(["compare", *arguments]), message)


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", "--help"])
    assert not end.value.code
    shown = capsys.readouterr().out
    for option in ("--config", "--output", "--budget.queries", "--seeds", "--betas", "--overwrite"):
        assert option in shown
