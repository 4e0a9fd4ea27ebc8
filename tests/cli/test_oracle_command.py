"""`nlhf oracle`: its figures against counting by hand, what it asks, and what it refuses."""

import contextlib
import itertools
import json
import math
import os
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from paths import ROOT
from tiny_models import save_tiny

from nlhf_zoo.cli.main import main
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.health.oracles.asking import ResponseSample, ask, limited, read_table
from nlhf_zoo.health.oracles.diagnostics import diagnose
from nlhf_zoo.oracles import EmbeddingOracle, EnsembleOracle, PreferenceOracle, RuleOracle
from nlhf_zoo.oracles.text_oracle import TextOracle, in_order
from nlhf_zoo.records import Comparison

TEXTS = {"p": ["a", "bb", "cccc", "dddddd"], "q": ["xx", "yyy", "z"]}
PAIRS = [(p, *two) for p, texts in TEXTS.items() for two in itertools.combinations(texts, 2)]
READ = "--responses samples.jsonl"
HASTY = f"--oracle RuleOracle --oracle.function {__name__}.hasty {READ}"
SHORTER = "--oracle RuleOracle --oracle.function nlhf_zoo.oracles.rules.shorter_wins"


def hasty(prompt, first, second):
    """The longer response is better, and so is the first."""
    return 1 / (1 + math.exp(-0.5 * (len(first) - len(second)) - 0.7))


def silent(prompt, first, second):
    return None if "a" in (first, second) else 0.5 + 0.25 * ((first > second) - (first < second))


def ranking(order):
    return RuleOracle(lambda prompt, first, second: float(order.index(first) < order.index(second)))


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


class Bare(PreferenceOracle):
    """Answers by ``hasty``, and reads texts without being a `TextOracle`."""

    def __init__(self, prompts=99):
        super().__init__()
        self.prompts_left = prompts

    def forward(self, prompts, first, second):
        self.prompts_left -= 1
        if self.prompts_left < 0:
            raise OracleStoppedError("it is down")
        (ours,), (theirs,) = first.text, second.text
        answers = [[hasty(prompts.text[0], a, b) for b in theirs] for a in ours]
        return Comparison(torch.tensor([answers]), torch.ones(1, len(ours), len(theirs)).bool())


class Unmade(PreferenceOracle):
    """An oracle that cannot be made."""

    forward = None

    def __init__(self):
        raise ImportError("there is no such library")


def samples(texts=TEXTS):
    return [
        ResponseSample([{"role": "user", "content": p}], [(text, False) for text in responses])
        for p, responses in texts.items()
    ]


def diagnostics(oracle, texts=TEXTS):
    return {one.key: one for one in diagnose(ask(oracle, samples(texts)))}


