"""What the model says: rows of prompts, responses and verdicts, in a file and in every logger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.callbacks.history import folder_of_files
from nlhf_zoo.callbacks.listener import HeardPair, Listener, text_of
from nlhf_zoo.callbacks.response_rows import COLUMNS, ResponseFile, ResponseRow, cells, table
from nlhf_zoo.data.stream import TextData
from nlhf_zoo.data.text_prompts import TextPrompts, in_conversation
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.evaluation import POLICY, REFERENCE
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.rollout import BEHIND
from nlhf_zoo.policies.finite import FinitePolicy
from nlhf_zoo.records import PLAIN, Mixture, Prompts, Responses
from nlhf_zoo.records.random_streams import random_stream, training_seed

NAME = "responses.jsonl"


class ResponseTable(L.Callback):
    """Show what the policy says, to the Trainer's loggers as text, and in `responses.jsonl`.

    Every so many rounds it takes some prompts of each proximal step's rollout, as it was drawn and
    judged: nothing is drawn or asked for it. Prompts that are the same each time are drawn to, too,
    once a prompt; they are judged in validation only, where they count as validation's. What a
    log-ratio says is computed by the trainer, by the weights that the step is taken from.

    The file has a line of JSON for each row, in the run's folder, by the first process; it is
    resumed as `history.bin` is. Tokens that are drawn for it are not counted.

    Args:
        every: rounds between two tables.
        num: prompts of a rollout that are shown; and, without ``prompts``, how many of the held-out
            ones are the same each time.
        prompts: these in their place, as text.

    Raises:
        UserError: a number is below one, or a prompt is empty.
    """

    def __init__(self, every: int = 10, num: int = 4, prompts: list[str] | None = None) -> None:
        for name, number in (("every", every), ("num", num)):
            if number < 1:
                raise UserError(f"ResponseTable.{name} must be at least 1, but it is {number}")
        if prompts is not None and not all(text.strip() for text in prompts):
            raise UserError("ResponseTable.prompts has an empty prompt: leave it out")
        self.every = every
        self.num = num
        self.prompts = prompts
        self._fixed: Prompts | None = None
        self._drawn: Responses | None = None  # to the fixed prompts, in this round
        self._listener: Listener | None = None
        self._file: ResponseFile | None = None
        self._rows = 0  # in the file
        self._cut: dict[tuple[int, int], list[dict[str, Any]]] = {}  # of rounds and their steps

    def check(self, game: OnlineGame) -> None:
        """Refuse a game in which nothing is said, and prompts that its oracle does not know.

        Raises:
            UserError: which part it is.
        """
        if isinstance(game.policy, FinitePolicy) or game.rollout.enumerated:
            part = game.policy if isinstance(game.policy, FinitePolicy) else game.rollout
            raise UserError(
                f"ResponseTable shows responses that are drawn as text, and {type(part).__name__} "
                "has none: leave it out of trainer.callbacks"
            )
        if self.prompts and game.oracle.support is not None:
            raise UserError(
                f"ResponseTable.prompts cannot be judged by {type(game.oracle).__name__}, which "
                "has prompts of its own: leave them out"
            )

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, OnlineGame):
            self.check(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the file where it stood, and find the prompts that are the same each time."""
        if not isinstance(pl_module, OnlineGame):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # its connector sets it
        fixed = self._given(data) if self.prompts else _held_out(data, self.num, trainer.world_size)
        self._fixed = None if fixed is None else pl_module.policy.encode(fixed.to(pl_module.device))
        if (folder := folder_of_files(trainer)) is None:
            return
        self._file = ResponseFile(folder / NAME, self._rows)
        for row in self._file.cut:
            if row["kind"] == "rollout":
                self._cut.setdefault((row["round"], row["step"]), []).append(row)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        """Listen to what is judged, where this training step draws what a step is taken on."""
        if not isinstance(pl_module, OnlineGame) or not self._is_due(pl_module):
            return
        progress = pl_module.progress
        if self._fixed is not None and progress.step == 0:
            rng = random_stream(training_seed(), 0, progress.round, pl_module.device, "shown")
            self._drawn = _one_each(pl_module, POLICY, self._fixed, rng)
        self._listener = Listener(pl_module.oracle, self.num)

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Show what was heard; the weights are those from which the gradient is taken."""
        if self._listener is None or not isinstance(pl_module, OnlineGame):
            return
        step, progress = pl_module.step, pl_module.progress
        sampler: Mixture = {BEHIND: 1.0} if pl_module.rollout.ahead else step.sampler
        heard = self._heard()
        opponent = step.payoff[0][1] if step.payoff else None  # a score has none
        rows = _rows_of(pl_module, "rollout", heard, sampler, opponent)
        if not heard:  # a rollout that was read from the disk was shown when it was drawn
            place = progress.round, progress.step
            self._show(trainer, pl_module, "rollout", self._cut.pop(place, []))
        self._show(trainer, pl_module, "rollout", map(asdict, rows))
        if self._drawn is not None and self._fixed is not None:
            numbers, (prompts, drawn) = range(len(self._fixed)), (self._fixed, self._drawn)
            each = [HeardPair(prompts.take([one]), drawn.take([one])) for one in numbers]
            rows = _rows_of(pl_module, "fixed", each, POLICY)
            self._show(trainer, pl_module, "fixed", map(asdict, rows))
        self._drawn = None

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Listen to what is judged of the first held-out prompts."""
        if _validates(trainer, pl_module) and batch_idx == 0 and not self.prompts:
            assert isinstance(pl_module, OnlineGame)
            self._listener = Listener(pl_module.oracle, self.num)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show it; prompts that are no held-out ones are drawn to and judged now."""
        if not _validates(trainer, pl_module):
            return
        assert isinstance(pl_module, OnlineGame)
        if self.prompts:
            self._ask(trainer, pl_module)
        if self._listener is not None:
            rows = _rows_of(pl_module, "validation", self._heard(), POLICY, REFERENCE)
            self._show(trainer, pl_module, "validation", map(asdict, rows))

    def _ask(self, trainer: L.Trainer, game: OnlineGame) -> None:
        """Have the oracle compare a response to each prompt with one of the reference."""
        assert self._fixed is not None
        rng = random_stream(0, 0, game.progress.round, game.device, "shown", part=1)
        ours, theirs = (_one_each(game, who, self._fixed, rng) for who in (POLICY, REFERENCE))
        self._listener = Listener(game.oracle, len(self._fixed))
        asks = trainer.is_global_zero  # for all
        game.validation.ask(game, (self._fixed, ours, theirs) if asks else None)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The rows that a checkpoint counts must be in the file before it."""
        if self._file is not None:
            self._file.flush()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = state_dict["rows"]

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._heard()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_due(self, game: OnlineGame) -> bool:
        """Whether this training step draws the rollout of a proximal step that is shown."""
        progress = game.progress
        begins = progress.gradient_step == progress.epoch == progress.minibatch == 0
        reads_another = game.reuse is not None and game.step.reweighted
        due = begins and progress.round % self.every == 0
        return due and not game.accumulates and not reads_another

    def _heard(self) -> list[HeardPair]:
        listener, self._listener = self._listener, None
        return [] if listener is None else listener.end()

    def _given(self, data: Any) -> Prompts:
        """The prompts of the configuration, as the data have theirs."""
        texts = self.prompts or []
        prompts = Prompts(torch.arange(len(texts)), text=texts)
        if not isinstance(data, TextPrompts):
            return prompts
        talks = data.loaded.training.prompts.conversations is not None
        system = data.system if talks else None
        return in_conversation(prompts, "ResponseTable.prompts", talks, system)

    def _show(
        self, trainer: L.Trainer, game: OnlineGame, kind: str, rows: Iterable[dict[str, Any]]
    ) -> None:
        """Write rows; those of the first process stand for all."""
        shown = [*rows]
        if not shown or not trainer.is_global_zero:
            return
        if self._file is not None:
            self._file.append(shown)
            self._rows += len(shown)
        for logger in trainer.loggers:
            show(logger, f"responses/{kind}", shown, game.progress.round)


