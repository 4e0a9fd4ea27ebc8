"""Pairs that are chosen by what the oracle said of them, which few losses are derived for."""

from __future__ import annotations

from nlhf_zoo.game.designs import CHOSEN
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.check import Note

_SAID = (
    "chosen by a {}, so that they are not two independent responses: what is trained towards "
    "is not the equilibrium of the stated game; set model.rollout.pairs to circle for it"
)


def chosen_pairs(game: OnlineGame) -> Note | None:
    """What the doctor and a run say where the pairs that are trained on are chosen."""
    pairs = game.rollout.pairs
    return Note("pairs are", _SAID.format(pairs)) if pairs in CHOSEN else None