def values(oracle, texts=TEXTS):
    return {key: one.value for key, one in diagnostics(oracle, texts).items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": p, "responses": texts}) + "\n" for p, texts in TEXTS.items()]
    Path("samples.jsonl").write_text("".join(rows))
    return tmp_path


def report_of(options):
    main(["oracle", *options.split(), "--output", "report.json"])
    return json.loads(Path("report.json").read_text())


def within(part, options):
    """The options of an oracle that is a part of another."""
    return options.replace("--oracle", f"--{part}.oracle")


# ---- figures -------------------------------------------------------------------------------------


def test_the_figures_of_a_rule_that_prefers_the_first_place(folder, capsys):
    report = report_of(f"{HASTY} --oracle.check_symmetry false")
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
    lengths = [len(a) - len(b) for _, a, b in PAIRS]
    both = [[*forward, *(1 - p for p in forward)], [*lengths, *(-d for d in lengths)]]
    correlation = torch.corrcoef(torch.tensor(both, dtype=torch.float64))[0, 1]
    assert found["length_correlation"] == pytest.approx(correlation)
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
    checked = report_of(HASTY)["figures"]
    unchecked = report_of(f"{HASTY} --oracle.check_symmetry false")["figures"]
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
    error = {one.key: one for one in diagnose(answers)}["symmetry_error_max"]
    assert error.value > 0.2
    assert "average both orders" in error.reading
    expected = [(hasty(p, a, b) + 1 - hasty(p, b, a)) / 2 for p, a, b in PAIRS]
    assert answers.probability.tolist() == pytest.approx(expected)
    # A query and its swapped call for the answer, and two more looks.
    assert (oracle.ledger["queries"], oracle.ledger["swapped"]) == (9, 27)
    assert (answers.cost["queries"], answers.cost["swapped"]) == (9, 9)
    for order, reading in (("none", "ask about both orders"), ("random", "a coin says who is")):
        assert reading in diagnostics(Biased(order))["symmetry_error_max"].reading


def test_three_rankings_make_a_cycle_and_agree_on_a_third():
    given = {"p": ["a", "b", "c"]}
    members = [ranking("abc"), ranking("bca"), ranking("cab")]
    assert values(members[0], given)["cyclic_triples"] == 0
    found = diagnostics(EnsembleOracle(members), given)
    assert found["cyclic_triples"].value == 1
    # Each two of them have the same winner in one pair of three.
    assert found["agreement"].value == pytest.approx(1 / 3)
    assert "least 33.3%" in found["agreement"].reading
    assert (found["queries"].value, found["symmetry_error_max"].value) == (9, 0)


def test_answers_that_are_missing():
    found = values(RuleOracle(silent))
    assert found["invalid"] == pytest.approx(3 / 9)
    assert found["ties"] == 0
    matrix = ask(RuleOracle(silent), samples()).matrices()[0]
    assert matrix[0, 1:].isnan().all()
    assert matrix[1:, 0].isnan().all()
    assert (matrix[1:, 1:] + matrix[1:, 1:].T == 1).all()
    only = values(RuleOracle(silent), {"p": ["a", "b"]})
    assert math.isnan(only["length_correlation"])
    assert (only["invalid"], math.isnan(only["symmetry_error_max"])) == (1, True)
    # No member but the first has an answer, and the first no winner.
    tie = RuleOracle(lambda *texts: 0.5)
    agreement = diagnostics(EnsembleOracle([tie, RuleOracle(silent)]), {"p": ["a", "b"]})
    assert agreement["agreement"].reading == "no two members name a winner of one pair"


def test_a_length_that_says_little():
    oracle = ranking(["bb", "a", "dd", "ccc"])
    found = diagnostics(oracle, {"p": ["a", "bb"], "q": ["ccc", "dd"]})["length_correlation"]
    assert found.value == 0
    assert found.reading == "the number of characters says little"


def test_an_oracle_that_is_no_text_oracle_is_asked_prompt_by_prompt():
    bare, rule = values(Bare()), values(RuleOracle(hasty, check_symmetry=False))
    for key in ("symmetry_error_mean", "flip_rate", "cyclic_triples", "length_correlation"):
        assert bare[key] == pytest.approx(rule[key], abs=1e-6)
    answers = ask(Bare(prompts=1), samples())
    assert answers.asked.tolist() == 6 * [True] + 3 * [False]
    assert answers.probability.isnan().tolist() == 6 * [False] + 3 * [True]
    assert str(answers.stopped) == "it is down"


def test_the_cost_is_that_of_the_answers(folder):
    figures = report_of(f"--oracle judges.Judge --oracle.tokens 7 {READ}")["figures"]
    assert figures["tokens_per_1000"]["value"] == 7000
    assert figures["seconds_per_1000"]["value"] > 0
    cached = "--oracle CachedOracle --oracle.oracle judges.Judge --oracle.path cache.sqlite"
    assert report_of(f"{cached} {READ}")["figures"]["queries"]["value"] == 9
    figures = report_of(f"{cached} {READ}")["figures"]
    assert figures["queries"]["value"] == 0
    reading = "9 answers came from a cache, and are not counted"
    assert figures["seconds_per_1000"] == {"value": None, "reading": reading}


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [2]), (2, [2, 2]), (5, [3, 2]), (6, [4]), (8, [4, 2]), (9, [4, 3]), (99, [4, 3])],
)
def test_no_more_queries_than_allowed(most, sizes):
    some = limited(samples(), most)
    assert [len(sample.responses) for sample in some] == sizes
    oracle = Biased("none")
    ask(oracle, some)
    assert oracle.ledger["queries"] <= most


def test_what_was_answered_is_told_where_the_oracle_stops(folder, refused):
    judge = f"--oracle judges.Judge {READ} --oracle.stops_after"
    _, line = refused("oracle", *f"{judge} 4 --output report.json".split())
    assert line == "the judge is down"
    report = json.loads(Path("report.json").read_text())
    assert len(report["answers"]) == 4
    assert report["figures"]["invalid"]["reading"] == "0 of 4 pairs have no answer"
    assert refused("oracle", *f"{judge} 0".split())[0] == ""


