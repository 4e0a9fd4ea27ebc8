"""Votes as they are kept: ballots of PrefLib, rankings, rows of an arena; who gave them."""

import json

import numpy as np
import pytest
import torch

from nlhf_zoo import VotesOracle
from nlhf_zoo.cli.ask.exporting import export
from nlhf_zoo.cli.solve.command import main
from nlhf_zoo.data.tables.votes import read_votes
from nlhf_zoo.errors import UserError
from nlhf_zoo.people import Pair, VoteStore

HEAD = "# FILE NAME: x\n# NUMBER ALTERNATIVES: 3\n# ALTERNATIVE NAME 1: Ann\n# ALTERNATIVE NAME 2: Bob, jr.\n# ALTERNATIVE NAME 3: Cid\n"  # fmt: skip  # noqa: E501
NAMES = ["Ann", "Bob, jr.", "Cid"]
COMPLETE = "2: 1,2,3\n1: 3,{1,2}\n"
# Wins and half the ties of the row over the column.
WINS = np.array([[0, 2.5, 2], [0.5, 0, 2], [1, 1, 0]])


def preference(tmp_path, text, suffix=".toc", **options):
    path = tmp_path / f"votes{suffix}"
    path.write_text(text)
    return read_votes(path, **options)


def shares(wins, prior):
    total = wins + wins.T + prior
    np.fill_diagonal(total, 1)
    P = (wins + prior / 2) / total
    np.fill_diagonal(P, 0.5)
    return P


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_ballots_compare_all_pairs_and_braces_are_ties(tmp_path, prior):
    read = preference(tmp_path, HEAD + COMPLETE, prior=prior)
    np.testing.assert_allclose(read.preference[0], shares(WINS, prior), atol=1e-15)
    assert read.names == [NAMES]
    assert read.prompts == [""]


@pytest.mark.parametrize(
    ("unranked", "wins"),
    [
        # Twice Bob alone, once Cid before Ann.
        ("below", [[0, 1, 1], [2, 0, 2], [2, 1, 0]]),
        ("uncompared", [[0, 0, 0], [0, 0, 0], [1, 0, 0]]),
    ],
)
def test_what_is_not_ranked_is_an_option(tmp_path, unranked, wins):
    text = HEAD + "2: 2\n1: 3,1\n"
    with pytest.raises(UserError, match=r"line 6 of votes .* ranks 1 of 3 .*set unranked to below"):
        preference(tmp_path, text, ".soi")
    read = preference(tmp_path, text, ".soi", unranked=unranked)
    np.testing.assert_allclose(read.preference[0], shares(np.array(wins, float), 1), atol=1e-15)


def test_solve_and_the_oracle_read_ballots(tmp_path, capsys):
    path = tmp_path / "votes.toi"
    path.write_text(HEAD + "1: 2\n")
    main(["--votes", str(path), "--unranked", "below", "--beta", "0"])
    assert "Bob, jr.        1.000000" in capsys.readouterr().out
    oracle = VotesOracle(path, unranked="below", prior=0.0)
    assert oracle.preference[0, 1].tolist() == [1, 0.5, 1]


def test_votes_of_an_arena(tmp_path, capsys):
    rows = ["model_a,model_b,winner,judge", "x,y,model_a,1", "x,y,model_b,1", "y,x,model_b,2"]
    rows += ["x,y,tie,1", "y,x,tie (bothbad),1"]
    text = "\n".join(rows)
    read = preference(tmp_path, text, ".csv", shape="arena", prior=0.0)
    assert read.names == [["x", "y"]]
    assert read.preference[0, 0, 1].item() == pytest.approx(3 / 5)
    with pytest.raises(UserError, match=r"unknown column 'model_a'.*; set the format to arena"):
        preference(tmp_path, text, ".csv", shape="votes")
    main(["--votes", str(tmp_path / "votes.csv")])
    assert "2 alternatives" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("3\n1,Ann\n", {}, "name no alternatives, as files of PrefLib do since 2022"),
        (HEAD, {}, "holds no votes"),
        (HEAD + "1: 1,2,4\n", {}, "line 6 .* ranks '4', which is no alternative"),
        (HEAD + "1: 1,{2,1},3\n", {}, "line 6 .* ranks alternative 1 twice"),
        (HEAD + "1: 1,{2,3\n", {}, "line 6 .* is no ballot such as"),
        (HEAD + "x: 1,2,3\n", {}, "line 6 .* is no ballot such as"),
        (HEAD + "# ALTERNATIVE NAME 4: Ann\n", {}, "the name 'Ann' for two alternatives"),
        (HEAD + COMPLETE, {"shape": "arena"}, "no table of format arena"),
        (HEAD + COMPLETE, {"unranked": "last"}, "unranked is one of"),
    ],
)
def test_bad_ballots_are_refused(tmp_path, text, options, sentence):
    with pytest.raises(UserError, match=sentence):
        preference(tmp_path, text, **options)


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("winner,loser\nx,y\n", {"unranked": "below"}, "unranked is for rankings and"),
        ("model_a,winner\nx,y\n", {"shape": "arena"}, "lacks the column 'model_b', as those"),
        ("model_a,model_b,winner\nx,y,x\n", {"shape": "arena"}, "line 2 .* the winner 'x': write"),
        ("winner,loser\nx,y\n", {"shape": "json"}, "the format of votes is one of"),
    ],
)
def test_bad_rows_are_refused(tmp_path, text, options, sentence):
    with pytest.raises(UserError, match=sentence):
        preference(tmp_path, text, ".csv", **options)


