"""Oracles that read texts: rules in Python, and reward models with their own tokenizer."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from types import SimpleNamespace

import jsonargparse
import pytest
import torch
from text_models import CHAT, CONFIGS, PAD, VOCABULARY, prompts, responses, save, tokenizer, user
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.game.payoffs import PayoffEstimator
from nlhf_zoo.oracles import (
    GenerativePairModelOracle,
    PairModelOracle,
    PreferenceOracle,
    RewardModelOracle,
    RuleOracle,
)
from nlhf_zoo.oracles.rules import LengthBetween, Mentions, shorter_wins
from nlhf_zoo.oracles.text_oracle import Question
from nlhf_zoo.records import Prompts, ProximalStep, Responses
from nlhf_zoo.text_models.settings import ModelSettings, read_settings, write_settings


class Asked:
    """A rule that remembers what it was asked; it compares sums of characters."""

    def __init__(self):
        self.questions = []

    def __call__(self, prompt, first, second):
        self.questions.append((prompt, first, second))
        return value(first, second)


def value(first, second):
    return 1 / (1 + math.exp((sum(map(ord, second)) - sum(map(ord, first))) / 50))


# ---- rules ---------------------------------------------------------------------------------------


def test_a_rule_is_asked_about_each_unordered_pair_once():
    rule = Asked()
    mine = responses(["a", "b", "c", "d"], ["e", "f", "g", "h"])
    answer = RuleOracle(rule, check_symmetry=False)(prompts("x", "y"), mine, mine)
    pairs = [(p, frozenset(pair)) for p, *pair in rule.questions]
    expected = {("x", frozenset(pair)) for pair in itertools.combinations("abcd", 2)}
    expected |= {("y", frozenset(pair)) for pair in itertools.combinations("efgh", 2)}
    assert len(pairs) == 2 * 4 * 3 / 2
    assert set(pairs) == expected
    table = [[[value(a, b) for b in row] for a in row] for row in mine.text]
    torch.testing.assert_close(answer.preference, torch.tensor(table))
    assert answer.valid.all()
    assert answer.preference.diagonal(dim1=1, dim2=2).eq(0.5).all()


def test_a_rule_is_not_asked_about_equal_texts():
    rule = Asked()
    first, second = responses(["a", "b", "a"]), responses(["a", "c", "b", "c"])
    answer = RuleOracle(rule, check_symmetry=False)(prompts("x"), first, second)
    assert sorted(rule.questions) == [("x", "a", "b"), ("x", "a", "c"), ("x", "b", "c")]
    expected = [[value(a, b) for b in second.text[0]] for a in first.text[0]]
    torch.testing.assert_close(answer.preference[0], torch.tensor(expected))
    assert answer.preference[0, 0, 0] == 0.5


def test_the_judge_counts_what_a_rule_is_asked():
    rule, step = Asked(), ProximalStep({"policy": 1}, ((1, {"policy": 1}),), 1, self_play=True)
    judge = PayoffEstimator(RuleOracle(rule, check_symmetry=False), lambda _: 0, lambda: ["policy"])
    mine = responses(["a", "b", "c"])
    verdict = judge(step, prompts("x"), mine, [mine])
    assert verdict.queries == len(rule.questions) == 3
    others = [0.5 * (value("a", "b") + value("a", "c")), 0.5 * (value("b", "a") + value("b", "c"))]
    # The response itself is among its K opponents, with 1/2.
    expected = [1 / 6 + 2 / 3 * other for other in others]
    torch.testing.assert_close(verdict.payoff[0, :2], torch.tensor(expected))


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_no_answer_of_a_rule_is_invalid(nothing):
    def rule(prompt, first, second):
        return nothing if {first, second} == {"a", "c"} else 0.25 + 0.5 * (first < second)

    mine = responses(["a", "b", "c"])
    answer = RuleOracle(rule)(prompts("x"), mine, mine)
    assert answer.valid.tolist() == [[[True, True, False], [True, True, True], [False, True, True]]]
    assert answer.preference.isfinite().all()
    assert answer.preference[0, 0, 1] == 0.75


def test_a_rule_reads_the_last_message_of_a_conversation():
    rule = Asked()
    said = [[{"role": "system", "content": "be"}, {"role": "user", "content": "x"}]]
    mine = responses(["a", "b"])
    RuleOracle(rule)(prompts("x", conversations=said), mine, mine)
    assert {prompt for prompt, _, _ in rule.questions} == {"x"}


def test_symmetry_is_checked_in_the_first_batches():
    rule = Asked()
    oracle = RuleOracle(rule)
    mine = responses(["a", "b"])
    counts = []
    for _ in range(5):
        oracle(prompts("x"), mine, mine)
        counts.append(len(rule.questions))
        rule.questions.clear()
    assert counts == [2, 2, 2, 1, 1]


def test_an_asymmetric_rule_is_refused():
    def first_wins(prompt, first, second):
        return 0.75

    mine = responses(["the first", "the second"])
    with pytest.raises(UserError, match=r"> second\) = 0\.75 and P\(second > first\) = 0\.75") as e:
        RuleOracle(first_wins)(prompts("the prompt"), mine, mine)
    for text in ("first_wins", "'the prompt'", "'the first'", "'the second'", "check_symmetry"):
        assert text in str(e.value)
    answer = RuleOracle(first_wins, check_symmetry=False)(prompts("the prompt"), mine, mine)
    assert answer.preference.tolist() == [[[0.5, 0.75], [0.25, 0.5]]]


def test_symmetry_has_a_tolerance():
    def nearly(prompt, first, second):
        return 0.25 + error if first == "a" else 0.75

    mine = responses(["a", "b"])
    error = 5e-7
    RuleOracle(nearly)(prompts("x"), mine, mine)
    error = 2e-6
    with pytest.raises(UserError, match="must sum to 1"):
        RuleOracle(nearly)(prompts("x"), mine, mine)


@pytest.mark.parametrize(
    "answer", [1.5, -0.01, math.inf, -math.inf, "0.5", "yes", [0.5], {}, torch.zeros(2)]
)
def test_what_is_no_probability_is_refused(answer):
    def rule(prompt, first, second):
        return answer

    mine = responses(["a" * 100, "b"])
    with pytest.raises(UserError, match=r"rule (gave .* no probability|failed with)") as e:
        RuleOracle(rule, check_symmetry=False)(prompts("the prompt"), mine, mine)
    assert "'the prompt'" in str(e.value)
    assert "aaa..." in str(e.value)
    assert "a" * 60 not in str(e.value)
    assert "'b'" in str(e.value)


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
    with pytest.raises(UserError, match="failed with KeyError: 'weather'; prompt 'x', first 'a'"):
        RuleOracle(rule)(prompts("x"), mine, mine)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda first, second: 0.5, r"must take \(prompt, first, second\), but it takes \(first"),
        (0.5, "must be a function"),
        (Mentions, "must take"),
    ],
)
def test_what_cannot_be_called_with_three_texts_is_refused_at_once(function, message):
    with pytest.raises(UserError, match=message):
        RuleOracle(function)


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


@pytest.mark.parametrize("oracle", ["RuleOracle", "RewardModelOracle"])
def test_texts_are_needed(oracle, request):
    judge = RuleOracle(Asked())
    if oracle == "RewardModelOracle":
        judge = RewardModelOracle(request.getfixturevalue("llama"))
    there = responses(["w1", "w2"])
    table = Responses(there.tokens, there.mask, there.weight)
    with pytest.raises(UserError, match=f"{oracle} reads texts, but the policy's responses"):
        judge(prompts("w3"), table, table)
    with pytest.raises(UserError, match=f"{oracle} reads texts, but the prompts are rows"):
        judge(Prompts(torch.arange(1)), there, there)


def test_shorter_wins():
    assert shorter_wins("x", "ab", "abc") == 1
    assert shorter_wins("x", "abc", "ab") == 0
    assert shorter_wins("x", "abc", "xyz") == 0.5


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a Cat.", "a dog", 1),
        ("dogs", "cat", 0),
        ("cats", "concat", 0.5),  # whole words alone
        ("cat", "cat cat cat", 0.5),  # often is no better than once
    ],
)
def test_mentions(first, second, expected):
    assert Mentions("cat")("x", first, second) == expected


def test_a_word_is_no_pattern():
    assert Mentions("c++")("x", "ccc", "use C++ there") == 0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b", "a", 1),
        ("a b c d e f", "a b c d e", 0),
        ("a", "a b c d e f", 1),  # 1 below against 2 above
        ("a b c", "a b", 0.5),  # both within, one of them not at an end
        ("", "a b c d e f", 0.5),
    ],
)
def test_length_between(first, second, expected):
    assert LengthBetween(2, 4)("x", first, second) == expected


def test_rules_refuse_what_they_cannot_do():
    with pytest.raises(UserError, match="shortest"):
        LengthBetween(3, 2)
    with pytest.raises(UserError, match="needs a word"):
        Mentions(" ")


def parser():
    made = jsonargparse.ArgumentParser(exit_on_error=False)
    made.add_argument("--oracle", type=PreferenceOracle)
    return made


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
    dumped = parser().dump(parser().parse_object(config))
    for made in (parser().parse_object(config), parser().parse_string(dumped)):
        oracle = parser().instantiate(made).oracle
        answer = oracle(prompts("x"), responses(["a longer text"]), responses(["cat"]))
        assert answer.preference.item() == 0
        if isinstance(function, dict):
            arguments = {k: v for k, v in vars(oracle.function).items() if not k.startswith("_")}
            assert arguments == function["init_args"]


# ---- reward models -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of classifiers by the name of their configuration, each made when it is needed."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = save(tmp_path_factory.mktemp(name), CONFIGS[name]())
        return made[name]

    return folder


@pytest.fixture
def llama(folders):
    return folders("llama")


def one_by_one(folder, conversations, rows):
    """r(x, y) [B, K] as plain transformers has it: each text alone, neither padded nor batched."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    rewards = []
    for conversation, row in zip(conversations, rows, strict=True):
        for text in row:
            answer = {"role": "assistant", "content": text}
            tokens = words.apply_chat_template([*conversation, answer], return_tensors="pt")
            with torch.no_grad():
                rewards.append(model(input_ids=tokens["input_ids"]).logits.item())
    return torch.tensor(rewards).view(len(rows), -1)


