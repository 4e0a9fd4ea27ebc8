"""An oracle behind a server answers, counts and stops as it would without one."""

import copy
import threading

import numpy as np
import pytest
import torch
from judge_server_oracles import questions, texts
from judges import FairJudge, Judge, actions, opinion, prompts
from language_models import refused
from serving import counts, serving, start, stop, url

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles import (
    BernoulliLabels,
    BudgetedOracle,
    CachedOracle,
    EmbeddingOracle,
    EnsembleOracle,
    ListedResponses,
    MatrixOracle,
    RuleOracle,
    ServedOracle,
    ServedTable,
    SmallLanguage,
    UniformRandom,
)
from nlhf_zoo.oracles.ledger import spent
from nlhf_zoo.oracles.rules import shorter_wins
from nlhf_zoo.oracles.served import server as served_server
from nlhf_zoo.oracles.served.description import fingerprint_of
from nlhf_zoo.oracles.served.protocol import KEPT
from nlhf_zoo.records import Prompts, Responses

ASKED = questions(12)


# ---- of texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 12])
def test_batches_are_as_long_as_they_may_be(size, monkeypatch):
    monkeypatch.setattr("nlhf_zoo.oracles.served.oracle._QUESTIONS", size)
    inner = Judge()
    expected = dict(Judge().answers(ASKED))
    with serving(inner) as address:
        oracle = ServedOracle(address)
        assert dict(oracle.answers(ASKED)) == expected
        assert dict(oracle.in_given_order(ASKED[:2])) == {n: expected[n] for n in range(2)}
    assert counts(oracle) == counts(inner)
    assert inner.shown == 2


def test_an_answer_is_handed_on_before_the_next_is_there(monkeypatch):
    """As a cache around it needs them."""
    monkeypatch.setattr(served_server, "WAIT", 0.02)
    goes_on, asked = threading.Semaphore(0), []

    def slow(prompt, first, second):
        asked.append(first)
        goes_on.acquire()
        return 0.75

    with serving(named(slow)) as address:
        stream = ServedOracle(address).answers(ASKED[:3])
        for number in range(3):
            goes_on.release()
            assert next(stream) == (number, 0.75)
        assert [*stream] == []
    assert asked == [question.first for question in ASKED[:3]]


def named(function):
    """A rule of a function that has no source of its own."""
    rule = RuleOracle(shorter_wins, check_symmetry=False)
    rule.function = function
    return rule


def test_what_wraps_texts_can_be_served(tmp_path):
    mine = texts("mine", 2, 3)
    for make in (
        lambda: BudgetedOracle(Judge(silent="mine 0 1\n</response>"), max_queries=100),
        lambda: EnsembleOracle([FairJudge("a"), FairJudge("b"), Judge("c")]),
        lambda: CachedOracle(Judge(), tmp_path / "answers.sqlite"),
    ):
        local, inner = make(), make()
        expected = local(prompts("x", "y"), mine, mine)
        with serving(inner) as address:
            oracle = ServedOracle(address)
            found = oracle(prompts("x", "y"), mine, mine)
        assert torch.equal(found.valid, expected.valid)
        torch.testing.assert_close(found.preference, expected.preference, atol=1e-15, rtol=0)
        assert counts(oracle) == counts(inner)
        assert oracle.fingerprint == fingerprint_of(inner) == fingerprint_of(local)
    assert oracle.ledger["cache_hits"] == 6  # of what the local one has paid for
    assert oracle.ledger["queries"] == 0


# ---- of tables -----------------------------------------------------------------------------------

