"""Each metric against its function: whole, over batches, over processes and through pickle."""

import pickle

import numpy as np
import pytest
import scipy.stats
import torch
from torch import distributed, multiprocessing

from metrics.test_preference_metrics import counted, pairs, random_preference
from nlhf_zoo import metrics, solvers
from nlhf_zoo.data.tables.games import uniform_random
from nlhf_zoo.metrics import DualityGap, Exploitability, KLToNash, Span, WinRate
from nlhf_zoo.solvers import preference

BETA = 0.2


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


P = uniform_random(7, 5, seed=1)
LOG_MU, LOG_PI = normal(2, 7, 5).log_softmax(-1)
LOG_NASH = solvers.regularised_nash(P, LOG_MU, BETA).log_policy
PAIRS = pairs()
ORDERS = torch.rand(2, 11, generator=torch.Generator().manual_seed(2)).double().unbind()
RANDOM = zip(*(random_preference(6, seed, ties=0.1) for seed in range(11)), strict=True)
MATRICES = [torch.stack(part) for part in RANDOM]


def figures(function):
    """Mean and maximum over games of a function of each."""

    def both(*arguments):
        values = function(*arguments)
        return {"mean": values.mean(), "max": values.max()}

    return both


def exploitability(beta):
    return lambda pi, P, mu: solvers.exploitability(P, pi, mu, beta)


def mean_and_both_intervals(value, variance, effective, kl):
    from scipy.stats import norm, t

    number = len(value)
    error = variance.sum().sqrt() / number
    quantile = t.ppf(0.975, max(number - 1, 1))
    law = quantile * torch.maximum(value.std() / number**0.5, error)
    mean, half = value.mean(), norm.ppf(0.975) * error
    ends = [mean - half, mean + half, mean - law, mean + law]
    unknown = (effective < solvers.LEAST_EFFECTIVE).sum()
    names = ["mean", "low", "high", "low_of_law", "high_of_law"]
    names += ["ess", "kl", "prompts", "unknown", "left_out"]
    figures = [mean, *ends, effective.min(), kl.mean(), number, unknown, 0]
    return dict(zip(names, torch.tensor(figures, dtype=torch.float64), strict=True))


def share_of_cycles(matrices, valid):
    cyclic, triples = zip(*map(counted, matrices, valid), strict=True)
    return torch.tensor(sum(cyclic) / sum(triples), dtype=torch.float64)


def calibration_error(p, t):
    return preference.calibration_error(preference.calibration_bins(p, t, 10))


def mean_and_interval(values):
    """Wilson's interval, of as many yes and no answers as have the standard error of the mean."""
    mean, error = values.mean(), values.std() / len(values) ** 0.5
    number = (mean * (1 - mean) / error**2).item()
    z = scipy.stats.t.ppf(0.975, len(values) - 1)
    # Its ends are where a share p would be z of its own standard errors away from the mean.
    a, b, c = 1 + z**2 / number, -(2 * mean + z**2 / number).item(), (mean**2).item()
    low, high = torch.tensor(np.roots([a, b, c])).sort().values
    return {"mean": mean, "low": low, "high": high}


# Eleven prompts: exploitability, its variance, effective sample size and KL.
ESTIMATES = [(1 + ORDERS[0]) / 8, ORDERS[1] / 999, 15 + 20 * ORDERS[0], 1 + ORDERS[1]]