FIRST = [["w1 w2 w3", "w9", "", "w30 w2 w4 w5 w6 w7 w8"], ["w4 w4", "w5 w1", "w6", "w7 w2 w1"]]
SECOND = [["w8 w1 w3 w5", "w9"], ["w20 w21 w22", ""]]
PROMPTS = ("w1 w2 w3 w4", "w5")


def bradley_terry(first, second, temperature=1.0):
    """By exponentials: e^r / (e^r + e^r')."""
    one, other = (r.double().div(temperature).exp() for r in (first, second))
    return (one[:, :, None] / (one[:, :, None] + other[:, None, :])).float()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "roberta"])
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_rewards_are_those_of_each_text_alone(name, batch_size, folders):
    folder = folders(name)
    said = [user(text) for text in PROMPTS]
    first, second = one_by_one(folder, said, FIRST), one_by_one(folder, said, SECOND)
    assert first.std() > 0.1
    oracle = RewardModelOracle(folder, temperature=2.0, batch_size=batch_size)
    answer = oracle(prompts(*PROMPTS), responses(*FIRST), responses(*SECOND))
    assert answer.valid.all()
    expected = bradley_terry(first, second, temperature=2.0)
    torch.testing.assert_close(answer.preference, expected, atol=1e-5, rtol=0)
    mine = responses(*FIRST)
    torch.testing.assert_close(
        oracle(prompts(*PROMPTS), mine, mine).preference,
        bradley_terry(first, first, temperature=2.0),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama_pad", "gpt2_pad_is_end"])
def test_the_padding_side_of_the_tokenizer_does_not_matter(name, tmp_path, folders):
    answers = []
    for side in ("left", "right"):
        folder = tmp_path / side
        shutil.copytree(folders(name), folder)
        tokenizer(padding_side=side, pad_token=PAD).save_pretrained(folder)
        oracle = RewardModelOracle(str(folder))
        answers.append(oracle(prompts(*PROMPTS), responses(*FIRST), responses(*SECOND)).preference)
    torch.testing.assert_close(*answers, atol=0, rtol=0)
    said = [user(text) for text in PROMPTS]
    first, second = (one_by_one(folders(name), said, rows) for rows in (FIRST, SECOND))
    torch.testing.assert_close(answers[0], bradley_terry(first, second), atol=1e-5, rtol=0)


def test_conversations_are_read_whole(llama):
    said = [
        [{"role": "system", "content": "w7"}, *user("w1"), *user("w2 w3")],
        [*user("w4"), {"role": "assistant", "content": "w5 w6"}, *user("w8")],
    ]
    oracle = RewardModelOracle(llama)
    answer = oracle(prompts("w3", "w8", conversations=said), responses(*FIRST), responses(*SECOND))
    first, second = one_by_one(llama, said, FIRST), one_by_one(llama, said, SECOND)
    torch.testing.assert_close(answer.preference, bradley_terry(first, second), atol=1e-5, rtol=0)
    # Without what was said before, another answer.
    alone = oracle(prompts("w3", "w8"), responses(*FIRST), responses(*SECOND))
    assert (alone.preference - answer.preference).abs().max() > 0.01


def test_a_template_without_a_chat_template(tmp_path):
    folder = save(tmp_path, CONFIGS["gpt2"](), chat=None)
    oracle = RewardModelOracle(folder, template="w10 {prompt} w11 {response} w12")
    answer = oracle(prompts("w1 w2"), responses(["w3", "w4 w5"]), responses(["w6"]))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def reward(text):
        ids = [VOCABULARY[word] for word in f"<s> w10 w1 w2 w11 {text} w12 </s>".split()]
        return model(input_ids=torch.tensor([ids])).logits.detach().view(1, 1)

    first = torch.cat([reward("w3"), reward("w4 w5")], 1)
    expected = bradley_terry(first, reward("w6"))
    torch.testing.assert_close(answer.preference, expected, atol=1e-5, rtol=0)


def test_braces_of_a_text_are_text(tmp_path):
    oracle = RewardModelOracle(save(tmp_path, CONFIGS["llama"]()), template="{prompt} {response}")
    assert (
        oracle.encoders[0].render_response(user("{response} {0}"), "{prompt}")
        == "{response} {0} {prompt}"
    )


@pytest.fixture
def passes(llama):
    """An oracle, and the sizes of its forward passes."""
    oracle = RewardModelOracle(llama, batch_size=3)
    sizes = []

    def hook(module, arguments, keywords, output):
        sizes.append(tuple(keywords["input_ids"].shape))

    oracle.models[0].network.register_forward_hook(hook, with_kwargs=True)
    return SimpleNamespace(oracle=oracle, sizes=sizes)


def texts_passed(passes):
    number = sum(rows for rows, _ in passes.sizes)
    passes.sizes.clear()
    return number


def test_each_response_passes_once(passes):
    rows = [f"w{number} w1" for number in range(12)]
    first, second = responses(rows[:7]), responses(rows[7:])
    passes.oracle(prompts("w0"), first, second)
    assert all(rows <= 3 for rows, _ in passes.sizes)
    assert texts_passed(passes) == 7 + 5
    passes.oracle(prompts("w0"), first, first)
    assert texts_passed(passes) == 7


def test_equal_texts_pass_once(passes):
    first, second = responses(["w1", "w1", "w2"], ["w1", "w1", "w1"]), responses(["w1"], ["w3"])
    answer = passes.oracle(prompts("w0", "w9"), first, second)
    assert texts_passed(passes) == 2 + 2
    assert (answer.preference[0, :2, 0] == 0.5).all()
    assert (answer.preference[1] == answer.preference[1, :1]).all()
    same = responses(["w1", "w2"], ["w1", "w2"])
    passes.oracle(prompts("w0", "w0"), same, same)
    assert texts_passed(passes) == 2
    spaced = responses(["w1 w2", "w1  w2", "w3"])  # two of them are the same tokens
    answer = passes.oracle(prompts("w0"), spaced, spaced)
    assert texts_passed(passes) == 2
    assert answer.preference[0, 0, 1] == 0.5
    assert (answer.preference[0, :2, 2] != 0.5).all()


def test_batches_hold_like_lengths_the_longest_first(passes):
    rows = [" ".join(["w1"] * length) for length in (1, 9, 2, 10, 1, 11, 3)]
    mine = responses([f"{text} w{number}" for number, text in enumerate(rows)])
    passes.oracle(prompts("w0"), mine, mine)
    beside = 7  # tokens of the chat template, the prompt, and the last word
    assert passes.sizes == [(3, 12 + beside - 1), (3, 4 + beside - 1), (1, 2 + beside - 1)]


def test_both_orders_sum_to_one(llama):
    oracle = RewardModelOracle(llama, batch_size=4)
    there = oracle(prompts(*PROMPTS), responses(*FIRST), responses(*SECOND)).preference
    back = oracle(prompts(*PROMPTS), responses(*SECOND), responses(*FIRST)).preference
    assert (there + back.mT - 1).abs().max() <= oracle.tolerance


def test_a_response_without_end_is_penalised(llama):
    cut = [[True, False, False, True], [False] * 4]
    said = [user(text) for text in PROMPTS]
    first, second = one_by_one(llama, said, FIRST), one_by_one(llama, said, SECOND)
    oracle = RewardModelOracle(llama, penalty_without_end=0.75)
    answer = oracle(prompts(*PROMPTS), responses(*FIRST, truncated=cut), responses(*SECOND))
    expected = bradley_terry(first - 0.75 * torch.tensor(cut), second)
    torch.testing.assert_close(answer.preference, expected, atol=1e-5, rtol=0)


def test_of_equal_texts_the_one_that_was_cut_is_worse(llama):
    mine = responses(["w1", "w1"], truncated=[[True, False]])
    answer = RewardModelOracle(llama, penalty_without_end=1.0)(prompts("w0"), mine, mine)
    expected = torch.sigmoid(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    torch.testing.assert_close(answer.preference[0], expected)


def test_too_long_is_invalid_and_not_cut(llama):
    tokens = len(
        AutoTokenizer.from_pretrained(llama).apply_chat_template(
            [*user("w0"), {"role": "assistant", "content": "w1 w2"}]
        )["input_ids"]
    )
    oracle = RewardModelOracle(llama, max_tokens=tokens)
    mine = responses(["w1 w2", "w1 w2 w3", "w4"])
    answer = oracle(prompts("w0"), mine, mine)
    # That a text is no better than itself is known without reading it.
    assert answer.valid.tolist() == [
        [[True, False, True], [False, True, False], [True, False, True]]
    ]
    assert oracle.models[0].unread == 1
    rewards = one_by_one(llama, [user("w0")], [["w1 w2", "w4"]])
    torch.testing.assert_close(answer.preference[:, ::2, ::2], bradley_terry(rewards, rewards))
    step = ProximalStep({"policy": 1}, ((1, {"policy": 1}),), 1, self_play=True)
    judge = PayoffEstimator(oracle, lambda _: 0, lambda: ["policy"])
    verdict = judge(step, prompts("w0"), mine, [mine])
    assert verdict.valid.tolist() == [[True, False, True]]
    assert verdict.invalid == 2  # of three pairs


@pytest.mark.parametrize(
    ("name", "limit"), [("llama", 64), ("gpt2", 64), ("bert", 512), ("roberta", 18)]
)
def test_the_limit_is_the_models_own(name, limit, folders):
    oracle = RewardModelOracle(folders(name), template="{prompt} {response}")
    assert oracle.models[0].max_tokens == limit
    beside = 3  # beginning, prompt and end
    rows = [" ".join(["w1"] * number) for number in (limit - beside, limit - beside + 1)]
    answer = oracle(prompts("w0"), responses(rows), responses(["w2"]))
    assert answer.valid[0, :, 0].tolist() == [True, False]
    with pytest.raises(UserError, match=f"reads {limit} tokens at most, but max_tokens is"):
        RewardModelOracle(folders(name), max_tokens=limit + 1, template="{prompt} {response}")


def test_nothing_that_can_be_read(llama):
    oracle = RewardModelOracle(llama, max_tokens=2)
    answer = oracle(prompts("w0"), responses(["w1"]), responses(["w2"]))
    assert not answer.valid.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_invalid(bad, llama):
    oracle = RewardModelOracle(llama)

    def hook(module, arguments, output):
        output.logits[0] = bad  # of the longest text

    oracle.models[0].network.register_forward_hook(hook)
    answer = oracle(prompts("w0"), responses(["w1 w2", "w1"]), responses(["w3"]))
    assert answer.valid.tolist() == [[[False], [True]]]
    assert answer.preference.isfinite().all()
    assert oracle.models[0].not_finite == 1
    assert oracle.last_error == "outputs that were not finite: 1"


def test_nothing_of_it_is_trained(llama):
    oracle, graphs = RewardModelOracle(llama), []
    assert len(list(oracle.parameters())) > 10
    assert not any(p.requires_grad for p in oracle.parameters())
    oracle.models[0].network.requires_grad_(True)  # nor is a graph made where somebody thaws it
    oracle.models[0].network.score.register_forward_hook(
        lambda *passed: graphs.append(passed[-1].grad_fn)
    )
    answer = oracle(prompts("w0"), responses(["w1"]), responses(["w2"]))
    assert not answer.preference.requires_grad
    assert graphs == [None]


@pytest.mark.parametrize("name", [name for name in CONFIGS if "_" not in name])
def test_a_checkpoint_needs_none_of_its_buffers(name, folders):
    oracle = RewardModelOracle(folders(name), template="{prompt} {response}")
    assert set(oracle.state_dict()) <= {name for name, _ in oracle.named_parameters()}


def test_dropout_stays_off(folders):
    oracle = RewardModelOracle(folders("gpt2"))
    assert oracle.models[0].network.config.resid_pdrop > 0
    answers = []
    for mode in (True, False, True):
        oracle.train(mode)
        assert oracle.training is mode
        answers.append(oracle(prompts("w0"), responses(["w1"]), responses(["w2"])).preference)
    assert answers[0] == answers[1] == answers[2]


def test_the_runs_precision_is_not_its_own(llama):
    oracle = RewardModelOracle(llama)
    ask = prompts(*PROMPTS), responses(*FIRST), responses(*SECOND)
    plain = oracle(*ask).preference
    with torch.autocast("cpu", torch.bfloat16):  # as trainer.precision bf16-mixed
        assert torch.equal(oracle(*ask).preference, plain)
    torch.set_default_dtype(torch.bfloat16)  # as bf16-true in a step
    assert torch.equal(oracle(*ask).preference, plain)
    torch.set_default_dtype(torch.float32)
    oracle.to(torch.bfloat16)  # as bf16-true before the run
    with pytest.raises(UserError, match=r"trainer\.precision has changed"):
        oracle(*ask)


def test_dtype(llama):
    assert {p.dtype for p in RewardModelOracle(llama, dtype="float32").parameters()} == {
        torch.float32
    }
    oracle = RewardModelOracle(llama, dtype="bfloat16")
    assert {p.dtype for p in oracle.parameters()} == {torch.bfloat16}
    answer = oracle(prompts(*PROMPTS), responses(*FIRST), responses(*SECOND))
    assert answer.preference.dtype == torch.float32
    said = [user(text) for text in PROMPTS]
    first, second = one_by_one(llama, said, FIRST), one_by_one(llama, said, SECOND)
    torch.testing.assert_close(answer.preference, bradley_terry(first, second), atol=0.1, rtol=0)


@pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_on_a_gpu_that_has_it(has_bfloat16, dtype, llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bfloat16)
    oracle = RewardModelOracle(llama)
    assert {p.dtype for p in oracle.parameters()} == {getattr(torch, dtype)}


# ---- several reward models -----------------------------------------------------------------------


def test_several_rewards_are_weighted_not_their_preferences(folders):
    """Each model reads with its own tokenizer and chat template, and is given each text once."""
    names, weights = ["llama", "gpt2", "bert"], [1.5, -0.5, 2.0]
    models = [folders(name) for name in names]
    said = [user(text) for text in PROMPTS]
    oracle = RewardModelOracle(models, weights=weights, temperature=0.7)
    passed = [0, 0, 0]
    for number, model in enumerate(oracle.models):

        def hook(module, arguments, keywords, output, number=number):
            passed[number] += len(keywords["input_ids"])

        model.network.register_forward_hook(hook, with_kwargs=True)
    answer = oracle(prompts(*PROMPTS), responses(*FIRST), responses(*SECOND))
    assert passed == [8 + 4 - 1] * 3  # "w9" is a response of both players to the first prompt
    first, second = (
        sum(w * one_by_one(m, said, rows) for m, w in zip(models, weights, strict=True))
        for rows in (FIRST, SECOND)
    )
    expected = bradley_terry(first, second, temperature=0.7)
    torch.testing.assert_close(answer.preference, expected, atol=1e-5, rtol=0)
    mean = RewardModelOracle(models)(prompts(*PROMPTS), responses(*FIRST), responses(*SECOND))
    first, second = (sum(one_by_one(m, said, rows) for m in models) / 3 for rows in (FIRST, SECOND))
    torch.testing.assert_close(mean.preference, bradley_terry(first, second), atol=1e-5, rtol=0)


def test_the_penalty_is_that_of_the_sum(folders):
    models, cut = [folders("llama"), folders("gpt2")], [[False, True, False, True], [True] * 4]
    oracle = RewardModelOracle(models, weights=[0.3, -2.0], penalty_without_end=0.75)
    plain = RewardModelOracle(models, weights=[0.3, -2.0])
    asked = prompts(*PROMPTS), responses(*FIRST, truncated=cut), responses(*SECOND)
    there, without = (one(*asked).preference.double().logit() for one in (oracle, plain))
    expected = without - 0.75 * torch.tensor(cut)[:, :, None]
    torch.testing.assert_close(there, expected, atol=1e-5, rtol=0)
    assert oracle.reads_truncated
    assert not plain.reads_truncated


def test_what_one_of_several_cannot_read_is_invalid(folders):
    models = [folders("llama"), folders("bert")]  # 64 tokens, and 512
    long = " ".join(["w1"] * 70)
    oracle = RewardModelOracle(models)
    answer = oracle(prompts("w0"), responses([long, "w1"]), responses(["w2"]))
    assert answer.valid.flatten().tolist() == [False, True]
    assert oracle.last_error == (
        "texts that were longer than 64 tokens, or without a token that may be read: 1"
    )


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, "names no model"),
        (["a", "b"], {"weights": [1.0]}, "has 1 numbers for 2 models"),
        ("a", {"weights": [1.0, 2.0]}, "has 2 numbers for 1 models"),
        (["a", "b"], {"weights": [1.0, 0.0]}, "other than 0"),
        (["a", "b"], {"weights": [1.0, math.nan]}, "must be finite numbers"),
        (["a", "b"], {"revision": "main"}, "revision is that of one model, but 2 are given"),
    ],
)
def test_weights_that_fit_no_models(models, options, message):
    with pytest.raises(UserError, match=message):
        RewardModelOracle(models, **options)


