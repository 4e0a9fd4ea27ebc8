"""`nlhf init`: what it asks, what it writes, and what it refuses; docs/start plays its files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from tiny_models import save_tiny

from nlhf_zoo.cli import signatures
from nlhf_zoo.cli.early import refuse_early
from nlhf_zoo.cli.init import questions
from nlhf_zoo.cli.init.command import main as init
from nlhf_zoo.cli.main import main
from nlhf_zoo.errors import UserError

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
VOTES = "winner,loser,count\nA,B,3\nB,C,2\nC,A,2\n"
OUTCOMES = {
    "votes": ["--have", "votes"],
    "rule": ["--have", "rule", "--model", MODEL],
    "judge": ["--have", "judge", "--model", MODEL],
    "pairs": ["--have", "pairs", "--model", MODEL],
}
FILES = {"votes": ["config.yaml"], "rule": ["config.yaml"], "judge": ["config.yaml"]}
FILES["pairs"] = ["config_preference_model.yaml", "config.yaml"]
ALGORITHMS = [n for n in signatures.choices("PolicyOptimizer") if n not in questions._NEEDS_MORE]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("have", OUTCOMES)
def test_what_is_written_is_commented_and_names_what_is_there(have, capsys):
    init(OUTCOMES[have])
    assert sorted(path.name for path in Path().iterdir()) == sorted(FILES[have])
    printed = capsys.readouterr().out
    for name in FILES[have]:
        text = Path(name).read_text()
        assert f"#   nlhf fit --config {name}\n" in text
        assert f"  nlhf fit --config {name}\n" in printed
        assert "hange this first" in text or "hange these first" in text or "changed first" in text
        assert max(map(len, text.splitlines())) <= 120
        for page in {word.strip("().,;:") for word in text.split() if "docs/" in word}:
            assert (ROOT / page).is_file(), page
        refuse_early(["--config", name])  # no class and no option is misspelt


def test_names_stay_what_they_are(capsys):
    """Of a model, a file or a folder whose name YAML would read as something else."""
    Path("no").mkdir()
    Path("no/config.json").write_text("{}")
    init([*["--have", "rule", "--model", "no", "--save", "1e3/on"], "--data", "a: 'b' #.jsonl"])
    config = yaml.safe_load(Path("config.yaml").read_text())
    assert config["model"]["init_args"]["policy"]["init_args"]["model"] == "no"
    assert config["data"]["init_args"]["path"] == "a: 'b' #.jsonl"
    logger = config["trainer"]["logger"]["init_args"]
    assert (logger["save_dir"], logger["name"]) == ("1e3", "on")


@pytest.mark.parametrize("have", ["votes", "rule"])
def test_another_algorithm_than_the_recommended_one(have):
    init([*OUTCOMES[have], "--algorithm", "NashMD"])
    assert "Your own choice" in Path("config.yaml").read_text()
    written = yaml.safe_load(Path("config.yaml").read_text())["model"]["init_args"]
    assert written["algorithm"] == {"class_path": "nlhf_zoo.NashMD"}


@pytest.mark.parametrize("have", ["rule", "judge", "pairs"])
def test_the_options_of_an_algorithm_are_its_own(have):
    init([*OUTCOMES[have], "--algorithm", "NashMP"])
    refuse_early(["--config", "config.yaml"])


def test_what_has_no_closed_form_is_what_says_so():
    from nlhf_zoo import algorithms

    kinds = {name: getattr(algorithms, name) for name in ALGORITHMS}
    none = tuple(name for name, kind in kinds.items() if not kind.closed_form)
    assert none == questions._NO_CLOSED_FORM
    assert [name for name, kind in kinds.items() if kind().by_score] == []
    assert algorithms.REBEL().by_score


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_plays_a_round(algorithm):
    save_tiny(Path("my_model"), "llama", chat=True, max_position_embeddings=256)
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "{p}"}}\n' for p in "abcd"))
    Path("votes.csv").write_text(VOTES)
    init(["--have", "rule", "--model", "my_model", "--rounds", "1", "--algorithm", algorithm])
    main(["fit", "--config", "config.yaml", "--model.policy.max_new_tokens", "8"])
    if algorithm not in questions._NO_CLOSED_FORM:
        init(["--have", "votes", "--algorithm", algorithm, "--output", "votes.yaml"])
        main(["fit", "--config", "votes.yaml"])


def test_a_small_file_of_prompts_holds_none_back():
    """And a batch is no larger than the file; a model without a chat template reads texts."""
    save_tiny(Path("plain"), "llama")
    save_tiny(Path("chat"), "llama", chat=True)
    for model, num, expected in (("plain", 3, (False, 3, None)), ("chat", 64, (True, 4, 16))):
        rows = (json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(num))
        Path("prompts.jsonl").write_text("".join(rows))
        init(["--have", "rule", "--model", model, "--overwrite"])
        data = yaml.safe_load(Path("config.yaml").read_text())["data"]["init_args"]
        found = data["as_conversation"], data["batch_size"], data["num_validation"]
        assert found == expected


def test_questions_at_a_terminal(monkeypatch, capsys):
    """A default is taken for nothing, and an answer that cannot be used is asked for again."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    answers = iter(["vote", "judge", "", MODEL, "", "0", "7", ""])
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or next(answers))
    init([])
    assert [*answers] == []
    assert len(asked) == 8
    assert "did you mean 'votes'?" in capsys.readouterr().out
    config = yaml.safe_load(Path("config.yaml").read_text())
    assert config["model"]["init_args"]["algorithm"]["class_path"] == "nlhf_zoo.OnlineIPO"
    assert config["trainer"]["callbacks"][-1]["init_args"] == {"rounds": 7}
    assert config["trainer"]["logger"]["init_args"]["name"] == "judge"


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    def ended(_):
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    with pytest.raises(UserError, match="there is no answer: give all answers as options"):
        init([])