def test_a_budget_stops_it(folder, refused):
    budget = "--oracle BudgetedOracle --oracle.oracle judges.Judge --oracle.max_queries 3"
    out, line = refused("oracle", *f"{budget} {READ}".split())
    assert "budget is spent" in line
    assert "0 of 3 pairs have no answer" in out


def test_null_is_null_of_an_oracle_within_another(folder):
    """jsonargparse 4.53 hands it on as the text "None"."""
    inner = "--oracle.oracle BudgetedOracle --oracle.oracle.max_queries null"
    inner += (
        f" --oracle.oracle.max_requests 1 {SHORTER.replace('--oracle', '--oracle.oracle.oracle')}"
    )
    report = report_of(f"--oracle BudgetedOracle --oracle.max_queries 9 {inner} {READ}")
    assert report["figures"]["queries"]["value"] == 9


def test_text_and_conversations_stand_in_one_file(folder):
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    with Path("samples.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": talk, "responses": ["a", "bb"]}) + "\n")
    prompts = [row["prompt"] for row in report_of(f"{SHORTER} {READ}")["answers"]]
    assert prompts[0] == [{"role": "user", "content": "p"}]
    assert prompts[-1] == talk
    assert len(prompts) == 10


# ---- tables, configurations ----------------------------------------------------------------------