TABLES = {
    "handed over": lambda: UniformRandom(num_games=3, num_actions=5, seed=2),
    "of single precision": lambda: UniformRandom(3, 5, seed=2, dtype="float32"),
    "counted": lambda: BudgetedOracle(UniformRandom(3, 5, seed=2), max_queries=10**4),
    "too large": lambda: EmbeddingOracle(num_actions=5, dim=4, seed=1),
    "of several": lambda: EnsembleOracle([UniformRandom(3, 5, seed=s) for s in range(2)]),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_table(name):
    local, inner = TABLES[name](), TABLES[name]()
    everyone = [[0, 1, 2, 3, 4]] * len(local.support)
    few = [[4, 0], [1, 1], [3, 2]][: len(everyone)]
    whole = actions(*everyone, enumerated=True)
    with serving(inner) as address:
        oracle = ServedTable(address)
        assert oracle.answers_table is (name not in ("counted", "too large"))
        for first in (actions(*few), whole):
            for second in (actions(*few[::-1]), whole):
                found, expected = (one(one.prompts, first, second) for one in (oracle, local))
                assert torch.equal(found.preference, expected.preference)
                assert found.preference.dtype == expected.preference.dtype
                assert found.valid.all()
                product, valid = oracle.expected(oracle.prompts, first, second)
                expected, _ = local.expected(local.prompts, first, second)
                # That of several is made by each of them, and this one of their mean.
                torch.testing.assert_close(product, expected, atol=1e-7, rtol=0)
                assert valid.all()
        assert (oracle.table is None) == (local.table is None)
        assert local.table is None or torch.equal(oracle.table, local.table)
        assert torch.equal(oracle.support, local.support)
        assert oracle.action_names == local.action_names
        assert oracle.tolerance == local.tolerance
        assert counts(oracle) == counts(local) == counts(inner)
    assert bool(spent(oracle)["queries"]) == (name == "counted")


def test_a_table_of_listed_responses_is_asked_for_once(tmp_path):
    path = tmp_path / "listed.jsonl"
    path.write_text('{"prompt": "x", "responses": ["a", "b", "c"], "names": ["A", "B", "C"]}\n')
    local, inner = (ListedResponses(FairJudge(), path) for _ in range(2))
    with serving(inner) as address:
        oracles = [ServedTable(address) for _ in range(2)]
        assert spent(inner)["queries"] == 0  # not while it is built
        tables = [oracle.table for oracle in oracles]
    assert all(torch.equal(table, local.table) for table in tables)
    assert spent(inner)["queries"] == 3
    assert [spent(oracle)["queries"] for oracle in oracles] == [3, 0]
    assert oracles[0].action_names == [["A", "B", "C"]]
    assert oracles[0].prompts.text == ["x"]


def test_responses_of_a_language_model_are_found_by_their_names():
    local = SmallLanguage(length=1)
    words = local.action_names[0]
    drawn = [[words[2], words[0]], [words[1], words[1]]]
    tokens = torch.zeros(2, 2, 3, dtype=torch.long)  # a tokenizer's own
    weight = torch.full((2, 2), 0.5, dtype=torch.float64)
    mine = Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight, text=drawn)
    asked = Prompts(torch.tensor([1, 0]))
    with serving(local) as address:
        oracle = ServedTable(address)
        found = oracle(asked, mine, mine).preference
        assert torch.equal(found, local(asked, mine, mine).preference)
        other = Responses(tokens, mine.mask, weight, text=[["zzz", "a"]] * 2)
        refused("'zzz' is no response that the oracle at .* lists", oracle, asked, other, other)


# ---- several at once -----------------------------------------------------------------------------


def test_other_oracles_are_asked_by_one_at_a_time():
    at_once, most = [0], [0]

    def rule(prompt, first, second):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        threading.Event().wait(0.002)
        at_once[0] -= 1
        return 0.5

    with serving(named(rule)) as address:
        oracles = [ServedOracle(address) for _ in range(3)]
        threads = [threading.Thread(target=lambda o=o: [*o.answers(ASKED[:4])]) for o in oracles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1]
    assert [oracle.ledger["queries"] for oracle in oracles] == [4, 4, 4]


# ---- who is asked --------------------------------------------------------------------------------


def test_another_oracle_at_the_same_address_is_not_asked():
    there = start(Judge("one"))
    oracle = ServedOracle(url(there))
    stop(there)
    other = Judge("another")
    again = start(other, port=there.port)
    try:
        with pytest.raises(OracleStoppedError, match="serves another oracle than when this run"):
            [*oracle.answers(ASKED)]
        assert other.asked == []
    finally:
        stop(again)


def test_a_checkpoint_knows_who_was_asked():
    with serving(Judge("one")) as one, serving(Judge("one")) as same, serving(Judge("b")) as other:
        state = ServedOracle(one).state_dict()
        assert ServedOracle(same).load_state_dict(state, strict=False).missing_keys == []
        sentence = refused(
            "asked another oracle than the Judge that is served at",
            torch.nn.ModuleDict({"oracle": ServedOracle(other)}).load_state_dict,
            {f"oracle.{name}": value for name, value in state.items()},
        )
        assert "start afresh without ckpt_path" in sentence


