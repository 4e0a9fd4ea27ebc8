# tables
"""Files of somebody else's run are data: code that they name is not run unless that is allowed."""

from pathlib import Path

import pytest
import yaml
from forked import nlhf
from omegaconf import OmegaConf
from omegaconf.errors import UnsupportedInterpolationType
from paths import CONFIGS
from runs import configuration, part

from nlhf_zoo.cli.files import read_config
from nlhf_zoo.cli.trust import closed_environment, refuse_foreign_code
from nlhf_zoo.errors import UserError

FILE = Path("run/config.yaml")
FOREIGN = {
    "class": {"model": part("evil.Mine")},
    "class of the standard library": {"model": part("subprocess.Popen", args=["touch", "made"])},
    "class beside ours": {"model": part("nlhf_zooevil.Mine")},
    "module within ours": {"model": part("nlhf_zoo.cli.main.os.system")},
    "module within torch's": {"optimizer": part("torch.optim.optimizer.functools.partial")},
    "no trusted part of torch": {"optimizer": part("torch.hub.load")},
    "class that there is not": {"model": part("no_such_module.Mine")},
    "function by its name": {"algorithm": {"init_args": {"surrogate": "evil.loss"}}},
    "function in a list": {"a": [{"b": ["os.system"]}]},
    "function of another file": {"a": {"function": "rules.mine"}},
    "another file": {"oracle": "other.yaml"},
    "another file by its path": {"oracle": "{folder}/other.yaml"},
    "file in the home folder": {"oracle": "~/home.yaml"},
    "file by its address": {"oracle": "file://{folder}/other.yaml"},
    "file of the working folder behind one beside": {"oracle": "twice.yaml"},
    "list in a file": {"trainer": {"callbacks": "list.yaml"}},
    "text in a file": {"oracle": "text.yaml"},
    "file that names a file": {"oracle": "circle.yaml"},
    "part in a text": {"oracle": "{class_path: evil.Mine}"},
    "list in a text": {"trainer": {"callbacks": "[evil.Mine]"}},
    "module with the name of a data file": {"algorithm": {"surrogate": "evil.jsonl"}},
    "module in a folder with such a name": {"algorithm": {"surrogate": "data.evil.jsonl"}},
    "class with such a name": {"model": part("subprocess.jsonl")},
    "text that is put together": {"a": ".", "algorithm": "evil${a}Mine"},
    "texts that are put together": {"algorithm": "${a}${b}"},
    "environment by another name": {"a": "env", "b": "${oc.${a}:SECRET}"},
    "another resolver": {"algorithm": "${oc.select:nothing,evil.Mine}"},
    "environment": {"oracle": part("JudgeOracle", base_url="http://x/${oc.env:SECRET}")},
}
TRUSTED = {
    "short name": {"model": {"algorithm": part("NashMP", surrogate="logistic")}},
    "ours": {"a": part("nlhf_zoo.NashMP"), "b": "nlhf_zoo.algorithms.surrogates.logistic"},
    "ours by an old path": {"a": part("nlhf_zoo.online_game.OnlineGame")},
    "optimiser": {"a": part("torch.optim.Adam"), "b": part("torch.optim.lr_scheduler.StepLR")},
    "optimiser's module": {"a": part("torch.optim.adamw.AdamW")},
    "logger": {"a": part("lightning.pytorch.loggers.TensorBoardLogger", save_dir="runs")},
    "logger's module": {"a": part("lightning.pytorch.loggers.csv_logs.CSVLogger")},
    "texts": {
        "a": "Qwen/Qwen2.5-1.5B",
        "b": "prompts.jsonl",
        "c": "e.g. this",
        "d": "x.y",
        "e": "",
    },
    "data": ["test.jsonl", "code.jsonl", "data.jsonl", "json.test.csv", "logging.toc"],
    "large data": {"path": "large.jsonl"},
    "model in a folder": {"a": "my.model"},
    "interpolation": {"a": "${model.beta}"},
    "numbers": {"a": 1.5, "b": None, "c": [True]},
    "part of ours in a file": {"oracle": "good.yaml"},
}


@pytest.fixture
def _folder(tmp_path, monkeypatch):
    """A working folder with modules that leave a trace where they are imported."""
    for name in ("evil.py", "nlhf_zooevil.py"):
        (tmp_path / name).write_text("open('made', 'w')\n")
    (tmp_path / "rules.py").write_text("open('made', 'w')\n")
    (tmp_path / "run").mkdir()
    for folder in (tmp_path, tmp_path / "run"):
        (folder / "other.yaml").write_text(yaml.safe_dump(part("evil.Mine")))
        (folder / "good.yaml").write_text(yaml.safe_dump(part("nlhf_zoo.Comal")))
        (folder / "circle.yaml").write_text("{a: circle.yaml, b: list.yaml}")
        (folder / "list.yaml").write_text("[&a {class_path: evil.Mine}, *a]")
        (folder / "text.yaml").write_text("evil.Mine")
    (tmp_path / "home.yaml").write_text("class_path: evil.Mine")
    (tmp_path / "twice.yaml").write_text("class_path: evil.Mine")
    (tmp_path / "run/twice.yaml").write_text("class_path: nlhf_zoo.Comal")
    (tmp_path / "large.jsonl").write_text("os.system #" + 1_000_000 * " ")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/evil.py").write_text("open('made', 'w')\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_code_is_refused_and_not_imported(kind):
    content = yaml.safe_load(yaml.safe_dump(FOREIGN[kind]).replace("{folder}", str(Path.cwd())))
    with pytest.raises(UserError, match=r"(\w+\.yaml): .* is .*(: | or )give --allow-code"):
        refuse_foreign_code(content, FILE, allow_code=False)
    refuse_foreign_code(content, FILE, allow_code=True)
    assert not Path("made").exists()


