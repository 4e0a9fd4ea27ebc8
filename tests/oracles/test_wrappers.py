"""Oracles around other oracles: budgets, both orders, and how they compose."""

import copy
import json
import pickle
import re
import time
from pathlib import Path

import pytest
import torch
from judges import FairJudge, Judge, actions, opinion, prompts, questions, responses
from runs import configuration, part, write

from nlhf_zoo.cli.main import main
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.health.oracles.answers import listening
from nlhf_zoo.oracles import (
    BernoulliLabels,
    BudgetedOracle,
    CachedOracle,
    EnsembleOracle,
    ListedResponses,
    MatrixOracle,
    OrderSwap,
    RuleOracle,
    SmallLanguage,
)
from nlhf_zoo.oracles.ledger import ledgers, spent
from nlhf_zoo.records import Prompts, Responses

FOUR = responses(["a", "b", "c", "d"])  # 6 pairs
X = prompts("x")


# ---- OrderSwap -----------------------------------------------------------------------------------


def both(a: str, b: str, prompt: str = "x") -> float:
    return (opinion(prompt, a, b) + 1 - opinion(prompt, b, a)) / 2


def test_there_is_nothing_to_swap_for_a_symmetric_oracle():
    with pytest.raises(UserError, match="FairJudge has one answer for both orders"):
        OrderSwap(FairJudge())
    with pytest.raises(UserError, match="OrderSwap has one answer for both orders"):
        OrderSwap(OrderSwap(Judge()))
    with pytest.raises(UserError, match="must be one of none, random, both, not 'twice'"):
        OrderSwap(Judge(), "twice")  # type: ignore[arg-type]


# ---- BudgetedOracle ------------------------------------------------------------------------------


def until_stopped(oracle, *, responses: Responses = FOUR) -> str:
    """What is said when the budget stops it; it says so at once when it is asked again."""
    with pytest.raises(OracleStoppedError) as error:
        oracle(X, responses, responses)
    counts = {name: ledger.counts() for name, ledger in ledgers(oracle).items()}
    with pytest.raises(OracleStoppedError):
        oracle(X, responses, responses)
    free = {"microseconds": 0, "cache_hits": 0}
    for name, ledger in ledgers(oracle).items():
        assert ledger.counts() | free == counts[name] | free
    return str(error.value)


@pytest.mark.parametrize(("limit", "asked"), [(1, 1), (5, 5), (6, 6), (7, 6)])
def test_no_more_is_asked_than_may_be(limit: int, asked: int):
    judge = Judge()
    oracle = BudgetedOracle(judge, max_queries=limit)
    if asked < 6:
        sentence = until_stopped(oracle)
        assert f"it was asked {asked} queries in 0 requests, for 0 tokens and" in sentence
        assert f"another would exceed max_queries {limit}: raise BudgetedOracle.max_q" in sentence
    else:
        answer = oracle(X, FOUR, FOUR)
        assert torch.equal(answer.preference, Judge()(X, FOUR, FOUR).preference)
    assert len(judge.asked) == spent(oracle)["queries"] == asked


def test_the_swapped_call_of_an_allowed_query_is_allowed():
    judge = Judge()
    BudgetedOracle(OrderSwap(judge), max_queries=6)(X, FOUR, FOUR)
    assert len(judge.asked) == 12


def test_tokens():
    judge = Judge(tokens=7)
    sentence = until_stopped(BudgetedOracle(judge, max_tokens=20, max_queries=100))
    assert "asked 3 queries in 0 requests, for 21 tokens" in sentence
    assert "exceed max_tokens 20: raise BudgetedOracle.max_tokens" in sentence
    assert len(judge.asked) == 3


class Serving(Judge):
    """A judge whose every question takes two requests, the first of which fails."""

    requests = 0

    def answers(self, questions):
        for number, answer in super().answers(questions):
            for attempt in range(2):
                self.ledger.charge(requests=1, retries=attempt)
                self.requests += 1
            yield number, answer


@pytest.mark.parametrize(("limit", "queries"), [(4, 2), (5, 3)])
def test_requests(limit: int, queries: int):
    judge = Serving()
    sentence = until_stopped(BudgetedOracle(judge, max_requests=limit))
    assert f"asked {queries} queries in {limit} requests" in sentence
    assert judge.requests == limit
    assert len(judge.asked) == queries


