"""What counts as a verdict among all that servers send, and what is said of the rest."""

import json
import math
from functools import partial

import judge_server
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_server import completion

from nlhf_zoo.oracles.judge.reply import read_completion, read_decision
from nlhf_zoo.oracles.judge.verdict import json_verdict, logprobs_verdict, options_verdict

NAN = math.nan
A = '{"better": "A"}'


def by_json(body: bytes) -> float:
    return json_verdict(read_completion(body)).probability


def by_log_probs(body: bytes) -> float:
    return logprobs_verdict(read_completion(body)).probability


# ---- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"better": "A"}', 1), ('{"better": "B"}', 0), ('{"better": "tie"}', 0.5),
        ('{"better": "Tie"}', 0.5), ('{"better": "TIE"}', 0.5),
        (' \n{"better": "A"}\n', 1), ('{"reason": "so", "better": "B"}', 0),
        ('{"probability": 0.25}', 0.25), ('{"probability": 1}', 1), ('{"probability": 0}', 0),
        ('{"better": "a"}', NAN), ('{"better": "A "}', NAN), ('{"better": "C"}', NAN),
        ('{"better": 1}', NAN), ('{"better": null}', NAN), ('{"better": ["A"]}', NAN),
        ('{"better": "A", "probability": 0.9}', NAN), ('{"better": "A", "better": "B"}', NAN),
        ('{"x": {"a": 1, "a": 2}, "better": "A"}', NAN), ('{"verdict": {"better": "A"}}', NAN),
        ('{"better": "A"}{"better": "B"}', NAN), ('{"better": "A"} so be it', NAN),
        ('["A"]', NAN), ('"A"', NAN), ("A", NAN),
        ('{"probability": 1.01}', NAN), ('{"probability": -0.1}', NAN),
        ('{"probability": NaN}', NAN), ('{"probability": Infinity}', NAN),
        ('{"probability": 1e999}', NAN), ('{"probability": true}', NAN),
        ('{"probability": "0.5"}', NAN), ('{"probability": ' + "9" * 5000 + "}", NAN),
        ('{"better": "A"', NAN), ("{}", NAN), ("", NAN), ("[" * 10**5, NAN),
        # a mark of the byte order, and ends of lines of other systems
        ("\ufeff" + A, 1), (f"\r\n{A}\r\n", 1),
        # one fence round it
        (f"```json\n{A}\n```", 1), ('```\n{"better": "B"}```\n', 0), (f"```json {A} ```", 1),
        (f"```{A}```", 1), (f"```json\r\n{A}\r\n```", 1), (f"~~~\n{A}\n~~~", 1),
        (f"~~~JSON\n{A}\n~~~", 1), (f"````json\n{A}\n````", 1),
        (f"So:\n```json\n{A}\n```", NAN), (f"```python\n{A}\n```", NAN), (f"```\n{A}\n~~~", NAN),
        (f"```json\n{A}\n```\n```json\n{A}\n```", NAN), (f"```\n{A}", NAN), ("```", NAN),
        # one block of reasoning before it, which the prompt may have opened
        (f"<think>B, or A?</think>\n\n{A}", 1), (f"<think>\n</think>{A}", 1),
        (f'\n<think>{{"better": "B"}}\n</think>\n```json\n{A}\n```', 1),
        (f"Hm, B.\n</think>\n\n{A}", 1), (f"[THINK]Hm.[/THINK]{A}", 1),
        (f"<reasoning>B</reasoning>{A}", 1),
        ('{"reason": "no </think>", "better": "A"}', 1),
        (f"<think>{A}", NAN), (f"<think>B</reasoning>{A}", NAN), (f"<b>x</b>{A}", NAN),
        (f"<think>a</think><think>b</think>{A}", NAN), (f"<think>a</think>b</think>{A}", NAN),
        (f"{A}<think>a</think>", NAN), (f"<think>a</think>So: {A}", NAN), ("</think>", NAN),
    ],
)  # fmt: skip
def test_a_json_verdict_is_one_object(text, wanted):
    assert by_json(completion(text)) == pytest.approx(wanted, nan_ok=True)


