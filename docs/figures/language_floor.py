"""How near adapters of the small language come to its equilibrium, as docs/language.md says it.

    python docs/figures/language_floor.py [--steps 1200]

The exact exploitability, mean over the prompts, is minimised through LoRA itself, by Adam at .01
falling to 0. What is left is the least that was found, and no method trains these adapters below.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo import (
    CausalLMPolicy,
    Enumerate,
    GradientSteps,
    LoRA,
    OnlineGame,
    OnlineIPO,
    SmallLanguage,
    SmallLanguageModel,
)


def exploitability(table: Tensor, log_mu: Tensor, log_policy: Tensor, beta: float) -> Tensor:
    """Of a policy against the best response, for each prompt [C]."""
    log_policy = log_policy.double().log_softmax(-1)
    payoff = (table @ log_policy.exp()[..., None])[..., 0]
    kl = (log_policy.exp() * (log_policy - log_mu)).sum(-1)
    return beta * torch.logsumexp(log_mu + payoff / beta, -1) + beta * kl - 0.5


def floor(scale: float, beta: float, steps: int) -> float:
    """The least mean exploitability that the adapters reach."""
    torch.manual_seed(0)
    oracle = SmallLanguage()
    policy = CausalLMPolicy(
        SmallLanguageModel(output_scale=scale), lora=LoRA(r=8, alpha=16), max_new_tokens=3
    )
    OnlineGame(policy, oracle, OnlineIPO(), beta, rollout=Enumerate(), realisation=GradientSteps())
    prompts = policy.encode(oracle.prompts)
    responses = policy.enumerate(prompts)
    assert responses is not None
    table = oracle.table.double()
    with torch.no_grad():
        log_mu = policy.log_prob({"reference": 1.0}, prompts, responses).double().log_softmax(-1)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    least = torch.inf
    for _ in tqdm(range(steps), desc=f"scale {scale}, beta {beta}", leave=False):
        optimizer.zero_grad()
        log_policy = policy.log_prob({"policy": 1.0}, prompts, responses)
        loss = exploitability(table, log_mu, log_policy, beta).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        least = min(least, loss.item())
    return least


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1200)
    given = parser.parse_args()
    print("| output_scale | beta = 0.1 | beta = 0.03 |\n|---|---|---|")
    for scale in (1.0, 2.5):
        figures = [f"{floor(scale, beta, given.steps):.5f}" for beta in (0.1, 0.03)]
        print(f"| {scale} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
