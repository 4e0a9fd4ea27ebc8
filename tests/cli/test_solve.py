"""`nlhf solve`: the file that it writes, the table that it prints, and what it refuses."""

# ruff: noqa: E501  # tables of one row a line

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from unittest.mock import MagicMock, Mock, call

import numpy as np
import pytest
import torch
from algorithms import test_closed_form as by_hand
from paths import DATA, ROOT

from nlhf_zoo import __version__
from nlhf_zoo.cli.solve import command as solve
from nlhf_zoo.cli.solve import playing
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers import PreparedGame, Solution, worst_case

CURVES = ("exploitability", "kl_to_nash", "span")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the inputs of the tests."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(7)
    lower = np.tril(rng.uniform(size=(3, 6, 6)), -1)
    games = lower + np.triu(1 - lower.transpose(0, 2, 1), 1) + np.eye(6) / 2
    np.save("games.npy", games)
    np.save("game.npy", games[0])
    np.save("mu.npy", rng.dirichlet(np.ones(6), size=3))
    np.save("mu1.npy", np.load("mu.npy")[0])
    np.save("start.npy", rng.dirichlet(np.ones(6)))
    Path("rps.csv").write_text("rock,paper,scissors\n.5,.2,.9\n.8,.5,.3\n.1,.7,.5\n")
    Path("votes.csv").write_text("winner,loser,count\nA,B,3\nB,C,2\nC,A,2\nB,A,1\n")
    Path("ragged.csv").write_text(
        "prompt,winner,loser,count,tie\n"
        "first,A,B,3,0\nfirst,B,C,2,0\nfirst,C,A,2,0\nfirst,A,B,4,1\nfirst,B,A,1,0\n"
        "second,X,Y,5,0\nsecond,Y,X,1,0\n"
    )
    return tmp_path


def run(*args):
    """The arrays that `nlhf solve` writes."""
    solve.main([*map(str, args), "--output", "out.npz"])
    with np.load("out.npz") as file:
        return dict(file)


# -- a second implementation, in NumPy, of what is computed ----------------------------------------


def normalise(log_policy):
    return log_policy - np.logaddexp.reduce(log_policy, axis=-1, keepdims=True)


def exploitability(P, log_pi, log_mu, beta):
    """The textbook form; rounds at about 1e-16."""
    pi = np.exp(log_pi)
    best = beta * np.logaddexp.reduce(log_mu + P @ pi / beta)
    return best + beta * (pi * (log_pi - log_mu)).sum() - 0.5


def curves(P, rows, log_nash, log_mu, beta):
    difference = rows - log_nash
    return {
        "exploitability": np.array([exploitability(P, row, log_mu, beta) for row in rows]),
        "kl_to_nash": (np.exp(log_nash) * -difference).sum(-1),
        "span": np.ptp(difference, axis=-1),
    }


# The second implementation of an algorithm, its options, and its queries for an update.
METHODS = [
    (by_hand.nash_mp, {"eta": 0.2}, 2),
    (by_hand.nash_mp, {}, 2),
    (by_hand.egpo, {"eta": 0.7}, 2),
    (by_hand.sppo, {}, 1),
    (by_hand.online_ipo, {}, 1),
    (by_hand.nash_md, {"eta": 0.5}, 1),
    (by_hand.nash_md, {}, 1),
    (by_hand.nash_md, {"eta": 0.5, "mixture": 0.3}, 1),
]
NAMES = {formula: algorithm.__name__ for algorithm, formula in by_hand.BY_HAND.items()}


@pytest.mark.parametrize(("formula", "options", "queries"), METHODS)
def test_plays_the_published_iteration(folder, formula, options, queries):
    beta, updates = 0.15, 60
    given = [part for name, value in options.items() for part in (f"--algorithm.{name}", value)]
    P, mu, start = np.load("game.npy"), np.load("mu1.npy"), np.load("start.npy")
    out = run(
        *("--matrix", "game.npy", "--reference", "mu1.npy", "--start", "start.npy"),
        *("--beta", beta, "--updates", updates, "--algorithm", NAMES[formula], *given),
    )
    log_mu = np.log(mu)
    rows = [np.log(start), *islice(formula(P, log_mu, np.log(start), beta, **options), updates)]
    rows = normalise(np.array(rows))
    equation = normalise(log_mu + P @ np.exp(out["nash_log_policy"]) / beta)
    np.testing.assert_allclose(out["nash_log_policy"], equation, rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["log_policy"], rows[-1], rtol=0, atol=1e-11)
    expected = curves(P, rows, out["nash_log_policy"], log_mu, beta)
    for name in CURVES:
        assert out[name].shape == (updates + 1,)
        np.testing.assert_allclose(out[name], expected[name], rtol=0, atol=1e-11, err_msg=name)
    np.testing.assert_array_equal(out["queries"], queries * np.arange(updates + 1))