def test_fingerprints_of_tables_differ_where_answers_may(tmp_path):
    P = np.array([[0.5, 0.9], [0.1, 0.5]])
    listed = tmp_path / "listed.jsonl"
    listed.write_text('{"prompt": "x", "responses": ["a", "b"], "names": ["A", "B"]}\n')
    others = tmp_path / "others.jsonl"
    others.write_text('{"prompt": "x", "responses": ["a", "c"], "names": ["A", "B"]}\n')
    made = [
        lambda: MatrixOracle(P), lambda: MatrixOracle(P.T), lambda: MatrixOracle(P, "float32"),
        lambda: EmbeddingOracle(num_actions=5, dim=4, seed=1),
        lambda: EmbeddingOracle(num_actions=5, dim=4, seed=1, scale=2.0),
        lambda: EnsembleOracle([MatrixOracle(P), MatrixOracle(P.T)]),
        lambda: EnsembleOracle([MatrixOracle(P), MatrixOracle(P.T)], [1.0, 2.0]),
        lambda: EnsembleOracle([Judge("a"), Judge("b")]),
        lambda: EnsembleOracle([Judge("a"), Judge("c")]),
        lambda: ListedResponses(Judge(), listed), lambda: ListedResponses(Judge("b"), listed),
        lambda: ListedResponses(Judge(), others),
    ]  # fmt: skip
    prints = [fingerprint_of(make()) for make in made]
    assert len({*prints}) == len(prints)
    assert prints == [fingerprint_of(make()) for make in made]
    budgets = [BudgetedOracle(MatrixOracle(P), max_queries=n) for n in (5, 6)]
    assert len({fingerprint_of(budget) for budget in budgets}) == 1


def test_who_draws_by_the_number_of_calls_is_not_served():
    refused("put BernoulliLabels around ServedOracle", start, BernoulliLabels(Judge()))
    with serving(UniformRandom(seed=0)) as address:
        labels = BernoulliLabels(ServedTable(address), seed=1)
        local = BernoulliLabels(UniformRandom(seed=0), seed=1)
        some = actions(*[[0, 3, 2]] * 10)
        for _ in range(2):
            both = [one(one.prompts, some, some).preference for one in (labels, local)]
            assert torch.equal(*both)


def test_an_oracle_without_a_fingerprint_is_not_served():
    captured = 0.5
    rule = RuleOracle(lambda prompt, first, second: captured)
    refused("without a fingerprint cannot be served.*has captured", start, rule)


def test_an_oracle_of_the_other_kind_is_named():
    with serving(Judge()) as address:
        refused("put ServedOracle in the place of ServedTable", ServedTable, address)
    with serving(UniformRandom(seed=0)) as address:
        refused("put ServedTable in the place of ServedOracle", ServedOracle, address)


def test_copies_ask_for_themselves():
    inner = Judge()
    with serving(inner) as address:
        oracle = ServedOracle(address)
        other = copy.deepcopy(oracle)
        assert dict(oracle.answers(ASKED)) == dict(other.answers(ASKED))
    assert oracle.ledger["queries"] == other.ledger["queries"] == 12
    assert opinion("Which?", "one 0", "other 0") == dict(Judge().answers(ASKED))[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "nonsense"}, "url must be http:// or https://"),
        ({"url": "http://me:secret@host:1"}, "url holds a user name or a password"),
        ({"url": "http://host:1?token=secret"}, "goes on after its path"),
        ({"url": "http://host:1/v1"}, "is the address of a server alone"),
        ({"url": "http://8.8.8.8:1"}, "http:// encrypts nothing"),
        ({"token_env": "secret-token"}, "token_env must be the name of an environment variable"),
        ({"token_env": "NO_SUCH_TOKEN"}, "token is not in the environment variable NO_SUCH_TOKEN"),
        ({"token_env": "A_TOKEN", "token_file": "secret"}, "both name a token"),
        ({"token_file": "/no/such/file"}, "is no file of 4096 bytes at most"),
        ({"timeout": 5.0}, "timeout must be above 10 s"),
        ({"patience": KEPT}, "as long as a server remembers"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    sentence = refused(message, ServedOracle, **{"url": "http://127.0.0.1:9", **options})
    assert "secret" not in sentence or "token_file" in options
    assert isinstance(UserError(sentence), ValueError)
