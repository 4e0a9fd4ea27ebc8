"""How good a trained best response is, on prompts that it is not trained on; and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.lower_bound import ANSWERS, draw_bound
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.records import Prompts
from nlhf_zoo.solvers.lower_bound import mean_interval


@dataclass(frozen=True, slots=True)
class Look:
    """The bound at a moment of the training."""

    round: int
    answers: int  # of the oracle until then, those of all looks among them
    bound: float  # its estimate
    low: float  # ends of its interval for the prompts that are looked at
    high: float


class HeldOutBound(L.Callback):
    """Measure the lower bound every so often, keep the best policy, and stop where it has been.

    All looks draw by the same random numbers, so that what differs between them is the policy.
    The best is the one of the largest lower end: at the start the bound is 0 without an error, and
    the largest of many estimates that are no better would lie above it. For that it is too high in
    the mean, too: it is for choosing, and what is reported is measured anew.

    A training that ends for want of a better look has begun one step of the next round by then.

    Args:
        prompts: that are looked at.
        num: draws of the bound to each, at a look.
        every: rounds between two looks.
        patience: looks without a better one after which training ends; None never ends it.
        rows: responses that are drawn at a time.
        seed: of what is drawn.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        prompts: Prompts,
        num: int,
        every: int = 5,
        patience: int | None = 5,
        rows: int = 128,
        seed: int = 0,
    ) -> None:
        numbers = {"every": every, "patience": patience, "rows": rows, "num - 1": num - 1}
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise UserError(f"HeldOutBound.{name} must be at least 1, but it is {number}")
        self.prompts = prompts
        self.num = num
        self.every = every
        self.patience = patience
        self.rows = rows
        self.seed = seed
        self.looks: list[Look] = []
        self.invalid = 0  # answers of all looks that could not be had
        self.best: dict[str, Tensor] = {}  # the policy at the best look

    @property
    def best_look(self) -> Look:
        """The look whose interval has the largest lower end, the first of several."""
        return max(self.looks, key=lambda look: look.low)

    @property
    def answers(self) -> int:
        """Answers that all looks have asked for."""
        return len(self.looks) * self.num * len(self.prompts) * ANSWERS

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_if_due(trainer, pl_module)
        self._stop(trainer)  # it may have ended before it is resumed

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        # Not at the end of a batch: an oracle that stops there would take back a step whose weights
        # have moved, for `GameCheckpoint` has not seen that step yet.
        self._look_if_due(trainer, pl_module)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_if_due(trainer, pl_module, every=1)

    def _look_if_due(
        self, trainer: L.Trainer, game: L.LightningModule, every: int | None = None
    ) -> None:
        if not isinstance(game, OnlineGame) or not game.between_rounds:
            return
        number = game.progress.round
        is_new = not self.looks or self.looks[-1].round != number
        if is_new and number % (every or self.every) == 0:
            self._look(game)
            self._stop(trainer)

    def _look(self, game: OnlineGame) -> None:
        found = draw_bound(game, self.prompts, self.num, self.seed, 0, self.rows)
        interval = mean_interval(found.draws)
        answers = game.progress.queries + self.answers + found.answers
        look = Look(game.progress.round, answers, interval.mean, interval.low, interval.high)
        self.looks.append(look)
        self.invalid += found.invalid
        if self.best_look is look:
            self.best = game.policy.snapshot()

    def _stop(self, trainer: L.Trainer) -> None:
        behind = len(self.looks) - 1 - self.looks.index(self.best_look)
        if self.patience is not None and behind >= self.patience:
            trainer.should_stop = True

    def restore(self, game: OnlineGame) -> None:
        """Give a game the policy of the best look."""
        game.policy.restore(self.best)
        game.versions.moved("policy")

    @override
    def state_dict(self) -> dict[str, Any]:
        looks = [asdict(look) for look in self.looks]
        return {"looks": looks, "invalid": self.invalid, "best": dict(self.best)}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.looks = [Look(**look) for look in state_dict["looks"]]
        self.invalid, self.best = state_dict["invalid"], dict(state_dict["best"])
