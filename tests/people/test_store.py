"""The file of questions and votes: against a model of its rules in plain Python, and killed."""

import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import pytest

from nlhf_zoo.errors import UserError
from nlhf_zoo.people import Found, Pair, Tally, VoteStore
from nlhf_zoo.people.schema import APPLICATION, is_ours
from nlhf_zoo.people.turns import LEASE

PROMPT = [{"role": "user", "content": "Which?"}]


def pair(index, prompt=PROMPT):
    return Pair(prompt, f"first {index}", f"second {index}")


def pairs(number):
    return [pair(index) for index in range(number)]


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    store = VoteStore(tmp_path / "people.sqlite", clock=clock)
    yield store
    store.end()


def test_a_pair_has_one_number_in_either_order(store):
    there = Pair([{"role": "user", "content": "a"}], "b", "c")
    swapped = Pair([{"role": "user", "content": "a"}], "c", "b")
    other = Pair([{"role": "system", "content": "a"}], "b", "c")
    assert there.digest == swapped.digest != other.digest
    numbers = store.put([there, swapped, other])
    assert numbers[0] == numbers[1] != numbers[2]
    assert store.put([swapped]) == numbers[:1]
    assert store.next("Ann").pair == there  # the order it came in first


def test_a_question_is_found_by_its_pair_in_either_order(store, tmp_path):
    there, other = pair(1), pair(2)
    (number,) = store.put([there])
    swapped = Pair(PROMPT, there.second, there.first)
    assert store.find([there, other, swapped]) == [Found(number, True), None, Found(number, False)]
    assert store.progress().questions == 1  # and nothing is asked by it


def test_a_file_keeps_its_name_wherever_it_lies(store, tmp_path):
    assert VoteStore(store.path).name == store.name
    other = VoteStore(tmp_path / "other.sqlite")
    assert other.name != store.name
    other.end()


def test_a_file_that_is_made_meanwhile_is_one_of_ours(tmp_path):
    """Between any two statements another process may have made all of it."""
    path = tmp_path / "people.sqlite"

    class Slow(sqlite3.Connection):
        def execute(self, *given):
            found = super().execute(*given).fetchone()
            VoteStore(path).end()

            class Row:
                def fetchone(self):
                    return found

            return Row()

    connection = sqlite3.connect(path, factory=Slow)
    assert not is_ours(connection, path)  # as it was
    assert is_ours(connection, path)
    connection.close()


def test_what_is_wanted_is_raised_and_never_lowered(store):
    (number,) = store.put([pair(0)], votes=2)
    store.put([pair(0)], votes=1)
    assert store.tallies([number]) == [Tally(0, 0, 0, 0, wanted=2)]
    store.put([pair(0)], votes=3)
    assert store.tallies([number])[0].wanted == 3
    assert store.progress().missing == 3


def test_votes_are_counted_in_the_order_of_the_file(store):
    numbers = store.put(pairs(2), votes=3)
    store.vote("Ann", numbers[0], "first", 1.5)
    store.vote("Bob", numbers[0], "second")
    store.vote("Cy", numbers[0], "neither", 3.0)
    store.vote("Ann", numbers[1], "skip", 2.0)
    assert store.tallies(numbers) == [Tally(1, 1, 1, 0, 3), Tally(0, 0, 0, 1, 3)]
    progress = store.progress()
    assert (progress.questions, progress.open, progress.answered) == (2, 1, 1)
    assert progress.missing == 3
    assert progress.votes == {"Ann": 1, "Bob": 1, "Cy": 1}
    assert progress.seconds == 2.0


def test_a_vote_that_comes_twice_counts_once_and_another_one_is_refused(store):
    (number,) = store.put([pair(0)])
    store.vote("Ann", number, "first", 1.0)
    version = store.version()
    store.vote(" Ann ", number, "first", 9.0)
    assert store.version() == version
    with pytest.raises(UserError, match="undo that vote first"):
        store.vote("Ann", number, "second", 1.0)
    assert len([*store.votes()]) == 1


