"""What the wins alone say of a game, for ``nlhf solve``: Condorcet winner, Smith set and cycles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nlhf_zoo.cli.solve.reading import Game, short
from nlhf_zoo.solvers.majority import beats, condorcet_winners, cyclic_triples, smith_set

_MOST_NAMES = 12  # of a Smith set that are printed
_MOST_PRINTED = 3  # cyclic triples
_MOST_WRITTEN = 1000  # cyclic triples of a prompt


@dataclass(frozen=True, slots=True)
class Structure:
    """Of C games of at most N alternatives.

    Args:
        condorcet: the Condorcet winner, bool [C, N]: of each game one or none.
        smith: the Smith set, bool [C, N].
        cycles: how many cyclic triples each game has, C numbers.
        listed: the first of them, by places of alternatives.
    """

    condorcet: Tensor
    smith: Tensor
    cycles: list[int]
    listed: list[list[tuple[int, int, int]]]


def structure_of(game: Game) -> Structure:
    """What the wins of a game of preferences say."""
    wins = beats(game.preference)
    counted = [cyclic_triples(own, _MOST_WRITTEN) for own in wins]
    return Structure(
        condorcet_winners(wins, game.support),
        smith_set(wins, game.support),
        [count for count, _ in counted],
        [listed for _, listed in counted],
    )


def sentences(structure: Structure, number: int, names: list[str]) -> list[str]:
    """What is to be said of a game, by its number."""
    smith = [short(names[i]) for i in structure.smith[number].nonzero()[:, 0].tolist()]
    if structure.condorcet[number].any():
        said = [f"Condorcet winner: {smith[0]}"]
    else:
        listed = ", ".join(smith[:_MOST_NAMES]) + _more(len(smith), _MOST_NAMES)
        said = [f"no Condorcet winner; Smith set: {listed}"]
    if count := structure.cycles[number]:
        shown = structure.listed[number][:_MOST_PRINTED]
        cycles = [" > ".join(short(names[i]) for i in (*triple, triple[0])) for triple in shown]
        triples = "cyclic triple" if count == 1 else "cyclic triples"
        said.append(f"{count} {triples}: {'; '.join(cycles)}{_more(count, _MOST_PRINTED)}")
    return said


def arrays_of(structure: Structure) -> dict[str, Any]:
    """What the output file holds, with a dimension of C games before all others."""
    most = max(len(listed) for listed in structure.listed)
    cycles = np.full((len(structure.listed), most, 3), -1)
    for own, listed in zip(cycles, structure.listed, strict=True):
        if listed:
            own[: len(listed)] = listed
    return {
        "condorcet_winner": structure.condorcet.numpy(),
        "smith_set": structure.smith.numpy(),
        "num_cyclic_triples": np.array(structure.cycles),
        "cyclic_triples": cycles,
    }


def _more(count: int, shown: int) -> str:
    return f" and {count - shown} more" if count > shown else ""
