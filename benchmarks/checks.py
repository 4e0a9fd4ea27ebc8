"""What is looked at before a language model trains, against one training step of it.

    python -m benchmarks.checks [--repeats 3] [--threads 1]

The model is that of ``benchmarks.language``, about 10 M parameters, and so is the step: 8 prompts,
2 responses each, 64 tokens. Tried is all that a run does once and a step does not: whether a
gradient reaches each adapter, when the policy is bound; what the model is capable of, at its first
use; and the checks that `nlhf fit` makes on its first batch. Game after game is made anew; checks
and step take turns in one process; seconds are the process's CPU seconds, figures are medians, and
a ratio is the median of the turns' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.language import LEARNING_RATE, Size, make_game
from nlhf_zoo.algorithms import OnlineDPO
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health import refuse_unhealthy
from nlhf_zoo.policies import CausalLMPolicy
from nlhf_zoo.policies.language_model.capabilities import layers_without_gradient


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    before = time.process_time()
    work()
    return time.process_time() - before


def step(game: OnlineGame, size: Size, optimizer: torch.optim.Optimizer) -> None:
    """A training step, without Lightning."""
    loss = game.surrogate_loss(size.batch())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def turn(size: Size) -> dict[str, float]:
    """Seconds of one training step, and of each thing that is looked at before."""
    game = make_game(OnlineDPO(), size)
    policy = game.policy
    assert isinstance(policy, CausalLMPolicy)
    players: Any = policy._players
    spent = {
        "gradient of adapters": seconds(
            lambda: layers_without_gradient(players, policy.plain_tokens())
        ),
        "capabilities": seconds(lambda: policy.capabilities),
        "checks of fit": seconds(lambda: refuse_unhealthy(game, size.batch())),
    }
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    step(game, size, optimizer)  # the first one makes buffers
    return spent | {"one step": seconds(lambda: step(game, size, optimizer))}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with quiet():
        turns = [turn(Size()) for _ in range(given.repeats)]
    for name in turns[0]:
        ratio = statistics.median(t[name] / t["one step"] for t in turns)
        print(f"{name:<24} {statistics.median(t[name] for t in turns):7.3f} s {ratio:7.2f} steps")
    total = statistics.median((sum(t.values()) - t["one step"]) / t["one step"] for t in turns)
    print(f"{'all before the first':<24} {'':9} {total:7.2f} steps")


if __name__ == "__main__":
    main()
