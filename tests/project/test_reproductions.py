"""The ledger: what is kept decides the page, rules decide alone, and short forms agree."""

import dataclasses
import math
import sys

import pytest
import torch

from reproductions import exploring, language, models, original
from reproductions.ledger import (
    CANNOT_TELL,
    FAILS,
    HOLDS,
    RESULTS,
    is_so,
    read_papers,
    read_results,
)
from reproductions.page import PAGE, anchor, page

PAPERS = read_papers()
CLAIMS = [claim for paper in PAPERS for claim in paper.claims]
SHORT = [claim for claim in CLAIMS if claim.reduced is not None]


def kept(claim):
    return read_results(claim.paper).get(claim.name)


def test_the_page_is_made_of_what_is_kept():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m reproductions --page"


def test_the_page_names_the_oracles_that_trained_nothing():
    told = " ".join(page().split())
    for claim in CLAIMS:
        if claim.held_out:
            section = told.partition(f"{{#{anchor(claim)}}}")[2].partition("{#")[0]
            assert f"**Held-out oracle:** {claim.held_out}" in section, claim.key


def test_a_policy_at_a_divergence_has_it():
    """The reward's policy of the row on length stands at the KL of the other one."""
    log_mu, reward = torch.tensor([[0.2, 0.3, 0.5]]).double().log(), torch.tensor([[1.0, 0.0, 3.0]])
    kl = torch.tensor([0.3], dtype=torch.float64)
    log_policy = models._tilted(log_mu, reward.double(), kl)
    assert (log_policy.exp() * (log_policy - log_mu)).sum() == pytest.approx(0.3, abs=1e-9)


def test_the_fit_that_explores_by_its_starts_is_that_of_both_methods():
    """Online DPO, the rival of the row on XPO, has the same starts: they find things by themselves.

    Labels prefer the rare response, of which one start of the whole fit writes most.
    """
    game = exploring.Rare.drawn(3, 4, 1e-4, 2.0, 0)
    wins = torch.zeros(3, 4, 4, dtype=torch.float64)
    wins[:, 3, 0] = 5
    mass = []
    for whole in (False, True):
        learner = exploring.Learner(0.1, 1, 1, 2, 0.1, 40.0, whole)
        mass.append(learner._fit(wins, game.log_mu, game.log_mu, alpha=0.0)[:, 3].exp())
    assert (mass[1] > 2 * mass[0]).all()


def test_the_average_is_that_of_the_method_that_the_claim_names():
    """In closed form DNO's step is SPPO's, and an optimistic one is another."""
    game = {"kind": "cycles", "games": 3, "actions": 3, "seed": 1}
    dno, sppo, optimistic = (
        original.average_rate(method, False, 1.0, [20, 40], game)["gap_at_40"]
        for method in ("DNO", "SPPO", "OptimisticMirrorDescent")
    )
    assert dno == pytest.approx(sppo, rel=1e-9)
    assert abs(optimistic - sppo) > 1e-3 * sppo


def test_what_is_kept_is_of_the_claims_as_they_stand():
    """No result is of other arguments, of another function, or of no claim."""
    for paper in PAPERS:
        named = {claim.name: claim for claim in paper.claims if claim.run}
        results = read_results(paper.number)
        assert results.keys() == named.keys(), paper.number
        for name, result in results.items():
            assert result.run == named[name].run
            assert result.arguments == named[name].arguments, name
    assert {path.stem for path in RESULTS.iterdir()} <= {paper.number for paper in PAPERS}


def test_there_are_twenty_verdicts_and_a_claim_that_fails_on_an_equal_budget():
    verdicts = {claim.key: claim.verdict(kept(claim).figures) for claim in CLAIMS if claim.run}
    assert len(verdicts) >= 20
    assert verdicts["2503.08942/equal_queries"] == FAILS
    assert kept(next(c for c in CLAIMS if c.name == "equal_queries")).cpu_seconds < 600


def test_papers_follow_the_first_on_nash_learning():
    assert all(float(paper.number) >= 2312.00886 for paper in PAPERS)
    names = [claim.key for claim in CLAIMS]
    assert len(names) == len({*names})


@pytest.mark.parametrize(
    ("condition", "met"),
    [("a <= 1", True), ("a < 1", False), ("a >= b", False), ("b > 1.5", True), ("n <= 1", False)],
)
def test_a_condition_reads_figures(condition, met):
    assert is_so(condition, {"a": 1.0, "b": 2.0, "n": math.nan}) is met


def test_a_condition_that_is_none_is_refused():
    with pytest.raises(ValueError, match='"a = 1" is no condition'):
        is_so("a = 1", {"a": 1.0})


def test_a_rule_decides_three_ways():
    claim = dataclasses.replace(CLAIMS[0], holds=("a < 1", "b < 1"), fails=("a > 2", "b > 2"))
    for a, b, verdict in ((0, 0, HOLDS), (0, 3, FAILS), (0, 1.5, CANNOT_TELL)):
        assert claim.verdict({"a": a, "b": b}) == verdict
    assert claim.verdict(None) == CANNOT_TELL


@pytest.mark.parametrize("claim", SHORT, ids=[claim.key for claim in SHORT])
def test_the_short_form_does_not_contradict(claim):
    """A smaller run may be too small to tell, and never says the contrary of what is kept."""
    verdict = claim.verdict(claim.measure(reduced=True))
    assert verdict in (claim.verdict(kept(claim).figures), CANNOT_TELL)


def test_a_comparison_that_has_ended_is_played_anew(tmp_path, monkeypatch):
    """Its figures may be of other options; one that was interrupted goes on."""
    given = []
    monkeypatch.setattr(language, "RUNS", tmp_path)
    monkeypatch.setattr(language, "nlhf", given.append)
    folder = language.comparison("small_beta")
    folder.mkdir()
    (folder / "results.csv").touch()
    language.comparison("small_beta")
    assert ["--overwrite" in each for each in given] == [False, True]


def test_a_gap_that_has_hardly_moved_tells_no_rate():
    """Of steps so small that nothing happens the ratio of rates is 1, whatever the rate is."""
    claim = next(claim for claim in CLAIMS if claim.key == "2512.24818/linear")
    still = {**claim.arguments["method"], "eta": 1e-6}
    figures = claim.function(claim.arguments["game"] | {"games": 3}, still, 500)
    assert figures["fell"] == 0
    assert claim.verdict(figures) == CANNOT_TELL


def test_the_command_names_what_it_does_not_know(monkeypatch, capsys):
    from reproductions.__main__ import main

    monkeypatch.setattr(sys, "argv", ["reproductions", "2312.00886/nothing"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert '"2312.00886/nothing" is neither a paper nor a claim' in capsys.readouterr().err