ENDS = ["length", "content_filter", "abort", "error", "tool_calls", "insufficient_system_resource"]


@pytest.mark.parametrize("finish", [*ENDS, {"type": "stop"}])
def test_what_was_broken_off_is_no_verdict_however_whole_it_looks(finish):
    """vLLM and SGLang end a request that is cancelled with the reason abort."""
    assert math.isnan(by_json(completion(A, finish)))
    said = listed("A", {"A": math.log(0.6), "B": math.log(0.2)})
    assert math.isnan(by_log_probs(completion("A", finish, said)))


@pytest.mark.parametrize("finish", ["stop", "STOP", "eos_token", "stop_sequence", None, ""])
def test_what_ended_by_itself_is_one(finish):
    assert by_json(completion(A, finish)) == 1


def test_why_there_is_none_is_said():
    why = {
        finish: json_verdict(read_completion(completion(A, finish))).why
        for finish in ("length", "abort")
    }
    assert why["length"] == "it was cut at the limit of tokens: raise max_tokens"
    assert why["abort"] == "it did not end by itself, but with abort"
    assert json_verdict(read_completion(completion("A"))).why == "it is not one JSON object"
    twice = json_verdict(read_completion(completion('{"better": "A", "better": "A"}')))
    assert twice.why == "a key of its object occurs twice"


def in_message(**message: object) -> bytes:
    body = json.loads(judge_server.SAID["refusal"])
    body["choices"][0]["message"] = {"role": "assistant", **message}
    return json.dumps(body).encode()


def part(text: object, kind: str = "text") -> dict[str, object]:
    return {"type": kind, kind: text}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ([part(A)], 1), ([part('{"bett'), part('er": "B"}')], 0),
        ([part([part("Hm.")], "thinking"), part(A)], 1), ([part("B?", "reasoning"), part(A)], 1),
        ([part(A), part([part("Hm.")], "thinking")], NAN), ([part(A), part("x", "image_url")], NAN),
        ([part(A), "x"], NAN), ([part(None)], NAN), ([], NAN), ({"better": "A"}, NAN), (1, NAN),
    ],
)  # fmt: skip
def test_text_in_parts_is_joined(content, wanted):
    assert by_json(in_message(content=content)) == pytest.approx(wanted, nan_ok=True)


def test_a_reply_without_text_is_no_verdict():
    body = in_message(content=None, refusal=A)
    assert math.isnan(by_json(body))
    assert read_completion(body).text == A  # for the last words
    assert by_json(in_message(content=A, refusal=None, reasoning_content="B")) == 1


# ---- log-probabilities ---------------------------------------------------------------------------


def listed(letter: str, top: dict[str, object], before: int = 0) -> dict:
    """A token with its alternatives, after some white space."""
    top_list = [{"token": token, "logprob": value} for token, value in top.items()]
    blank = {"token": "\n", "logprob": 0.0, "top_logprobs": [{"token": "A", "logprob": 0.0}]}
    token = {"token": letter, "logprob": 0.0, "top_logprobs": top_list}
    return {"content": [*[blank] * before, token]}


