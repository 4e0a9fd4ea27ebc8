"""The laws of every generated game, and what is known about each."""

import pytest
import torch

from nlhf_zoo.data.tables import games
from nlhf_zoo.errors import UserError

# One row a generator: how to make it from a seed and a precision; None for those without a seed.
SEEDED = {
    "uniform_random": lambda seed, dtype: games.uniform_random(3, 7, seed, dtype),
    "bradley_terry": lambda seed, dtype: games.bradley_terry(3, 7, seed, 2.0, dtype),
    "sine_game": lambda seed, dtype: games.sine_game(40, seed, dtype),
    "annotators": lambda seed, dtype: games.annotators(7, 41, None, seed, dtype=dtype),
    "annotators_of_3": lambda seed, dtype: games.annotators(7, 40, 3, seed, dtype=dtype),
}
SEEDLESS = {
    "cyclic": lambda _, dtype: games.cyclic(7, 0.9, dtype),
    "cyclic_blocks": lambda _, dtype: games.cyclic_blocks(23, 3, 3, dtype=dtype),
    "comal": lambda _, dtype: games.comal(dtype),
}
EVERY = SEEDED | SEEDLESS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EVERY)
def test_laws(name, dtype):
    P = EVERY[name](5, dtype)
    assert P.dtype == dtype
    assert P.dim() == 3
    assert P.shape[1] == P.shape[2]
    assert torch.equal(P + P.mT, torch.ones_like(P))
    assert torch.equal(P.diagonal(dim1=1, dim2=2), torch.full(P.shape[:2], 0.5, dtype=dtype))
    assert ((P >= 0) & (P <= 1)).all()


@pytest.mark.parametrize("name", SEEDED)
def test_the_seed_alone_decides(name):
    before = torch.get_rng_state()
    one = SEEDED[name](5, torch.float64)
    assert torch.equal(torch.get_rng_state(), before), "the global stream was drawn from"
    torch.rand(3)
    assert torch.equal(one, SEEDED[name](5, torch.float64))
    assert not torch.equal(one, SEEDED[name](6, torch.float64))


def test_uniform_random_is_uniform():
    entries = games.uniform_random(1, 400, seed=0)[0].tril(-1)
    entries = entries[entries > 0]
    # Kolmogorov's statistic at an error rate of 1e-6.
    distance = (entries.sort().values - torch.linspace(0, 1, len(entries))).abs().max()
    assert distance * len(entries) ** 0.5 < 2.7


def test_games_of_a_batch_differ():
    one, other = games.uniform_random(2, 10, seed=0)
    assert (one - other).abs().max() > 0.1


def test_bradley_terry_is_transitive_with_additive_log_odds():
    P = games.bradley_terry(2, 9, seed=3, scale=1.5)
    odds = torch.logit(P)
    torch.testing.assert_close(odds[:, :, :1] + odds[:, :1, :], odds, atol=1e-12, rtol=0)
    flat = games.bradley_terry(2, 9, seed=3, scale=0.0)
    assert torch.equal(flat, torch.full_like(flat, 0.5))


