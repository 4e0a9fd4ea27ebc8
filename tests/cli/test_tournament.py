"""Tournaments and evaluations: figures by hand, what is drawn and kept, what is refused."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from judges import Judge, opinion
from rows import write
from tiny_models import make_policy, save_tiny

from nlhf_zoo.cli.evaluate import evaluate
from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.tournament.answering import Drawing, _asked
from nlhf_zoo.cli.tournament.command import tournament
from nlhf_zoo.cli.tournament.entrants import Entrant
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.records import PLAIN, Prompts
from nlhf_zoo.records.random_streams import random_stream
from nlhf_zoo.solvers.ratings import bradley_terry, wilson_interval

PROMPTS = [f"prompt {number}" for number in range(12)]
LENGTHS = {"a": [3] * 12, "b": [5] * 10 + [2, 3], "c": [7] * 6 + [2] * 6}
ENTRANTS = [Entrant(name.upper(), f"{name}.jsonl") for name in LENGTHS]
NAMED = [f"{entrant.name}={entrant.source}" for entrant in ENTRANTS]
SHORTER = ("--oracle", "RuleOracle", "--oracle.function", "nlhf_zoo.oracles.rules.shorter_wins")
GIVEN = (*SHORTER, "--prompts", "prompts.jsonl")


def text(name, number):
    return name * LENGTHS[name][number]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three entrants by their answers, of which on each prompt some are shorter."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "prompts.jsonl", *({"prompt": prompt} for prompt in PROMPTS))
    for name in LENGTHS:
        rows = ({"prompt": p, "response": text(name, i)} for i, p in enumerate(PROMPTS))
        write(tmp_path / f"{name}.jsonl", *rows)
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(path):
    return [*csv.DictReader(path.read_text().splitlines())]


def test_the_figures_are_those_of_the_judgements(files, capsys):
    main(["tournament", *NAMED, *GIVEN])
    out = capsys.readouterr().out
    rows = lines(files / "tournament/judgements.jsonl")
    assert len(rows) == 3 * len(PROMPTS)
    wins = np.zeros((3, 3))
    for row in rows:
        first, second = len(row["first_response"]), len(row["second_response"])
        assert row["preference"] == (0.5 if first == second else float(first < second))
        assert (row["first_characters"], row["second_characters"]) == (first, second)
        i, j = "ABC".index(row["first"]), "ABC".index(row["second"])
        wins[i, j] += row["preference"]
        wins[j, i] += 1 - row["preference"]
    results = {row["entrant"]: row for row in table(files / "tournament/results.csv")}
    ratings = [float(results[name]["bradley_terry"]) for name in "ABC"]
    np.testing.assert_allclose(ratings, bradley_terry(wins, 1.0), atol=1e-6)
    low, high = wilson_interval(wins, wins + wins.T)
    for row in table(files / "tournament/pairs.csv"):
        i, j = "ABC".index(row["first"]), "ABC".index(row["second"])
        assert float(row["win_rate"]) == pytest.approx(wins[i, j] / 12)
        assert float(row["wilson_low"]) == pytest.approx(low[i, j])
        assert float(row["wilson_high"]) == pytest.approx(high[i, j])
    assert all(name in out for name in ("Bradley-Terry", "Nash average", "Elo"))
    written = {path.name for path in (files / "tournament").iterdir()}
    assert {"results.md", "ratings.png", "win_matrix.png", "answers.sqlite"} <= written


@pytest.mark.parametrize("pairing", ["all", pytest.param("swiss", marks=pytest.mark.slow)])
def test_a_tournament_that_was_stopped_asks_nothing_twice(files, pairing):
    """Both orders are asked of an oracle with a place, and their mean counts."""
    judge = Judge(stops_after=20)
    with pytest.raises(OracleStoppedError):
        tournament(ENTRANTS, judge, "prompts.jsonl", pairing=pairing)
    kept = lines(files / "tournament/judgements.jsonl")
    assert 0 < len(kept) <= 10
    again = Judge()
    tournament(ENTRANTS, again, "prompts.jsonl", pairing=pairing)
    asked = [(q.prompt, q.first, q.second) for q in (*judge.asked[:20], *again.asked)]
    rows = lines(files / "tournament/judgements.jsonl")
    told = {(q.prompt, q.first, q.second) for q in again.asked}
    assert not told & {(q.prompt, q.first, q.second) for q in judge.asked[: judge.shown]}
    assert len({*asked}) == 2 * sum(row["asked"] for row in rows)
    for row in rows:
        prompt = row["prompt"][-1]["content"]
        first, second = row["first_response"], row["second_response"]
        if first != second:
            forward, backward = opinion(prompt, first, second), opinion(prompt, second, first)
            assert row["preference"] == pytest.approx((forward + 1 - backward) / 2)
            assert row["first_shown_first"] == pytest.approx(forward)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "llama", "llama")
    make_policy(folder / "llama").export(folder / "adapter")
    return folder


def test_policies_answer_once_and_independently(files, models, capsys):
    """What the second draws is what its stream gives, by hand; a resume draws nothing."""
    options = (*GIVEN, "--max_new_tokens", "8")
    same = [f"one={models}/adapter", f"two={models}/adapter", "base=reference"]
    main(["tournament", *same, *options])
    answers = [
        lines(files / f"tournament/answers/{n}_{name}.jsonl")
        for n, name in enumerate(("one", "two", "base"))
    ]
    assert answers[0] != answers[1]
    policy = make_policy(models / "llama", max_new_tokens=8)
    for number, player in ((1, "policy"), (2, "reference")):
        said = []
        for part, start in enumerate(range(0, 12, 8)):
            texts = PROMPTS[start : start + 8]
            prompts = policy.encode(Prompts(torch.arange(len(texts)), text=texts))
            rng = random_stream(0, 0, part, policy.device, "sample", number)
            drawn = policy.sample({player: 1.0}, prompts, 1, PLAIN, rng)
            said += [row[0] for row in drawn.text]
        assert [row["response"] for row in answers[number]] == said
    for path in models.glob("**/*.safetensors"):
        path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(SystemExit):  # other weights, as far as one can tell
            main(["tournament", *same, *options])
    finally:
        for path in models.glob("**/*.away"):
            path.rename(path.with_suffix(".safetensors"))
    capsys.readouterr()
    main(["tournament", *same, *options])
    assert "queries" not in capsys.readouterr().out.split("asked")[-1]


def test_two_are_evaluated(files, capsys):
    main(["evaluate", "a.jsonl", "--against", "b.jsonl", *GIVEN])
    found = json.loads((files / "evaluation/evaluation.json").read_text())
    assert [found[name] for name in ("wins", "ties", "losses", "invalid")] == [10, 1, 1, 0]
    assert found["rate"] == pytest.approx(10.5 / 12)
    assert found["characters"] == [3, (50 + 5) / 12]
    low, high = found["low"], found["high"]
    assert 0.5 < low < found["rate"] < high < 1
    assert "wins, ties, losses     10, 1, 1" in capsys.readouterr().out


def test_prompts_that_agree_are_not_certain(files, models):
    """Eight answers a prompt, all won: the interval has the width of so many judgements."""
    model, reference = str(models / "llama"), "reference"
    write(files / "two.jsonl", {"prompt": "a"}, {"prompt": "b"})
    evaluate(model, reference, Judge(), "two.jsonl", num_responses=8, max_new_tokens=4)
    found = json.loads((files / "evaluation/evaluation.json").read_text())
    assert found["wins"] + found["ties"] + found["losses"] == 16
    assert found["high"] - found["low"] > 0.2


def test_an_oracle_without_answers_is_refused_with_its_words(files):
    class Silent(Judge):
        def answers(self, questions):
            yield from ((number, math.nan) for number in range(len(questions)))

    with pytest.raises(UserError, match="no answer to any of 36 pairs"):
        tournament(ENTRANTS, Silent(), "prompts.jsonl")


def test_policies_are_asked_in_one_form(files, capsys):
    """A run as it was trained; of its own export nobody knows how that was."""
    prompts = Prompts(torch.arange(2), text=["one", "two"])
    for name, system in [("run", None), ("strict", "Be brief.")]:
        (files / name / "checkpoints").mkdir(parents=True)
        (files / name / "checkpoints/last.ckpt").touch()
        options = {"as_conversation": True, "system": system}
        (files / name / "config.yaml").write_text(json.dumps({"data": {"init_args": options}}))

    def asked(*names, as_conversation=None):
        entrants = [Entrant(name, name) for name in names]
        return _asked(entrants, prompts, "p.jsonl", Drawing(as_conversation=as_conversation))

    with pytest.raises(UserError, match=r"run is asked .* by conversations, and export by bare te"):
        asked("run", "reference", "export")
    with pytest.raises(UserError, match=r"strict is .* by conversations with a system message"):
        asked("export", "strict")
    for said, first in [(True, {"role": "user", "content": "one"}), (False, None)]:
        for own in asked("run", "export", as_conversation=said).values():
            assert (own.conversations and own.conversations[0][0]) == first
    assert len(asked("run", "reference")) == 2
    assert capsys.readouterr().err == ""
    own = asked("run", "strict")
    assert [len(own[name].conversations[0]) for name in own] == [1, 2]
    assert "and strict by conversations with a system message." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("tournament", *GIVEN), "takes two entrants at least, and there is none"),
        (("tournament", "a.jsonl", *GIVEN), "there is 'a.jsonl' alone"),
        (("tournament", "X=a.jsonl", "X=b.jsonl", *GIVEN), "two entrants have the name 'X'"),
        (("tournament", "a.jsonl", "none.jsonl", *GIVEN), "no file none.jsonl of answers"),
        (("tournament", "a.jsonl", "few.jsonl", *GIVEN), "few.jsonl has no answer to the prompt"),
        (("tournament", "a.jsonl", "twice.jsonl", *GIVEN), "answers the prompt of"),
        (("tournament", "a.jsonl", "reference", *GIVEN), "no entrant is a policy"),
        (("tournament", "a.jsonl", "b.jsonl", *SHORTER, "--prompts", "empty.jsonl"), "has no rows"),
        (("tournament", "a.jsonl", "b.jsonl", *GIVEN, "--budget", "0"), "--budget must be at"),
        (("tournament", "a.jsonl", "b.jsonl", *GIVEN, "--pairng", "all"), "did you mean 'pairing'"),
        (("tournament", "a.jsonl", "b.jsonl", "--prompts", "prompts.jsonl"), "required: oracle"),
        (("evaluate", "a.jsonl", *GIVEN), "required: against"),
        (("evaluate", "a.jsonl", "--against", "reference", *GIVEN), "no entrant is a policy"),
        (
            ("evaluate", "a.jsonl", "--against", "b.jsonl", *GIVEN, "--num_responses", "2"),
            "leave --num_responses at 1",
        ),
        (
            ("evaluate", "a.jsonl", "--against", "b.jsonl", *GIVEN, "--num_responses", "0"),
            "must be at least 1",
        ),
    ],
)
def test_misuse_is_one_sentence(files, refused, args, message):
    (files / "empty.jsonl").touch()
    rows = [{"prompt": p, "response": "x"} for p in PROMPTS]
    write(files / "few.jsonl", *rows[:3])
    write(files / "twice.jsonl", *rows, rows[0])
    assert message in refused(*args)[1]
    assert not [*files.glob("*/*.csv")]
