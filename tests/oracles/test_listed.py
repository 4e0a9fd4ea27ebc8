"""Table games of oracles that read texts."""

# ruff: noqa: E501  # tables of one row a line

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from judges import FairJudge, Judge, beats, opinion
from rows import write as write_rows
from zoo import fit

from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.cli.main import main
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.oracles import BernoulliLabels, CachedOracle, ListedResponses, OrderSwap, RuleOracle
from nlhf_zoo.oracles.rules import shorter_wins
from nlhf_zoo.policies import TabularPolicy
from nlhf_zoo.records import Prompts, Responses

CHAT = [{"role": "system", "content": "be"}, {"role": "user", "content": "x", "id": 7}]
ROWS = [
    {"prompt": "x", "responses": ["a", "b", "c", "d"], "source": "not read"},
    {"prompt": "y", "responses": ["b", "a"], "names": ["B", "A"]},
    {"prompt": "z", "responses": ["a", "e", "a ä\u2028b"]},
]


@pytest.fixture
def write(tmp_path: Path):
    return lambda *rows, name="listed.jsonl": Path(write_rows(tmp_path / name, *rows))


def by_hand(say, rows=ROWS, size=4) -> torch.Tensor:
    table = torch.full((len(rows), size, size), 0.5, dtype=torch.float64)
    for number, row in enumerate(rows):
        for i, j in itertools.permutations(range(len(row["responses"])), 2):
            table[number, i, j] = say(row["prompt"], row["responses"][i], row["responses"][j])
    return table


def test_all_pairs_are_asked_about_once_when_the_table_is_needed(write):
    judge = FairJudge()
    oracle = ListedResponses(judge, write(*ROWS))
    assert oracle.answers_table
    assert oracle.support.tolist() == [[True] * 4, [True] * 2 + [False] * 2, [True] * 3 + [False]]
    assert oracle.action_names == [["a", "b", "c", "d"], ["B", "A"], ["a", "e", "a ä\u2028b"]]
    assert oracle.prompts.text == ["x", "y", "z"]
    assert oracle.prompts.ids.tolist() == [0, 1, 2]
    game = OnlineGame(TabularPolicy(), oracle, NashMP())  # refuses what does not fit
    assert judge.asked == []
    table = oracle.table
    assert len(judge.asked) == judge.ledger["queries"] == 6 + 1 + 3
    assert judge.ledger["invalid"] == 0

    def say(prompt, a, b):
        return opinion(prompt, a, b) if a < b else 1 - opinion(prompt, b, a)

    assert torch.equal(table, by_hand(say))
    assert oracle.table.data_ptr() == table.data_ptr()
    everyone = game.policy.enumerate(oracle.prompts)
    torch.testing.assert_close(oracle(oracle.prompts, everyone, everyone).preference, table)
    product, valid = oracle.expected(oracle.prompts, everyone, everyone)
    torch.testing.assert_close(product, (table @ everyone.weight.to(table)[:, :, None])[:, :, 0])
    assert valid.all()
    assert len(judge.asked) == 10
    assert oracle.state_dict() == {}


