"""A policy that no equilibrium can be like is said to have collapsed, and no other one."""

from functools import partial

import pytest
import torch
from language_models import small_policy
from slow import half_of
from zoo import fit, normal_logits, small_game

from nlhf_zoo import CollapseWatch, Enumerate, GradientSteps, Sample
from nlhf_zoo.algorithms import EGPO, SPPO, NashMD, NashMP, OnlineDPO
from nlhf_zoo.callbacks.collapse import _of_draws, measure, of_all, of_some
from nlhf_zoo.data.tables import games
from nlhf_zoo.errors import DivergenceError
from nlhf_zoo.oracles import SmallLanguage
from nlhf_zoo.records import Prompts
from nlhf_zoo.solvers import regularised_nash

EPS = 2.0**-52


@pytest.mark.parametrize("beta", [0.03, 0.1, 1.0])
def test_no_equilibrium_is_past_the_bounds(beta):
    """Of random games, of a strict order, of a cycle: one of them comes near."""
    order = torch.ones(7, 7, dtype=torch.float64).triu(1) + 0.5 * torch.eye(7, dtype=torch.float64)
    tables = [games.uniform_random(20, 7, seed=3), order[None], games.comal()]
    found = []
    for table in tables:
        log_reference = normal_logits(*table.shape[:2], seed=4).log_softmax(-1)
        log_nash = regularised_nash(table, log_reference, beta).log_policy
        found.append(of_all(log_nash, log_reference, EPS).excess)
        drawn = torch.arange(table.shape[1]).expand(len(table), -1)
        some = of_some(log_nash, log_reference, drawn[..., None], EPS)
        found.append(some.excess)
    assert max(found) <= 1.001 / beta
    assert max(found) > 0.5 / beta


def test_the_figures_are_those_of_the_law():
    ours, theirs = (normal_logits(3, 6, seed=seed).log_softmax(-1) for seed in (1, 2))
    one, other = (torch.distributions.Categorical(logits=law) for law in (ours, theirs))
    of_law = of_all(ours, theirs, EPS).figures
    assert of_law["policy/entropy"] == pytest.approx(one.entropy().mean().item())
    kl = torch.distributions.kl_divergence(one, other).mean().item()
    assert of_law["policy/kl"] == pytest.approx(kl)
    drawn = one.sample((4000,)).T
    figures = of_some(ours.gather(1, drawn), theirs.gather(1, drawn), drawn[..., None], EPS).figures
    # five standard errors of 12,000 draws of a spread of about 1
    assert figures["policy/entropy"] == pytest.approx(of_law["policy/entropy"], abs=0.05)
    assert figures["policy/kl"] == pytest.approx(kl, abs=0.08)
    assert figures["policy/distinct"] == 3 * 6 / 12000


def test_absent_responses_are_left_out():
    there = torch.tensor([[True, True, False], [True, True, True]])
    ours, theirs = (
        normal_logits(2, 3, seed=seed).masked_fill(~there, -torch.inf).log_softmax(-1)
        for seed in (1, 2)
    )
    first = of_all(ours[:1, :2], theirs[:1, :2], EPS)
    second = of_all(ours[1:], theirs[1:], EPS)
    both = of_all(ours, theirs, EPS)
    assert both.excess == pytest.approx(max(first.excess, second.excess))
    for name, value in both.figures.items():
        assert value == pytest.approx((first.figures[name] + second.figures[name]) / 2)


ALGORITHMS = [EGPO(), NashMP(), NashMD(), SPPO(), OnlineDPO()]


def said_of(algorithm, rollout, optimizer, lr, capsys) -> str:
    game = small_game(algorithm, realisation=GradientSteps(), rollout=rollout)
    game.optimizer = partial(optimizer, lr=lr)
    try:
        fit(game, 12, callbacks=[CollapseWatch()])
    except DivergenceError as error:
        return str(error)
    return capsys.readouterr().err


@half_of(
    "lr, rollout",
    {str(lr): lr for lr in (1e3, 1e10, 1e30)},
    {"all": Enumerate(), "drawn": Sample(4, 4)},
)
def test_a_learning_rate_that_is_too_large_is_seen(lr, rollout, capsys):
    """All rounds were played to the end, in silence."""
    for algorithm in ALGORITHMS:
        said = said_of(algorithm, rollout, torch.optim.Adam, lr, capsys)
        assert said.count("\n") <= 1
        assert "the policy has collapsed: in round" in said or "diverged" in said, algorithm
        assert "lower the learning rate" in said


@pytest.mark.parametrize("rollout", [Enumerate(), Sample(4, 4)], ids=["all", "drawn"])
def test_a_sound_run_is_not_suspected(rollout, capsys):
    for algorithm in ALGORITHMS:
        assert said_of(algorithm, rollout, torch.optim.Adam, 0.1, capsys) == ""


def test_equal_responses_are_counted_by_pairs():
    tokens = torch.tensor([[[1], [1], [1], [2]], [[3], [4], [5], [6]]])
    law = torch.full((2, 4), 0.25).log()
    assert of_some(law, law, tokens, EPS).figures["policy/equal"] == 3 / 12


@pytest.mark.parametrize(
    ("figures", "may_be_longer", "words"),
    [
        ({"kl": 3.0, "length": 1.0}, True, "responses are empty: in round 7 each ends with its"),
        ({"kl": 3.0, "length": 1.0}, False, ""),  # each has one token
        ({"kl": 3.0, "length": 1.1}, True, ""),
        ({"kl": 3.0, "equal": 0.9}, True, "in round 7 90% of the pairs of its responses"),
        ({"kl": 3.0, "equal": 0.89}, True, ""),
        ({"kl": 0.9, "equal": 1.0, "length": 1.0}, True, ""),  # so is the reference
        ({"kl": 3.0}, True, ""),  # all responses were looked at
    ],
)
def test_what_is_said_of_draws(figures, may_be_longer, words):
    said = _of_draws({"entropy": 0.1, **figures}, 7, may_be_longer)
    assert words in said
    assert bool(said) == bool(words)


def test_language_models_are_looked_at_by_draws():
    game = small_game(EGPO(), realisation=GradientSteps())
    game.policy = small_policy(names=None)
    batch = Prompts(torch.arange(4), text=SmallLanguage().prompts.text)
    for scale, is_one in ((1.0, False), (1e4, True)):
        head = game.policy._players.language_model("policy").get_output_embeddings()
        head.weight.data *= scale
        found = measure(game, batch)
        names = ("entropy", "kl", "distinct", "equal", "length")
        assert set(found.figures) == {f"policy/{name}" for name in names}
        assert found.figures["policy/length"] == 3
        assert (found.figures["policy/equal"] == 1) == is_one
        assert found.is_one_response == is_one
        assert (found.figures["policy/distinct"] == 1 / 8) == is_one
