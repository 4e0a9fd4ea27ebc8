"""What validation says of held-out prompts: exact where it may be, and of all processes."""

import copy

import pytest
import rows
import runs
import torch
import zoo
from torch.utils.data import DataLoader

from game.test_language_game import make_game
from game.test_other_processes import play
from nlhf_zoo.algorithms import OnlineDPO
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.solvers import kl, score_interval

METRICS = ("win_rate", "kl", "entropy", "length", "truncated", "invalid")


def figures_of(game, batches):
    """What the Trainer logs of a validation on some batches of prompts."""
    (found,) = rows.trainer().validate(game, DataLoader(batches, batch_size=None), verbose=False)
    return found


def by_hand(game):
    """KL, entropy and win rate of each prompt, of the whole table."""
    ours, theirs = (game.log_policy(player).double() for player in ("policy", "reference"))
    won = (ours.exp()[:, :, None] * game.oracle.table * theirs.exp()[:, None]).sum((-2, -1))
    return kl(ours, theirs), torch.special.entr(ours.exp()).sum(-1), won


def test_of_all_responses_the_figures_are_exact():
    """Of a language model and of a table; a table's responses have no length."""
    table = zoo.small_game(OnlineDPO(), realisation=GradientSteps(), rollout=Enumerate())
    zoo.scatter_players(table)
    for game in (make_game(OnlineDPO(), 4), table):
        prompts = game.policy.encode(game.oracle.prompts)
        found = figures_of(game, [prompts])
        of_kl, entropy, won = by_hand(game)
        assert found["val/kl"] == pytest.approx(of_kl.mean().item(), rel=1e-4)
        assert found["val/entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)
        assert found["val/win_rate"] == pytest.approx(won.mean().item(), rel=1e-4)
        assert found["val/win_rate"] == pytest.approx(found["win_rate/vs_reference"], rel=1e-5)
        assert found["val/invalid"] == 0
        assert found["val/queries"] == len(prompts)
        low, high = (found[f"val/win_rate_{end}"] for end in ("low", "high"))
        assert 0 <= low < found["val/win_rate"] < high <= 1
        assert "val/length" not in found
        assert game.progress.queries == game.progress.batches == 0


def test_of_samples_they_are_close():
    """Within five standard errors of 2 x 400 responses, whose figures spread by less than 1."""
    game = make_game(OnlineDPO(), 4, rollout=Sample(400, 400))
    prompts = game.policy.encode(game.oracle.prompts)
    found = figures_of(game, [prompts.take([i]) for i in range(len(prompts))])
    for name, exact in zip(("kl", "entropy", "win_rate"), by_hand(game), strict=True):
        assert found[f"val/{name}"] == pytest.approx(exact.mean().item(), abs=5 / 800**0.5)
    assert found["val/length"] == 2
    assert found["val/queries"] == len(prompts) * 400 * 400


def states_of(rank, places, silent=(2,)):
    """Sums of a process that validates on some of five games, of which one has no answers."""
    game = zoo.small_game(
        OnlineDPO(), 5, wrap=lambda oracle: zoo.Silent(oracle, silent), rollout=Enumerate(),
        realisation=GradientSteps(),
    )  # fmt: skip
    zoo.scatter_players(game)
    game.log = lambda *_, **__: None
    for number, place in enumerate(places):
        game.validation_step(zoo.all_prompts(game).take(place), number)
    return {
        (name, state): value
        for name in METRICS
        for state, value in getattr(game.validation, name).metric_state.items()
    }


def test_sums_of_uneven_halves_are_those_of_the_whole():
    """The prompt that is not judged leaves the win rate, and counts as invalid."""
    whole = states_of(0, [[0, 1, 2], [3, 4]])
    one, other = states_of(0, [[0, 1, 2], [3]]), states_of(1, [[4]])
    for key, value in whole.items():
        torch.testing.assert_close(one[key] + other[key], value, rtol=1e-12, atol=1e-12)
    assert whole["win_rate", "prompts"] == 4
    assert whole["kl", "number"] == 5
    assert whole["invalid", "total"] == pytest.approx(1)
    assert other["win_rate", "prompts"] == 1


def test_a_second_validation_begins_anew():
    game = zoo.small_game(OnlineDPO(), realisation=GradientSteps())
    batches = [zoo.all_prompts(game)]
    assert figures_of(game, batches) == figures_of(game, batches)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        # Wilson's interval of 8 of 8 yes answers, with Student's quantile of 7 degrees of freedom.
        ([1.0] * 8, 8 / (8 + 2.364624**2), 1.0),
        ([0.0] * 8, 0.0, 2.364624**2 / (8 + 2.364624**2)),
        ([0.5] * 8, 0.5, 0.5),
    ],
)
def test_intervals_where_all_prompts_are_alike(values, low, high):
    found = score_interval(sum(values), sum(v * v for v in values), len(values))
    assert found == pytest.approx((low, high), abs=1e-6)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    """2000 times 24 prompts of a skewed law near 1; five standard errors below 95 % is .926."""
    rng = torch.Generator().manual_seed(0)
    rates = 1 - torch.rand(2000, 24, generator=rng, dtype=torch.float64) ** 3  # mean 3/4
    held = 0
    for total, squares in zip(rates.sum(-1).tolist(), rates.square().sum(-1).tolist(), strict=True):
        low, high = score_interval(total, squares, 24)
        held += low <= 0.75 <= high
    assert 0.926 * 2000 <= held <= 0.974 * 2000


def test_one_prompt_has_no_interval():
    game = zoo.small_game(OnlineDPO(), realisation=GradientSteps())
    found = figures_of(game, [zoo.all_prompts(game).take([0])])
    assert "val/win_rate" in found
    assert not {"val/win_rate_low", "val/win_rate_high"} & found.keys()


@pytest.mark.slow
def test_three_processes_of_a_run_log_the_figures_of_one(tmp_path):
    """Of four prompts one has two. Weights are those of one process but for rounding."""
    config = copy.deepcopy(runs.CASES["language-nash_mp"])
    config["model"]["init_args"] |= {
        "rollout": runs.part("Enumerate"),
        "oracle": runs.part("SmallLanguage", num_letters=8, length=2),
    }
    config["model"]["init_args"]["policy"]["init_args"]["model"]["init_args"]["num_letters"] = 8
    config["trainer"]["callbacks"] = [runs.part("Budget", rounds=4)]
    config["trainer"] |= {"val_check_interval": 2, "check_val_every_n_epoch": None}
    found = []
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        run = play(folder, config, processes)
        assert run.code == 0, run.err
        logged = runs.scalars(folder).items()
        found.append({key: float.fromhex(v) for key, v in logged if key[0].startswith("val/")})
    one, three = found
    assert len(one) >= 6 * 3
    assert three == pytest.approx(one, rel=1e-3, abs=1e-6)
    assert len({step for _, step in one}) > 2