def test_pairs_are_counted_and_a_budget_is_kept(passes):
    oracle, allowed = passes.oracle, [3]

    def gate(counts):
        if counts.get("queries"):
            if not allowed[0]:
                raise OracleStoppedError("no more")
            allowed[0] -= 1

    oracle.ledger.gates.append(gate)
    questions = [Question(user("w0"), f"w{n}", f"w{n + 1}") for n in range(1, 9, 2)]
    answers = oracle.answers(questions)
    known = [next(answers) for _ in range(3)]
    with pytest.raises(OracleStoppedError):
        next(answers)
    assert texts_passed(passes) == 6  # those of three pairs
    assert oracle.ledger["queries"] == 3
    oracle.ledger.gates.clear()
    expected = dict(list(oracle.answers(questions))[:3])
    assert dict(known) == pytest.approx(expected, abs=1e-6)


def test_fingerprints_of_reward_models(folders, tmp_path):
    llama, gpt2 = folders("llama"), folders("gpt2")
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    options = [
        {"model": llama},
        {"model": gpt2},
        {"model": [llama, gpt2]},
        {"model": [gpt2, llama]},
        {"model": [llama, gpt2], "weights": [1.0, 2.0]},
        {"model": llama, "temperature": 2.0},
        {"model": llama, "penalty_without_end": 1.0},
        {"model": llama, "template": "{prompt} {response}"},
        {"model": llama, "max_tokens": 9},
    ]
    prints = [RewardModelOracle(**one).fingerprint for one in options]
    assert len(set(prints)) == len(prints)
    assert RewardModelOracle(str(copy), batch_size=2).fingerprint == prints[0]