# Two voters rank A above B above C, one C above A and B, which are level; WINS, with other names.
RANKINGS = {
    "ranking.csv": "ranking,count\nA > B > C,2\nC > A = B,1\n",
    "voters.csv": "voter,ranking\nv,A>B>C\nw,A > B > C\nx,C > A=B\n",
    "ranking.json": json.dumps(
        [{"ranking": ["A", "B", "C"], "count": 2}, {"ranking": ["C", ["A", "B"]], "count": None}]
    ),
}


@pytest.mark.parametrize("name", RANKINGS)
def test_rankings(tmp_path, name):
    read = preference(tmp_path, RANKINGS[name], name, prior=0.0)
    np.testing.assert_allclose(read.preference[0], shares(WINS, 0), atol=1e-15)
    assert read.names == [["A", "B", "C"]]
    assert read.unit == "ballots"
    assert sorted(read.voters[0].count.tolist()) == [1, 2]


def test_ranks_in_columns_by_prompt_and_what_they_leave_out(tmp_path):
    text = "prompt,rank1,rank2,rank3\np,A,B,\np,C,A,\nq,B,D,\n"
    with pytest.raises(UserError, match=r"line 2 of votes .* ranks 2 of 3 .*set unranked to below"):
        preference(tmp_path, text, ".csv")
    below = preference(tmp_path, text, ".csv", unranked="below")
    # A, B, C: the first puts C last, the second B.
    wins = np.array([[0, 2, 1], [0, 0, 1], [1, 1, 0]], float)
    np.testing.assert_allclose(below.preference[0], shares(wins, 1), atol=1e-15)
    assert below.names == [["A", "B", "C"], ["B", "D"]]
    assert below.prompts == ["p", "q"]
    other = preference(tmp_path, text, ".csv", unranked="uncompared")
    wins = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0]], float)
    np.testing.assert_allclose(other.preference[0], shares(wins, 1), atol=1e-15)
    oracle = VotesOracle(tmp_path / "votes.csv", unranked="below")
    np.testing.assert_array_equal(oracle.preference, below.preference)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_rows_of_json(tmp_path, suffix):
    """Of an arena, with what its exports hold besides; and ours."""
    rows = [
        {"model_a": "x", "model_b": "y", "winner": w, "judge": j, "turn": 1, "text": [{"a": 1}]}
        for w, j in [("model_a", "u1"), ("model_b", ["gpt-4", "pair"]), ("both_bad", "u1")]
    ]
    lines = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    read = preference(tmp_path, lines, suffix, prior=0.0)
    assert read.preference[0, 0, 1] == 0.5
    assert read.unit == "voters"
    assert len(read.voters[0].count) == 2
    ours = [{"winner": "x", "loser": "y", "count": 3, "tie": False, "prompt": None}]
    ours += [{"winner": "x", "loser": "y", "tie": True}]
    lines = json.dumps(ours) if suffix == ".json" else "\n".join(map(json.dumps, ours))
    read = preference(tmp_path, lines, suffix, prior=0.0)
    assert read.preference[0, 0, 1].item() == pytest.approx(3.5 / 4)
    assert read.unit == "votes"