def test_an_undone_vote_stays_in_the_file_and_its_question_comes_back(store):
    numbers = store.put(pairs(3))
    assert [_answer(store, "Ann"), _answer(store, "Ann")] == numbers[:2]
    assert store.undo("Ann", number=numbers[0]) is None  # is not the last one
    assert store.undo("Ann", number=numbers[1]) == numbers[1]
    assert store.undo("Ann", number=numbers[1]) is None  # the request was sent twice
    assert store.tallies(numbers)[1].votes == 0
    assert store.last("Ann") == numbers[0]
    assert store.next("Ann").number == numbers[1]
    store.vote("Ann", numbers[1], "second")
    said = [(vote.question, vote.choice, vote.undone is not None) for vote in store.votes()]
    assert said == [
        (numbers[0], "first", False),
        (numbers[1], "first", True),
        (numbers[1], "second", False),
    ]


def test_what_was_undone_comes_back_where_it_was_closed_meanwhile(store):
    numbers = store.put(pairs(2))
    _answer(store, "Ann")
    store.close(numbers)
    store.undo("Ann")
    assert store.next("Ann").number == numbers[0]
    assert store.next("Bob") is None


def test_two_people_are_not_shown_a_pair_of_which_one_vote_is_wanted(store, clock):
    numbers = store.put(pairs(2))
    assert store.next("Ann").number == numbers[0]
    assert store.next("Ann").number == numbers[0]  # as after a page was loaded anew
    assert store.next("Ann", besides=[numbers[0]]).number == numbers[1]
    assert store.next("Bob") is None
    clock.now += LEASE + 1  # Ann has gone
    assert store.next("Bob").number == numbers[0]
    store.vote("Ann", numbers[0], "first")  # and has come back: no vote is lost
    store.vote("Bob", numbers[0], "second")
    assert store.tallies(numbers)[0] == Tally(1, 1, 0, 0, wanted=1)


def test_seats_are_kept_and_fall_to_both_sides(store):
    store.put(pairs(1), votes=400)
    seats = [store.next(f"person {index}").mirrored for index in range(400)]
    again = [store.next(f"person {index}").mirrored for index in range(400)]
    assert seats == again
    # Of a fair coin, fewer than 150 or more than 250 of 400 have a probability below 1e-6.
    assert 150 < sum(seats) < 250
    shown = store.next("person 0")
    assert shown.seats == (("second 0", "first 0") if seats[0] else ("first 0", "second 0"))


def test_closed_questions_are_shown_again_when_they_are_opened_or_put(store):
    numbers = store.put(pairs(2))
    store.close(numbers)
    assert store.next("Ann") is None
    assert store.progress().open == store.progress().missing == 0
    store.open(numbers[:1])
    assert store.next("Ann").number == numbers[0]
    assert store.put([pair(1)]) == numbers[1:]
    assert store.next("Ann", besides=numbers[:1]).number == numbers[1]


@dataclass
class Model:
    """The rules, by looking through everything."""

    asked: dict = field(default_factory=dict)  # number: [wanted, priority, is open]
    said: dict = field(default_factory=dict)  # (number, person): choice

    def votes(self, number):
        of_it = [said for (one, _), said in self.said.items() if one == number]
        return sum(said != "skip" for said in of_it)

    def is_shown(self, number, person):
        wanted, _, is_open = self.asked[number]
        is_wanted = is_open and self.votes(number) < wanted
        return is_wanted and (number, person) not in self.said

    def next(self, person):
        shown = [number for number in self.asked if self.is_shown(number, person)]
        return min(shown, key=lambda number: (-self.asked[number][1], number), default=None)


