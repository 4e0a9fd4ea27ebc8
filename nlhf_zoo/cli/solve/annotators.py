"""``nlhf solve --worst_case``: the policy for the worst served of several annotators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.cli.solve import reading
from nlhf_zoo.cli.solve.reading import Game
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.annotators import WorstCase, worst_case


def check_annotators(others: Sequence[Path], algorithm: PolicyOptimizer | None) -> None:
    """Refuse what cannot be solved for several annotators."""
    if algorithm is not None:
        raise UserError(
            "--worst_case is solved and not played: leave --algorithm out, or train on an "
            "EnsembleOracle"
        )
    if not others:
        raise UserError("--worst_case is a list of the other annotators' files: give one at least")


def solve_annotators(games: Sequence[Game], log_reference: Tensor, beta: float) -> WorstCase:
    """The policy for the worst served; each game is one annotator's, the first one names them."""
    first, *others = games
    tables = [first.preference, *(_in_order_of(first, other).preference for other in others)]
    return worst_case(torch.stack(tables), log_reference, beta)


def _in_order_of(first: Game, other: Game) -> Game:
    """A game with prompts and alternatives in the order of the first one's."""
    if sorted(other.prompts) != sorted(first.prompts):
        raise UserError(f"{other.where} has other prompts than {first.where}: all have the same")
    table = torch.full_like(first.preference, 0.5)
    for number, (prompt, names) in enumerate(zip(first.prompts, first.names, strict=True)):
        there = other.prompts.index(prompt)
        if sorted(other.names[there]) != sorted(names):
            of_prompt = f" to {reading.short(prompt)!r}" if prompt else ""
            raise UserError(
                f"{other.where} has other alternatives{of_prompt} than {first.where}: annotators "
                "judge the same ones"
            )
        place = torch.tensor([other.names[there].index(name) for name in names])
        num = len(names)
        table[number, :num, :num] = other.preference[there][place[:, None], place]
    return replace(first, preference=table, where=other.where)


def print_annotators(games: Sequence[Game], found: WorstCase, title: str) -> None:
    """Print the policy of each prompt, and below it what it is worth to each annotator."""
    first = games[0]
    files = ", ".join(str(game.where) for game in games)
    print(f"For the worst served of {files}: {reading.shape(first.support)}, {title}")
    for number, (prompt, names) in enumerate(zip(first.prompts, first.names, strict=True)):
        print("\n" + (f"{reading.short(prompt)}\n" if prompt else ""), end="")
        reading.print_alternatives(names, {"probability": found.log_policy[number].exp()})
        each = zip(games, found.weights[number], found.exploitability[number], strict=True)
        for game, weight, exploited in each:
            print(f"{game.where}: weight {weight:.3g}, exploitability {exploited:.3g}")
        value, gap = found.value[number], found.gap[number]
        print(f"value {value:.3g}, exact to {gap:.1e} by best responses of both sides")


def arrays_of(games: Sequence[Game], found: WorstCase) -> dict[str, Any]:
    """What the output file holds."""
    count, num = games[0].support.shape
    which = 0 if count == 1 else slice(None)
    return {
        "log_policy": found.log_policy.numpy()[which],
        "annotators": np.array([str(game.where) for game in games]),
        "annotator_weights": found.weights.numpy()[which],
        "annotator_exploitability": found.exploitability.numpy()[which],
        "value": found.value.numpy()[which],
        "gap": found.gap.numpy()[which],
        "names": np.array([own + [""] * (num - len(own)) for own in games[0].names])[which],
    }