@pytest.mark.parametrize("chat", [CHAT.replace("<s>", "{{ bos_token }}"), CHAT])
def test_the_fingerprint_sees_the_names_of_special_tokens(chat, tmp_path):
    """A chat template writes them; they stand in tokenizer_config.json alone."""
    folder = save(tmp_path / "one", CONFIGS["llama"](), chat=chat)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<unk>"}))
    oracles = [RewardModelOracle(str(one)) for one in (folder, other)]
    texts = [oracle.encoders[0].render_response(user("w1"), "w2") for oracle in oracles]
    assert (texts[0] != texts[1]) is ("bos_token" in chat)
    assert oracles[0].fingerprint != oracles[1].fingerprint


def test_the_fingerprint_sees_what_the_chat_template_writes(tmp_path, monkeypatch):
    """It may read more than the template's text and the names of tokens, as the date."""
    folder = save(tmp_path, CONFIGS["llama"](), chat="{{ strftime_now('%Y') }}" + CHAT)
    prints = []
    for year in ("w1", "w1", "w2"):
        clock = SimpleNamespace(strftime=lambda form, year=year: year)
        clock = SimpleNamespace(now=lambda clock=clock: clock)
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        prints.append(RewardModelOracle(folder).fingerprint)
    assert prints[0] == prints[1] != prints[2]