@pytest.mark.parametrize("seed", range(4))
def test_the_next_question_is_the_one_that_looking_through_all_finds(store, clock, seed):
    draw = random.Random(seed)
    model, people = Model(), ["Ann", "Bob", "Cy"]
    given = {person: [] for person in people}
    held = {}
    for _ in range(400):
        clock.now += LEASE + 1  # no lease holds
        person = draw.choice(people)
        match draw.choices(["ask", "put", "close", "open", "undo"], [10, 3, 1, 1, 2])[0]:
            case "put":
                index, votes, priority = draw.randrange(60), draw.randint(1, 3), draw.randint(0, 3)
                (number,) = store.put([pair(index)], votes, priority)
                before = model.asked.get(number, [0, -math.inf, True])
                model.asked[number] = [max(before[0], votes), max(before[1], priority), True]
            case "close" | "open" as what if model.asked:
                number = draw.choice([*model.asked])
                getattr(store, what)([number])
                model.asked[number][2] = what == "open"
            case "undo" if given[person]:
                number, choice = given[person].pop(), draw.choice(["first", "skip"])
                assert store.undo(person) == number
                del model.said[number, person]
                assert store.next(person).number == number  # at once, and said anew
                store.vote(person, number, choice)
                model.said[number, person] = choice
                given[person].append(number)
            case "ask":
                shown = store.next(person)
                # What was shown and not answered comes first.
                before = held.pop(person, None)
                is_held = before is not None and model.is_shown(before, person)
                expected = before if is_held else model.next(person)
                assert (shown and shown.number) == expected
                choice = draw.choice(["first", "second", "neither", "skip", None])
                if choice is None or expected is None:
                    held[person] = expected
                else:
                    store.vote(person, expected, choice)
                    model.said[expected, person] = choice
                    given[person].append(expected)
        numbers = [*model.asked]
        assert [tally.votes for tally in store.tallies(numbers)] == [*map(model.votes, numbers)]
        progress = store.progress()
        missing = {
            number: wanted - model.votes(number)
            for number, (wanted, _, is_open) in model.asked.items()
            if is_open and model.votes(number) < wanted
        }
        assert (progress.open, progress.missing) == (len(missing), sum(missing.values()))


def test_a_higher_priority_is_shown_earlier_and_of_equal_ones_the_older(store):
    numbers = store.put(pairs(4), priority=[0.0, 2.0, 1.0, 2.0])
    order = [numbers[1], numbers[3], numbers[2], numbers[0]]
    assert _answer(store, "Ann") == order[0]
    late = store.put([pair(9)], priority=5.0)  # before where Ann is
    assert [_answer(store, "Ann") for _ in range(4)] == [*late, *order[1:]]


def test_the_next_question_is_found_without_looking_at_those_that_were_answered(store):
    """Steps of SQLite's machine, which do not depend on the computer's speed."""
    store.put(pairs(1500), votes=2)

    def steps(person):
        counted = [0]
        with store.transaction() as db:
            db.set_progress_handler(lambda: counted.__setitem__(0, counted[0] + 1), 1)
            _answer(store, person)
            store.progress()
            db.set_progress_handler(None, 1)
        return counted[0]

    first = [steps("Ann") for _ in range(150)]
    for _ in range(1200):
        _answer(store, "Ann")
    last = [steps("Ann") for _ in range(100)]
    assert max(last) < 1.5 * max(first)