# -- the equilibrium -------------------------------------------------------------------------------


def test_without_an_algorithm_there_is_the_equilibrium_alone(folder):
    out = run("--matrix", "game.npy")
    keys = {
        "log_policy",
        "nash_log_policy",
        "nash_exploitability",
        *("nash_unique", "nash_dimension", "nash_least", "nash_most"),
        *("condorcet_winner", "smith_set", "num_cyclic_triples", "cyclic_triples"),
        "names",
        "version",
        "arguments",
    }
    assert set(out) == keys
    np.testing.assert_array_equal(out["log_policy"], out["nash_log_policy"])
    assert out["nash_exploitability"].shape == ()
    assert out["names"].tolist() == list("012345")


def test_beta_zero_is_the_linear_programme(folder):
    out = run("--matrix", "rps.csv", "--beta", 0)
    # P - 1/2 is a cycle of .4 (rock, scissors), .3 (paper, rock), .2 (scissors, paper): each is
    # played in proportion to the edge that it is not on.
    np.testing.assert_allclose(np.exp(out["log_policy"]), [2 / 9, 4 / 9, 3 / 9], atol=1e-9)
    assert out["names"].tolist() == ["rock", "paper", "scissors"]
    assert abs(out["nash_exploitability"]) < 1e-9


@pytest.mark.parametrize("year", [2010, 2012])
def test_real_votes_go_to_the_condorcet_winner(folder, year):
    votes = DATA / f"debian_leader_{year}.csv"
    exact = run("--votes", votes, "--beta", 0)
    winner = exact["names"][exact["log_policy"].argmax()]
    assert winner == "Stefano Zacchiroli"
    assert exact["log_policy"].max() == 0
    probability = [
        np.exp(run("--votes", votes, "--beta", beta)["log_policy"].max())
        for beta in (1, 0.1, 0.01, 0.001)
    ]
    assert (np.diff(probability) > 0).all()
    assert probability[-1] > 1 - 1e-9


@pytest.mark.parametrize("payoff", ["identity", "sign"])
def test_the_ballots_of_condorcet(folder, capsys, payoff):
    """A beats B by 33 : 27, B beats C by 42 : 18, and C beats A by 35 : 25 of 60."""
    ballots = ("--votes", ROOT / "configs/data/condorcet_1785.csv", "--beta", 0, "--prior", 0)
    out = run(*ballots, "--payoff", payoff, "--bootstrap", 100)
    # Each in proportion to the margin of the pair that it is not in; of majorities alike.
    expected = np.array([24, 10, 6]) / 40 if payoff == "identity" else np.full(3, 1 / 3)
    np.testing.assert_allclose(np.exp(out["log_policy"]), expected, rtol=0, atol=1e-9)
    assert out["num_voters"] == 60
    assert "1 cyclic triple: A > B > C > A" in capsys.readouterr().out


def test_prior_is_one_pseudo_tie(folder):
    given = run("--votes", "votes.csv", "--prior", 1)["log_policy"]
    np.testing.assert_array_equal(run("--votes", "votes.csv")["log_policy"], given)
    w = np.array([[0, 3, 0], [1, 0, 2], [2, 0, 0]])  # A, B, C
    np.save("P.npy", np.where(np.eye(3), 0.5, (w + 0.5) / (w + w.T + 1)))
    np.testing.assert_allclose(run("--matrix", "P.npy")["log_policy"], given, rtol=0, atol=1e-12)
    other = run("--votes", "votes.csv", "--prior", 5)["log_policy"]
    assert abs(other - given).max() > 1e-3


@pytest.mark.parametrize(
    ("payoff", "shares"), [("identity", [2 / 9, 4 / 9, 3 / 9]), ("sign", [1 / 3, 1 / 3, 1 / 3])]
)
def test_payoff_of_the_linear_programme(folder, payoff, shares):
    out = run("--matrix", "rps.csv", "--beta", 0, "--payoff", payoff)
    np.testing.assert_allclose(np.exp(out["log_policy"]), shares, atol=1e-9)
    assert json.loads(str(out["arguments"]))["payoff"] == payoff