def test_many_prompts_are_asked_about_in_parts(write):
    rows = [{"prompt": f"{n}", "responses": [f"r{k}" for k in range(2 + n % 9)]} for n in range(60)]
    judge = Judge()
    oracle = ListedResponses(OrderSwap(judge), write(*rows), dtype="float32")

    def say(prompt, a, b):
        return (opinion(prompt, a, b) + 1 - opinion(prompt, b, a)) / 2

    torch.testing.assert_close(oracle.table, by_hand(say, rows, 10).float())
    pairs = sum(len(row["responses"]) * (len(row["responses"]) - 1) // 2 for row in rows)
    assert (judge.ledger["queries"], judge.ledger["swapped"]) == (pairs, pairs)
    assert pairs > 3 * 256


@pytest.mark.parametrize("chat_first", [True, False])
def test_among_conversations_a_text_is_one_message_of_the_users(write, chat_first):
    prompts = [CHAT, "x"] if chat_first else ["x", CHAT]
    judge = FairJudge()
    oracle = ListedResponses(
        judge, write(*({"prompt": p, "responses": ["a", "b"]} for p in prompts))
    )
    plain = [{"role": "user", "content": "x"}]
    said = [[{"role": "system", "content": "be"}, *plain], plain][:: 1 if chat_first else -1]
    assert oracle.prompts.text == ["x", "x"]
    assert oracle.prompts.conversations == said
    assert oracle.table.shape == (2, 2, 2)
    assert [one.conversation for one in judge.asked] == said[::-1]  # the last question first


@pytest.mark.parametrize("before", [0, 9])  # prompts, of which 9 fill the first part
def test_a_pair_without_an_answer_ends_the_run(write, before):
    others = [{"prompt": f"{n}", "responses": [f"r{k}" for k in range(10)]} for n in range(before)]
    oracle = ListedResponses(FairJudge(silent="e"), write(*others, *ROWS))
    with pytest.raises(UserError) as error:
        _ = oracle.table
    assert f"FairJudge has no answer to a pair of line {before + 3} of " in str(error.value)
    assert "listed.jsonl, 'a' and 'e': a table needs all of them" in str(error.value)


def test_what_was_paid_before_a_stop_is_in_the_cache(write, tmp_path):
    path = write(*ROWS)
    with pytest.raises(OracleStoppedError):
        _ = ListedResponses(CachedOracle(FairJudge(stops_after=4), tmp_path / "a.db"), path).table
    judge = FairJudge()
    _ = ListedResponses(CachedOracle(judge, tmp_path / "a.db"), path).table
    assert len(judge.asked) == 10 - 4


def test_a_language_model_must_write_what_is_listed(write):
    rows = [{"prompt": "x", "responses": ["a", "b"], "names": ["A", "B"]}]
    oracle = ListedResponses(FairJudge(), write(*rows))
    tokens = torch.tensor([[[0, 5], [1, 5]]])
    weight = torch.full((1, 2), 0.5)

    def written(*texts, enumerated=True):
        mask = torch.ones_like(tokens, dtype=torch.bool)
        return Responses(tokens, mask, weight, enumerated, text=[texts])

    prompt = Prompts(torch.tensor([0]), text=["x"])
    right = written("a", "b")
    assert oracle(prompt, right, right).preference[0, 0, 1] == opinion("x", "a", "b")
    for wrong in (written("A", "B"), written("b", "a"), written("a", "b", enumerated=False)):
        for pair in ((right, wrong), (wrong, right)):
            with pytest.raises(UserError, match="responses are not those listed in"):
                oracle(prompt, *pair)
            with pytest.raises(UserError, match="play them with TabularPolicy, or put FairJudge"):
                oracle.expected(prompt, *pair)


def test_play_in_closed_form_ends_where_solve_does(write, tmp_path, capsys):
    names = ["rock", "paper", "scissors", "well"]
    rows = [{"prompt": "play", "responses": names}, {"prompt": "again", "responses": names[::-1]}]
    oracle = ListedResponses(RuleOracle(beats), write(*rows))
    game = OnlineGame(TabularPolicy(), oracle, NashMP(), beta=0.1)
    fit(game, 2000)
    np.save(tmp_path / "P.npy", by_hand(beats, rows).numpy())
    output = str(tmp_path / "s.npz")
    main(["solve", "--matrix", str(tmp_path / "P.npy"), "--beta", "0.1", "--output", output])
    with np.load(output) as solution:
        nash = torch.from_numpy(solution["nash_log_policy"])
    torch.testing.assert_close(game.log_policy(), nash, atol=1e-9, rtol=0)
    assert nash[0].exp().max() < 0.9, "the equilibrium is mixed"
    capsys.readouterr()


def test_labels_of_it_are_no_table(write):
    oracle = BernoulliLabels(ListedResponses(FairJudge(), write(*ROWS)))
    assert not oracle.answers_table
    assert oracle.table.shape == (3, 4, 4)


# ---- refusals ------------------------------------------------------------------------------------

GOOD = '{"prompt": "x", "responses": ["a", "b"]}'
# What every reader of such lines refuses is in tests/data.
LINES = {
    "no JSON": ([GOOD, "hello"], "line 2 of .*l.jsonl is not JSON: Expecting value"),
    "no object": (['["a", "b"]'], r'line 1 .* not an object such as .*"responses"'),
    "no prompt": (['{"responses": ["a", "b"]}'], "line 1 of .* has no prompt: write"),
    "no responses": ([GOOD, '{"prompt": "y"}'], "line 2 of .* has no responses: write"),
    "prompt of the assistant": (
        ['{"prompt": [{"role": "assistant", "content": "a"}], "responses": ["a", "b"]}'],
        "ends with a message of the assistant's, which would be the answer: leave it out",
    ),
    "prompt again": ([GOOD, GOOD], "line 2 of .* has the prompt of line 1 again"),
    "prompt again, as a message": (
        [GOOD, '{"prompt": [{"role": "user", "content": "x"}], "responses": ["a", "b"]}'],
        "line 2 of .* has the prompt of line 1 again",
    ),
    "responses text": (['{"prompt": "x", "responses": "a"}'], "has text as responses: write a list"),
    "response a number": (['{"prompt": "x", "responses": ["a", 1]}'], "has a number among its resp"),
    "response empty": (['{"prompt": "x", "responses": ["a", ""]}'], "has an empty response"),
    "response twice": (['{"prompt": "x", "responses": ["a", "a"]}'], "has the response 'a' twice"),
    "one response": (['{"prompt": "x", "responses": ["a"]}'], "has fewer than two responses"),
    "names of others": ([GOOD[:-1] + ', "names": ["A"]}'], "has 1 names for 2 responses"),
    "names twice": ([GOOD[:-1] + ', "names": ["A", "A"]}'], "has the name 'A' twice"),
    "nothing": ([], "l.jsonl has no lines: there is no prompt to play"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LINES)
def test_lines_that_cannot_be_used(kind: str, tmp_path: Path):
    lines, sentence = LINES[kind]
    path = write_rows(tmp_path / "l.jsonl", *lines)
    with pytest.raises(UserError, match=sentence) as error:
        ListedResponses(RuleOracle(shorter_wins), path)
    assert "\n" not in str(error.value)