def show(logger: Logger, tag: str, rows: Sequence[Mapping[str, Any]], number: int) -> None:
    """Hand rows to a logger that takes text: TensorBoard's, or one with ``log_text`` as wandb's."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(tag, table(rows), number)
    elif (log_text := getattr(logger, "log_text", None)) is not None:
        log_text(key=tag, columns=[*COLUMNS], data=[cells(row) for row in rows], step=number)


def _validates(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Whether this is the validation of a fit."""
    fits = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    return fits and isinstance(module, OnlineGame)


def _held_out(data: Any, num: int, world_size: int) -> Prompts | None:
    """The first held-out prompts that the first process validates on; None where there are none."""
    if not isinstance(data, TextData) or data.loaded.validation is None:
        return None
    places = range(len(data.loaded.validation))[::world_size][:num]
    batch = data.batch(data.loaded.validation, [*places])
    return batch if isinstance(batch, Prompts) else None


def _one_each(game: OnlineGame, who: Mixture, prompts: Prompts, rng: torch.Generator) -> Responses:
    """A response of a player to each prompt."""
    return game.policy.sample(who, prompts, 1, PLAIN, rng)


@torch.no_grad()
def _log_ratios(game: OnlineGame, heard: Sequence[HeardPair]) -> list[float | None]:
    """Log pi(y) / mu(y) of responses; None in all processes where one of them has none.

    Scoring is work of all processes, where weights are shared.
    """
    (having,) = game.accounts.reduce([bool(heard)])
    if not heard or having < game.trainer.world_size:
        return [None] * len(heard)
    prompts = Prompts.joined([pair.prompts for pair in heard])
    responses = Responses.joined([pair.response for pair in heard])
    ours, theirs = (game.policy.log_prob(who, prompts, responses) for who in (POLICY, REFERENCE))
    ratios: list[float] = (ours - theirs)[:, 0].tolist()
    return [ratio if math.isfinite(ratio) else None for ratio in ratios]


def _rows_of(
    game: OnlineGame,
    kind: str,
    heard: Sequence[HeardPair],
    player: Mixture,
    opponent: Mixture | None = None,
) -> list[ResponseRow]:
    """Rows of pairs of two players; all processes call this."""
    place, rows = (game.progress.round, game.progress.step), []
    for pair, ratio in zip(heard, _log_ratios(game, heard), strict=True):
        prompts, response = pair.prompts, pair.response
        row = ResponseRow(
            *place,
            kind,
            prompts.conversations[0] if prompts.conversations else (prompts.text or [""])[0],
            dict(player),
            text_of(response),
            int(response.mask.sum()),
            _truncated(response),
            ratio,
        )
        if pair.opponent is not None and opponent is not None:
            is_valid = not math.isnan(pair.preference)
            row = replace(
                row,
                opponent_player=dict(player if pair.among_themselves else opponent),
                opponent=text_of(pair.opponent),
                opponent_length=int(pair.opponent.mask.sum()),
                opponent_truncated=_truncated(pair.opponent),
                valid=is_valid,
                preference=pair.preference if is_valid else None,
                orders=pair.orders,
            )
        rows.append(row)
    return rows


def _truncated(response: Responses) -> bool | None:
    return None if response.truncated is None else bool(response.truncated.any())
