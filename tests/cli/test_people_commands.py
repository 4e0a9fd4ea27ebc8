"""Commands that ask people as they ask any oracle."""

import json

import pytest
from voters import Voters

from nlhf_zoo.cli.main import main
from nlhf_zoo.people import VoteStore

PROMPTS = ["q", "r", "s"]


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    for name, texts in (("a", "xyz"), ("b", "xwv"), ("c", "utx")):
        rows = zip(PROMPTS, texts, strict=True)
        write(f"{name}.jsonl", [{"prompt": prompt, "response": text} for prompt, text in rows])
    write("listed.jsonl", [{"prompt": prompt, "responses": ["x", "y", "zz"]} for prompt in "qr"])
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def lesser(person, pair):
    return "first" if pair.first < pair.second else "second"


def questions():
    store = VoteStore("votes.sqlite")
    found = [tally.votes for _, _, tally in store.questions()]
    store.end()
    return found


PEOPLE = ["--oracle", "HumanOracle", "--oracle.path", "votes.sqlite"]
COMMANDS = {
    "tournament": ["a.jsonl", "b.jsonl", "c.jsonl", "--prompts", "prompts.jsonl"],
    "evaluate": ["a.jsonl", "--against", "b.jsonl", "--prompts", "prompts.jsonl"],
    "oracle": ["--responses", "listed.jsonl"],
}


# Of nine pairs of answers in a tournament one is of equal ones, and two are the same.
TOURNAMENT = pytest.param("tournament", 7, marks=pytest.mark.slow)


@pytest.mark.parametrize(("command", "pairs"), [TOURNAMENT, ("evaluate", 2), ("oracle", 6)])
def test_people_are_asked_once_about_each_pair(there, command, pairs, capsys):
    output = [] if command == "oracle" else ["--output", "out"]
    with Voters("votes.sqlite", lesser, ["ada", "bo"]):
        main([command, *COMMANDS[command], *PEOPLE, "--oracle.votes", "2", *output])
    assert questions() == [2] * pairs
    said = " ".join(capsys.readouterr().out.split())
    assert f"asked {pairs} queries" in said or f"queries {pairs} distinct pairs" in said


def test_a_command_is_told_where_the_votes_are(there, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", *COMMANDS["evaluate"], "--oracle", "HumanOracle", "--output", "out"])
    assert "here are none: give its path, a file for the votes" in capsys.readouterr().err
