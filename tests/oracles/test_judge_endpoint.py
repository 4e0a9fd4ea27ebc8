"""What a judge's server refuses, by status or by what it sends: of one question, or of all."""

import math
import re
from dataclasses import replace

import pytest
from judge_server import JudgeServer, rule
from judge_server_oracles import oracle, questions

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.judge import client
from nlhf_zoo.oracles.text_oracle import Question

FEW = {400: 8, 403: 8, 413: 8, 422: 8, 424: 8, 451: 8}  # refusals; of another status one is enough


@pytest.mark.parametrize("status", [*FEW, 301, 401, 402, 404, 405])
def test_an_endpoint_that_refuses_everything_ends_the_run(status):
    with JudgeServer(always=f"status_{status}") as server:
        judge = oracle(server, concurrency=2)
        with pytest.raises(UserError, match=f"refuses every question .status {status}") as refused:
            list(judge.answers(questions(50)))
        assert not isinstance(refused.value, OracleStoppedError)
        assert "\n" not in str(refused.value)
        assert len(server.entries()) <= FEW.get(status, 1) + 1


def of_prompts(num: int) -> list[Question]:
    """A question about each of so many prompts."""
    return [replace(one, conversation=[{"role": "user", "content": str(number)}])
            for number, one in enumerate(questions(num))]  # fmt: skip


@pytest.mark.parametrize("status", [402, 403, 404, 424, 451, 400])
def test_after_an_answer_a_refusal_is_of_one_question_until_there_are_many(status):
    with JudgeServer(always=f"status_{status}", after=3) as server:
        judge, asked = oracle(server, concurrency=1, order="none"), of_prompts(30)
        had = dict(judge.answers(asked[:5]))
        assert [math.isnan(had[number]) for number in range(5)] == [False] * 3 + [True] * 2
        many = [replace(one, conversation=asked[5].conversation) for one in asked[5:20]]
        assert all(math.isnan(answer) for _, answer in judge.answers(many))  # of one prompt
        said = rf"has refused its last 22 questions .status {status}.*mend that, and go on"
        with pytest.raises(OracleStoppedError, match=said):
            list(judge.answers(asked[20:]))
        assert judge.ledger["requests"] == 3 + 2 + 15 + 5  # the refusals were of eight prompts


def of_each_prompt(prompts: int, num: int) -> list[Question]:
    """So many questions about each of the prompts, prompt by prompt."""
    return [replace(one, conversation=[{"role": "user", "content": f"Prompt {number // num}."}])
            for number, one in enumerate(questions(prompts * num))]  # fmt: skip


def test_a_judge_that_moderates_the_first_prompt_is_asked_on():
    """All of its questions are refused before anything is answered."""
    with JudgeServer(refuses="Prompt 0.", hold=32) as server:
        judge, asked = oracle(server, order="none", concurrency=32), of_each_prompt(9, 8)
        had = dict(judge.answers(asked))
    assert all(math.isnan(had[number]) for number in range(8))
    assert [had[number] for number in range(8, 72)] == pytest.approx(
        [rule(one.first, one.second) for one in asked[8:]]
    )
    assert judge.ledger["requests"] == 72


@pytest.mark.parametrize("prompts", [2, 9])
def test_one_that_refuses_all_prompts_is_known_from_the_first_few_requests(prompts):
    with JudgeServer(always="status_400") as server:
        with pytest.raises(UserError, match=r"refuses every question .status 400"):
            list(oracle(server, concurrency=1).answers(of_each_prompt(prompts, 40)))
        assert len(server.entries()) == 8


def test_after_an_answer_a_key_that_is_refused_ends_the_run_with_what_was_had():
    with JudgeServer(always="status_401", after=3) as server:
        judge, had = oracle(server, concurrency=1, order="none"), {}
        with pytest.raises(OracleStoppedError, match=r"its last question .status 401"):
            had.update(judge.answers(questions(9)))
        assert list(had) == [0, 1, 2]
        assert judge.ledger["requests"] == 4


def test_a_judge_that_moderates_is_asked_on():
    with JudgeServer(manner="moderates") as server:
        judge, asked = oracle(server, order="none"), questions(500)
        had = dict(judge.answers(asked))
        refused = {(e["first"], e["second"]) for e in server.entries() if e["fault"]}
    for number, one in enumerate(asked):
        is_refused = (one.first, one.second) in refused
        wanted = math.nan if is_refused else rule(one.first, one.second)
        assert had[number] == pytest.approx(wanted, nan_ok=True)
    assert 0 < len(refused) < 50
    assert judge.ledger["requests"] == 500


def test_a_reply_has_a_limit_and_no_compression(monkeypatch):
    with JudgeServer() as server:
        judge = oracle(server, order="none")
        ((_, answer),) = judge.answers(questions(1))
        assert answer == rule("one 0", "other 0")
        monkeypatch.setattr(client, "LONGEST_REPLY", 100)
        ((_, answer),) = judge.answers(questions(1))
        assert math.isnan(answer)
        assert judge.last_error == "a reply of more than 100 bytes"
        assert judge.ledger["requests"] == 2  # it would be the same again
        assert "accept-encoding" in server.entries()[0]["headers"]
    monkeypatch.undo()
    for always, limit in (("gzip", 10**6), ("status_500", 20)):  # an error, too
        monkeypatch.setattr(client, "LONGEST_REPLY", limit)
        with JudgeServer(always=always) as server:
            judge = oracle(server, order="none")
            ((_, answer),) = judge.answers(questions(1))
            assert math.isnan(answer)
            assert re.match("a reply (in the encoding gzip|of more than 20)", judge.last_error)
            assert judge.ledger["requests"] == 1


def test_no_log_probabilities_end_the_run():
    with JudgeServer(always="letter") as server:
        judge = oracle(server, verdict="logprobs", order="none")
        with pytest.raises(UserError, match=r"gives no log-probabilities: set .* verdict to json"):
            list(judge.answers(questions(1)))
    with JudgeServer(always="letter", after=1) as server:
        judge = oracle(server, verdict="logprobs", order="none", concurrency=1)
        had = dict(judge.answers(questions(3)))
        assert [math.isnan(had[number]) for number in range(3)] == [False, True, True]
        assert judge.last_error == "no verdict, for the server gives no log-probabilities, but A"


def test_a_server_that_lists_few_log_probabilities():
    with JudgeServer(manner="five") as server:
        with pytest.raises(UserError, match=r"every question .status 400.*the server can do"):
            list(oracle(server, verdict="logprobs", concurrency=1).answers(questions(50)))
        assert len(server.entries()) == 8
        judge = oracle(server, verdict="logprobs", order="none", top_logprobs=5)
        assert dict(judge.answers(questions(1)))[0] == pytest.approx(rule("one 0", "other 0"))