@pytest.mark.parametrize("bound", [None, 2.0])
def test_log_odds_of_votes(folder, capsys, bound):
    """Against the fixed point in numpy; an algorithm goes there, with the step of such payoffs."""
    given = () if bound is None else ("--bound", bound)
    out = run(
        *("--votes", "votes.csv", "--prior", 0.1, "--payoff", "log_odds", *given, "--beta", 0.4),
        *("--algorithm", "NashMP", "--updates", 400),
    )
    w = np.array([[0, 3, 0], [1, 0, 2], [2, 0, 0]])  # A, B, C
    P = np.where(np.eye(3), 0.5, (w + 0.05) / (w + w.T + 0.1))
    payoff = np.clip(np.log(P / (1 - P)), -(bound or np.inf), bound or np.inf)
    fixed = normalise(payoff @ np.exp(out["nash_log_policy"]) / 0.4)
    np.testing.assert_allclose(out["nash_log_policy"], fixed, rtol=0, atol=1e-9)
    # The rate that is promised: 1 + 2 beta / c a round.
    largest = np.abs(payoff).max() if bound is None else bound
    rate = (1 + 0.4 / largest) ** -np.arange(401.0)
    seen = rate * out["kl_to_nash"][0] > 1e-13
    assert (out["kl_to_nash"] <= 1.0001 * rate * out["kl_to_nash"][0])[seen].all()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("beta = 0.4, payoff log_odds")
    assert lines[3].split() == ["alternative", "probability", "payoff", "NashMP"]


# -- several annotators ----------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, 0.2])
def test_for_the_worst_served_annotator(folder, capsys, beta):
    """Their files list the alternatives in other orders."""
    Path("second.csv").write_text("winner,loser,count\nC,B,5\nB,A,2\nA,C,1\n")
    out = run("--votes", "votes.csv", "--worst_case", "[second.csv]", "--beta", beta)
    text = capsys.readouterr().out
    one = np.array([[0, 3, 0], [1, 0, 2], [2, 0, 0]])  # A, B, C
    other = np.array([[0, 0, 1], [2, 0, 0], [0, 5, 0]])
    games = [np.where(np.eye(3), 0.5, (w + 0.5) / (w + w.T + 1)) for w in (one, other)]
    found = worst_case(torch.tensor(np.array(games))[:, None], torch.zeros(1, 3), beta)
    assert out["names"].tolist() == ["A", "B", "C"]
    assert out["annotators"].tolist() == ["votes.csv", "second.csv"]
    np.testing.assert_allclose(np.exp(out["log_policy"]), found.log_policy[0].exp(), atol=1e-9)
    np.testing.assert_allclose(out["annotator_weights"], found.weights[0], atol=1e-9)
    np.testing.assert_allclose(out["annotator_exploitability"], found.exploitability[0], atol=1e-9)
    assert out["value"] == pytest.approx(found.value.item(), abs=1e-9)
    assert text.startswith("For the worst served of votes.csv, second.csv: 3 alternatives, beta")
    assert f"second.csv: weight {out['annotator_weights'][1]:.3g}, exploitability" in text
    assert "by best responses of both sides" in text


# -- the file --------------------------------------------------------------------------------------


def test_several_games_are_each_as_if_alone(folder):
    algorithm = ("--algorithm", "NashMP", "--updates", 30, "--beta", 0.2)
    together = run("--matrix", "games.npy", "--reference", "mu.npy", *algorithm)
    assert together["log_policy"].shape == together["names"].shape == (3, 6)
    assert together["kl_to_nash"].shape == (31, 3)
    certificate = together["nash_exploitability"]
    assert certificate.shape == (3,)
    assert ((certificate >= 0) & (certificate < 1e-12)).all()
    assert together["queries"].shape == (31,)
    for i in range(3):
        np.save("one.npy", np.load("games.npy")[i])
        np.save("one_mu.npy", np.load("mu.npy")[i])
        alone = run("--matrix", "one.npy", "--reference", "one_mu.npy", *algorithm)
        for name in ("log_policy", "nash_log_policy"):
            np.testing.assert_allclose(together[name][i], alone[name], rtol=0, atol=1e-12)
        for name in CURVES:
            np.testing.assert_allclose(together[name][:, i], alone[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0, 0.1])
def test_prompts_may_have_different_alternatives(folder, beta):
    algorithm = ("--algorithm", "NashMP", "--updates", 30) if beta else ()
    out = run("--votes", "ragged.csv", "--beta", beta, *algorithm)
    assert out["names"].tolist() == [["A", "B", "C"], ["X", "Y", ""]]
    for name in ("log_policy", "nash_log_policy"):
        assert out[name][1, 2] == -np.inf
        np.testing.assert_allclose(np.exp(out[name]).sum(-1), 1, atol=1e-12)
    # The second prompt by itself: P(X > Y) = 5.5 / 7.
    np.save("pair.npy", [[0.5, 5.5 / 7], [1.5 / 7, 0.5]])
    alone = run("--matrix", "pair.npy", "--beta", beta, *algorithm)
    np.testing.assert_allclose(out["log_policy"][1, :2], alone["log_policy"], rtol=0, atol=1e-9)
    for name in CURVES if beta else ():
        assert np.isfinite(out[name]).all()
        np.testing.assert_allclose(out[name][:, 1], alone[name], rtol=0, atol=1e-12)