# ---- settings of a model that was trained here ---------------------------------------------------


def test_settings_are_read_back(tmp_path):
    for settings in (
        ModelSettings("pair", "{prompt}\n\u00e9 {first} {second}", 12, 0.25),
        ModelSettings("general"),
    ):
        write_settings(tmp_path, settings)
        assert read_settings(str(tmp_path), settings.kind, "Oracle") == settings
    assert [path.name for path in tmp_path.iterdir()] == ["preference_model.json"]
    given = json.loads((tmp_path / "preference_model.json").read_text())
    assert given == {
        "format": 1, "kind": "general", "template": None, "max_tokens": None, "temperature": 1.0
    }  # fmt: skip
    assert read_settings(str(tmp_path / "none"), "pair", "Oracle") is None


def test_settings_hold_where_nothing_else_is_given(folders, tmp_path):
    folder = tmp_path / "reward"
    shutil.copytree(folders("gpt2"), folder)
    template = "w10 {prompt} w11 {response} w12"
    write_settings(folder, ModelSettings("reward", template, 20, 2.0))
    plain = {"template": template, "max_tokens": 20, "temperature": 2.0}
    expected = RewardModelOracle(folders("gpt2"), **plain).fingerprint
    assert RewardModelOracle(str(folder)).fingerprint == expected
    other = {"template": "{response} {prompt}", "max_tokens": 9, "temperature": 3.0}
    given = RewardModelOracle(str(folder), **other).fingerprint
    assert given == RewardModelOracle(folders("gpt2"), **other).fingerprint != expected
    with pytest.raises(UserError, match=r"with the temperatures \[2.0, 1.0\]: set"):
        RewardModelOracle([str(folder), folders("llama")])
    RewardModelOracle([str(folder), folders("llama")], temperature=1.0)


