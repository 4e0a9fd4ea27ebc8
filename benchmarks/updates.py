"""Exact extragradient updates a second: ``nlhf fit`` against a plain PyTorch loop.

    python benchmarks/updates.py [--threads 1] [--repeats 5]

The plain loop is the EGPO simulation's (arXiv 2503.08942), batched over the games: it builds the
matrix of all pairs
for each half step, calls autograd and SGD, and evaluates the duality gap of each update. ``nlhf
fit`` plays the same
updates and keeps all metrics of every round in a file. Both are timed in turn in one process,
start-up excluded.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from nlhf_zoo.cli.main import main

CONFIG = Path(__file__).parent.parent / "configs" / "tabular" / "egpo.yaml"
BETA = 0.1
TIMES: list[float] = []


class Stopwatch(L.Callback):
    """Time from the first round to the end of the last, metrics and file included."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop."""
        TIMES.append(time.perf_counter() - self.start)


def ours(num_actions: int, updates: int) -> float:
    """Updates a second of ``nlhf fit``."""
    with tempfile.TemporaryDirectory() as folder:
        main(
            [
                *("fit", "--config", str(CONFIG)),
                *("--model.oracle.init_args.num_actions", str(num_actions)),
                *("--trainer.callbacks", "ExactMetrics"),
                *("--trainer.callbacks+=Budget", f"--trainer.callbacks.rounds={updates}"),
                "--trainer.callbacks+=benchmarks.updates.Stopwatch",
                *("--trainer.logger.init_args.save_dir", folder),
                *("--trainer.enable_progress_bar", "false"),
            ]
        )
    return updates / TIMES.pop()


def plain_loop(num_actions: int, updates: int) -> float:
    """Updates a second of the plain loop."""
    games = 10
    lower = torch.rand(games, num_actions, num_actions, dtype=torch.float64).tril(-1)
    preference = lower + (1 - lower.mT).triu(1) + 0.5 * torch.eye(num_actions, dtype=torch.float64)
    log_mu = torch.randn(games, num_actions, dtype=torch.float64).log_softmax(-1)
    theta = log_mu.clone().requires_grad_()
    # The exact step eta = 2 / (1 + 2 beta): the gradient of the mean over pairs is (4 / N) (d -
    # mean d).
    optimizer = torch.optim.SGD([theta], lr=2 * BETA / (1 + 2 * BETA) * num_actions / 4)

    def half_step(opponent: Tensor) -> None:
        win_rate = (preference @ opponent[..., None])[..., 0] / BETA
        log_ratio = theta.log_softmax(-1) - log_mu
        residual = log_ratio - win_rate
        pairs = residual[:, :, None] - residual[:, None, :]
        optimizer.zero_grad()
        (pairs**2).mean((1, 2)).sum().backward()
        optimizer.step()

    def duality_gap() -> Tensor:
        with torch.no_grad():
            log_policy = theta.log_softmax(-1)
            policy = log_policy.exp()
            win_rate = (preference @ policy[..., None])[..., 0]
            best = BETA * torch.logsumexp(log_mu + win_rate / BETA, -1)
            return 2 * (best + BETA * (policy * (log_policy - log_mu)).sum(-1) - 0.5)

    gaps = []
    start = time.perf_counter()
    for _ in range(updates):
        before = theta.detach().clone()
        half_step(theta.detach().softmax(-1))
        opponent = theta.detach().softmax(-1)
        with torch.no_grad():
            theta.copy_(before)
        half_step(opponent)
        gaps.append(duality_gap())
    seconds = time.perf_counter() - start
    assert gaps[-1].max() < 1e-6, "the plain loop must solve the game too"
    return updates / seconds


def run() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    versions = f"torch {torch.__version__}, lightning {L.__version__}"
    print(f"{versions}, {arguments.threads} threads, median of {arguments.repeats}")
    print("| actions | nlhf fit, updates/s | plain loop, updates/s | ratio | target |")
    print("|---|---|---|---|---|")
    for num_actions, target in ((10, 20), (100, 15)):
        rows = [
            (ours(num_actions, 20_000), plain_loop(num_actions, 500))
            for _ in range(arguments.repeats)
        ]
        fast, slow = (statistics.median(column) for column in zip(*rows, strict=True))
        ratio = statistics.median(a / b for a, b in rows)
        print(f"| {num_actions} | {fast:,.0f} | {slow:,.0f} | {ratio:.1f} | {target} |")


if __name__ == "__main__":
    import benchmarks.updates

    benchmarks.updates.run()