def test_linear_programme_knows_what_exists(folder, monkeypatch):
    """An absent alternative ties with everything: at beta = 0 it may be a solution."""
    solver = Mock(wraps=solve.unregularised_nash)
    monkeypatch.setattr(solve, "unregularised_nash", solver)
    run("--votes", "ragged.csv", "--beta", 0)
    (_, support, _), _ = solver.call_args
    assert support.tolist() == [[True, True, True], [True, True, False]]


def test_ragged_reference_and_start(folder):
    np.save("ragged.npy", [[0.2, 0.3, 0.5], [0.9, 0.1, 0.0]])
    out = run(
        *("--votes", "ragged.csv", "--reference", "ragged.npy", "--start", "ragged.npy"),
        *("--algorithm", "NashMP", "--updates", 0),
    )
    np.testing.assert_allclose(np.exp(out["log_policy"]), np.load("ragged.npy"), atol=1e-12)
    assert out["queries"].tolist() == [0]
    assert out["span"].shape == (1, 2)


def test_start_is_the_reference_unless_given(folder):
    common = ("--matrix", "game.npy", "--algorithm", "SPPO", "--updates", 0)
    np.testing.assert_allclose(np.exp(run(*common)["log_policy"]), 1 / 6, atol=1e-15)
    at_reference = run(*common, "--reference", "mu1.npy")["log_policy"]
    np.testing.assert_allclose(np.exp(at_reference), np.load("mu1.npy"), atol=1e-15)
    at_start = run(*common, "--reference", "mu1.npy", "--start", "start.npy")["log_policy"]
    np.testing.assert_allclose(np.exp(at_start), np.load("start.npy"), atol=1e-15)


def test_computes_in_float64_whatever_the_file_holds(folder):
    np.save("single.npy", np.load("game.npy").astype(np.float32))
    out = run("--matrix", "single.npy", "--algorithm", "NashMP", "--updates", 900)
    assert {out[name].dtype for name in (*CURVES, "log_policy")} == {np.dtype("float64")}
    assert out["kl_to_nash"][-1] < 1e-20  # float32 would stay at about 1e-12


def test_file_says_what_made_it(folder):
    out = run(
        "--matrix", "game.npy", "--algorithm", "NashMP", "--algorithm.eta", 0.2, "--beta", 0.3
    )
    arguments = json.loads(str(out["arguments"]))
    assert str(out["version"]) == __version__
    assert (arguments["matrix"], arguments["beta"], arguments["updates"]) == ("game.npy", 0.3, 500)
    assert arguments["algorithm"]["class_path"] == "nlhf_zoo.NashMP"
    assert arguments["algorithm"]["init_args"]["eta"] == 0.2


def test_an_adaptive_step(folder):
    """Each game asks for itself; the file says how often, a row an update."""
    adaptive = ("--algorithm", "NashMP", "--algorithm.eta", "adaptive", "--beta", 0.01)
    several = run("--matrix", "games.npy", *adaptive, "--updates", 400)
    alone = run("--matrix", "game.npy", *adaptive, "--updates", 400)
    assert several["queries"].shape == several["exploitability"].shape == (401, 3)
    assert alone["queries"].shape == alone["exploitability"].shape == (401,)
    for out in (several, alone):
        assert (out["queries"][:2].T == [0, 3]).all()
        assert set(np.diff(out["queries"][1:], axis=0).ravel()) == {1, 2}
        assert out["exploitability"][-1].max() < 1e-12


def test_algorithm_inside_an_algorithm(folder):
    out = run(
        *("--matrix", "rps.csv", "--algorithm", "MovingMagnet", "--algorithm.inner", "NashMP"),
        *("--algorithm.every", 50, "--updates", 4000),
    )
    # The outer loop leaves the regularised equilibrium for the unregularised one.
    np.testing.assert_allclose(np.exp(out["log_policy"]), [2 / 9, 4 / 9, 3 / 9], atol=1e-6)
    assert out["kl_to_nash"][-1] > 1e-3


@pytest.mark.parametrize(
    "algorithm",
    [
        "NashMP", "NashMD", "SPPO", "EGPO", "OptimisticMirrorDescent",
        "NashMP --algorithm.eta adaptive --beta 0.01",
    ],
)  # fmt: skip
def test_chunks_do_not_show(folder, monkeypatch, algorithm):
    arguments = ("--matrix", "games.npy", "--algorithm", *algorithm.split(), "--updates", 100)
    whole = run(*arguments)
    monkeypatch.setattr(playing, "_CHUNK_ROUNDS", 7)
    parts = run(*arguments)
    for name in (*CURVES, "log_policy", "queries"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=1e-12, err_msg=name)


def test_progress_counts_the_updates(folder, monkeypatch):
    bar = MagicMock()
    monkeypatch.setattr(playing, "tqdm", bar)
    monkeypatch.setattr(playing, "_CHUNK_ROUNDS", 40)
    run("--matrix", "game.npy", "--algorithm", "NashMP", "--updates", 100)
    update = bar.return_value.__enter__.return_value.update
    assert update.call_args_list == [call(40), call(40), call(20)]
    made = bar.call_args.kwargs
    assert (made["total"], made["delay"], made["file"]) == (100, 2, sys.stderr)


