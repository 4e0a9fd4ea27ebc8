"""The online game: the loop, its parts, and where it stands."""

from nlhf_zoo.algorithms.schedules import BudgetLR
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import ClosedForm, GradientSteps, Realisation
from nlhf_zoo.game.rollout import Enumerate, Rollout, Sample

__all__ = [
    "BudgetLR",
    "ClosedForm",
    "Enumerate",
    "GradientSteps",
    "OnlineGame",
    "Realisation",
    "Rollout",
    "Sample",
]