# metric, arguments of update, what it says of all of them
GAMES = [
    (Exploitability(BETA), (LOG_PI, P, LOG_MU), exploitability(BETA)),
    (Exploitability(0.0), (LOG_PI, P, LOG_MU), exploitability(0.0)),
    (DualityGap(BETA), (LOG_PI, P, LOG_MU), lambda *given: 2 * exploitability(BETA)(*given)),
    (KLToNash(), (LOG_PI, LOG_NASH), lambda pi, nash: solvers.kl_to_nash(nash, pi)),
    (Span(), (LOG_PI, LOG_NASH), solvers.span),
    (WinRate(), (LOG_PI, LOG_MU, P), lambda pi, mu, P: solvers.win_rate(P, pi, mu)),
]
TABLE = [(metric, arguments, figures(function)) for metric, arguments, function in GAMES] + [
    (metrics.PreferenceAccuracy(), PAIRS, lambda p, t: preference.correct(p, t).nanmean()),
    (
        metrics.PreferenceLogLoss(),
        (PAIRS[0].clamp(0.01, 0.99), PAIRS[1]),
        lambda p, t: preference.log_loss(p, t).mean(),
    ),
    (metrics.CalibrationError(), PAIRS, calibration_error),
    (metrics.FlipRate(), ORDERS, lambda f, b: preference.flipped(f, b).mean()),
    (metrics.SymmetryError(), ORDERS, figures(lambda f, b: (f + b - 1).abs())),
    (metrics.CyclicTriples(), MATRICES, share_of_cycles),
    (metrics.SampledMean(), ORDERS, lambda values, weight: (values * weight).sum() / weight.sum()),
    (metrics.SampledWinRate(), ORDERS[:1], mean_and_interval),
    (metrics.SampledExploitability(), ESTIMATES, mean_and_both_intervals),
]


def over(table):
    ids = [f"{type(metric).__name__}-{index}" for index, (metric, _, _) in enumerate(table)]
    return pytest.mark.parametrize(("metric", "arguments", "expected"), table, ids=ids)


@pytest.fixture(autouse=True)
def _fresh():
    for metric, _, _ in TABLE:
        metric.reset()


def check(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=0)


def test_every_metric_is_in_the_table():
    assert {type(metric).__name__ for metric, _, _ in TABLE} == {*metrics.__all__} - {"GameMetric"}


@over(TABLE)
def test_batches_of_any_size_add_up(metric, arguments, expected):
    for part in (slice(0, 1), slice(1, 5), slice(5, None)):
        metric.update(*(argument[part] for argument in arguments))
    check(metric.compute(), expected(*arguments))


@over(TABLE)
def test_reset_forgets(metric, arguments, expected):
    metric.update(*arguments)
    metric.reset()
    first = [argument[:2] for argument in arguments]
    metric.update(*first)
    check(metric.compute(), expected(*first))


@over(TABLE)
def test_pickle_keeps_the_state(metric, arguments, expected):
    metric.update(*(argument[:4] for argument in arguments))
    copy = pickle.loads(pickle.dumps(metric))
    copy.update(*(argument[4:] for argument in arguments))
    check(copy.compute(), expected(*arguments))


@over(TABLE)
def test_forward_gives_the_batch_and_keeps_the_total(metric, arguments, expected):
    metric(*(argument[:3] for argument in arguments))
    rest = [argument[3:] for argument in arguments]
    check(metric(*rest), expected(*rest))
    check(metric.compute(), expected(*arguments))


@over(GAMES)
def test_the_declared_direction_is_true(metric, arguments, expected):
    """The equilibrium is better than a policy at random; in win rate, what wins most is."""
    worse = expected(*arguments).mean()
    if isinstance(metric, WinRate):
        wins_most = (P @ LOG_MU.exp()[..., None])[..., 0] * 1000
        better = expected(wins_most, *arguments[1:]).mean()
    else:
        better = expected(LOG_NASH, *arguments[1:]).mean()
    assert bool(better > worse) is metric.higher_is_better
    assert better != worse


def _two_processes(rank, path):
    store = f"file://{path}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    part = slice(0, 2) if rank == 0 else slice(2, None)  # unequal shares
    results = []
    for metric, arguments, _ in TABLE:
        metric.update(*(argument[part] for argument in arguments))
        results.append(metric.compute())
    torch.save(results, f"{path}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_figures_of_one(tmp_path):
    multiprocessing.start_processes(
        _two_processes, (str(tmp_path),), nprocs=2, start_method="forkserver"
    )
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        for (_, arguments, expected), result in zip(TABLE, results, strict=True):
            check(result, expected(*arguments))
