"""Rules in Python as oracles."""

import math

import jsonargparse
import pytest
import torch
from language_models import refused
from text_models import prompts, responses

from nlhf_zoo.oracles import PreferenceOracle, RuleOracle
from nlhf_zoo.oracles.rules import LengthBetween, Mentions, shorter_wins
from oracles.zoo import Sums


def test_symmetry_is_checked_in_the_first_batches():
    rule = Sums()
    oracle = RuleOracle(rule)
    mine = responses(["a", "b"])
    counts = []
    for _ in range(5):
        oracle(prompts("x"), mine, mine)
        counts.append(len(rule.read))
        rule.read.clear()
    assert counts == [2, 2, 2, 1, 1]


def test_an_asymmetric_rule_is_refused():
    def first_wins(prompt, first, second):
        return 0.75

    mine = responses(["the first", "the second"])
    answers = r"> second\) = 0\.75 and P\(second > first\) = 0\.75"
    sentence = refused(answers, RuleOracle(first_wins), prompts("the prompt"), mine, mine)
    for text in ("first_wins", "'the prompt'", "'the first'", "'the second'", "check_symmetry"):
        assert text in sentence
    answer = RuleOracle(first_wins, check_symmetry=False)(prompts("the prompt"), mine, mine)
    assert answer.preference.tolist() == [[[0.5, 0.75], [0.25, 0.5]]]


def test_symmetry_has_a_tolerance():
    def nearly(prompt, first, second):
        return 0.25 + error if first == "a" else 0.75

    mine = responses(["a", "b"])
    error = 5e-7
    RuleOracle(nearly)(prompts("x"), mine, mine)
    error = 2e-6
    refused("must sum to 1", RuleOracle(nearly), prompts("x"), mine, mine)


@pytest.mark.parametrize(
    "answer", [1.5, -0.01, math.inf, -math.inf, "0.5", "yes", [0.5], {}, torch.zeros(2)]
)
def test_what_is_no_probability_is_refused(answer):
    def rule(prompt, first, second):
        return answer

    mine = responses(["a" * 100, "b"])
    oracle = RuleOracle(rule, check_symmetry=False)
    sentence = r"rule (gave .* no probability|failed with)"
    sentence = refused(sentence, oracle, prompts("the prompt"), mine, mine)
    assert "a" * 60 not in sentence
    assert all(text in sentence for text in ("'the prompt'", "aaa...", "'b'"))


@pytest.mark.parametrize("answer", [True, 1, 1.0, torch.tensor(1.0), torch.ones(1).numpy()[0]])
def test_every_kind_of_number_is_one(answer):
    def rule(prompt, first, second):
        return answer if first == "a" else 1 - float(answer)

    mine = responses(["a", "b"])
    assert RuleOracle(rule)(prompts("x"), mine, mine).preference[0, 0, 1] == 1


def test_a_rule_that_fails_ends_the_run_in_one_sentence():
    def rule(prompt, first, second):
        raise KeyError("weather")

    mine = responses(["a", "b"])
    sentence = "failed with KeyError: 'weather'; prompt 'x', first 'a'"
    refused(sentence, RuleOracle(rule), prompts("x"), mine, mine)


def test_rules_keep_the_precision_of_the_weights():
    third = RuleOracle(lambda *texts: 1 / 3 if texts[1] == "a" else 2 / 3)
    for dtype, of_answer in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ]:
        answer = third(prompts("x"), responses(["a"], dtype=dtype), responses(["b"], dtype=dtype))
        assert answer.preference.dtype == of_answer
        assert abs(answer.preference.item() - 1 / 3) < 1e-7


@pytest.mark.parametrize(
    ("rule", "first", "second", "expected"),
    [
        (shorter_wins, "ab", "abc", 1),
        (shorter_wins, "abc", "ab", 0),
        (shorter_wins, "abc", "xyz", 0.5),
        (Mentions("cat"), "a Cat.", "a dog", 1),
        (Mentions("cat"), "dogs", "cat", 0),
        (Mentions("cat"), "cats", "concat", 0.5),  # whole words alone
        (Mentions("cat"), "cat", "cat cat cat", 0.5),  # often is no better than once
        (Mentions("c++"), "ccc", "use C++ there", 0),  # a word is no pattern
        (LengthBetween(2, 4), "a b", "a", 1),
        (LengthBetween(2, 4), "a b c d e f", "a b c d e", 0),
        (LengthBetween(2, 4), "a", "a b c d e f", 1),  # 1 below against 2 above
        (LengthBetween(2, 4), "a b c", "a b", 0.5),  # both within, one of them not at an end
        (LengthBetween(2, 4), "", "a b c d e f", 0.5),
    ],
)
def test_rules_of_the_package(rule, first, second, expected):
    assert rule("x", first, second) == expected


def test_rules_refuse_what_they_cannot_do():
    refused("shortest", LengthBetween, 3, 2)
    refused("needs a word", Mentions, " ")


@pytest.mark.parametrize(
    "function",
    [
        "nlhf_zoo.oracles.rules.shorter_wins",
        {"class_path": "nlhf_zoo.oracles.rules.Mentions", "init_args": {"word": "cat"}},
        {
            "class_path": "nlhf_zoo.oracles.rules.LengthBetween",
            "init_args": {"shortest": 1, "longest": 2},
        },
        "a_rule_of_ones_own.shorter",
    ],
)
def test_a_rule_is_named_in_a_configuration(function, tmp_path, monkeypatch):
    (tmp_path / "a_rule_of_ones_own.py").write_text(
        "def shorter(p, a, b):\n    return float(len(a) < len(b))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {"oracle": {"class_path": "RuleOracle", "init_args": {"function": function}}}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--oracle", type=PreferenceOracle)
    dumped = parser.dump(parser.parse_object(config))
    for made in (parser.parse_object(config), parser.parse_string(dumped)):
        oracle = parser.instantiate(made).oracle
        answer = oracle(prompts("x"), responses(["a longer text"]), responses(["cat"]))
        assert answer.preference.item() == 0
        if isinstance(function, dict):
            arguments = {k: v for k, v in vars(oracle.function).items() if not k.startswith("_")}
            assert arguments == function["init_args"]
