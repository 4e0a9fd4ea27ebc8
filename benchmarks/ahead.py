"""Rounds whose next rollout is drawn while this one is trained on, against the plain order.

    python -m benchmarks.ahead [--tokens 128] [--epochs 8] [--repeats 3]
    python -m benchmarks.ahead --tiny

The model is that of ``benchmarks.language``, about 10 M parameters; SPPO, 8 prompts, 4 responses
each, compared among themselves. The engine is a process of its own with a model of its own, one
thread each, as a server beside the trainer is: it gets the adapter, draws by transformers'
``generate`` and answers with the tokens. The same rounds are played by ``Trainer.fit`` in turn in
the plain order and ahead; seconds are those of the clock, between the ends of the first and the
last round. The ideal is the plain round less the lesser of its drawing and the rest.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from benchmarks.language import TINY, Size, make_game
from benchmarks.reuse import fit
from nlhf_zoo.algorithms import SPPO
from nlhf_zoo.callbacks import Budget
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.policies.language_model.generation import Drawn, Generator, Request
from nlhf_zoo.policies.language_model.players import Players

ROUNDS = 5


def serve(size: Size, pipe: Connection) -> None:
    """Draw what is asked for, until there is nothing more."""
    torch.set_num_threads(1)
    game = make_game(SPPO(), size, rollout=Sample(4, epochs=1))
    policy: Any = game.policy
    players = policy._players
    while (asked := pipe.recv()) is not None:
        weights, request, state = asked
        for name, tensor in players.parameters_of("policy").items():
            tensor.data.copy_(weights[name])
        rng = torch.Generator()
        rng.set_state(state)
        pipe.send(policy.generator.draw(players, replace(request, rng=rng)))


class Elsewhere(Generator):
    """An engine in a process of its own."""

    draws_apart = True

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    @override
    def draw(self, players: Players, request: Request) -> Drawn:
        return self.begin(players, request)()

    @override
    def begin(self, players: Players, request: Request) -> Callable[[], Drawn]:
        (player,) = (name for name, weight in request.who.items() if weight)
        weights = {n: p.detach().clone() for n, p in players.parameters_of(player).items()}
        nobody: Any = None  # the process seeds a generator of its own
        asked = weights, replace(request, who={"policy": 1.0}, rng=nobody), request.rng.get_state()

        def draw() -> Drawn:
            self.pipe.send(asked)
            drawn: Drawn = self.pipe.recv()
            return drawn

        return draw


class Clock(L.Callback):
    """When each round ended, and how long drawing was waited for until then."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, OnlineGame)
        if pl_module.between_rounds:
            self.ends.append((time.perf_counter(), pl_module.timer.total["generate"]))


def seconds_a_round(size: Size, epochs: int, ahead: bool, pipe: Connection) -> tuple[float, float]:
    """Of a round, and of these what it waits for drawing."""
    rollout = Sample(4, epochs=epochs, ahead=ahead)
    game = make_game(SPPO(), size, rollout=rollout, generator=Elsewhere(pipe))
    clock = Clock()
    # Each round has the same prompts, and a batch those of two.
    fit(game, size.batch(), [Budget(rounds=ROUNDS), clock], times=2 if ahead else 1)
    first, last = clock.ends[0], clock.ends[-1]
    return (last[0] - first[0]) / (ROUNDS - 1), (last[1] - first[1]) / (ROUNDS - 1)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(shape=TINY, new_tokens=8) if given.tiny else Size(new_tokens=given.tokens)
    here, there = multiprocessing.get_context("spawn").Pipe()
    engine = multiprocessing.get_context("spawn").Process(target=serve, args=(size, there))
    engine.start()
    try:
        with quiet():
            turns = [
                [seconds_a_round(size, given.epochs, ahead, here) for ahead in (False, True)]
                for _ in range(given.repeats)
            ]
    finally:
        here.send(None)
        engine.join()
    plain, waits = (statistics.median(turn[0][i] for turn in turns) for i in (0, 1))
    ahead = statistics.median(turn[1][0] for turn in turns)
    ratio = statistics.median(turn[1][0] / turn[0][0] for turn in turns)
    ideal = max(waits, plain - waits)
    print(f"plain order  {plain:7.2f} s a round, {waits:.2f} of them drawing")
    print(f"drawn ahead  {ahead:7.2f} s a round, {ratio:.2f} of it; ideally {ideal / plain:.2f}")


if __name__ == "__main__":
    main()