def test_a_table_is_looked_at_as_it_is(folder):
    report = report_of("--oracle Cyclic --figure table.png")
    figures = report["figures"]
    assert report["title"] == "Cyclic: a table of 1 prompt, 3 actions at most"
    assert figures["cyclic_triples"]["value"] == 1
    assert figures["symmetry_error_max"]["value"] < 1e-15
    for key in ("flip_rate", "length_correlation", "invalid", "tokens_per_1000", "agreement"):
        assert figures[key]["value"] is None
        assert figures[key]["reading"]
    names = ["report.json", "samples.jsonl", "table.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    # Random verdicts: a quarter of C(60, 3) triples, whose standard deviation is .002 here.
    report = report_of("--oracle EmbeddingOracle --oracle.num_actions 60 --figure many.png")
    assert report["figures"]["cyclic_triples"]["value"] == pytest.approx(0.25, abs=0.02)
    for name in ("table.png", "many.png"):
        assert Path(name).read_bytes().startswith(b"\x89PNG")


def test_of_many_actions_some_are_taken():
    oracle = EmbeddingOracle(num_actions=60, seed=0)
    whole = read_table(oracle, 60)
    (part,) = whole.matrices(num_actions=20)
    assert part.shape == (20, 20)
    assert {*part.flatten().tolist()} < {*whole.table.flatten().tolist()}
    (asked,) = read_table(oracle, 20).matrices()
    torch.testing.assert_close(asked, part)


def test_labels_are_not_what_is_examined_and_listed_responses_are(folder, refused):
    listed = "--oracle.oracle ListedResponses --oracle.oracle.path samples.jsonl"
    listed = f"--oracle BernoulliLabels {listed} {within('oracle.oracle', SHORTER)}"
    report = report_of(listed)
    assert report["title"] == "RuleOracle: 9 pairs of responses to 2 prompts"
    assert report["figures"]["length_correlation"]["value"] < -0.5
    _, line = refused("oracle", *f"{listed} {READ}".split())
    assert "ListedResponses has responses of its own, samples.jsonl: leave --responses out" in line


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(
        tmp_path_factory.mktemp("models") / "llama", "llama", chat=True, max_position_embeddings=256
    )


def test_the_policy_of_a_configuration_draws_responses(folder, model):
    texts = ("name a fruit.", "a", "go on.")
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    config = f"--config {ROOT}/configs/lm/own_model.yaml --model.policy.model {model}"
    config += " --data.path prompts.jsonl --model.policy.max_new_tokens 6 --data.batch_size 2"
    config += " --data.num_validation null"
    report = report_of(f"{config} --num_prompts 2 --num_responses 5 --figure drawn.png")
    assert report["oracle"] == "RuleOracle"
    prompts = {row["prompt"][-1]["content"] for row in report["answers"]}
    assert len(prompts) == 2
    assert prompts < {*texts}
    assert 2 < len(report["answers"]) <= 2 * 10
    for row in report["answers"]:
        by_length = len(row["second"]) - len(row["first"])
        assert row["probability"] == 0.5 + 0.5 * ((by_length > 0) - (by_length < 0))
    assert Path("drawn.png").stat().st_size > 10_000
    assert not Path("runs").exists()
    report = report_of(f"{config} {READ} --max_queries 6")
    assert {row["prompt"][-1]["content"] for row in report["answers"]} == {"p"}


def test_a_configuration_of_a_table(folder):
    report = report_of(f"--config {ROOT}/configs/tabular/nash_mp.yaml")
    assert report["title"].endswith("actions at most")
    assert report["answers"] == []


# ---- refusals ------------------------------------------------------------------------------------

DATA = ROOT / "configs/data/cyclic_groups"
REFUSALS = {
    "no oracle": (READ, "give --oracle CLASS, or --config CONFIG"),
    "unknown oracle": (f"--oracle Nobody {READ}", "no class 'Nobody': .*RuleOracle"),
    "unknown option": (f"{SHORTER} --oracle.speed 3 {READ}", "speed"),
    "no table": ("--oracle MatrixOracle --oracle.path none.npy", "none.npy"),
    "unmade": (f"--oracle {__name__}.Unmade {READ}", "there is no such library"),
    "no responses": (SHORTER, "RuleOracle reads texts: give --responses FILE, or a --config"),
    "no file": (f"{SHORTER} --responses none.jsonl", "none.jsonl cannot be read"),
    "no end": (f"{SHORTER} --responses /dev/zero", "/dev/zero is not a file: check the path"),
    "a pipe": (f"{SHORTER} --responses pipe.jsonl", "pipe.jsonl is not a file: check the path"),
    "bad line": (f"{SHORTER} --responses bad.jsonl", "line 2 of bad.jsonl is not JSON"),
    "one response": (f"{SHORTER} --responses one.jsonl", "line 1 of one.jsonl has fewer than two"),
    "responses of a table": (f"--oracle Cyclic {READ}", "Cyclic looks its answers up .* leave"),
    "queries of a table": ("--oracle Cyclic --max_queries 3", "leave --responses and --max"),
    "two oracles": (f"--config c.yaml {SHORTER}", "--config has an oracle of its own"),
    "no game": (
        f"--config {ROOT}/configs/preference_model/reward.yaml --data.path {DATA}/train.jsonl "
        f"--data.validation_path {DATA}/held_out.jsonl",
        "asks the oracle of an OnlineGame, not of a PreferenceModel",
    ),
    "queries 0": (f"{SHORTER} {READ} --max_queries 0", "--max_queries must be at least 1"),
    "responses 1": (f"{SHORTER} {READ} --num_responses 1", "--num_responses must be at least 2"),
    "prompts few": (f"{SHORTER} {READ} --num_prompts few", "--num_prompts: invalid int value"),
    "no folder": (f"{SHORTER} {READ} --output no/r.json", "the folder no does not exist"),
    "no json": (f"{SHORTER} {READ} --output r.txt", "--output r.txt must end with .json"),
    "no png": (f"{SHORTER} {READ} --figure f.jpg", "--figure f.jpg must end with .png"),
    "a folder": (f"{SHORTER} {READ} --figure d.png", "--figure d.png is a folder"),
    "into a pipe": (f"{SHORTER} {READ} --output pipe.json", "pipe.json is a device or a pipe"),
    "overwrites": (f"{SHORTER} --responses s.json --output s.json", "would overwrite an input"),
    "asymmetric": (
        f"--oracle CachedOracle --oracle.path a.db {within('oracle', HASTY)}",
        rf"the rule {re.escape(__name__)}.hasty gives P.* which must sum to 1",
    ),
}


@pytest.mark.timeout(60)  # some files have no end
@pytest.mark.parametrize("name", REFUSALS)
def test_a_mistake_is_one_sentence(folder, refused, name):
    Path("bad.jsonl").write_text('{"prompt": "p", "responses": ["a", "b"]}\n{"prompt"\n')
    Path("one.jsonl").write_text('{"prompt": "p", "responses": ["a"]}\n')
    Path("d.png").mkdir()
    for name_of_pipe in ("pipe.json", "pipe.jsonl"):
        os.mkfifo(name_of_pipe)
    options, message = REFUSALS[name]
    out, line = refused("oracle", *options.split())
    assert out == ""
    assert re.search(message, line)


def test_a_full_disk_is_one_sentence(folder, refused, monkeypatch):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("nlhf_zoo.files.os.replace", full)
    _, line = refused("oracle", *f"{SHORTER} {READ} --output report.json".split())
    assert line == "report.json could not be written: No space left on device"
    assert [path.name for path in folder.iterdir()] == ["samples.jsonl"]


def test_equal_responses_are_nothing_to_compare():
    with pytest.raises(UserError, match="all responses to each prompt are equal"):
        ask(Biased(), samples({"p": ["a"]}))