def test_code_is_looked_for_in_the_working_folder_of_the_moment(tmp_path, monkeypatch):
    """Python's importer of "." stays with the folder in which it was first asked."""
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}_evil.py").touch()
        monkeypatch.chdir(folder)
        with pytest.raises(UserError, match="give --allow-code"):
            refuse_foreign_code(
                {"model": {"function": f"{name}_evil.mine"}}, FILE, allow_code=False
            )


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize("kind", TRUSTED)
def test_parts_of_ours_and_of_torch_are_not(kind):
    refuse_foreign_code(TRUSTED[kind], FILE, allow_code=False)
    assert not Path("made").exists()


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS))
)
def test_no_configuration_of_ours_is_refused(path):
    refuse_foreign_code(read_config(str(path)), path, allow_code=False)


@pytest.mark.parametrize(
    "name", ["big.yaml", "list.yaml", "~/small.yaml", "small.yaml"], ids=lambda name: name
)
@pytest.mark.parametrize("flag", ["--config=", "-c=", "-c"])
def test_no_file_leads_to_code_that_is_not_looked_at(name, flag, tmp_path, refused, monkeypatch):
    text = "class_path: mischief.Mine\n"
    (tmp_path / "mischief.py").write_text("open('made', 'w')\n")
    (tmp_path / "small.yaml").write_text(text)
    (tmp_path / "big.yaml").write_text(text + "#" + 1_000_000 * "-")
    (tmp_path / "list.yaml").write_text("- " + text)
    config = configuration(algorithm=name)
    if name == "list.yaml":
        config = {**configuration(), "trainer": {"callbacks": name}}
    (tmp_path / "game.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    sentence = refused("predict", f"{flag}game.yaml")[1]
    assert ("give --allow-code" in sentence) == (name != "big.yaml")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_options_are_not_abbreviated(command, tmp_path, refused):
    (tmp_path / "game.yaml").write_text(yaml.safe_dump(configuration()))
    for words in (["--conf", tmp_path / "game.yaml"], [f"--conf={tmp_path / 'game.yaml'}"]):
        assert "unrecognized arguments: --conf" in refused(command, *words)[1]


def test_no_interpolation_reads_the_environment_unless_that_is_allowed(monkeypatch):
    monkeypatch.setenv("SECRET", "the key")
    for text in ("${oc.env:SECRET}", "${oc.env:NOTHING,1}", "${oc.${name}:SECRET}"):
        content = OmegaConf.create({"name": "env", "text": text})
        with closed_environment(allow_code=False), pytest.raises(UnsupportedInterpolationType):
            OmegaConf.to_container(content, resolve=True)
        with closed_environment(allow_code=True):
            assert content.text in ("the key", "1")
        assert content.text in ("the key", "1")


def test_an_option_reads_the_environment_only_where_that_is_allowed(tmp_path, refused, monkeypatch):
    (tmp_path / "game.yaml").write_text(yaml.safe_dump(configuration()))
    monkeypatch.setenv("SECRET", str(tmp_path / "the_key"))
    args = ("--config", tmp_path / "game.yaml", "--trainer.default_root_dir", "${oc.env:SECRET}")
    sentence = refused("predict", *args)[1]
    assert "reading the environment needs --allow-code" in sentence


OWN = """
import pathlib
pathlib.Path("made").touch()
from nlhf_zoo import SPPO
class Mine(SPPO): pass
"""


def test_predict_runs_foreign_code_only_where_that_is_allowed(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    config = configuration(algorithm=part("own.Mine"))
    (tmp_path / "game.yaml").write_text(yaml.safe_dump(config))
    args = ("--config", "game.yaml")
    run = nlhf("predict", *args, folder=tmp_path)
    assert run.code == 2
    assert (
        "algorithm.class_path is 'own.Mine', code that is not of nlhf_zoo or torch.opt" in run.err
    )
    assert "give --allow-code if you trust it" in run.err
    assert not (tmp_path / "made").exists()
    wrong = nlhf("predict", *args, "--allow-code=maybe", folder=tmp_path)
    assert "--allow_code: expected true or false, but got 'maybe'" in wrong.err
    for flag in (["--allow-code"], ["--allow_code", "true"]):
        run = nlhf("predict", *args, *flag, folder=tmp_path)
        assert run.code == 0, run.err
        assert run.out.startswith("prompt,response,probability")
    assert (tmp_path / "made").exists()


def test_export_runs_foreign_code_only_where_that_is_allowed(tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("nlhf_zoo.cli.export.refuse_other_file", lambda path: None)
    (tmp_path / "mine.py").write_text(OWN)
    config = configuration(algorithm=part("mine.Mine"))
    (tmp_path / "game.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "last.ckpt").touch()
    args = ("export", "--ckpt", "last.ckpt", "--output", "out", "--config", "game.yaml")
    assert "game.yaml: model.algorithm.class_path is 'mine.Mine', code" in refused(*args)[1]
    assert not (tmp_path / "made").exists()
    assert "only a language model can be exported" in refused(*args, "--allow-code")[1]
    assert (tmp_path / "made").exists()