@pytest.mark.parametrize(
    ("text", "suffix", "resampled"),
    [
        # Times that each kind of voter counts; the kinds are in the order of the file.
        (HEAD + "2: 1,2,3\n1: 3,{1,2}\n", ".toc", [[0, 3, 3], [0, 0, 3], [0, 0, 0]]),
        ("winner,loser,count\nA,B,2\nC,A,1\nC,B,1\n", ".csv", [[0, 3, 0], [0, 0, 0], [0, 0, 0]]),
        (
            "winner,loser,tie,voter,count\nA,B,0,v,2\nA,C,1,w,1\nC,B,0,v,1\n",
            ".csv",
            [[0, 6, 0], [0, 0, 0], [0, 3, 0]],
        ),
    ],
)
def test_votes_of_a_resample(tmp_path, text, suffix, resampled):
    read = preference(tmp_path, text, suffix)
    voters = read.voters[0]
    times = torch.zeros(2, len(voters.count), dtype=torch.float64)
    times[0, 0] = 3
    times[1] = voters.count
    drawn = read.resampled(0, times)
    np.testing.assert_allclose(drawn[0], shares(np.array(resampled, float), 1), atol=1e-15)
    np.testing.assert_allclose(drawn[1], read.preference[0], atol=1e-15)
    assert (
        voters.resampled(50, np.random.default_rng(0)).sum(1).tolist() == [voters.count.sum()] * 50
    )


def test_a_resample_without_a_pair_is_refused(tmp_path):
    read = preference(tmp_path, "winner,loser\nA,B\nB,C\nA,C\n", ".csv", prior=0.0)
    with pytest.raises(UserError, match=r"1 of 2 resamples of the votes have a pair that nobody"):
        read.resampled(0, torch.tensor([[1.0, 1, 1], [2, 1, 0]]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ranking,rank1\nA,B\n", "must have either the column 'ranking', or rank1"),
        ("rank1,rank3\nA,B\n", "lacks the column 'rank2'"),
        ("ranking,name\nA,B\n", "unknown column 'name': use ranking, prompt, count, voter"),
        ("ranking,voter,count\nA,v,2\n", "a ballot with a voter counts once"),
        ("ranking,voter\nA>B,v\nB>A,v\n", "line 3 .* is a second ballot of the voter 'v'"),
        ("ranking,count\nA>B>A,1\n", "line 2 .* ranks 'A' twice"),
        ("ranking,count\nA>>B,1\n", "line 2 .* ranks '': give a name"),
        ("rank1,rank2,rank3\nA,,B\n", "line 2 .* has no rank2 before its rank3: close the gap"),
        ("rank1,rank2\n,\n", "line 2 .* ranks no alternative"),
        ("winner,loser,voter\nA,B,\n", "line 2 .* has the voter '': give a name"),
        ('[{"ranking": ["A", 2]}]', "entry 1 .* has no ranking such as"),
        ('[{"winner": "A"}]', "entry 1 .* lacks the column 'loser'"),
        ('[{"winner": "A", "loser": ["B"]}]', "entry 1 .* has the loser .'B'.: give a name"),
        ("[]", "holds no votes"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        preference(tmp_path, text, ".json" if text.startswith("[") else ".csv")


def test_votes_that_people_gave_on_a_page(tmp_path):
    """As `nlhf ask --export` writes them: prompts are groups, responses the alternatives."""
    path = tmp_path / "people.sqlite"
    turns = [
        {"role": "user", "content": c} if k % 2 == 0 else {"role": "assistant", "content": c}
        for k, c in enumerate(["hi", "ho", "so?"])
    ]
    store = VoteStore(path)
    one = Pair([{"role": "user", "content": "q"}], " yes\n", "no")
    other = Pair(turns, "a", "b")
    first, second = store.put([one, other], votes=3)
    for person, choice in (("Ann", "first"), ("Bob", "neither"), ("Cid", "second")):
        store.vote(person, first, choice)
    store.vote("Ann", second, "second")
    store.vote("Bob", second, "skip")
    store.vote("Cid", second, "first")
    store.undo("Cid")
    export(store, tmp_path / "votes.jsonl")
    store.end()
    read = read_votes(tmp_path / "votes.jsonl", prior=0.0)
    assert read.names == [[" yes\n", "no"], ["b", "a"]]
    assert read.prompts == ["q", json.dumps(turns)]
    assert read.preference[:, 0, 1].tolist() == [0.5, 1.0]
    assert read.unit == "voters"
    assert [len(voters.count) for voters in read.voters] == [3, 1]
