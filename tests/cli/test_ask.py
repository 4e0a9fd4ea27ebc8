"""``nlhf ask``: what it reads, refuses, prints and writes; it starts without torch."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import combinations

import pytest

from nlhf_zoo.cli.ask.reading import _around, read_asked
from nlhf_zoo.cli.main import main
from nlhf_zoo.data.texts import Columns, RowSource
from nlhf_zoo.data.texts.pair_rows import read_pairs
from nlhf_zoo.data.texts.row_source import Dropped
from nlhf_zoo.people import Pair, VoteStore

USER = [{"role": "user", "content": "p"}]
CHAT = [{"role": "system", "content": "s"}, *USER]


def rows(path, *content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "conversation"),
    [
        ({"prompt": "p", "first": "a", "second": "b"}, USER),
        ({"prompt": "p", "first": "a", "second": "b", "probability": 0.25}, USER),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, USER),
        ({"prompt": CHAT, "first": "a", "second": "b"}, CHAT),
        ({"prompt": "p", "responses": ["a", "b", "a"]}, USER),
        ({"prompt": CHAT, "responses": ["a", "b"], "names": ["A", "B"]}, CHAT),
    ],
)
def test_rows_that_ask_one_pair(tmp_path, content, conversation):
    asked = read_asked(rows(tmp_path / "a.jsonl", content))
    assert asked.pairs == [Pair(conversation, "a", "b")]
    assert len(asked.notes) == (content.get("responses") == ["a", "b", "a"])


def test_what_nlhf_sample_writes_is_paired_by_prompt(tmp_path):
    content = [
        {"prompt": prompt, "response": text, "tokens": 1, "truncated": False}
        for prompt in ("p", "q", "alone")
        for text in ("abc" if prompt != "alone" else "a")
    ]
    asked = read_asked(rows(tmp_path / "a.jsonl", *content))
    assert [(pair.conversation[0]["content"], pair.first, pair.second) for pair in asked.pairs] == [
        (prompt, *two) for prompt in "pq" for two in combinations("abc", 2)
    ]
    assert "1 prompts have one response only" in asked.notes[0]


def test_other_formats_are_read_as_fit_reads_them(tmp_path):
    arena = {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "tie"}
    asked = read_asked(rows(tmp_path / "a.jsonl", arena), shape="arena")
    assert asked.pairs == [Pair(USER, "a", "b")]


@pytest.mark.parametrize("number", range(2, 9))
def test_the_way_around_passes_each_pair_once_and_all_texts_about_equally_often(number):
    texts = [*"abcdefgh"[:number]]
    found = [*_around(texts)]
    assert sorted(map(sorted, found)) == sorted(map(list, combinations(texts, 2)))
    for end in range(1, len(found) + 1):
        counts = [sum(text in pair for pair in found[:end]) for text in texts]
        assert max(counts) - min(counts) <= 2


def test_some_pairs_of_each_prompt_are_the_same_for_the_same_seed(tmp_path):
    path = rows(tmp_path / "a.jsonl", {"prompt": "p", "responses": [*"abcdefgh"]})
    some = read_asked(path, pairs_per_prompt=8, seed=3).pairs
    assert len({pair.digest for pair in some}) == 8
    assert {pair.first for pair in some} == {*"abcdefgh"}
    assert read_asked(path, pairs_per_prompt=8, seed=3).pairs == some
    assert read_asked(path, pairs_per_prompt=99).pairs == read_asked(path).pairs


ROW = {"prompt": "p", "first": "a", "second": "b"}


@pytest.mark.parametrize(
    ("content", "options", "refused"),
    [
        ([], [], "has no lines"),
        ([ROW | {"second": "a"}], [], "the same text"),
        ([ROW, {"prompt": "p", "first": "a"}], [], "line 2 .* has no column 'second'"),
        ([{"prompt": "p", "responses": ["a", "a"]}], [], "no prompt with two different"),
        ([{"prompt": "p", "responses": "ab"}], [], "a list of texts"),
        ([ROW], ["--pairs_per_prompt", "2"], "is for a file of responses"),
        ([ROW], ["--pairs_per_prompt", "0"], "at least 1"),
        ([ROW], ["--votes", "0"], "from 1 to"),
        ([ROW], ["--votes", "two"], "invalid int"),
        ([ROW], ["--vote", "2"], "unrecognized arguments: --vote 2, did you mean 'votes'"),
        ([ROW], ["--format", "csv"], "invalid choice"),
        ([ROW], ["--port", "70000"], "from 0 to 65535"),
        ([ROW], ["--host", "192.0.2.7"], "nothing can be served"),
        ([ROW], ["--output", "none/a.sqlite"], "does not exist"),
        ([ROW], ["--export", "none/a.jsonl"], "does not exist"),
        ([ROW], ["--summary"], "there is no file"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(tmp_path, capsys, content, options, refused):
    path = rows(tmp_path / "a.jsonl", *content)
    with pytest.raises(SystemExit) as end:
        main(["ask", str(path), *options])
    assert end.value.code == 2
    assert re.search(refused, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("make", "options", "refused"),
    [
        (lambda path: path.mkdir(), [], "has no people.sqlite"),
        (lambda path: None, [], "there is no file"),
        (lambda path: path.write_text("x" * 4000), [], "not a database"),
        (lambda path: VoteStore(path).end(), ["--votes", "2"], "--votes is for a .jsonl file"),
    ],
)
def test_places_without_questions_are_refused(tmp_path, capsys, make, options, refused):
    make(tmp_path / "run")
    with pytest.raises(SystemExit) as end:
        main(["ask", str(tmp_path / "run"), *options])
    assert end.value.code == 2
    assert refused in capsys.readouterr().err


@pytest.fixture
def voted(tmp_path):
    """A run's folder in which people have voted."""
    (tmp_path / "checkpoints").mkdir()
    store = VoteStore(tmp_path / "checkpoints" / "people.sqlite")
    numbers = store.put([Pair(USER, "a", "b"), Pair(CHAT, "c", "é\u2028")], votes=2)
    store.vote("Ann", numbers[0], "first", 1.5)
    store.vote("Ann", numbers[1], "second")
    store.undo("Ann")
    store.vote("Ann", numbers[1], "neither", 2.0)
    store.vote("Bob", numbers[0], "second", 3.0)
    store.vote("Bob", numbers[1], "skip", 0.5)
    store.end()
    return tmp_path


