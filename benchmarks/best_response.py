"""The lower bound by a trained best response on the small language, where the truth is known.

    python -m benchmarks.best_response [--betas 0.1 0.3] [--answers 600000] [--repetitions 200]

Online IPO trains a policy by `configs/language/reused/online_ipo.yaml`, 304 rounds. At its start,
early, half way and at its end a best response is trained by `train_best_response`, for these four
prompts, in one process on one thread. The responses can be listed: so the exploitability and the
bound of the response are known exactly, and the measurement is repeated from the exact laws of the
three players, with as many draws as the one that is reported.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.algorithms import OnlineIPO
from nlhf_zoo.algorithms.schedules import BudgetLR
from nlhf_zoo.callbacks import Budget
from nlhf_zoo.cli.best_response import TrainingOptions, split_prompts, train_best_response
from nlhf_zoo.cli.quiet import SILENT_TRAINER, quiet
from nlhf_zoo.data.prompts import TablePrompts, table_prompts
from nlhf_zoo.game.log_probs import log_prob_of_all
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import SmallLanguage
from nlhf_zoo.policies import CausalLMPolicy, LoRA, SmallLanguageModel
from nlhf_zoo.solvers import exploitability, kl, win_rate
from nlhf_zoo.solvers.lower_bound import bound_of_draws, mean_interval

MOMENTS = {"start": 0, "early": 16, "half way": 152, "end": 304}  # rounds
COLUMNS = (
    "beta",
    "moment",
    "exploitability",
    "bound",
    "share",
    "estimate",
    "95 % interval",
    "low end below the truth",
    "interval holds the bound",
    "answers a prompt",
    "CPU seconds",
)


def new_policy() -> CausalLMPolicy:
    """The policy of the configuration, at its start."""
    return CausalLMPolicy(SmallLanguageModel(), lora=LoRA(r=8, alpha=16), max_new_tokens=3)


class Kept(L.Callback):
    """Keeps the policy of some rounds."""

    def __init__(self) -> None:
        self.policies: dict[int, dict[str, Tensor]] = {}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_batch_end(trainer, pl_module)

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, OnlineGame)
        if pl_module.between_rounds and pl_module.progress.round in MOMENTS.values():
            self.policies[pl_module.progress.round] = pl_module.policy.snapshot()


def trained_policies(beta: float) -> dict[int, dict[str, Tensor]]:
    """Trained parameters by rounds."""
    L.seed_everything(0, verbose=False)
    game = OnlineGame(
        new_policy(),
        SmallLanguage(),
        OnlineIPO(eta=2 / (1 + 2 * beta)),
        beta,
        optimizer=partial(torch.optim.AdamW, lr=0.003, weight_decay=0.0),
        lr_scheduler=BudgetLR,
        rollout=Sample(64, epochs=4),
        realisation=GradientSteps(),
    )
    kept = Kept()
    trainer = L.Trainer(
        **SILENT_TRAINER,
        accelerator="cpu",
        devices=1,
        logger=False,
        limit_val_batches=0,
        callbacks=[Budget(rounds=max(MOMENTS.values())), kept],
    )
    trainer.fit(game, TablePrompts())
    return kept.policies


def repeated(
    P: Tensor, response: Tensor, policy: Tensor, mu: Tensor, beta: float, num: int, times: int
) -> tuple[Tensor, Tensor]:
    """Ends of the interval of so many measurements, drawn from laws [C, N] that are listed."""
    rng = torch.Generator().manual_seed(0)
    games, ends = torch.arange(len(P))[:, None, None], []
    for _ in range(times):
        ours, theirs, opponents = (
            torch.multinomial(law.exp(), num, replacement=True, generator=rng)
            for law in (response, policy, policy)
        )
        scored = torch.stack([ours, theirs], -1)
        ratios = ((law - mu)[games, scored] for law in (response, policy))
        found = mean_interval(bound_of_draws(P[games, scored, opponents[..., None]], *ratios, beta))
        ends.append((found.low, found.high))
    low, high = torch.tensor(ends, dtype=torch.float64).T
    return low, high


def certified(
    parameters: dict[str, Tensor], beta: float, options: TrainingOptions, times: int
) -> str:
    """One row of the table."""
    oracle, policy = SmallLanguage(), new_policy()
    policy.bind((), oracle.support, oracle.action_names)
    policy.restore(parameters)
    prompts, since = table_prompts(oracle), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        split = split_prompts(prompts, disjoint=False)
        found = train_best_response(policy, oracle, beta, split, options, Path(folder))
    seconds = time.process_time() - since
    law = partial(log_prob_of_all, policy, prompts=prompts)
    response, opponent, mu = (law(p).double() for p in ("policy", "opponent", "reference"))
    assert oracle.table is not None
    P = oracle.table.double()
    truth = exploitability(P, opponent, mu, beta).mean().item()
    wins = win_rate(P, response, opponent) - 0.5
    bound = (wins + beta * (kl(opponent, mu) - kl(response, mu))).mean().item()
    low, high = repeated(P, response, opponent, mu, beta, options.measured, times)
    below = (low <= truth).double().mean().item()
    held = ((low <= bound) & (bound <= high)).double().mean().item()
    interval = found.interval
    return (
        f"| {truth:.5f} | {bound:.5f} | {bound / truth:.0%} | {interval.mean:.5f} | "
        f"[{interval.low:.5f}, {interval.high:.5f}] | {below:.1%} | {held:.1%} | "
        f"{found.answers / len(prompts):,.0f} | {seconds:.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--answers", type=int, default=600_000)
    parser.add_argument("--repetitions", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = TrainingOptions(
        prompts="all",
        answers=arguments.answers,
        responses=64,
        opponents=16,
        epochs=8,
        learning_rate=0.003,
        step=0.1,
        patience=1000,
        draws=512,
        measured=4096,
        rank=8,
    )
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    with quiet():
        for beta in arguments.betas:
            policies = trained_policies(beta)
            for moment, number in MOMENTS.items():
                row = certified(policies[number], beta, options, arguments.repetitions)
                print(f"| {beta:g} | {moment} {row}", flush=True)


if __name__ == "__main__":
    main()