@pytest.mark.parametrize(
    ("letter", "top", "before", "wanted"),
    [
        ("A", {"A": math.log(0.6), "B": math.log(0.2), "I": math.log(0.1)}, 0, 0.75),
        (" B", {" B": math.log(0.4), "B": math.log(0.2), "A": math.log(0.2)}, 1, 0.25),
        ("A", {"A": math.log(0.99), "I": math.log(0.005)}, 0, 1.0),  # B at most at 0.005
        ("A", {"A": math.log(0.6), "I": math.log(0.2)}, 0, NAN),  # B may be anything up to 0.2
        # B is at most what those that are listed leave of 1: 0.0001, 0.0001, 0.009 and 0.02
        ("A", {"A": math.log(0.9999)}, 0, 1.0),
        ("A", {"A": math.log(0.97), "The": math.log(0.0299)}, 0, 1.0),
        ("B", {"B": math.log(0.991)}, 0, 0.0),
        ("A", {"A": math.log(0.98)}, 0, NAN),
        ("A", {"A": math.log(0.95), "The": math.log(0.03)}, 0, NAN),
        ("A", {"A": math.log(0.9), "The": math.log(0.1005)}, 0, 1.0),  # rounding: nothing is left
        ("A", {"I": math.log(0.6)}, 0, NAN),
        ("A", {"A": math.log(0.9), "B": 2.0}, 0, NAN),
        ("A", {"A": "x", "B": -1.0}, 0, NAN),
        ("A", {"A": None, "B": -1.0}, 0, NAN),
        ("A", {"A": math.nan, "B": -1.0}, 0, NAN),
        ("A", {"A": 10**400, "B": -1.0}, 0, NAN),
        ("I", {"A": math.log(0.6), "B": math.log(0.2)}, 0, NAN),
    ],
)
def test_a_verdict_of_log_probabilities(letter, top, before, wanted):
    logprobs = listed(letter, top, before)
    text = "\n" * before + letter
    said = by_log_probs(completion(text, "stop", logprobs))
    assert said == pytest.approx(wanted, nan_ok=True)
    assert math.isnan(by_log_probs(completion(text, "length", logprobs)))
    longer = completion(text + " is", "stop", logprobs)  # the article, perhaps
    assert math.isnan(by_log_probs(longer))


def tokens(*names: str, **probabilities: float) -> dict:
    """Tokens, each with alternatives of its own; only those that are given are sensible."""
    content = []
    for number, name in enumerate(names):
        nonsense = {"A": 0.1 * number / len(names), "B": 0.3}
        of = probabilities if name.strip(" \n\u0120\u2581\u010a") == "B" else nonsense
        top = [{"token": t, "logprob": math.log(p) if p else -99.0} for t, p in of.items()]
        content.append({"token": name, "logprob": -0.1, "top_logprobs": top})
    return {"content": content}


@pytest.mark.parametrize(
    ("names", "text"),
    [
        # What hidden reasoning says of A and B is not the answer (sglang#25055).
        (["<think>", "A", " or", " A", "?", "</think>", "\n\n", "B"], "B"),
        (["<think>", "A", "</think>", "\n", "B", "\n", "<|im_end|>"], "B\n"),
        (["<think>", "A", "</think>", "B"], "<think>A</think>B"),
        # The end of the sequence may be listed, or be an empty text (vllm#9463).
        (["B", "</s>"], "B"), (["B", ""], "B"), (["", "B", "<|eot_id|>", ""], " B"),
        # White space as vocabularies spell it (lmdeploy#2802).
        (["\u0120B"], " B"), (["\u2581B"], "B"), (["A", "\u010a", "\u0120B", "\u010a"], "B"),
    ],
)  # fmt: skip
def test_a_verdict_is_read_where_the_answer_stands(names, text):
    said = by_log_probs(completion(text, "stop", tokens(*names, A=0.2, B=0.6)))
    assert said == pytest.approx(0.25)


@pytest.mark.parametrize(
    "names",
    [["B", " is", " it"], ["B", "A"], ["token_id:33"], ["B", "<a>", "<b>"], ["AB"], ["</s>"], [""]],
)
def test_tokens_that_do_not_end_with_the_answer_are_no_verdict(names):
    said = logprobs_verdict(read_completion(completion("B", "stop", tokens(*names, A=0.2, B=0.6))))
    assert math.isnan(said.probability)
    assert said.why == "its log-probabilities do not end with its answer"


def test_alternatives_are_read_in_any_spelling():
    top = {"\u0120B": 0.2, "\u2581B": 0.2, "B": 0.2, "\u0120A": 0.2, "token_id:33": 0.01}
    assert by_log_probs(completion("B", "stop", tokens("\u0120B", **top))) == pytest.approx(0.25)


