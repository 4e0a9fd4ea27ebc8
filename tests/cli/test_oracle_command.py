"""`nlhf oracle`: its figures against counting by hand, what it asks, and what it refuses."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from paths import ROOT
from tiny_models import save_tiny

from nlhf_zoo.cli.main import main
from nlhf_zoo.errors import UserError
from nlhf_zoo.health.oracles.asking import ResponseSample, ask, limited
from nlhf_zoo.health.oracles.diagnostics import of_answers
from nlhf_zoo.oracles import EnsembleOracle, PreferenceOracle, RuleOracle
from nlhf_zoo.oracles.text_oracle import TextOracle, in_order
from nlhf_zoo.records import Comparison

TEXTS = {"p": ["a", "bb", "cccc", "dddddd"], "q": ["xx", "yyy", "z"]}
PAIRS = [(p, *two) for p, texts in TEXTS.items() for two in itertools.combinations(texts, 2)]
RULE = ["oracle", "--oracle", "RuleOracle", "--oracle.check_symmetry", "false"]


def hasty(prompt, first, second):
    """The longer response is better, and so is the first."""
    return 1 / (1 + math.exp(-0.5 * (len(first) - len(second)) - 0.7))


def silent(prompt, first, second):
    return None if "a" in (first, second) else 0.5 + 0.25 * ((first > second) - (first < second))


class Biased(TextOracle):
    """Answers by ``hasty`` in both orders, as a judge does."""

    def __init__(self, order="both"):
        super().__init__()
        self.order = order
        self.symmetric = order != "none"

    fingerprint = "biased"

    def in_given_order(self, questions):
        self.count(questions)
        for number, one in enumerate(questions):
            yield number, hasty(one.prompt, one.first, one.second)

    def answers(self, questions):
        return in_order(self.in_given_order, questions, self.order)


def samples(texts=None):
    return [
        ResponseSample([{"role": "user", "content": p}], [(text, False) for text in responses])
        for p, responses in (texts or TEXTS).items()
    ]


def values(oracle, given=None):
    return {one.key: one.value for one in of_answers(oracle, ask(oracle, given or samples()))}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": p, "responses": texts}) + "\n" for p, texts in TEXTS.items()]
    Path("samples.jsonl").write_text("".join(rows))
    return tmp_path


def told(*args):
    main([*args, "--output", "report.json"])
    return json.loads(Path("report.json").read_text())


# ---- figures -------------------------------------------------------------------------------------


def test_the_figures_of_a_rule_that_prefers_the_first_place(folder, capsys):
    report = told(
        *RULE, "--oracle.function", "test_oracle_command.hasty", "--responses", "samples.jsonl"
    )
    found = {name: figure["value"] for name, figure in report["figures"].items()}
    forward = [hasty(p, a, b) for p, a, b in PAIRS]
    backward = [hasty(p, b, a) for p, a, b in PAIRS]
    error = [one + other - 1 for one, other in zip(forward, backward, strict=True)]
    assert found["symmetry_error_mean"] == pytest.approx(sum(map(abs, error)) / 9)
    assert found["symmetry_error_max"] == pytest.approx(max(map(abs, error)))
    assert found["first_place"] == pytest.approx(sum(error) / 18)
    flips = sum((one > 0.5) == (other > 0.5) for one, other in zip(forward, backward, strict=True))
    assert 0 < flips < 9
    assert found["flip_rate"] == pytest.approx(flips / 9)
    both = torch.tensor(
        [[one, 1 - one] for one in forward]
        + [[len(a) - len(b), len(b) - len(a)] for _, a, b in PAIRS]
    )
    p, d = both[:9].flatten().double(), both[9:].flatten().double()
    assert found["length_correlation"] == pytest.approx(torch.corrcoef(torch.stack([p, d]))[0, 1])
    assert found["cyclic_triples"] == 0
    assert (found["invalid"], found["queries"], found["swapped"]) == (0, 9, 9)
    assert found["agreement"] is found["tokens_per_1000"] is None
    answers = {
        (row["prompt"][-1]["content"], row["first"], row["second"]): row
        for row in report["answers"]
    }
    assert [answers[pair]["probability"] for pair in PAIRS] == pytest.approx(forward)
    assert [1 - answers[pair]["shown_second"] for pair in PAIRS] == pytest.approx(backward)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == report["title"] == "RuleOracle: 9 pairs of responses to 2 prompts"
    assert len(printed) == 1 + len(report["figures"])


def test_a_rule_that_prefers_a_place_is_told_and_not_refused(folder):
    """Its check of symmetry is for a run; after the report it is as it was."""
    asked = ["oracle", "--oracle", "RuleOracle", "--responses", "samples.jsonl"]
    asked += ["--oracle.function", "test_oracle_command.hasty"]
    checked = told(*asked)["figures"]
    unchecked = told(*asked, "--oracle.check_symmetry", "false")["figures"]
    assert checked["flip_rate"]["value"] > 0
    for key in ("flip_rate", "symmetry_error_max", "first_place", "queries", "swapped"):
        assert checked[key] == unchecked[key], key
    rule = RuleOracle(hasty)
    for oracle in (rule, EnsembleOracle([rule, ranking("abc")])):
        with contextlib.suppress(ValueError):  # that ranks no other text
            ask(oracle, samples())
        with pytest.raises(UserError, match="must sum to 1"):
            dict(rule.answers(ask(Biased(), samples()).questions))


def test_a_place_that_is_averaged_out_is_seen_all_the_same():
    oracle = Biased()
    answers = ask(oracle, samples())
    found = {one.key: one for one in of_answers(oracle, answers)}
    assert found["symmetry_error_max"].value > 0.2
    assert "average both orders" in found["symmetry_error_max"].reading
    expected = [(hasty(p, a, b) + 1 - hasty(p, b, a)) / 2 for p, a, b in PAIRS]
    assert answers.probability.tolist() == pytest.approx(expected)
    # A query and its swapped call for the answer, and two more looks.
    assert (oracle.ledger["queries"], oracle.ledger["swapped"]) == (9, 27)
    assert (answers.cost["queries"], answers.cost["swapped"]) == (9, 9)
    for order, reading in (("none", "ask about both orders"), ("random", "a coin says who is")):
        oracle = Biased(order)
        assert any(reading in one.reading for one in of_answers(oracle, ask(oracle, samples())))


def ranking(order):
    def rule(prompt, first, second):
        return float(order.index(first) < order.index(second))

    return RuleOracle(rule)


def test_three_rankings_make_a_cycle_and_agree_on_a_third():
    given = samples({"p": ["a", "b", "c"]})
    members = [ranking("abc"), ranking("bca"), ranking("cab")]
    assert values(members[0], given)["cyclic_triples"] == 0
    oracle = EnsembleOracle(members)
    found = values(oracle, given)
    assert found["cyclic_triples"] == 1
    # Each two of them have the same winner in one pair of three.
    assert found["agreement"] == pytest.approx(1 / 3)
    assert (found["queries"], found["symmetry_error_max"]) == (9, 0)
    assert "least 33.3%" in next(
        one.reading for one in of_answers(oracle, ask(oracle, given)) if one.key == "agreement"
    )


def test_answers_that_are_missing():
    found = values(RuleOracle(silent))
    assert found["invalid"] == pytest.approx(3 / 9)
    assert found["ties"] == 0
    answers = ask(RuleOracle(silent), samples())
    matrix = answers.matrices()[0]
    assert matrix[0, 1:].isnan().all()
    assert matrix[1:, 0].isnan().all()
    assert (matrix[1:, 1:] + matrix[1:, 1:].T == 1).all()
    only = values(RuleOracle(silent), samples({"p": ["a", "b"]}))
    assert math.isnan(only["length_correlation"])
    assert (only["invalid"], math.isnan(only["symmetry_error_max"])) == (1, True)


def test_an_oracle_that_is_no_text_oracle_is_asked_prompt_by_prompt():
    class Bare(PreferenceOracle):
        def forward(self, prompts, first, second):
            (ours,), (theirs,) = first.text, second.text
            said = [[hasty(prompts.text[0], a, b) for b in theirs] for a in ours]
            return Comparison(torch.tensor([said]), torch.ones(1, len(ours), len(theirs)).bool())

    bare, rule = values(Bare()), values(RuleOracle(hasty, check_symmetry=False))
    for key in ("symmetry_error_mean", "flip_rate", "cyclic_triples", "length_correlation"):
        assert bare[key] == pytest.approx(rule[key], abs=1e-6)


def test_the_cost_is_that_of_the_answers(folder):
    report = told(
        "oracle", "--oracle", "judges.Judge", "--oracle.tokens", "7", "--responses", "samples.jsonl"
    )
    assert report["figures"]["tokens_per_1000"]["value"] == 7000
    assert report["figures"]["seconds_per_1000"]["value"] > 0
    cached = ["oracle", "--oracle", "CachedOracle", "--oracle.oracle", "judges.Judge"]
    cached += ["--oracle.path", "cache.sqlite", "--responses", "samples.jsonl"]
    assert told(*cached)["figures"]["queries"]["value"] == 9
    figures = told(*cached)["figures"]
    assert figures["queries"]["value"] == 0
    assert figures["seconds_per_1000"] == {
        "value": None,
        "reading": "9 answers came from a cache, and are not counted",
    }


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [2]), (2, [2, 2]), (5, [3, 2]), (6, [4]), (8, [4, 2]), (9, [4, 3]), (99, [4, 3])],
)
def test_no_more_queries_than_allowed(most, sizes):
    kept = limited(samples(), most)
    assert [len(sample.responses) for sample in kept] == sizes
    oracle = Biased("none")
    ask(oracle, kept)
    assert oracle.ledger["queries"] <= most


def test_what_was_answered_is_told_where_the_oracle_stops(folder, capsys):
    with pytest.raises(SystemExit) as end:
        told(
            *("oracle", "--oracle", "judges.Judge", "--oracle.stops_after", "4"),
            *("--responses", "samples.jsonl"),
        )
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("nlhf: error: the judge is down\n")
    report = json.loads(Path("report.json").read_text())
    assert len(report["answers"]) == 4
    assert report["figures"]["invalid"]["reading"] == "0 of 4 pairs have no answer"
    with pytest.raises(SystemExit):
        main(
            [
                "oracle",
                "--oracle",
                "judges.Judge",
                "--oracle.stops_after",
                "0",
                "--responses",
                "samples.jsonl",
            ]
        )
    assert capsys.readouterr().out == ""


def test_null_is_null_of_an_oracle_within_another(folder):
    """jsonargparse 4.53 hands it on as the text "None"."""
    inner = ["--oracle.oracle", "BudgetedOracle", "--oracle.oracle.max_queries", "null"]
    inner += ["--oracle.oracle.max_requests", "1", "--oracle.oracle.oracle", "RuleOracle"]
    rule = ["--oracle.oracle.oracle.function", "nlhf_zoo.oracles.rules.shorter_wins"]
    outer = ["oracle", "--oracle", "BudgetedOracle", "--oracle.max_queries", "9"]
    report = told(*outer, *inner, *rule, "--responses", "samples.jsonl")
    assert report["figures"]["queries"]["value"] == 9


def test_text_and_conversations_stand_in_one_file(folder):
    with Path("samples.jsonl").open("a") as file:
        talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
        file.write(json.dumps({"prompt": talk, "responses": ["a", "bb"]}) + "\n")
    rule = ["--oracle.function", "nlhf_zoo.oracles.rules.shorter_wins"]
    report = told(*RULE, *rule, "--responses", "samples.jsonl")
    shown = [row["prompt"] for row in report["answers"]]
    assert shown[0] == [{"role": "user", "content": "p"}]
    assert shown[-1] == talk
    assert len(shown) == 10


def test_a_budget_stops_it(folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(
            [
                "oracle",
                "--oracle",
                "BudgetedOracle",
                "--oracle.oracle",
                "judges.Judge",
                "--oracle.max_queries",
                "3",
                "--responses",
                "samples.jsonl",
            ]
        )
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "budget is spent" in printed.err
    assert "0 of 3 pairs have no answer" in printed.out


# ---- tables, configurations ----------------------------------------------------------------------


def test_a_table_is_looked_at_as_it_is(folder):
    report = told("oracle", "--oracle", "Cyclic", "--figure", "table.png")
    figures = report["figures"]
    assert report["title"] == "Cyclic: a table of 1 prompt, 3 actions at most"
    assert figures["cyclic_triples"]["value"] == 1
    assert figures["symmetry_error_max"]["value"] < 1e-15
    for key in ("flip_rate", "length_correlation", "invalid", "tokens_per_1000", "agreement"):
        assert figures[key]["value"] is None
        assert figures[key]["reading"]
    assert Path("table.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.json",
        "samples.jsonl",
        "table.png",
    ]
    # Random verdicts: a quarter of C(60, 3) triples, whose standard deviation is .002 here.
    report = told("oracle", "--oracle", "EmbeddingOracle", "--oracle.num_actions", "60")
    assert report["figures"]["cyclic_triples"]["value"] == pytest.approx(0.25, abs=0.02)


def test_labels_are_not_what_is_examined_and_listed_responses_are(folder):
    listed = ["oracle", "--oracle", "BernoulliLabels", "--oracle.oracle", "ListedResponses"]
    listed += ["--oracle.oracle.oracle", "RuleOracle", "--oracle.oracle.path", "samples.jsonl"]
    listed += ["--oracle.oracle.oracle.function", "nlhf_zoo.oracles.rules.shorter_wins"]
    report = told(*listed)
    assert report["title"] == "RuleOracle: 9 pairs of responses to 2 prompts"
    assert report["figures"]["length_correlation"]["value"] < -0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(
        tmp_path_factory.mktemp("models") / "llama", "llama", chat=True, max_position_embeddings=256
    )


def test_the_policy_of_a_configuration_draws_responses(folder, model):
    rows = [json.dumps({"prompt": text}) + "\n" for text in ("name a fruit.", "a", "go on.")]
    Path("prompts.jsonl").write_text("".join(rows))
    config = ["oracle", "--config", str(ROOT / "configs/lm/own_model.yaml")]
    config += ["--model.policy.model", str(model), "--data.path", "prompts.jsonl"]
    config += ["--model.policy.max_new_tokens", "6", "--data.batch_size", "2"]
    report = told(*config, "--num_prompts", "2", "--num_responses", "5", "--figure", "drawn.png")
    assert report["oracle"] == "RuleOracle"
    prompts = {row["prompt"][-1]["content"] for row in report["answers"]}
    assert len(prompts) == 2
    assert prompts < {"name a fruit.", "a", "go on."}
    assert 2 < len(report["answers"]) <= 2 * 10
    for row in report["answers"]:
        by_length = len(row["second"]) - len(row["first"])
        assert row["probability"] == 0.5 + 0.5 * ((by_length > 0) - (by_length < 0))
    assert Path("drawn.png").stat().st_size > 10_000
    assert not Path("runs").exists()
    report = told(*config, "--responses", "samples.jsonl", "--max_queries", "6")
    assert {row["prompt"][-1]["content"] for row in report["answers"]} == {"p"}


# ---- refusals ------------------------------------------------------------------------------------

SHORTER = [
    "--oracle",
    "RuleOracle",
    "--oracle.function",
    "nlhf_zoo.oracles.rules.shorter_wins",
]
READ = ["--responses", "samples.jsonl"]
REFUSALS = {
    "no oracle": (READ, "give --oracle CLASS, or --config CONFIG"),
    "unknown oracle": (["--oracle", "Nobody", *READ], "no class 'Nobody': .*RuleOracle"),
    "unknown option": ([*SHORTER, "--oracle.speed", "3", *READ], "speed"),
    "no responses": (SHORTER, "RuleOracle reads texts: give --responses FILE, or a --config"),
    "no file": ([*SHORTER, "--responses", "none.jsonl"], "none.jsonl cannot be read"),
    "bad line": ([*SHORTER, "--responses", "bad.jsonl"], "line 2 of bad.jsonl is not JSON"),
    "one response": (
        [*SHORTER, "--responses", "one.jsonl"],
        "line 1 of one.jsonl has fewer than two",
    ),
    "responses of a table": (["--oracle", "Cyclic", *READ], "Cyclic looks its answers up .* leave"),
    "queries of a table": (
        ["--oracle", "Cyclic", "--max_queries", "3"],
        "leave --responses and --max",
    ),
    "two oracles": (["--config", "c.yaml", *SHORTER], "--config has an oracle of its own"),
    "queries 0": ([*SHORTER, *READ, "--max_queries", "0"], "--max_queries must be at least 1"),
    "responses 1": (
        [*SHORTER, *READ, "--num_responses", "1"],
        "--num_responses must be at least 2",
    ),
    "prompts few": ([*SHORTER, *READ, "--num_prompts", "few"], "--num_prompts: invalid int value"),
    "no folder": ([*SHORTER, *READ, "--output", "no/r.json"], "the folder no does not exist"),
    "no json": ([*SHORTER, *READ, "--output", "r.txt"], "--output r.txt must end with .json"),
    "no png": ([*SHORTER, *READ, "--figure", "f.jpg"], "--figure f.jpg must end with .png"),
    "overwrites": (
        [*SHORTER, "--responses", "s.json", "--output", "s.json"],
        "would overwrite the responses",
    ),
    "asymmetric": (
        [
            *("--oracle", "CachedOracle", "--oracle.path", "answers.sqlite"),
            *("--oracle.oracle", "RuleOracle"),
            *("--oracle.oracle.function", "test_oracle_command.hasty", *READ),
        ],
        "the rule test_oracle_command.hasty gives P.* which must sum to 1",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_mistake_is_one_sentence(folder, capsys, name):
    Path("bad.jsonl").write_text('{"prompt": "p", "responses": ["a", "b"]}\n{"prompt"\n')
    Path("one.jsonl").write_text('{"prompt": "p", "responses": ["a"]}\n')
    args, message = REFUSALS[name]
    with pytest.raises(SystemExit) as end:
        main(["oracle", *args])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("nlhf: error: ")
    assert re.search(message, line)


def test_help(capsys):
    main(["oracle", "--help"])
    out = capsys.readouterr().out
    for option in ("responses", "num_prompts", "num_responses", "max_queries", "output", "figure"):
        assert f"  --{option} " in out