def test_several_threads_and_stores_at_once_lose_and_repeat_nothing(store):
    numbers = store.put(pairs(30), votes=2)
    wrong = []

    def answers(name):
        own = VoteStore(store.path)
        while shown := own.next(name):
            own.vote(name, shown.number, "first", 0.0)
            if wrong:
                break
        own.end()

    threads = [threading.Thread(target=answers, args=[name]) for name in ("Ann", "Bob", "Cy", "Di")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [tally.first for tally in store.tallies(numbers)] == [2] * 30
    assert len({(vote.question, vote.person) for vote in store.votes()}) == 60


_VOTER = """
import sys
from pathlib import Path
from nlhf_zoo.people import VoteStore
store = VoteStore(Path(sys.argv[1]))
while shown := store.next("Ann"):
    store.vote("Ann", shown.number, "first", 1.0)
    print(shown.number, flush=True)
assert not {"torch", "numpy"} & sys.modules.keys()
"""


def test_a_process_that_is_killed_has_kept_every_vote_it_has_told_of(store):
    numbers = store.put(pairs(5000))
    command = [sys.executable, "-c", _VOTER, str(store.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as voter:
        told = [int(voter.stdout.readline()) for _ in range(25)]
        voter.send_signal(signal.SIGKILL)
        told += map(int, filter(str.strip, voter.stdout.read().splitlines()[:-1]))
    kept = [vote.question for vote in store.votes()]
    assert kept[: len(told)] == told == numbers[: len(told)]
    assert store.progress().votes == {"Ann": len(kept)}
    shown = store.next("Ann")  # None where the kill came late
    assert ([shown.number] if shown else []) == numbers[len(kept) : len(kept) + 1]


def test_a_store_follows_its_process_into_a_fork(store):
    numbers = store.put(pairs(2))
    child = os.fork()
    if child == 0:
        store.vote("Ann", numbers[0], "first")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert store.tallies(numbers)[0].first == 1


def test_the_version_grows_with_votes_of_others_and_with_nothing_else(store):
    numbers = store.put(pairs(2))
    other = VoteStore(store.path)
    before = store.version()
    other.next("Ann")
    other.put(pairs(3))
    assert store.version() == before
    other.vote("Ann", numbers[0], "first")
    assert store.version() > before
    before = store.version()
    other.undo("Ann")
    assert store.version() > before
    other.end()


def test_what_fails_within_a_transaction_leaves_nothing_of_it(store):
    numbers = store.put(pairs(2))

    def both():
        with store.transaction():
            store.vote("Ann", numbers[0], "first")
            store.vote("Ann", numbers[0], "second")

    with pytest.raises(UserError):
        both()
    assert [*store.votes()] == []
    store.vote("Ann", numbers[0], "second")


def test_questions_are_read_back_as_they_were(store):
    texts = Pair(
        [{"role": "system", "content": "\x00 ﷺ"}, {"role": "user", "content": "\u202e<b>\r\n"}],
        "x" * 100_000,
        "\ud7ff\U0010ffff",
    )
    store.put([texts])
    ((number, read, tally),) = store.questions()
    assert (number, read, tally) == (1, texts, Tally(0, 0, 0, 0, 1))
    store.checkpoint()
    alone = sqlite3.connect(f"file:{store.path}?immutable=1", uri=True)  # without its log
    assert alone.execute("SELECT count(*) FROM questions").fetchone() == (1,)
    alone.close()


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (lambda store: store.put([Pair(PROMPT, "a", "a")]), "nothing to choose"),
        (lambda store: store.put([pair(1)], votes=0), "from 1 to"),
        (lambda store: store.put([pair(1)], priority=math.nan), "a priority"),
        (lambda store: store.put([pair(1)], priority=[1.0, 2.0]), "2 priorities for 1 pairs"),
        (lambda store: store.vote("Ann", 7, "first"), "no question 7"),
        (lambda store: store.tallies([7]), "no question 7"),
        (lambda store: store.vote("Ann", 1, "third"), "is no choice"),
        (lambda store: store.vote("Ann", 1, "first", math.inf), "takes no"),
        (lambda store: store.next("  "), "no name of a person"),
        (lambda store: store.next("a\x1b[2J"), "no name of a person"),
    ],
)
def test_what_makes_no_sense_is_refused(store, said, refused):
    with pytest.raises(UserError, match=refused):
        said(store)
    assert store.progress().questions == 0


def test_files_that_are_no_files_of_votes_are_refused(tmp_path):
    other, text, empty = tmp_path / "other.db", tmp_path / "text", tmp_path / "empty"
    with sqlite3.connect(other) as made:
        made.execute("CREATE TABLE questions (number)")
    made.close()
    text.write_text("no SQLite, and long enough for SQLite to see it" * 40)
    empty.touch()
    newer = tmp_path / "newer"
    VoteStore(newer).end()
    with sqlite3.connect(newer) as made:
        made.execute("PRAGMA user_version = 99")
    made.close()
    for path, must_exist, refused in [
        (other, False, "something else"),
        (text, False, "not a database"),
        (newer, False, "version 99"),
        (empty, True, "it is empty"),
        (tmp_path / "none", True, "there is no file"),
        (tmp_path / "no folder" / "a", False, "there is no folder"),
    ]:
        with pytest.raises(UserError, match=refused):
            VoteStore(path, must_exist)
    assert text.read_text().startswith("no SQLite")
    VoteStore(empty).end()  # of a process that was killed when it made it
    with sqlite3.connect(empty) as made:
        assert made.execute("PRAGMA application_id").fetchone() == (APPLICATION,)
    made.close()


def _answer(store, person):
    """Vote for the first response of what is shown; its number."""
    number = store.next(person).number
    store.vote(person, number, "first", 1.0)
    return number