def test_memory_does_not_grow_with_the_updates(folder, monkeypatch):
    """However many updates: what is measured at once is bounded in numbers and in work."""
    sizes, measure = [], PreparedGame.measure

    def spy(prepared, log_policies):
        sizes.append(log_policies.numel())
        return measure(prepared, log_policies)

    monkeypatch.setattr(PreparedGame, "measure", spy)
    monkeypatch.setattr(playing, "_CHUNK_NUMBERS", 100)
    run("--matrix", "games.npy", "--algorithm", "NashMP", "--updates", 40)
    assert max(sizes) <= 100
    assert sum(sizes) == 41 * 18


def test_file_is_written_whole_or_not_at_all(folder, monkeypatch):
    before = run("--matrix", "game.npy")
    files = set(folder.iterdir())

    def full_disk(file, **_):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(UserError, match=r"out\.npz could not be written: No space left on device"):
        solve.main(["--matrix", "rps.csv", "--output", "out.npz"])
    assert set(folder.iterdir()) == files
    with np.load("out.npz") as file:
        np.testing.assert_array_equal(file["log_policy"], before["log_policy"])


# -- the table -------------------------------------------------------------------------------------


def test_table_of_the_equilibrium(folder, capsys):
    solve.main(["--matrix", "rps.csv", "--beta", "0"])
    out, err = capsys.readouterr()
    assert out.splitlines()[2:6] == [
        "alternative  probability     win rate",
        "paper           0.444444     0.500000",
        "scissors        0.333333     0.500000",
        "rock            0.222222     0.500000",
    ]
    assert out.splitlines()[6].startswith("equilibrium: exploitability ")
    assert err == ""