def test_votes_are_written_whole_and_as_pairs_that_fit_reads(voted, capsys):
    main(
        [
            "ask",
            str(voted),
            "--export",
            str(voted / "votes.jsonl"),
            "--pairs",
            str(voted / "p.jsonl"),
        ]
    )
    written = [json.loads(line) for line in (voted / "votes.jsonl").read_text().split("\n")[:-1]]
    said = [
        (row["person"], row["choice"], row["seconds"], row["undone"] is None) for row in written
    ]
    assert said == [
        ("Ann", "first", 1.5, True),
        ("Ann", "second", None, False),
        ("Ann", "neither", 2.0, True),
        ("Bob", "second", 3.0, True),
        ("Bob", "skip", 0.5, True),
    ]
    assert written[1]["prompt"] == CHAT
    assert written[1]["second"] == "é\u2028"
    source = RowSource(str(voted / "p.jsonl"), "train", None, None, "pairs", "")
    pairs = read_pairs(source, Columns(), Dropped("refuse"))
    assert [(row.conversation, row.first, row.second, row.probability) for row in pairs] == [
        (USER, "a", "b", 1.0),
        (CHAT, "c", "é\u2028", 0.5),
        (USER, "a", "b", 0.0),
    ]
    assert "5 votes are in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--export", "checkpoints/people.sqlite"],
        ["--pairs", "checkpoints/people.sqlite"],
        ["--export", "a.jsonl", "--pairs", "a.jsonl"],
    ],
)
def test_nothing_is_written_over_the_votes_or_over_each_other(voted, capsys, monkeypatch, options):
    monkeypatch.chdir(voted)
    with pytest.raises(SystemExit) as end:
        main(["ask", ".", *options])
    assert end.value.code == 2
    assert "would overwrite an input file" in capsys.readouterr().err
    store = VoteStore(voted / "checkpoints" / "people.sqlite", must_exist=True)
    assert len([*store.votes()]) == 5
    store.end()


def test_the_summary_counts_and_compares(voted, capsys):
    main(["ask", str(voted), "--summary"])
    said = capsys.readouterr().out
    assert "2 questions: 1 answered, 1 open, 1 votes wanted still" in said
    assert "3 votes: 1 for the first of the file, 1 for the second, 1 without a difference" in said
    assert "Ann  2 votes, agrees with others 0%" in said
    assert "alpha: -0.500 (1 questions" in said  # two who differ once, of 4 votes in both orders


_ASK = """
import sys
from nlhf_zoo.cli import main
try:
    main(["ask", *sys.argv[1:]])
finally:
    own = ("nlhf_zoo", "_")
    from importlib.metadata import packages_distributions
    foreign = {name.partition(".")[0] for name in sys.modules} & packages_distributions().keys()
    print("foreign:", sorted(name for name in foreign if not name.startswith(own)))
"""


def test_it_starts_with_nothing_that_does_not_come_with_python(tmp_path):
    """So it installs by `pip install --no-deps`. The same command goes on with the same address."""
    path, addresses = rows(tmp_path / "a.jsonl", ROW), []
    for _ in range(2):
        command = [sys.executable, "-c", _ASK, str(path), "--port", "0"]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONSAFEPATH": "1"},
        ) as page:
            assert "1 of 1 questions are open" in page.stdout.readline()
            addresses.append(page.stdout.readline().strip())
            page.send_signal(signal.SIGTERM)
            out, error = page.communicate(timeout=60)
        assert page.returncode == 143
        assert "0 votes are in" in out
        assert "foreign: []" in out
        assert error == "nlhf: stopped by SIGTERM\n"
    keys = [
        re.fullmatch(r"Choose here: http://127\.0\.0\.1:\d+/#(\w{32})", one)[1] for one in addresses
    ]
    assert keys[0] == keys[1]