def test_tokens_of_one_text_add_up_and_the_same_one_counts_once():
    """Two tokens that decode to "A": the least probable alone would turn the verdict round."""
    top = [{"token": "A", "logprob": -0.1, "bytes": [65]}, {"token": "B", "logprob": -3.0}]
    top += [{"token": "A", "logprob": -6.0, "bytes": [32, 65]}, {"token": "B", "logprob": -3.0}]
    said = by_log_probs(
        completion("A", "stop", {"content": [{"token": "A", "logprob": -1, "top_logprobs": top}]})
    )
    mass = math.exp(-0.1) + math.exp(-6)
    assert said == pytest.approx(mass / (mass + math.exp(-3)))


# ---- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"A": 0.25, "B": 0.75}, 0.25), ({"B": 0.25, "A": 0.7496}, 0.7496 / 0.9996),
        ({"A": 1, "B": 0}, 1),
        ({"A": 0.5}, NAN), ({"A": 0.5, "B": 0.5, "C": 0.0}, NAN), ({"A": 0.5, "B": 0.6}, NAN),
        ({"A": "0.5", "B": 0.5}, NAN), ({"A": True, "B": 0.0}, NAN), ({"A": 1.5, "B": -0.5}, NAN),
        ([0.5, 0.5], NAN), (None, NAN),
    ],
)  # fmt: skip
def test_probabilities_of_two_options(said, wanted):
    body = json.dumps({"answers": {"better": {"probabilities": said}}}).encode()
    assert options_verdict(read_decision(body)).probability == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"answers": {"better": 1}}', b"[" * 10**5])
def test_what_is_no_decision(body):
    assert read_decision(body) is None


# ---- whatever is sent ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"3", b"{}", b'{"choices": []}', b'{"choices": null}', b"\xff\xfe",
     b'{"choices": [{}]}', b'{"choices": [{"message": null}]}', b'{"error": {"message": "x"}}',
     b"[" * 10**5],
)  # fmt: skip
def test_what_is_no_completion(body):
    assert read_completion(body) is None


NONE = [None, 3, {}, {"prompt_tokens": "9"}, {"prompt_tokens": -1}, {"prompt_tokens": 10**30}]


@pytest.mark.parametrize("usage", NONE)
def test_tokens_are_counted_where_the_server_says_so(usage):
    body = json.loads(completion("x"))
    assert read_completion(json.dumps(body).encode()).prompt_tokens == 100
    assert read_completion(json.dumps({**body, "usage": usage}).encode()).prompt_tokens == 0


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["A", "B", ""])
leaves |= st.sampled_from(["\u0120B", "<|im_end|>", "text", "\ud800"]) | st.text(max_size=3)
names = st.sampled_from(["token", "logprob", "top_logprobs", "bytes", "type", "text"])
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4)
)
alternatives = st.fixed_dictionaries({"token": leaves, "logprob": leaves | anything})
listing = st.fixed_dictionaries({"token": leaves, "top_logprobs": st.lists(alternatives)})


@settings(max_examples=100)
@given(
    anything | st.sampled_from(["A", " B"]),
    anything | st.sampled_from(["stop"]),
    anything | st.fixed_dictionaries({"content": st.lists(listing) | anything}),
    anything,
)
def test_nothing_that_a_server_sends_raises_an_exception(content, finish, logprobs, usage):
    body = json.loads(completion("x", "stop", logprobs))
    body["choices"][0] |= {"finish_reason": finish, "message": {"content": content}}
    sent = json.dumps({**body, "usage": usage}).encode()
    for read in (json_verdict, logprobs_verdict):
        verdict = read(read_completion(sent))
        assert math.isnan(verdict.probability) == bool(verdict.why)
        assert verdict.why or 0 <= verdict.probability <= 1


@pytest.mark.parametrize("depth", [900, 5000])
def test_nor_does_what_is_nested_deeply(depth):
    nested = "[" * depth + "]" * depth
    plain = completion("A", "stop", listed("A", {"A": -0.1}))
    for name in ('"logprob": -0.1', '"finish_reason": "stop"', '"content": "A"'):
        key = name.split(":")[0]
        body = plain.replace(name.encode(), f"{key}: {nested}".encode(), 1)
        assert body != plain
        read = partial(map, lambda f, c: f(c), (json_verdict, logprobs_verdict))
        if (found := read_completion(body)) is not None:
            assert all(math.isnan(said.probability) for said in read([found, found]))