class Patient(Judge):
    """A judge who takes a second for each answer, by a clock of its own."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock = clock

    def answers(self, questions):
        for answer in super().answers(questions):
            self.clock[0] += 1
            yield answer


def test_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    judge = Patient(clock)
    sentence = until_stopped(BudgetedOracle(judge, max_seconds=2.5))
    assert "for 0 tokens and 3.0 seconds, and another would exceed max_seconds 2.5" in sentence
    assert (len(judge.asked), judge.ledger["microseconds"]) == (3, 3_000_000)
    # Those of an ensemble are added up, once each, also within a call.
    members = [Patient(clock), Patient(clock)]
    oracle = BudgetedOracle(EnsembleOracle(members), max_seconds=16)
    oracle(X, FOUR, FOUR)
    clock[0] += 100  # what others take does not count
    until_stopped(oracle)
    assert [len(member.asked) for member in members] == [10, 6]


def test_all_parts_count_and_a_cache_costs_nothing(tmp_path):
    judges = [Judge("one"), Judge("two")]
    members = [CachedOracle(judge, tmp_path / "a.db") for judge in judges]
    oracle = BudgetedOracle(EnsembleOracle(members), max_queries=14)
    for _ in range(3):
        oracle(X, FOUR, FOUR)
    assert [len(judge.asked) for judge in judges] == [6, 6]
    more = responses(["a", "b", "c", "d", "e"])
    until_stopped(oracle, responses=more)
    assert [len(judge.asked) for judge in judges] == [8, 6]
    oracle(X, FOUR, FOUR)
    assert spent(oracle)["queries"] == 14


def test_budgets_within_budgets():
    judge = Judge()
    inner = BudgetedOracle(judge, max_queries=100)
    until_stopped(BudgetedOracle(inner, max_queries=4))
    assert len(judge.asked) == 4
    table = BudgetedOracle(MatrixOracle(torch.full((3, 3), 0.5)), max_queries=100)
    outer = BudgetedOracle(table, max_queries=4)
    for _ in range(4):
        outer.expected(Prompts(torch.tensor([0])), *2 * [actions([0, 1, 2], enumerated=True)])
    with pytest.raises(OracleStoppedError, match="max_queries 4:"):
        outer.expected(Prompts(torch.tensor([0])), *2 * [actions([0, 1, 2], enumerated=True)])
    assert not outer.answers_table


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_has_a_budget_of_its_own(twin):
    oracle = BudgetedOracle(Judge(), max_queries=8)
    oracle(X, FOUR, FOUR)
    other = twin(oracle)
    until_stopped(other)
    assert (len(other.oracle.asked), len(oracle.oracle.asked)) == (8, 6)
    assert spent(oracle)["queries"] == 6
    until_stopped(oracle)
    assert spent(oracle)["queries"] == spent(other)["queries"] == 8


def test_counts_that_were_saved_count():
    oracle = BudgetedOracle(Judge(), max_queries=8)
    for name, ledger in ledgers(oracle).items():
        ledger.restore({"queries": 7} if name.startswith("oracle") else {})
    until_stopped(oracle)
    assert len(oracle.oracle.asked) == 1


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "queries"),
    [
        (actions([0, 1, 1, 2], [2, 2, 0, 1]), None, 2 * 6),
        (actions([0, 1], [2, 0]), actions([0, 1, 1], [0, 1, 2]), 2 * 6),
        (actions([0, 1, 2], [0, 1, 2], enumerated=True), None, 2 * 1),
        (actions([0, 1], [2, 0]), actions([0, 1, 2], [0, 1, 2], enumerated=True), 2 * 6),
    ],
    ids=["self-play", "opponents", "listed", "listed opponents"],
)
def test_a_table_is_counted_as_the_game_counts_it(first, second, queries: int, product: bool):
    second = first if second is None else second
    game = MatrixOracle(torch.tensor([[[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]] * 2))
    oracle = BudgetedOracle(game, max_queries=2 * queries)

    def ask(one):
        asked = Prompts(torch.arange(2)), first, second
        if product:
            return one.expected(*asked)
        answer = one(*asked)
        return answer.preference, answer.valid

    with listening(oracle) as heard:
        answers = ask(oracle)
    assert all(map(torch.equal, answers, ask(game)))
    assert oracle.ledger["queries"] == heard.queries == queries
    ask(oracle)
    with pytest.raises(OracleStoppedError, match=f"asked {2 * queries} queries"):
        ask(oracle)


def test_a_table_that_was_asked_for_may_be_read(tmp_path):
    (tmp_path / "l.jsonl").write_text('{"prompt": "x", "responses": ["a", "b", "c"]}\n')
    listed = BudgetedOracle(ListedResponses(Judge(), tmp_path / "l.jsonl"), max_queries=2)
    assert listed.answers_table
    with pytest.raises(OracleStoppedError):
        _ = listed.table
    assert len(listed.oracle.oracle.asked) == 2


# ---- what is handed on ---------------------------------------------------------------------------

OF_TABLES = {
    "labels": (BernoulliLabels, False),
    "budget": (lambda game: BudgetedOracle(game, max_queries=1), False),
    "ensemble": (lambda game: EnsembleOracle([game, game]), True),
    "labels in an ensemble": (lambda game: EnsembleOracle([game, BernoulliLabels(game)]), False),
}


@pytest.mark.parametrize("name", OF_TABLES)
def test_a_wrapper_of_a_table_plays_the_same_game(name: str):
    wrap, answers_table = OF_TABLES[name]
    game = SmallLanguage(num_letters=3, length=1)
    oracle = wrap(game)
    assert torch.equal(oracle.table, game.table)
    assert (oracle.table is game.table) == (not isinstance(oracle, EnsembleOracle))
    assert torch.equal(oracle.support, game.support)
    assert oracle.action_names is game.action_names
    assert oracle.prompts.text == game.prompts.text
    assert oracle.answers_table is answers_table


OF_TEXTS = {
    "cache": (CachedOracle, False, 0.125, "this one"),
    "both": (lambda judge, _: OrderSwap(judge), True, 1e-6, "order both\nthis one"),
    "random": (lambda judge, _: OrderSwap(judge, "random"), True, 1e-6, "order random\nthis one"),
    "none": (lambda judge, _: OrderSwap(judge, "none"), False, 1e-6, "order none\nthis one"),
}


@pytest.mark.parametrize("name", OF_TEXTS)
def test_a_wrapper_of_texts_shows_them_in_the_order_given(name: str, tmp_path):
    wrap, *said = OF_TEXTS[name]
    judge = Judge(name="this one")
    judge.reads_truncated, judge.tolerance = True, 0.125
    oracle = wrap(judge, tmp_path / "a.db")
    assert [oracle.symmetric, oracle.tolerance, oracle.fingerprint] == said
    assert oracle.reads_truncated
    assert oracle.state_dict() == {}
    for _ in range(2):  # nothing is remembered
        assert dict(oracle.in_given_order(questions("ba"))) == {0: opinion("x", "b", "a")}
    assert (judge.asked, judge.shown) == (questions("ba", "ba"), 2)


# ---- composition ---------------------------------------------------------------------------------


def lopsided(prompt: str, first: str, second: str) -> float:
    return opinion(prompt, first, second)


def test_a_budget_around_a_cache_around_both_orders_of_a_rule(tmp_path):
    rule = RuleOracle(lopsided, check_symmetry=False)
    rule.symmetric = False
    oracle = BudgetedOracle(CachedOracle(OrderSwap(rule), tmp_path / "a.db"), max_queries=12)
    two = prompts("x", "y")
    mine = responses(["a", "b", "c", "d"], ["e", "f", "g", "h"])
    for epoch in (1, 2):
        answer = oracle(two, mine, mine)
        assert answer.valid.all()
        for b, (prompt, texts) in enumerate(zip("xy", mine.text, strict=True)):
            by_hand = [[0.5 if a == c else both(a, c, prompt) for c in texts] for a in texts]
            torch.testing.assert_close(
                answer.preference[b], torch.tensor(by_hand, dtype=torch.float64)
            )
        total = spent(oracle)
        asked = total["queries"], total["swapped"], total["cache_hits"], total["invalid"]
        assert asked == (2 * 6, 2 * 6, (epoch - 1) * 2 * 6, 0)
        assert total["microseconds"] > 0
    until_stopped(oracle, responses=responses(["a", "b", "new"]))


# ---- the command line ----------------------------------------------------------------------------

LINES = [{"prompt": p, "responses": ["rock", "paper", "scissors"]} for p in ("play", "again")]
BEATS = part("RuleOracle", function="judges.beats")
CYCLE = part("Cyclic")


def budget(oracle=CYCLE, **limits):
    return part("BudgetedOracle", oracle=oracle, **limits)


def cache(oracle=BEATS, **options):
    return part("CachedOracle", oracle=oracle, **options)


def swap(name: str, **options):
    return part("OrderSwap", oracle=part(name), **options)


def listed(oracle=BEATS, path="l.jsonl"):
    return part("ListedResponses", oracle=oracle, path=path)


def population(*members, **options):
    return part("EnsembleOracle", oracles=members, **options)


# Without an optimizer of its own, as by the command line. A round asks about 3 pairs.
SAMPLED = {"rollout": part("Sample", num_responses=3), "realisation": part("GradientSteps")}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run ``nlhf fit`` with an oracle: its exit code, and the last line of standard error."""
    monkeypatch.chdir(tmp_path)
    Path("l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))

    def run(oracle, *args: str, closed: bool = True) -> tuple[object, str]:
        way = {} if closed else SAMPLED
        config = configuration(oracle=oracle, algorithm=part("NashMD", eta=1.0), **way)
        config["trainer"] |= {"enable_progress_bar": False, "limit_val_batches": 0}  # they ask too
        config["trainer"]["callbacks"] = [part("Budget", rounds=8), part("GameCheckpoint")]
        write(tmp_path, config)
        code: object = 0
        try:
            main(["fit", "--config", "game.yaml", *args])
        except SystemExit as end:
            code = end.code
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return code, (err.strip().splitlines() or [""])[-1]

    return run


@pytest.mark.slow
def test_a_configuration_can_nest_them(run):
    """A level more would take jsonargparse twice as long."""
    judge = cache(part("judges.Judge"), path="a.db")
    two = population(listed(judge), listed(swap("judges.Judge")), weights=[1, 2])
    assert run(budget(two, max_queries=12, max_seconds=1000.0))[0] == 0
    assert run(part("BernoulliLabels", oracle=two), closed=False)[0] == 0
    code, sentence = run(budget(two, max_queries=11, max_seconds=1000.0))
    assert code == 0, sentence  # the judge's six pairs were remembered
    code, sentence = run(budget(two, max_queries=5, max_seconds=1000.0))
    assert code == 2
    assert "asked 5 queries" in sentence


def test_a_run_whose_budget_is_spent_goes_on_with_a_larger_one(run):
    code, sentence = run(budget(max_queries=12), closed=False)
    assert code == 2
    assert re.search(
        r"asked 12 queries .* exceed max_queries 12: raise BudgetedOracle.max_queries", sentence
    )
    code, sentence = run(budget(max_queries=23), "--ckpt_path", "last", closed=False)
    assert code == 2
    assert "asked 21 queries" in sentence, "three rounds more, and not one for which 2 are left"
    assert run(budget(max_queries=24), "--ckpt_path", "last", closed=False)[0] == 0


REFUSED = {
    "no limit": (budget(), "BudgetedOracle has no limit: set max_queries"),
    "queries 0": (budget(max_queries=0), "BudgetedOracle.max_queries must be .* 0, but it is 0"),
    "requests": (budget(max_requests=-1), "max_requests must be .* above 0"),
    "seconds": (budget(max_seconds=".inf"), "max_seconds must be a finite number above 0.* is inf"),
    "queries text": (budget(max_queries="many"), "max_queries: .*'many'"),
    "closed form": (budget(max_queries=9), "BudgetedOracle does not: set model.realisation to Gr"),
    "cache of a table": (cache(CYCLE, path="a.db"), "oracle"),
    "cache without a file": (cache(), "required: path"),
    "cache nowhere": (listed(cache(path="no/a.db")), "there is no folder .*/no for the ans"),
    "order": (listed(swap("judges.Judge", order="twice")), "order: .*'twice'"),
    "listed missing": (listed(path="no.jsonl"), "no.jsonl cannot be read: No such file"),
    "listed of a table": (listed(CYCLE), "oracle"),
    "no answer": (
        listed(part("judges.Judge", silent="rock")),
        "Judge has no answer to a pair of line 1 of l.jsonl, 'rock' and 'paper'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_sentence(kind: str, run):
    oracle, sentence = REFUSED[kind]
    code, said = run(oracle)
    assert code == 2
    assert re.match(r"nlhf(?: fit)?: error: ", said)
    assert re.search(sentence, said), said
    assert {path.name for path in Path().iterdir() if path.is_file()} == {"game.yaml", "l.jsonl"}