def test_table_of_an_algorithm(folder, capsys):
    out = run("--matrix", "rps.csv", "--algorithm", "NashMP", "--updates", 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "NashMP: 3 updates, 6 queries for each prompt"
    assert lines[3].split() == ["alternative", "probability", "win", "rate", "NashMP"]
    names = out["names"].tolist()
    P = np.array([[0.5, 0.2, 0.9], [0.8, 0.5, 0.3], [0.1, 0.7, 0.5]])
    rates = P @ np.exp(out["nash_log_policy"])
    for line in lines[4:7]:
        name, probability, rate, last = line.split()
        i = names.index(name)
        assert float(probability) == pytest.approx(np.exp(out["nash_log_policy"][i]), abs=1e-6)
        assert float(rate) == pytest.approx(rates[i], abs=1e-6)
        assert float(last) == pytest.approx(np.exp(out["log_policy"][i]), abs=1e-6)
    kl, span = out["kl_to_nash"][-1], out["span"][-1]
    assert lines[8] == (
        f"NashMP: exploitability {out['exploitability'][-1]:.3g}, "
        f"KL to the equilibrium {kl:.3g}, span {span:.3g}"
    )


def test_long_tables_say_what_they_leave_out(folder, capsys):
    np.save("large.npy", np.full((40, 40), 0.5))
    solve.main(["--matrix", "large.npy"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("0.025000     0.500000") for line in lines) == 30
    assert "10 more alternatives are not shown, of probability 0.25 together" in lines


def test_several_prompts_have_mean_and_maximum(folder, capsys):
    out = run("--votes", "ragged.csv", "--algorithm", "SPPO", "--updates", 5)
    text = capsys.readouterr().out
    assert "2 prompts of up to 3 alternatives" in text
    assert "\n\nfirst\nalternative" in text
    assert "\n\nsecond\nalternative" in text
    span = out["span"][-1]
    assert f"span {span.mean():.3g} and {span.max():.3g}" in text.splitlines()[-1]
    np.save("many.npy", np.full((25, 2, 2), 0.5))
    solve.main(["--matrix", "many.npy"])
    text = capsys.readouterr().out
    assert "game 19" in text
    assert "game 20" not in text
    assert "5 more prompts are not shown" in text


def test_names_stay_on_their_line(folder, capsys):
    name = "a name\twith \x1b[31m control " + 60 * "y"
    Path("odd.csv").write_text(f"winner,loser\n{name},short\n")
    solve.main(["--votes", "odd.csv"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    row = next(line for line in out.splitlines() if line.startswith("a name with [31m control"))
    assert row.split("  ")[0].endswith("yyy...")
    assert len(row.split("  ")[0]) == 60


def test_several_equilibria_are_told_and_do_not_depend_on_the_order(folder, capsys):
    """Ann and Bob tie, and each beats Cid: the first of them in the file once won alone."""
    rows = ["Ann,Cid,3", "Bob,Cid,3"]
    for lines in (rows, rows[::-1]):
        Path("tie.csv").write_text("\n".join(["winner,loser,count", *lines]) + "\n")
        out = run("--votes", "tie.csv", "--beta", 0)
        shares = dict(zip(out["names"].tolist(), np.exp(out["log_policy"]), strict=True))
        assert shares == pytest.approx({"Ann": 0.5, "Bob": 0.5, "Cid": 0}, abs=1e-12)
        assert not out["nash_unique"]
        assert "not unique: the nearest of several" in capsys.readouterr().out
    out = run("--votes", "votes.csv", "--beta", 0)
    assert out["nash_unique"]
    assert "not unique" not in capsys.readouterr().out
    Path("both.csv").write_text("prompt,winner,loser\none,A,B\ntwo,A,C\ntwo,B,C\n")
    out = run("--votes", "both.csv", "--beta", 0)
    assert out["nash_unique"].tolist() == [True, False]
    assert out["nash_dimension"].tolist() == [0, 1]
    np.testing.assert_allclose(out["nash_least"], [[1, 0, 0], [0, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(out["nash_most"], [[1, 0, 0], [1, 0, 1]], atol=1e-12)
    text = capsys.readouterr().out
    assert "1 of 2 prompts have several equilibria" in text
    assert "all of them are a set of dimension 1, each probability between least and most" in text
    headings = [line.split() for line in text.splitlines() if line.startswith("alternative")]
    assert headings == [
        ["alternative", "probability", "win", "rate"],
        ["alternative", "probability", "win", "rate", "least", "most"],
    ]


def test_who_beats_whom_is_told(folder, capsys):
    """A beats B beats C beats A, and all of them beat D; and a winner where there is one."""
    rows = ["A,B", "B,C", "C,A", *(f"{name},D" for name in "ABC")]
    Path("cycle.csv").write_text("\n".join(["winner,loser", *rows]))
    out = run("--votes", "cycle.csv")
    assert not out["condorcet_winner"].any()
    assert out["smith_set"].tolist() == [True, True, True, False]
    assert out["num_cyclic_triples"] == 1
    assert out["cyclic_triples"].tolist() == [[0, 1, 2]]
    text = capsys.readouterr().out
    assert "no Condorcet winner; Smith set: A, B, C\n1 cyclic triple: A > B > C > A\n" in text
    # Of log-odds and of several prompts; what an absent alternative would be counts for nothing.
    Path("two.csv").write_text("prompt,winner,loser\none,A,B\ntwo,A,B\ntwo,B,C\ntwo,C,A\n")
    out = run("--votes", "two.csv", "--payoff", "log_odds")
    assert out["condorcet_winner"].tolist() == [[True, False, False], [False] * 3]
    assert out["smith_set"].tolist() == [[True, False, False], [True] * 3]
    assert out["num_cyclic_triples"].tolist() == [0, 1]
    assert out["cyclic_triples"].tolist() == [[[-1, -1, -1]], [[0, 1, 2]]]
    assert "\nCondorcet winner: A\n" in capsys.readouterr().out


def test_poor_certificate_is_told(folder, capsys, monkeypatch):
    def poor(P, log_reference, beta, progress):
        certificate = torch.full((len(P),), 1e-4, dtype=torch.float64)
        return Solution(log_reference, certificate, 1, torch.zeros(len(P)))

    monkeypatch.setattr(solve, "regularised_nash", poor)
    solve.main(["--matrix", "game.npy"])
    out, err = capsys.readouterr()
    assert "equilibrium: exploitability 0.0001" in out
    assert err.startswith("warning: the equilibrium is exact to an exploitability of 1.0e-04 only")


# -- the start -------------------------------------------------------------------------------------


def test_imports_no_more_than_it_needs(folder):
    """In a process of its own: the modules that make the command slow to start are not there."""
    code = """
import sys
from nlhf_zoo.cli.solve.command import main
main(sys.argv[1:])
heavy = {"lightning", "pytorch_lightning", "transformers", "peft", "matplotlib", "scipy",
         "torchmetrics", "tensorboard"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""
    arguments = ["--matrix", "rps.csv", "--algorithm", "NashMP", "--output", "out.npz"]
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "heavy: []"


# -- refusals --------------------------------------------------------------------------------------

ONE = "--matrix game.npy"
REFUSALS = {
    "seed of no draws": ("--votes votes.csv --seed 1", "--level and --seed are of --bootstrap: give it, too"),
    "bootstrap of a matrix": (f"{ONE} --bootstrap 100", "--bootstrap draws voters anew: give it with --votes"),
    "bootstrap of several": ("--votes votes.csv --worst_case [votes.csv] --bootstrap 100", "and no --worst_case"),
    "few resamples": ("--votes votes.csv --bootstrap 39", "--bootstrap must be at least 40 for intervals of 0.95"),
    "level 1": ("--votes votes.csv --bootstrap 100 --level 1", "--level must lie between 0 and 1, but it is 1"),
    "seed below 0": ("--votes votes.csv --bootstrap 100 --seed -1", "--seed must be 0 or above, but it is -1"),
    "part of a voter": ("--votes half.csv --bootstrap 100", "but in votes half.csv some count 0.5 times: give whole"),
    "too many voters": ("--votes huge.csv --bootstrap 100", "but votes huge.csv have 1e+300"),
    "a pair that resamples lack": ("--votes rare.csv --prior 0 --bootstrap 100", "resamples of the votes have a pair"),
    "figure of no kind": ("--votes votes.csv --figure a.pdf", "--figure a.pdf must end in .png or .svg"),
    "figure in no folder": ("--votes votes.csv --figure no/a.png", "--figure no/a.png: the folder no does not exist"),
    "figure of several": ("--votes votes.csv --worst_case [votes.csv] --figure a.png", "--figure is of one game"),
    "no game": ("", "one of --votes, --matrix and --responses"),
    "two games": (f"{ONE} --votes votes.csv", "one of --votes, --matrix and --responses"),
    "no such matrix": ("--matrix nowhere.npy", "nowhere.npy does not exist"),
    "no such votes": ("--votes nowhere.csv", "nowhere.csv does not exist"),
    "empty file": ("--matrix empty.npy", "empty.npy is empty"),
    "pickled": ("--matrix pickled.npy", "pickled.npy is not a complete .npy file of numbers"),
    "not square": ("--matrix oblong.npy", "is square"),
    "not antisymmetric": ("--matrix skew.npy", "not antisymmetric about 1/2"),
    "not a number": ("--matrix nan.npy", "probabilities are finite"),
    "above 1": ("--matrix above.npy", "lie in [0, 1]"),
    "an archive": ("--matrix archive.npy", "archive.npy"),
    "too large": ("--matrix huge.npy", "will not fit in memory"),
    "unknown column": ("--votes column.csv", "unknown column"),
    "negative count": ("--votes count.csv", "'-3'"),
    "nobody compared": ("--votes gap.csv --prior 0", "nobody compared"),
    "annotators of nobody": (f"{ONE} --worst_case []", "--worst_case is a list of the other"),
    "annotators and an algorithm": (f"{ONE} --worst_case [game.npy] --algorithm SPPO", "solved and not played"),
    "annotators of others": ("--matrix rps.csv --worst_case [game.npy]", "other alternatives"),
    "annotators of other prompts": (f"{ONE} --worst_case [games.npy]", "other prompts"),
    "a bound of margins": (f"{ONE} --bound 2", "--bound cuts log-odds, and --payoff is identity"),
    "a bound of nothing": (f"{ONE} --payoff log_odds --bound 0", "bound of a payoff must be a finite"),
    "an infinite payoff": ("--matrix sure.npy --payoff log_odds", "sure.npy: entry [0, 0, 1] is 1, whose payoff is infinite"),
    "prior of a matrix": (f"{ONE} --prior 1", "--prior counts pseudo-ties of votes"),
    "negative prior": ("--votes votes.csv --prior=-1", "--prior must be a finite number"),
    "infinite prior": ("--votes votes.csv --prior 1e400", "--prior must be a finite number"),
    "negative beta": (f"{ONE} --beta=-0.1", "--beta must be a finite number"),
    "infinite beta": (f"{ONE} --beta 1e400", "--beta must be a finite number"),
    "beta is nan": (f"{ONE} --beta .nan", "--beta must be a finite number"),
    "beta is a word": (f"{ONE} --beta small", "--beta: expected a number, but got 'small'"),
    "beta that is hidden by rounding": (f"{ONE} --beta 1e-300", "rounding does not tell from 0"),
    "negative updates": (f"{ONE} --updates=-1", "--updates must be 0 or above"),
    "half an update": (f"{ONE} --updates 2.5", "--updates: expected a whole number, but got '2.5'"),
    "too many updates": (f"{ONE} --algorithm EGPO --updates 1000000000000", "will not fit"),
    "unknown option": (f"{ONE} --betta 1", "--betta"),
    "stray word": (f"{ONE} stray", "stray"),
    "option without value": (f"{ONE} --beta", "--beta: expected one argument"),
    "unknown algorithm": (f"{ONE} --algorithm Nash", "no class 'Nash': choose one of DNO"),
    "no algorithm": (f"{ONE} --algorithm torch.nn.Linear", "torch.nn.Linear"),
    "unknown setting": (f"{ONE} --algorithm NashMP --algorithm.etaa 1", "'etaa'"),
    "setting of none": (f"{ONE} --algorithm.eta 1", "name the class whose options you give: choose one of DNO, EGPO"),
    "eta is a word": (f"{ONE} --algorithm NashMP --algorithm.eta big", "--algorithm.eta: expected a number or 'adaptive' or null, but got 'big'"),
    "negative eta": (f"{ONE} --algorithm NashMP --algorithm.eta=-1", "eta must be a finite number"),
    "eta beta above 1": (f"{ONE} --algorithm NashMD --algorithm.eta 11", "eta * beta <= 1"),
    "scores": (f"{ONE} --algorithm REBEL", "REBEL takes scores of single responses, and votes or"),
    "no closed form": (f"{ONE} --algorithm OnlineDPO", "OnlineDPO has no closed form"),
    "algorithm at beta 0": (f"{ONE} --algorithm NashMP --beta 0", "--beta 0 is solved by linear"),
    "start of nothing": (f"{ONE} --start start.npy", "give --algorithm too"),
    "no such reference": (f"{ONE} --reference nowhere.npy", "nowhere.npy does not exist"),
    "reference too long": ("--matrix rps.csv --reference mu1.npy", "[6]"),
    "reference of more games": (f"{ONE} --reference mu.npy", "[3, 6]"),
    "reference sums to 2": (f"{ONE} --reference double.npy", "sums to 2"),
    "negative reference": (f"{ONE} --reference negative.npy", "negative entry"),
    "reference without an action": (f"{ONE} --reference zero.npy", "alternative 2 ('2')"),
    "start sums to 2": (f"{ONE} --algorithm NashMP --start double.npy", "start double.npy sums to"),
    "start without an action": (f"{ONE} --algorithm NashMP --start zero.npy", "start zero.npy"),
    "one reference for others' alternatives": ("--votes ragged.csv --reference three.npy", "alternatives of their own"),
    "reference of an absent alternative": ("--votes ragged.csv --reference absent.npy", "alternative 2 of row 1 a probability"),
    "no such folder": (f"{ONE} --output nowhere/out.npz", "the folder nowhere does not exist"),
    "output is a folder": (f"{ONE} --output .", "is a folder"),
    "output is a pipe": (f"{ONE} --output pipe", "--output pipe is a device or a pipe"),
    "matrix is a pipe": ("--matrix pipe", "matrix pipe is not a file"),
    "votes without an end": ("--votes /dev/zero", "votes /dev/zero is not a file"),
    "reference without an end": (f"{ONE} --reference /dev/zero", "reference /dev/zero is not a file"),
    "output is the input": (f"{ONE} --output game.npy", "would overwrite an input"),
    "diverges": (f"{ONE} --algorithm SPPO --algorithm.eta 1e308", "diverged at update"),
    "step past mu": (f"{ONE} --algorithm OnlineIPO --algorithm.eta 100", "are not negative"),
}  # fmt: skip


@pytest.fixture
def bad_files(folder):
    Path("empty.npy").touch()
    os.mkfifo("pipe")
    np.save("pickled.npy", np.array([{}], dtype=object))
    np.save("oblong.npy", np.full((2, 3), 0.5))
    np.save("skew.npy", np.array([[0.5, 0.8], [0.3, 0.5]]))
    np.save("nan.npy", np.array([[0.5, np.nan], [0.3, 0.5]]))
    np.save("sure.npy", np.array([[0.5, 1.0], [0.0, 0.5]]))
    np.save("above.npy", np.array([[0.5, 1.5], [-0.5, 0.5]]))
    with Path("archive.npy").open("wb") as file:
        np.savez(file, P=np.full((2, 2), 0.5))
    with Path("huge.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, header)
    Path("column.csv").write_text("winner,loser,weight\nA,B,3\n")
    Path("count.csv").write_text("winner,loser,count\nA,B,-3\n")
    Path("half.csv").write_text("winner,loser,count\nA,B,0.5\nB,A,1\n")
    Path("huge.csv").write_text("winner,loser,count\nA,B,1e300\n")
    Path("rare.csv").write_text("winner,loser,count\nA,B,40\nB,C,40\nA,C,1\n")
    Path("gap.csv").write_text("winner,loser\nA,B\nB,C\n")
    np.save("double.npy", np.full(6, 1 / 3))
    np.save("negative.npy", np.array([-0.5, 0.5, 0.25, 0.25, 0.25, 0.25]))
    np.save("zero.npy", np.array([0.2, 0.2, 0.0, 0.2, 0.2, 0.2]))
    np.save("three.npy", np.full(3, 1 / 3))
    np.save("absent.npy", np.full((2, 3), 1 / 3))


@pytest.mark.timeout(60)  # some files have no end
@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_in_one_sentence(bad_files, folder, refused, monkeypatch, case):
    arguments, expected = REFUSALS[case]
    solver = Mock(wraps=solve.regularised_nash)
    monkeypatch.setattr(solve, "regularised_nash", solver)
    files = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    out, sentence = refused("solve", *arguments.split())
    assert expected in sentence
    assert out == ""
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == files
    if case != "diverges":  # everything else is found before anything is computed
        solver.assert_not_called()
