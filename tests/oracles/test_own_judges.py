"""Judges and reward functions with the signatures that TRL's trainers call."""

import json
import math

import jsonargparse
import pytest
from language_models import refused
from text_models import prompts, responses, user

from nlhf_zoo.cli.callables import refuse_callable
from nlhf_zoo.cli.trust import refuse_foreign_code
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles import PairwiseJudgeOracle, PreferenceOracle, RewardFunctionOracle
from nlhf_zoo.oracles.ledger import spent
from nlhf_zoo.oracles.rules.reward_functions import RewardFunction
from nlhf_zoo.oracles.text_oracle import Question

OWN = """
class Longer:
    def __init__(self, unsure: bool = False):
        self.unsure = unsure

    def judge(self, prompts, completions, shuffle_order=True):
        assert not shuffle_order, "the order is the oracle's"
        ranks = [0 if len(first) > len(second) else 1 for first, second in completions]
        return [-1] * len(ranks) if self.unsure else ranks


def length(completions, **columns) -> list[float]:
    return [float(len(text)) for text in completions]


def text(completions, **columns) -> str:
    return "none"
"""
PAIRS = [Question(user("x"), "longer", "short"), Question(user("x"), "a", "much longer")]


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own_judges.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


class Says:
    """A judge that says what it is given, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def judge(self, prompts, completions, shuffle_order=True, return_scores=False):
        self.asked.append((prompts, completions, shuffle_order, return_scores))
        if isinstance(self.answers[0], Exception):
            raise self.answers[0]
        return [self.answers[n % len(self.answers)] for n in range(len(prompts))]


def configured(**init_args):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--oracle", type=PreferenceOracle)
    content = {"oracle": {"class_path": init_args.pop("name"), "init_args": init_args}}
    return parser.instantiate(parser.parse_object(content)).oracle


def test_a_class_with_a_method_judge_is_taken_from_a_configuration():
    judge = {"class_path": "own_judges.Longer", "init_args": {"unsure": False}}
    oracle = configured(name="PairwiseJudgeOracle", judge=judge)
    assert dict(oracle.answers(PAIRS)) == {0: 1.0, 1: 0.0}
    assert spent(oracle)["queries"] == spent(oracle)["swapped"] == 2  # both orders


@pytest.mark.filterwarnings("default")  # as in a run: raised, it would have the next type tried
@pytest.mark.parametrize(
    ("name", "init_args"),
    [
        ("PairwiseJudgeOracle", {"judge": {"class_path": "own_judges.Longer"}}),
        ("RewardFunctionOracle", {"functions": "own_judges.length", "preference": "sigmoid"}),
        ("RewardFunctionOracle", {"functions": ["own_judges.length"] * 2, "preference": "sigmoid"}),
    ],
)
def test_a_run_writes_them_down_as_it_can_read_them(name, init_args):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--oracle", type=PreferenceOracle)
    given = {"oracle": {"class_path": name, "init_args": init_args}}
    config = parser.parse_object(given)
    assert parser.parse_string(parser.dump(config)) == config


def test_a_run_of_somebody_else_may_not_name_it(tmp_path):
    for part in (
        {"class_path": "PairwiseJudgeOracle", "init_args": {"judge": "own_judges.Longer"}},
        {"class_path": "RewardFunctionOracle", "init_args": {"functions": ["own_judges.length"]}},
    ):
        with pytest.raises(UserError, match=r"'own_judges.* code that is not of nlhf_zoo"):
            refuse_foreign_code({"model": {"oracle": part}}, tmp_path / "config.yaml", False)


@pytest.mark.parametrize("order", ["none", "random", "both"])
def test_no_answer_of_a_judge_stays_none_in_either_order(order):
    """-1 turned around would be 2, which a trainer may take for the second response."""
    oracle = PairwiseJudgeOracle(Says(-1, None), order=order)
    mine = responses(["a", "b", "c", "d"])
    answer = oracle(prompts("x"), mine, mine)
    assert answer.valid.sum() == 4  # each with itself
    assert spent(oracle)["invalid"] == 6


def test_ranks_and_probabilities_are_of_the_first_response():
    asked = PAIRS[:1]
    assert dict(PairwiseJudgeOracle(Says(0), order="none").answers(asked)) == {0: 1.0}
    assert dict(PairwiseJudgeOracle(Says(1), order="none").answers(asked)) == {0: 0.0}
    assert dict(PairwiseJudgeOracle(Says(0), order="both").answers(asked)) == {0: 0.5}  # a place
    soft = PairwiseJudgeOracle(Says(0.8), scores=True, order="none")
    assert dict(soft.answers(asked)) == {0: 0.8}
    assert soft.judge.asked == [(["x"], [["longer", "short"]], False, True)]


def test_a_conversation_is_written_out_for_a_judge():
    judge = Says(0)
    talk = [*user("w1"), {"role": "assistant", "content": "w2"}, *user("w3")]
    list(PairwiseJudgeOracle(judge, order="none").answers([Question(talk, "a", "b")]))
    assert judge.asked[0][0] == ["User: w1\n\nAssistant: w2\n\nUser: w3"]


@pytest.mark.parametrize(("answer", "scores"), [(2, False), (0.5, False), (1.5, True), ("A", True)])
def test_another_answer_of_a_judge_ends_the_run(answer, scores):
    oracle = PairwiseJudgeOracle(Says(answer), scores)
    refused(f"said {answer!r}, and neither", oracle, prompts("x"), *2 * [responses(["a", "b"])])


def test_a_judge_that_fails_can_be_asked_again():
    oracle = PairwiseJudgeOracle(Says(ConnectionError("no route")), batch_size=1)
    with pytest.raises(OracleStoppedError, match=r"Says failed with ConnectionError: no route$"):
        list(oracle.answers(PAIRS))


# ---- reward functions ----------------------------------------------------------------------------


def answers(functions, preference, asked=PAIRS, **options):
    return dict(RewardFunctionOracle(functions, preference, **options).answers(asked))


def length(prompts, completions, **columns):
    return [len(text) for text in completions]


def test_rewards_become_a_preference_as_one_says():
    sigma = 1 / (1 + math.exp(-1 / 2))  # six letters against five, at temperature 2
    assert answers(length, "sigmoid", temperature=2.0)[0] == pytest.approx(sigma, abs=1e-12)
    assert answers(length, "comparison") == {0: 1.0, 1: 0.0}
    tie = [Question(user("x"), "same", "size")]
    assert answers(length, "comparison", tie) == {0: 0.5}
    assert RewardFunctionOracle(length, "sigmoid").has_scores
    assert not RewardFunctionOracle(length, "comparison").has_scores


def test_none_is_no_reward_and_no_zero():
    def letters(prompts, completions, **columns):
        return [None if " " in text else len(text) for text in completions]

    def never(prompts, completions, **columns):
        return [None for _ in completions]

    found = answers(letters, "comparison")
    assert found[0] == 1.0
    assert math.isnan(found[1])  # one response of the second has a space
    assert answers([length, never], "comparison") == {0: 1.0, 1: 0.0}  # not asked about these
    assert all(map(math.isnan, answers([never], "comparison").values()))


def test_functions_are_weighted_before_they_are_compared():
    def fewer(prompts, completions, **columns):
        return [-2 * len(text) for text in completions]

    assert answers([length, fewer], "comparison") == {0: 0.0, 1: 1.0}
    assert answers([length, fewer], "comparison", weights=[3.0, 1.0]) == {0: 1.0, 1: 0.0}


def test_functions_get_the_columns_of_the_row_of_each_prompt(tmp_path):
    rows = [{"prompt": "x", "answer": "short"}, {"prompt": user("y"), "answer": "a"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    seen = []

    def right(prompts, completions, answer):
        seen.append((prompts, completions, answer))
        return [
            float(text[0]["content"] == one) for text, one in zip(completions, answer, strict=True)
        ]

    asked = [PAIRS[0], Question(user("y"), "a", "b")]
    options = {"rows": str(path), "conversational": True}
    assert answers(right, "comparison", asked, **options) == {0: 0.0, 1: 1.0}
    prompts_, completions, answer = seen[0]
    assert prompts_ == [user("x"), user("x"), user("y"), user("y")]
    assert completions[0] == [{"role": "assistant", "content": "longer"}]
    assert answer == ["short", "short", "a", "a"]
    with pytest.raises(UserError, match=r"has no row of the prompt 'z'"):
        answers(right, "comparison", [Question(user("z"), "a", "b")], **options)
    with pytest.raises(UserError, match=r"gets prompts, completions by name, but it takes \(prom"):
        RewardFunctionOracle(right, "comparison")
    path.write_text("\n".join(map(json.dumps, [rows[0], rows[0] | {"answer": "another"}])))
    with pytest.raises(
        UserError, match=r"line 2 of .* has the prompt of a row before it, and other"
    ):
        RewardFunctionOracle(right, "comparison", **options)


@pytest.mark.parametrize("said", [["much"], [math.inf], [1.0, 2.0, 3.0], 1.0])
def test_what_is_no_list_of_rewards_ends_the_run(said):
    oracle = RewardFunctionOracle(lambda prompts, completions: said, "sigmoid", batch_size=1)
    refused("the reward function", oracle, prompts("x"), *2 * [responses(["a", "b"])])


def test_functions_that_return_lists_are_taken_from_a_configuration():
    import own_judges

    oracle = configured(
        name="RewardFunctionOracle", functions=["own_judges.length"], preference="comparison"
    )
    assert dict(oracle.answers(PAIRS)) == {0: 1.0, 1: 0.0}
    refuse_callable("functions", RewardFunction, own_judges.length)
    with pytest.raises(UserError, match=r"annotated to return list"):
        refuse_callable("functions", RewardFunction, own_judges.text)
