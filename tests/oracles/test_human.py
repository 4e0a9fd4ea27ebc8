"""People as the oracle: what their votes say, what is asked and counted, and how long is waited."""

import io
import math
import threading
from contextlib import redirect_stderr

import pytest
from language_models import refused
from text_models import prompts, responses, user
from voters import Voters

from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.oracles import BudgetedOracle, FittedOracle, HumanOracle
from nlhf_zoo.oracles.human.votes import answered, preference
from nlhf_zoo.oracles.human.waiting import about, said
from nlhf_zoo.oracles.ledger import spent
from nlhf_zoo.oracles.text_oracle import Question
from nlhf_zoo.people import Pair, Progress, Tally, VoteStore

ASKED = [Question(user("q"), f"a{n}", f"b{n}") for n in range(6)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "people.sqlite"


def counted(oracle):
    return {
        name: count for name, count in spent(oracle).items() if name != "microseconds" and count
    }


def votes_of(path):
    store = VoteStore(path)
    found = sorted((vote.question, vote.person) for vote in store.votes() if vote.undone is None)
    store.end()
    return found


# ---- what votes say ----


def test_a_vote_for_no_difference_is_half_a_vote_for_each():
    assert preference(Tally(first=3, second=1, neither=4, skipped=9, wanted=8)) == 5 / 8
    assert math.isnan(preference(Tally(0, 0, 0, 2, 1)))


def test_a_pair_that_somebody_skipped_is_the_others():
    voted, skipped, fresh = Tally(1, 0, 0, 0, 1), Tally(0, 0, 0, 1, 1), Tally(0, 0, 0, 0, 1)
    assert answered([voted, skipped, fresh], 1, 1) == [True, False, False]
    assert answered([skipped], 1, people=2) == [False]  # the other one has not seen it
    assert answered([skipped, voted], 1, people=1) == [True, True]
    assert answered([Tally(1, 0, 0, 1, 3)], 2, people=2) == [True]  # nobody is left to ask
    assert answered([Tally(1, 0, 0, 0, 2)], 2, people=1) == [False]  # more may come


def test_the_share_of_votes_is_the_preference_in_either_order(path):
    """Of four people one sees no difference, and one chooses what three do not."""
    says = {"ada": "first", "bo": "first", "cy": "neither", "di": "second"}

    def choose(person, pair):
        said = says[person]
        turned = {"first": "second", "second": "first"}
        return said if pair.first < pair.second else turned.get(said, said)

    oracle = HumanOracle(path, votes=4)
    store = VoteStore(path)
    store.put([Pair(user("q"), "b0", "a0")])  # as somebody else has put it
    store.end()
    with Voters(path, choose, [*says]):
        assert dict(oracle.answers(ASKED)) == dict.fromkeys(range(6), 2.5 / 4)
        turned = [question.swapped() for question in ASKED]
        assert dict(oracle.answers(turned)) == dict.fromkeys(range(6), 1 - 2.5 / 4)
    assert len(votes_of(path)) == 24


def test_a_pair_that_everyone_skipped_is_invalid(path):
    oracle = HumanOracle(path)
    with Voters(
        path, lambda person, pair: "skip" if "a1" in pair.first else "first", ["ada", "bo"]
    ):
        answer = oracle(prompts("q"), responses(["a1", "a2"]), responses(["b1"]))
    assert answer.valid.flatten().tolist() == [False, True]
    assert counted(oracle) == {"queries": 2, "invalid": 1}
    assert oracle.last_error == "pairs skipped by everyone: 1"


# ---- what is asked and counted ----


def test_nobody_is_asked_twice_and_a_new_run_counts_what_it_finds(path):
    with Voters(path, lambda *_: "first") as people:
        first = HumanOracle(path)
        assert len([*first.answers(ASKED[:4])]) == 4
        again = HumanOracle(path)
        assert len([*again.answers(ASKED)]) == 6
        assert len(people.seen) == 6
    assert counted(first) == {"queries": 4}
    assert counted(again) == {"queries": 2, "cache_hits": 4}


def test_both_orders_of_a_pair_are_one_question(path):
    oracle = HumanOracle(path)
    both = [*ASKED[:2], ASKED[0].swapped(), ASKED[1]]
    with Voters(path, lambda *_: "first") as people:
        answers = dict(oracle.answers(both))
        assert len(people.seen) == 2
    assert answers == {0: 1.0, 1: 1.0, 2: 0.0, 3: 1.0}
    assert counted(oracle) == {"queries": 2}


def test_what_was_put_by_a_run_that_was_killed_is_waited_for_and_not_counted_again(path):
    oracle = HumanOracle(path, timeout=0.01)
    with pytest.raises(OracleStoppedError):
        next(oracle.answers(ASKED))
    resumed = HumanOracle(path)
    with Voters(path, lambda *_: "second") as people:
        assert dict(resumed.answers(ASKED)) == dict.fromkeys(range(6), 0.0)
        assert len(people.seen) == 6
    assert counted(oracle) == {"queries": 6}
    assert counted(resumed) == {"cache_hits": 6}


def test_a_question_is_in_the_budget_before_it_is_put(path):
    oracle = HumanOracle(path)
    budget = BudgetedOracle(oracle, max_queries=3)
    had = {}
    with (
        Voters(path, lambda *_: "first") as people,
        pytest.raises(OracleStoppedError, match="spent"),
    ):
        had.update(oracle.answers(ASKED))
    assert had == dict.fromkeys(range(3), 1.0)
    assert len(people.seen) == 3
    assert budget.spent()["max_queries"] == 3


def test_processes_that_share_the_file_share_the_answers(path):
    """Each asks about pairs of its own, and about one of the other's."""
    found = {}

    def ask(name, questions):
        found[name] = dict(HumanOracle(path).answers(questions))

    threads = [
        threading.Thread(target=ask, args=("one", ASKED[:4])),
        threading.Thread(target=ask, args=("other", [one.swapped() for one in ASKED[3:]])),
    ]
    with Voters(
        path, lambda person, pair: "first" if "a" in pair.first else "second", "abc"
    ) as all_:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(all_.seen) == 6
    assert found == {"one": dict.fromkeys(range(4), 1.0), "other": dict.fromkeys(range(3), 0.0)}
    assert len(votes_of(path)) == 6


def test_a_model_of_the_votes_answers_the_rest(path):
    """People are asked until there are enough votes, and then about a share of what is new."""
    people = HumanOracle(path)
    oracle = FittedOracle(people, share=0.25, min_answers=4)
    more = [Question(user("q"), f"c{n}", f"d{n}") for n in range(8)]
    with Voters(path, lambda *_: "first") as voters:
        assert dict(oracle.answers(ASKED[:4])) == dict.fromkeys(range(4), 1.0)
        assert sorted(number for number, _ in oracle.answers(more)) == [*range(8)]
        assert len(voters.seen) == 6
    assert counted(oracle) == {"queries": 6, "modelled": 6}


# ---- asked ahead ----


def test_what_is_asked_ahead_is_counted_once_and_answered_later(path):
    oracle = HumanOracle(path, wait=False)
    assert oracle.asks_ahead
    assert not HumanOracle(path).asks_ahead
    texts = responses(["a1", "a2", "a1", "b1"])
    is_answered = oracle.ask_ahead(prompts("q"), texts, texts)
    assert not is_answered()
    assert counted(oracle) == {"queries": 3}
    with Voters(path, lambda *_: "neither") as people:
        assert (oracle(prompts("q"), texts, texts).preference == 0.5).all()
        assert is_answered()
        assert len(people.seen) == 3
    assert counted(oracle) == {"queries": 3}
    assert oracle.ask_ahead(prompts("q"), texts, texts)()
    assert counted(oracle) == {"queries": 3, "cache_hits": 3}


def test_a_budget_that_ends_ahead_says_so_when_the_answers_are_wanted(path):
    budget = BudgetedOracle(HumanOracle(path, wait=False), max_queries=2)
    texts = responses(["a1", "a2", "a3"])
    assert budget.asks_ahead
    is_answered = budget.ask_ahead(prompts("q"), texts, texts)
    with Voters(path, lambda *_: "first") as people:
        with pytest.raises(OracleStoppedError, match="the oracle's budget is spent"):
            budget(prompts("q"), texts, texts)
        assert len(people.seen) == 2
    assert is_answered()


# ---- waiting ----


def test_a_silence_that_is_too_long_ends_the_run(path):
    oracle = HumanOracle(path, timeout=0.05)
    sentence = refused("nobody has voted", lambda: [*oracle.answers(ASKED)])
    assert sentence == (
        "nobody has voted for 0.05 seconds, and 6 of 6 pairs are not answered: have people vote "
        f"by `nlhf ask {path}`, and go on from the checkpoint"
    )


def test_it_is_said_once_where_people_vote_and_how_far_they_are(path):
    oracle, text = HumanOracle(path), io.StringIO()
    with Voters(path, lambda *_: "first"), redirect_stderr(text):
        assert len([*oracle.answers(ASKED[:3])]) == 3
        assert len([*oracle.answers(ASKED[3:])]) == 3
    assert text.getvalue().count(f"People are asked: run `nlhf ask {path}`.") == 1
    assert "0 of 3 pairs" in text.getvalue()
    votes = {"ada": 5, "bo": 7, "cy": 1, "of the page alone": 0}
    assert said(Progress(40, 28, 12, 28, votes, 26.0)) == "3 people, about 4 minutes"
    assert said(Progress(40, 40, 0, 40, {}, None)) == ""
    assert said(Progress(2, 1, 1, 1, {"ada": 1}, 5.0)) == "1 person, less than a minute"
    assert [about(seconds) for seconds in (59, 61, 5000, 5400, 90_000)] == [
        "less than a minute", "about 1 minute", "about 83 minutes", "about 2 hours",
        "about 25 hours",
    ]  # fmt: skip


def test_a_file_that_fails_meanwhile_ends_the_run_with_its_checkpoint(path, monkeypatch):
    oracle = HumanOracle(path)
    store = VoteStore(path)
    monkeypatch.setattr(VoteStore, "put", lambda *_: store.tallies([5]))
    with pytest.raises(OracleStoppedError, match="has no question 5"):
        [*oracle.answers(ASKED)]
    store.end()


def test_outside_a_run_it_is_told_where_the_votes_are():
    refused("here are none: give its path", lambda: HumanOracle().fingerprint)
