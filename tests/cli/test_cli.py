"""The command line does what its users would expect of it, LightningCLI's traps included."""

import copy
import csv
import functools
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import yaml
from forked import nlhf
from paths import ROOT
from runs import part

from nlhf_zoo import __version__
from nlhf_zoo.callbacks import read_history
from nlhf_zoo.cli.main import main
from nlhf_zoo.oracles import VotesOracle
from nlhf_zoo.policies.language_model.players import AdapterPlayers

GAME = runs.configuration(algorithm=part("NashMD", eta=0.5, mixture=0.1))


def printed(folder: Path, *args: str, **kwargs: Any) -> dict[str, Any]:
    """The configuration as the parser sees it."""
    run = runs.fit(folder, *args, "--print_config", **kwargs)
    assert run.code == 0, run.err
    return dict(yaml.safe_load(run.out))


def algorithm(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The algorithm's class and arguments."""
    block = config["model"]["init_args"]["algorithm"]
    return block["class_path"].split(".")[-1], block.get("init_args", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with game.yaml."""
    runs.write(tmp_path, GAME)
    return tmp_path


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["--version"]])
def test_help_and_version_come_at_once(args: list[str]):
    code = f"""
import sys
sys.argv = ["nlhf", *{args}]
import nlhf_zoo.__main__ as nlhf
nlhf.main()
heavy = {{"torch", "lightning", "jsonargparse", "numpy"}} & sys.modules.keys()
assert not heavy, heavy
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert __version__ in run.stdout
    if args != ["--version"]:
        for command in ("fit", "validate", "test", "predict", "solve", "compare"):
            assert re.search(rf"^  {command} ", run.stdout, re.MULTILINE)


HELP = {
    "fit": "model data trainer.max_steps ckpt_path",
    "solve": "votes matrix prior reference start beta payoff worst_case algorithm bootstrap figure",
    "compare": "config output budget.queries seeds betas overwrite",
    "oracle": "responses num_prompts num_responses max_queries output figure",
    "export": "ckpt output player merged config",
    "doctor": "num_prompts no_rehearsal",
}


@pytest.mark.parametrize("command", HELP)
def test_help_names_the_options(command: str, capsys):
    is_ours = command in ("oracle", "doctor")  # the others' is their parser's, and ends the process
    with nullcontext() if is_ours else pytest.raises(SystemExit, match=r"^0$"):
        main([command, "--help"])
    words = capsys.readouterr().out.split()
    for option in HELP[command].split():
        assert f"--{option}" in words, option


def test_help_of_an_algorithm_is_its_docstring(tmp_path: Path):
    run = nlhf("fit", "--model.algorithm.help", "NashMP", folder=tmp_path)
    assert run.code == 0
    text = " ".join(run.out.split())
    assert "Nash Mirror Prox: two proximal steps a round" in text
    assert re.search(
        r"--algorithm.eta ETA step size of both proximal steps[^(]*\(type: [^)]*float[^)]*adaptive",
        text,
    )


def test_fit_says_how_it_ended_and_where_things_lie_and_nothing_else(folder: Path):
    run = runs.fit(folder)
    assert run.code == 0
    *figures, command, page, last = run.out.splitlines()
    assert last == f"Logs, metrics and checkpoint: {runs.RUN}"
    assert command == "All metrics: tensorboard --logdir runs/game"
    assert page == f"One page: nlhf report {runs.RUN} --output report.html"
    history = read_history(folder / runs.RUN)
    printed = dict(line.split()[:2] for line in figures)  # some have an interval
    worst = history["exploitability"][-1].max()
    assert float(printed["game/exploitability_max"]) == pytest.approx(worst, rel=1e-3)
    assert int(printed["oracle/queries_per_prompt"]) == history["queries"][-1]
    assert run.err == ""
    names = {path.name.split(".")[0] for path in (folder / runs.RUN).iterdir()}
    assert names == {"checkpoints", "config", "events", "history", "hparams", "versions"}


def test_saved_configuration_gives_the_same_run(folder: Path):
    assert runs.fit(folder).code == 0
    saved = folder / runs.RUN / "config.yaml"
    assert nlhf("fit", "-c", str(saved), folder=folder).code == 0
    again = folder / "runs/game/version_1"
    assert (again / "history.bin").read_bytes() == (folder / runs.RUN / "history.bin").read_bytes()
    assert (again / "config.yaml").read_bytes() == saved.read_bytes()


def test_the_command_line_wins(folder: Path):
    run = runs.fit(folder, "--model.algorithm", "EGPO", "--model.algorithm.eta", "0.25")
    assert run.code == 0
    saved = yaml.safe_load((folder / runs.RUN / "config.yaml").read_text())
    name, arguments = algorithm(saved)
    assert (name, arguments["eta"]) == ("EGPO", 0.25)
    assert "networks.lookahead" in "".join(runs.load(folder)["state_dict"])


def test_the_seed_is_that_of_the_run(folder: Path):
    for seed in ("3", "4"):
        assert runs.fit(folder, "--seed_everything", seed).code == 0
    one, other = (read_history(folder / f"runs/game/version_{i}") for i in (0, 1))
    assert not np.allclose(one["exploitability"][0], other["exploitability"][0])


MY_GAME = '''
from nlhf_zoo.game.online_game import OnlineGame


class MyGame(OnlineGame):
    """A loop of one's own."""

    def __init__(self, *args, shout: str = "", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.shout = shout

    def on_train_start(self) -> None:
        print(self.shout)
        super().on_train_start()
'''


def import_from(folder: Path, *modules: str) -> None:
    """Make the modules of a folder known, as a user's own package is."""
    sys.path.insert(0, str(folder))
    for module in modules:
        importlib.import_module(module)


@pytest.mark.parametrize(("name", "imported"), [("my_game.MyGame", ()), ("MyGame", ("my_game",))])
def test_a_game_of_ones_own(name: str, imported: tuple[str, ...], folder: Path):
    (folder / "my_game.py").write_text(MY_GAME)
    before = functools.partial(import_from, folder, *imported)
    run = runs.fit(folder, "--model", name, "--model.shout", "hello", before=before)
    assert run.code == 0, run.err
    assert run.out.splitlines()[0] == "hello"


def test_another_class_keeps_arguments_of_the_same_name(folder: Path):
    """Known, and why each experiment has one complete file: https://github.com/Lightning-AI/pytorch-lightning/issues/15796."""
    name, arguments = algorithm(printed(folder, "--model.algorithm", "SPPO"))
    assert name == "SPPO"
    assert arguments["eta"] == 0.5  # NashMD's
    assert "mixture" not in arguments


def test_callbacks_are_appended_with_a_plus_and_replaced_without(folder: Path):
    def callbacks(*args: str) -> list[str]:
        blocks = printed(folder, *args)["trainer"]["callbacks"]
        blocks = blocks if isinstance(blocks, list) else [blocks]
        return [block["class_path"].split(".")[-1] for block in blocks]

    mine = ["ExactMetrics", "Budget", "GameCheckpoint"]
    assert callbacks() == mine
    other = "lightning.pytorch.callbacks.LearningRateMonitor"
    assert callbacks("--trainer.callbacks+", other) == [*mine, "LearningRateMonitor"]
    assert callbacks("--trainer.callbacks", other) == ["LearningRateMonitor"]
    budget = ("--trainer.callbacks+", "Budget", "--trainer.callbacks.rounds", "2")
    assert callbacks(*budget) == ["ExactMetrics", "GameCheckpoint", "Budget"]  # as it would run


def test_interpolation_is_relative_and_resolved_last(folder: Path):
    config = runs.configuration(algorithm=part("NashMD", eta="${..mixture}", mixture=0.125))
    config["model"]["init_args"]["algorithm"]["init_args"]["eta"] = "${.mixture}"
    runs.write(folder, config)
    assert algorithm(printed(folder))[1]["eta"] == 0.125
    assert algorithm(printed(folder, "--model.algorithm.mixture", "0.25"))[1]["eta"] == 0.25


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of votes, whose prompts have different numbers of alternatives."""
    folder = tmp_path_factory.mktemp("finished")
    rows = ["a,b,x", "b,c,x", "c,a,x", "b,a,y"]
    (folder / "votes.csv").write_text("\n".join(["winner,loser,prompt", *rows]) + "\n")
    oracle = part("VotesOracle", path="votes.csv")
    runs.write(
        folder,
        runs.configuration(algorithm=part("NashMP"), oracle=oracle, policy=part("TabularPolicy")),
    )
    run = runs.fit(folder)
    assert run.code == 0, run.err
    return folder


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_gives_the_figures_of_the_last_round(command: str, finished: Path):
    history = read_history(finished / runs.RUN)
    before = (finished / runs.RUN / "config.yaml").read_bytes()
    run = nlhf(command, "--config", "game.yaml", "--ckpt_path", "last", folder=finished)
    assert run.code == 0, run.err
    figures = dict(re.findall(r"│\s+([\w/]+)\s+│\s+([\d.e+-]+)\s+│", run.out))
    for tag, value in {
        "game/exploitability": history["exploitability"][-1].mean(),
        "game/exploitability_max": history["exploitability"][-1].max(),
        "game/kl_to_nash": history["kl_to_nash"][-1].mean(),
        "game/span_max": history["span"][-1].max(),
        "win_rate/vs_reference": history["win_rate_vs_reference"][-1].mean(),
        "step": history["round"][-1],
    }.items():
        assert float(figures[tag]) == pytest.approx(value, rel=1e-6, abs=1e-9), tag
    assert (finished / runs.RUN / "config.yaml").read_bytes() == before
    assert [path.name for path in (finished / "runs/game").iterdir()] == ["version_0"]


def test_a_run_is_evaluated_with_any_oracle_of_its_actions(finished: Path):
    def looked_at(command: str, *rows: str) -> Any:
        text = "\n".join(["winner,loser,prompt", *rows])
        (finished / "other.csv").write_text(text + "\n")
        other = ("--ckpt_path", "last", "--model.oracle.path", "other.csv")
        return nlhf(command, "--config", "game.yaml", *other, folder=finished)

    order = "the oracle lists other actions than that of the checkpoint's run, or in another order"
    for rows in (["a,c,x", "b,c,x", "b,a,y"], ["a,b,x", "b,d,x", "b,a,y"]):
        assert order in looked_at("validate", *rows).err
    rows = ["a,b,x", "a,c,x", "b,a,y", "a,c,x"]
    run = looked_at("validate", *rows)
    assert run.code == 0, run.err
    logits = runs.load(finished)["state_dict"]["policy.networks.policy.logits"]
    logits[1, 2] = -np.inf
    reference = np.array([[1 / 3] * 3, [1 / 2, 1 / 2, 0]])
    P = VotesOracle(str(finished / "other.csv")).preference.numpy()
    rate = np.einsum("ci,cij,cj->c", logits.softmax(-1), P, reference).mean()
    (found,) = re.findall(r"│\s+win_rate/vs_reference\s+│\s+([\d.e+-]+)\s+│", run.out)
    assert float(found) == pytest.approx(rate, rel=1e-5)
    run = looked_at("fit", *rows)
    assert run.code == 2
    assert "run had model.init_args.oracle.init_args.path = votes.csv, the config" in run.err


def test_predict_prints_the_probabilities(finished: Path):
    run = nlhf("predict", "--config", "game.yaml", "--ckpt_path", "last", folder=finished)
    assert run.code == 0, run.err
    rows = list(csv.DictReader(run.out.splitlines()))
    assert [row["response"] for row in rows] == ["a", "b", "c", "b", "a"]
    assert [row["prompt"] for row in rows] == ["0", "0", "0", "1", "1"]
    logits = runs.load(finished)["state_dict"]["policy.networks.policy.logits"]
    logits[1, 2] = -np.inf
    expected = logits.softmax(-1).flatten()[:5]
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.tolist())


@pytest.mark.parametrize("here", [False, True])
def test_a_logger_can_be_left_out(here: bool, folder: Path):
    given = str(folder.resolve()) if here else "here"  # the working folder, which counts as given
    run = runs.fit(folder, "--trainer.logger", "false", "--trainer.default_root_dir", given)
    assert run.code == 0, run.err
    assert len(read_history(folder / given)["round"]) > 1
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("logger", [None, part("CSVLogger", save_dir=".")])
def test_where_nobody_names_a_run_algorithm_and_game_do(logger: Any, folder: Path):
    config = copy.deepcopy(GAME)
    config["trainer"]["logger"] = logger
    config["trainer"]["callbacks"][1] = part("Budget", rounds=2)
    runs.write(folder, config)
    for algorithm in ("NashMD", "EGPO"):
        run = runs.fit(folder, "--model.algorithm", algorithm)
        assert run.code == 0, run.err
        saved = f"lightning_logs/{algorithm}-UniformRandom/version_0"
        assert run.out.splitlines()[-1].endswith(saved)
        assert (folder / saved / "history.bin").is_file()


def test_runs_of_one_name_are_told_apart(folder: Path):
    """By their hyper-parameters, which TensorBoard's table shows too; and the last budget holds."""
    args = ("--trainer.callbacks+", "ExactMetrics", "--trainer.callbacks.every", "1")
    args += ("--trainer.callbacks+", "Budget", "--trainer.callbacks.rounds")
    for number, name in enumerate(("NashMD", "EGPO")):
        assert runs.fit(folder, "--model.algorithm", name, *args, str(number + 2)).code == 0
        run = folder / f"runs/game/version_{number}"
        told = yaml.safe_load((run / "hparams.yaml").read_text())
        assert told["model.init_args.algorithm.class_path"] == f"nlhf_zoo.{name}"
        assert told["model.init_args.oracle.class_path"] == "nlhf_zoo.UniformRandom"
        events = b"".join(path.read_bytes() for path in run.glob("events.*"))
        assert f"nlhf_zoo.{name}".encode() in events
        callbacks = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
        kinds = [block["class_path"].split(".")[-1] for block in callbacks]
        assert kinds == ["GameCheckpoint", "ExactMetrics", "Budget"]
        assert callbacks[-1]["init_args"]["rounds"] == number + 2
        assert read_history(run)["round"][-1] == number + 2


def test_fit_refuses_a_reference_that_is_the_policy(tmp_path, monkeypatch, refused):
    """The reference that others took from `get_base_model()`: with the adapter in its layers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AdapterPlayers, "_switch", lambda self, adapter: None)
    _, sentence = refused("fit", "--config", ROOT / "configs/language/nash_mp.yaml")
    assert "this model cannot be trained as it is: the reference" in sentence
    assert not list(tmp_path.rglob("last.ckpt"))


PAIR_MODEL = ("fit", "--config", str(ROOT / "configs/lm/pair_model.yaml"), "--print_config")
GENERATIVE = (*PAIR_MODEL, "--model.oracle", "GenerativePairModelOracle")


@pytest.fixture
def parsed(capsys) -> Callable[..., dict[str, Any]]:
    """Parses a command in this process, and gives the model's arguments as they were read."""

    def arguments(*args: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as end:
            main(args)
        assert not end.value.code
        return dict(yaml.safe_load(capsys.readouterr().out)["model"]["init_args"])

    return arguments


@pytest.mark.parametrize("option", ["oracle.revision", "oracle.max_tokens", "policy.lora"])
@pytest.mark.parametrize("form", ["--model.{} null", "--model.{}=null"])
def test_null_is_null_also_of_a_part_of_a_part(option, form, parsed):
    """jsonargparse 4.53 hands it on as the text "None"."""
    part, name = option.split(".")
    assert parsed(*PAIR_MODEL, *form.format(option).split())[part]["init_args"][name] is None


@pytest.mark.parametrize("depth", [1, 2])
def test_lists_and_dictionaries_of_a_part_of_a_part_are_what_they_were(depth, parsed):
    """jsonargparse 4.53 hands them on as Python prints them."""
    outer = ["--model.oracle", "BudgetedOracle", "--model.oracle.max_queries", "5"]
    where = "--model.oracle" + ".oracle" * (depth - 1)
    field = r"""{"stop": null, "end": ["a\nb", "it's", "ä😀", 1.5, {"deep": null}], "on": true}"""
    given = [*outer[: 4 * (depth - 1)], where, "JudgeOracle", f"{where}.extra_body", field]
    found = parsed(*PAIR_MODEL, *given, f"{where}.api_key_env", "null")
    for _ in range(depth):
        found = found["oracle"]["init_args"]
    assert found["extra_body"] == json.loads(field)
    assert found["api_key_env"] is None


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ('["yes", "no"]', ["yes", "no"]),
        ("['1', 'null']", ["1", "null"]),
        (r"['\n', 'b']", [r"\n", "b"]),  # in YAML no line break
        (r"['\d', 'b']", [r"\d", "b"]),
    ],
)
@pytest.mark.parametrize("form", [("--model.oracle.labels", "{}"), ("--model.oracle.labels={}",)])
def test_texts_in_quotes_are_texts(labels, text, form, parsed):
    found = parsed(*GENERATIVE, *(one.format(labels) for one in form))
    assert found["oracle"]["init_args"]["labels"] == text


def test_texts_without_quotes_are_told_to_take_some(refused):
    _, said = refused(*GENERATIVE, "--model.oracle.labels", "[yes,no]")
    assert 'got \'True\': yes, no, on and off are text only in quotes, as in ["yes", "no"]' in said


def test_an_oracle_that_cannot_stand_in_a_cache_is_told_so(refused):
    oracle = "--model.oracle CachedOracle --model.oracle.path a.sqlite --model.oracle.oracle "
    _, said = refused(*PAIR_MODEL, *oracle.split(), "BudgetedOracle")
    assert "BudgetedOracle cannot stand there, where an oracle of texts is asked" in said
    assert "RuleOracle" in said
    assert "VotesOracle" not in said


# ---- what version 0.1 has written ----------------------------------------------------------------

# Paths of classes as version 0.1 saved them, and as they are saved now.
OLD_PATHS = {
    "nlhf_zoo.OnlineGame": "nlhf_zoo.online_game.OnlineGame",
    "nlhf_zoo.Sample": "nlhf_zoo.rollout.Sample",
    "nlhf_zoo.GradientSteps": "nlhf_zoo.realisation.GradientSteps",
    "nlhf_zoo.TabularPolicy": "nlhf_zoo.policies.TabularPolicy",
    "nlhf_zoo.NormalReference": "nlhf_zoo.policies.NormalReference",
    "nlhf_zoo.BernoulliLabels": "nlhf_zoo.oracles.BernoulliLabels",
    "nlhf_zoo.UniformRandom": "nlhf_zoo.oracles.UniformRandom",
    "nlhf_zoo.NashMP": "nlhf_zoo.algorithms.NashMP",
    "nlhf_zoo.TablePrompts": "nlhf_zoo.data.prompts.TablePrompts",
    "nlhf_zoo.ExactMetrics": "nlhf_zoo.callbacks.ExactMetrics",
    "nlhf_zoo.HealthCheck": "nlhf_zoo.callbacks.HealthCheck",
}


def test_a_run_that_was_saved_under_old_paths_resumes_and_is_the_same(tmp_path: Path):
    config = copy.deepcopy(runs.CASES["sampled-nash_mp"])
    config["trainer"]["callbacks"].append(part("HealthCheck"))
    runs.whole_run(tmp_path / "whole", config)
    saved = (tmp_path / "whole" / runs.RUN / "config.yaml").read_text()
    for new, old in OLD_PATHS.items():
        assert re.search(rf"class_path: {new}$", saved, flags=re.MULTILINE), new
        saved = re.sub(rf"class_path: {new}$", f"class_path: {old}", saved, flags=re.MULTILINE)
    # The old configuration makes the same run ...
    old_run = tmp_path / "old"
    old_run.mkdir()
    (old_run / "game.yaml").write_text(saved)
    assert runs.fit(old_run).code == 0
    runs.assert_same_run(tmp_path / "whole", old_run)
    # ... and a run that it made goes on, with paths of either kind.
    (old_run / runs.RUN / "config.yaml").write_text(saved)
    config["trainer"]["callbacks"][1] = part("Budget", rounds=runs.ROUNDS + 2)
    runs.write(old_run, config)
    run = runs.fit(old_run, "--ckpt_path", "last")
    assert run.code == 0, run.err
    assert runs.load(old_run)["online_game"]["progress"]["round"] == runs.ROUNDS + 2
    other = saved.replace("nlhf_zoo.algorithms.NashMP", "nlhf_zoo.algorithms.EGPO")
    (old_run / runs.RUN / "config.yaml").write_text(other)
    run = runs.fit(old_run, "--ckpt_path", "last")
    assert run.code == 2
    assert "algorithm.class_path = nlhf_zoo.algorithms.EGPO, the configuration has" in run.sentence
