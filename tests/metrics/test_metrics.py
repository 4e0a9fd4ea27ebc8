"""Each metric against its function: whole, over batches, over processes and through pickle."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import distributed, multiprocessing

from nlhf_zoo.metrics import DualityGap, Exploitability, GameMetric, KLToNash, Span, WinRate
from nlhf_zoo.solvers import (
    duality_gap,
    exploitability,
    kl_to_nash,
    regularised_nash,
    span,
    win_rate,
)

BETA = 0.2


def data(batch=7, num=5):
    """Games, references, policies and equilibria for `batch` games."""
    generator = torch.Generator().manual_seed(1)
    upper = torch.rand(batch, num, num, dtype=torch.float64, generator=generator).triu(1)
    P = upper + (1 - upper.mT).tril(-1) + torch.eye(num, dtype=torch.float64) / 2
    log_mu, log_pi = torch.randn(2, batch, num, dtype=torch.float64, generator=generator)
    log_mu, log_pi = log_mu.log_softmax(-1), log_pi.log_softmax(-1)
    return P, log_mu, log_pi, regularised_nash(P, log_mu, BETA).log_policy


P, LOG_MU, LOG_PI, LOG_NASH = data()

# metric, arguments of update, reference function of the same arguments
TABLE = [
    (Exploitability(BETA), (LOG_PI, P, LOG_MU), lambda pi, P, mu: exploitability(P, pi, mu, BETA)),
    (Exploitability(0.0), (LOG_PI, P, LOG_MU), lambda pi, P, mu: exploitability(P, pi, mu, 0.0)),
    (DualityGap(BETA), (LOG_PI, P, LOG_MU), lambda pi, P, mu: duality_gap(P, pi, mu, BETA)),
    (KLToNash(), (LOG_PI, LOG_NASH), lambda pi, nash: kl_to_nash(nash, pi)),
    (Span(), (LOG_PI, LOG_NASH), span),
    (WinRate(), (LOG_PI, LOG_MU, P), lambda pi, mu, P: win_rate(P, pi, mu)),
]
IDS = [f"{type(metric).__name__}-{index}" for index, (metric, _, _) in enumerate(TABLE)]
over_table = pytest.mark.parametrize(("metric", "arguments", "function"), TABLE, ids=IDS)


@pytest.fixture(autouse=True)
def _fresh():
    for metric, _, _ in TABLE:
        metric.reset()


def check(result, values):
    assert result.keys() == {"mean", "max"}
    torch.testing.assert_close(result["mean"], values.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(result["max"], values.max(), rtol=1e-13, atol=0)


def test_every_metric_is_in_the_table():
    bases = GameMetric.__subclasses__()
    concrete = {c for base in bases for c in (base.__subclasses__() or [base])}
    assert {type(metric) for metric, _, _ in TABLE} == concrete


@over_table
def test_batches_of_any_size_add_up(metric, arguments, function):
    values = function(*arguments)
    for part in (slice(0, 1), slice(1, 5), slice(5, 7)):
        metric.update(*(argument[part] for argument in arguments))
    check(metric.compute(), values)


@over_table
def test_reset_forgets(metric, arguments, function):
    metric.update(*arguments)
    metric.reset()
    metric.update(*(argument[:2] for argument in arguments))
    check(metric.compute(), function(*arguments)[:2])


@over_table
def test_pickle_keeps_the_state(metric, arguments, function):
    metric.update(*(argument[:4] for argument in arguments))
    copy = pickle.loads(pickle.dumps(metric))
    copy.update(*(argument[4:] for argument in arguments))
    check(copy.compute(), function(*arguments))


@over_table
def test_forward_gives_the_batch_and_keeps_the_total(metric, arguments, function):
    values = function(*arguments)
    metric(*(argument[:3] for argument in arguments))
    check(metric(*(argument[3:] for argument in arguments)), values[3:])
    check(metric.compute(), values)


@over_table
def test_the_declared_direction_is_true(metric, arguments, function):
    """The equilibrium is better than a policy at random; in win rate, what wins most is."""
    worse = function(*arguments).mean()
    if isinstance(metric, WinRate):
        wins_most = (P @ LOG_MU.exp()[..., None])[..., 0] * 1000
        better = function(wins_most, *arguments[1:]).mean()
    else:
        better = function(LOG_NASH, *arguments[1:]).mean()
    assert bool(better > worse) is metric.higher_is_better
    assert better != worse


def _two_processes(rank, path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}/store", rank=rank, world_size=2
    )
    part = slice(0, 2) if rank == 0 else slice(2, 7)  # unequal shares
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
        for (_, arguments, function), result in zip(TABLE, results, strict=True):
            check(result, function(*arguments))