@pytest.mark.parametrize(
    ("oracle", "kind", "right"),
    [
        (RewardModelOracle, "pair", "PairModelOracle"),
        (RewardModelOracle, "general", "GeneralPreferenceModelOracle"),
        (PairModelOracle, "reward", "RewardModelOracle"),
        (GenerativePairModelOracle, "pair", "PairModelOracle"),
    ],
)
def test_a_model_of_another_kind_names_its_oracle(oracle, kind, right, tmp_path):
    write_settings(tmp_path, ModelSettings(kind))
    with pytest.raises(UserError, match=rf"{tmp_path} .* kind '{kind}', which .*: take {right}$"):
        oracle(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "another format than 1"),
        ({"kind": "triple"}, "kind must be one of pair, reward, general, not 'triple'"),
        ({"kind": []}, r"kind must be one of pair, reward, general, not \[\]"),
        ({"template": 3}, "template must be a text or null"),
        ({"max_tokens": 0}, "max_tokens must be a number of at least 1"),
        ({"max_tokens": True}, "max_tokens must be a number of at least 1"),
        ({"temperature": 0}, "temperature must be a finite number above 0, not 0"),
        ({"temperature": math.inf}, "temperature must be a finite number above 0, not inf"),
        ({"more": 1}, "must be an object of format, kind, max_tokens, temperature, template"),
        (None, "is no JSON"),
    ],
)
def test_a_file_of_settings_that_cannot_be_read(change, message, tmp_path):
    write_settings(tmp_path, ModelSettings("reward"))
    path = tmp_path / "preference_model.json"
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as error:
        RewardModelOracle(str(tmp_path))
    assert len(str(error.value).splitlines()) == 1
    assert "preference_model.json" in str(error.value)