@pytest.mark.parametrize("num_actions", [3, 5, 101])
def test_cyclic_is_a_regular_tournament_with_a_uniform_equilibrium(num_actions):
    P = games.cyclic(num_actions, strength=0.8)[0]
    assert torch.equal(P > 0.5, P == 0.8)
    assert ((P > 0.5).sum(1) == num_actions // 2).all()
    assert P[0, 1] == 0.8
    assert P[-1, 0] == 0.8
    # Against the uniform policy every action wins half of the time: nothing is gained by moving.
    torch.testing.assert_close(P.mean(1), torch.full((num_actions,), 0.5).double())


def test_comal_is_the_published_game():
    expected = [[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]]
    torch.testing.assert_close(
        games.comal()[0], torch.tensor(expected, dtype=torch.float64), atol=1e-15, rtol=0
    )


def test_blocks_are_cycles_under_an_order():
    P = games.cyclic_blocks(9, num_blocks=3, block_size=3, strength=0.9, order=0.7)[0]
    for low in (0, 3, 6):
        torch.testing.assert_close(P[low : low + 3, low : low + 3], games.cyclic(3, 0.9)[0])
        assert (P[low : low + 3, low + 3 :] == 0.7).all()


@pytest.mark.parametrize("num_actions", [10, 17, 1000])
def test_clones_are_shared_out_evenly_and_tie(num_actions):
    small = games.cyclic_blocks(10)[0]
    P = games.cyclic_blocks(num_actions)[0]
    clone_of = torch.arange(num_actions) * 10 // num_actions
    assert torch.equal(P, small[clone_of][:, clone_of])
    number = torch.bincount(clone_of)
    assert number.max() - number.min() == (0 if num_actions % 10 == 0 else 1)
    same = clone_of[:, None] == clone_of
    assert (P[same] == 0.5).all()
    assert (P[~same] != 0.5).all()


def test_sine_game_has_its_formula():
    P = games.sine_game(30, seed=1)[0] - 0.5
    # a sine of differences is of rank 2, and so is a difference; both antisymmetric
    assert torch.linalg.matrix_rank(P, rtol=1e-9) == 4
    assert 0.1 < P.abs().max() <= 0.5
    draw = torch.rand(2, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    angle, quality = 2 * torch.pi * draw[0], draw[1]
    direct = 0.3 * torch.sin(angle[3] - angle[8]) + 0.2 * (quality[3] - quality[8])
    torch.testing.assert_close(P[3, 8], direct)


@pytest.mark.parametrize("cycle", [3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_majority_of_annotators_is_a_cycle(cycle, seed):
    P = games.annotators(8, 200, cycle, seed)[0]
    for action in range(cycle):
        for step in range(1, cycle // 2 + 1):
            assert P[action, (action + step) % cycle] > 0.5
    assert (P[:cycle, cycle:] > 0.8).all(), "actions of the cycle are preferred to the others"
    # without noise: the shares of rotations
    pure = games.annotators(cycle, 10 * cycle, cycle, seed, noise=0.0)[0]
    expected = torch.tensor([0.5, *(1 - k / cycle for k in range(1, cycle))]).double()
    torch.testing.assert_close(pure[0], expected)


@pytest.mark.parametrize("seed", range(5))
def test_each_annotator_is_transitive(seed):
    P = games.annotators(6, 1, None, seed)[0]
    assert sorted((P == 1).sum(1).tolist()) == [0, 1, 2, 3, 4, 5]


REFUSED = {
    "no game": (lambda: games.uniform_random(0, 3, 0), "num_games must be at least 1"),
    "one action": (lambda: games.uniform_random(1, 1, 0), "num_actions must be at least 2"),
    "too large": (lambda: games.uniform_random(1, 10**8, 0), "will not fit in memory"),
    "scale": (lambda: games.bradley_terry(1, 3, 0, float("nan")), "scale must be a finite"),
    "even cycle": (lambda: games.cyclic(4), "num_actions must be odd"),
    "short cycle": (lambda: games.cyclic(1), "num_actions must be at least 3"),
    "strength": (lambda: games.cyclic(3, 1.1), "strength must be a probability"),
    "nan": (lambda: games.cyclic(3, float("nan")), "strength must be a probability"),
    "few clones": (lambda: games.cyclic_blocks(9), "num_actions must be at least 10"),
    "no block": (lambda: games.cyclic_blocks(9, num_blocks=0), "num_blocks must be at least 1"),
    "even block": (lambda: games.cyclic_blocks(9, block_size=2), "block_size must be odd"),
    "order": (lambda: games.cyclic_blocks(10, order=-0.1), "order must be a probability"),
    "sine": (lambda: games.sine_game(1, 0), "num_actions must be at least 2"),
    "even majority": (lambda: games.annotators(5, 90, 4, 0), "cycle must be odd"),
    "long majority": (lambda: games.annotators(3, 90, 5, 0), "num_actions must be at least 5"),
    "nobody": (lambda: games.annotators(3, 0, None, 0), "num_annotators must be at least 1"),
    "uncertain": (lambda: games.annotators(3, 90, 3, 0, noise=0.3), "is not certain"),
    "too few": (lambda: games.annotators(3, 2, 3, 0), "is not certain"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    make, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        make()