def test_nothing_heavy_is_imported(tmp_path):
    code = (
        "import sys; from nlhf_zoo.cli.main import main; main(sys.argv[1:]); "
        "assert not {'torch', 'lightning', 'jsonargparse', 'numpy'} & {*sys.modules}"
    )
    command = [sys.executable, "-c", code, "init", *OUTCOMES["pairs"]]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


REFUSED = {
    "nobody to ask": ([], "--have is missing, and there is no terminal to ask at"),
    "no model": (["--have", "rule"], "--model is missing, and there is no terminal"),
    "another thing": (["--have", "vote"], "--have 'vote' is none of votes, .*did you mean 'votes'"),
    "a model of votes": ([*OUTCOMES["votes"], "--model", "m"], "--model is of language models"),
    "votes of another kind": (
        [*OUTCOMES["votes"], "--data", "votes.txt"], "votes.txt ends with none of .csv, .json",
    ),
    "no folder": (["--have", "rule", "--model", "./no"], "--model ./no is no folder, and no name"),
    "no model's folder": (["--have", "rule", "--model", "empty"], "empty has no config.json"),
    "a file for a model": (["--have", "rule", "--model", "there.yaml"], "is no folder, and no"),
    "no algorithm": (
        [*OUTCOMES["rule"], "--algorithm", "NashPM"], "NashPM is none of recommend, .*'NashMP'",
    ),
    "scores": ([*OUTCOMES["rule"], "--algorithm", "REBEL"], "takes scores of single responses"),
    "an algorithm inside": (
        [*OUTCOMES["votes"], "--algorithm", "MovingMagnet"], "holds another algorithm inside",
    ),
    "no rounds": ([*OUTCOMES["rule"], "--rounds", "0"], "--rounds is a whole number, 1 or above"),
    "outside": ([*OUTCOMES["rule"], "--save", "../x"], "'../x' is no name of a folder"),
    "in a file": ([*OUTCOMES["rule"], "--save", "there.yaml/x"], "there.yaml is a file"),
    "a judge of a rule": ([*OUTCOMES["rule"], "--judge", "m"], "--judge is of --have judge"),
    "no configuration": ([*OUTCOMES["rule"], "--output", "a.txt"], "must end with .yaml"),
    "there already": ([*OUTCOMES["rule"], "--output", "there.yaml"], "there.yaml is there already"),
    "the other one is there": (
        [*OUTCOMES["pairs"], "--output", "two.yaml"], "two_preference_model.yaml is there already",
    ),
    "no folder of the output": ([*OUTCOMES["rule"], "--output", "no/a.yaml"], "does not exist"),
    "misspelt": ([*OUTCOMES["rule"], "--modle", "m"], "unrecognized arguments: --modle"),
    "no closed form": ([*OUTCOMES["votes"], "--algorithm", "XPO"], "XPO has no closed form"),
    "a word": ([*OUTCOMES["rule"], "word"], "unrecognized arguments: word"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_sentence_and_nothing_written(kind, refused):
    args, sentence = REFUSED[kind]
    Path("empty").mkdir()
    for name in ("there.yaml", "two_preference_model.yaml"):
        Path(name).write_text("a: 1\n")
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    out, said = refused("init", *args)
    assert out == ""
    assert re.search(sentence, said), said
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before