# ---- what reward models refuse -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"penalty_without_end": -1.0}, "penalty_without_end must be"),
        ({"penalty_without_end": math.nan}, "penalty_without_end must be"),
        ({"template": "{prompt}"}, r"has no field \{response\}"),
        ({"template": "{response}"}, r"has no field \{prompt\}"),
        ({"template": "{prompt} {response} {answer}"}, "has the field 'answer'"),
        ({"template": "{prompt} {response} {}"}, "has the field ''"),
        ({"template": "{prompt} {response} {prompt.text}"}, "has the field 'prompt.text'"),
        ({"template": "{prompt} {response!r}"}, r"has no field \{response\}"),
        ({"template": "{prompt} {response:>3} {response}"}, "has the field 'response'"),
        ({"template": "{prompt} {response} {response!r}"}, "has the field 'response'"),
        ({"template": "{prompt} {response} {"}, "cannot be read"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(options, message):
    with pytest.raises(UserError, match=message):
        RewardModelOracle("/no/such/folder", **options)


def test_a_model_that_is_not_there():
    for name in ("/no/such/folder", "models/none"):
        with pytest.raises(UserError, match=f"{name} is no folder here, nor had from the hub") as e:
            RewardModelOracle(name)
        assert len(str(e.value).splitlines()) == 1


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=r"is a folder without config\.json"):
        RewardModelOracle(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        RewardModelOracle(str(tmp_path))


@pytest.mark.parametrize("labels", [2, 3])
def test_other_numbers_of_outputs_are_refused(labels, tmp_path):
    config = CONFIGS["llama"]()
    config.num_labels = labels
    with pytest.raises(UserError, match=f"has {labels} outputs"):
        RewardModelOracle(save(tmp_path, config))


def test_a_causal_model_is_no_reward_model(tmp_path):
    LlamaForCausalLM(CONFIGS["llama"]()).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no trained sequence classifier: its file lacks score"):
        RewardModelOracle(str(tmp_path))


def test_damaged_weights_are_refused(tmp_path):
    folder = save(tmp_path, CONFIGS["llama"]())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded as a sequence classifier"):
        RewardModelOracle(folder)


def test_pickled_weights_are_refused(tmp_path):
    folder = save(tmp_path, CONFIGS["llama"]())
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot be loaded as a sequence classifier.*safetensors"):
        RewardModelOracle(folder)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_model_without_a_tokenizer(name, tmp_path):
    AutoModelForSequenceClassification.from_config(CONFIGS[name]()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no tokenizer"):
        RewardModelOracle(str(tmp_path), template="{prompt} {response}")


def test_a_tokenizer_of_another_model(tmp_path):
    config = CONFIGS["llama"]()
    config.vocab_size = len(VOCABULARY) - 1
    with pytest.raises(UserError, match=r"embeddings of 45 tokens.*gives tokens up to 45"):
        RewardModelOracle(save(tmp_path, config))


def test_a_tokenizer_without_a_chat_template(tmp_path):
    with pytest.raises(UserError, match=r"has no chat template: set RewardModelOracle\.template"):
        RewardModelOracle(save(tmp_path, CONFIGS["llama"](), chat=None))


@pytest.mark.parametrize("left_out", ["user", "assistant"])
def test_a_chat_template_that_leaves_something_out(left_out, tmp_path):
    shown = (
        "{% for m in messages if m['role'] != '" + left_out + "' %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(UserError, match="leaves out the prompt or the response"):
        RewardModelOracle(save(tmp_path, CONFIGS["llama"](), chat=shown))


def test_a_conversation_that_the_chat_template_refuses(tmp_path):
    chat = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    oracle = RewardModelOracle(save(tmp_path, CONFIGS["llama"](), chat=chat + CHAT))
    said = [[{"role": "system", "content": "w1"}, *user("w2")]]
    mine = responses(["w3", "w4"])
    with pytest.raises(UserError, match=r"system, user, assistant: no system; its prompt ends 'w2"):
        oracle(prompts("w2", conversations=said), mine, mine)


def test_a_template_holds_one_message(llama):
    oracle = RewardModelOracle(llama, template="{prompt} {response}")
    mine = responses(["w3", "w4"])
    oracle(prompts("w2", conversations=[user("w2")]), mine, mine)
    said = [[{"role": "system", "content": "w1"}, *user("w2")]]
    with pytest.raises(UserError, match="holds one message, but a prompt has 2"):
        oracle(prompts("w2", conversations=said), mine, mine)


def test_code_of_a_repository_is_never_run(tmp_path):
    folder = save(tmp_path, CONFIGS["llama"]())
    trace = tmp_path / "was_run"
    (tmp_path / "custom.py").write_text(f"open({str(trace)!r}, 'w')\n")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "custom.Config"}}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        RewardModelOracle(folder)
    assert not trace.exists()


def test_a_padding_token_is_found_in_a_tiny_vocabulary(tmp_path):
    """Where there is no padding token, one that ends no text of the batch takes its place."""
    folder = save(
        tmp_path, CONFIGS["llama"](), chat="{% for m in messages %} {{ m['content'] }}{% endfor %}"
    )
    rows = [list(VOCABULARY)]  # every token ends one text
    oracle = RewardModelOracle(folder, batch_size=1000)
    answer = oracle(prompts("w1 w2"), responses(*rows), responses(["w3 w4 w5"]))
    first, second = (one_by_one(folder, [user("w1 w2")], r) for r in (rows, [["w3 w4 w5"]]))
    torch.testing.assert_close(answer.preference, bradley_terry(first, second), atol=1e-5, rtol=0)


def test_reward_models_are_named_in_a_configuration(llama):
    config = {"class_path": "RewardModelOracle", "init_args": {"model": llama, "temperature": 2}}
    made = parser().instantiate(parser().parse_object({"oracle": config})).oracle
    assert made.temperature == 2
    bad = {"class_path": "RewardModelOracle", "init_args": {"model": llama, "dtype": "float16"}}
    with pytest.raises(jsonargparse.ArgumentError, match=re.escape("float16")):
        parser().parse_object({"oracle": bad})
