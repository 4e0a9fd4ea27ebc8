"""Votes in other shapes than winner and loser: ballots of PrefLib, rows of an arena."""

import numpy as np
import pytest

from nlhf_zoo import VotesOracle
from nlhf_zoo.cli.solve.command import main
from nlhf_zoo.data.tables.votes import read_votes
from nlhf_zoo.errors import UserError

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
        preference(tmp_path, text, ".csv")
    main(["--votes", str(tmp_path / "votes.csv"), "--format", "arena"])
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
        (HEAD + COMPLETE, {"shape": "arena"}, "no CSV of format arena"),
        (HEAD + COMPLETE, {"unranked": "last"}, "unranked is one of"),
    ],
)
def test_bad_ballots_are_refused(tmp_path, text, options, sentence):
    with pytest.raises(UserError, match=sentence):
        preference(tmp_path, text, **options)


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("winner,loser\nx,y\n", {"unranked": "below"}, "unranked is for ballots of PrefLib"),
        ("model_a,winner\nx,y\n", {"shape": "arena"}, "must have the column 'model_b' once"),
        ("model_a,model_b,winner\nx,y,x\n", {"shape": "arena"}, "line 2 .* the winner 'x': write"),
        ("winner,loser\nx,y\n", {"shape": "json"}, "the format of votes is one of"),
    ],
)
def test_bad_rows_are_refused(tmp_path, text, options, sentence):
    with pytest.raises(UserError, match=sentence):
        preference(tmp_path, text, ".csv", **options)
