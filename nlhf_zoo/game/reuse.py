"""A rollout carries a proximal step: drawn and judged once, trained on in minibatches."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.game import rollout_files
from nlhf_zoo.game.ahead import Ahead, halves, trained
from nlhf_zoo.game.held_rollout import FrozenLogProbs, HeldRollout, Schedule
from nlhf_zoo.game.lightning_internals import trainer_of
from nlhf_zoo.game.log_probs import score
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.game.playing import Recording, compact, place_of, run_of
from nlhf_zoo.game.replay import Replay, missing, weighed
from nlhf_zoo.game.rollout import BEHIND, Sample
from nlhf_zoo.game.rollout_files import Place
from nlhf_zoo.metrics.processes import Mean, of_all_processes
from nlhf_zoo.records import Prompts, ProximalStep, Responses
from nlhf_zoo.records.random_streams import training_seed

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame


class Reuse:
    """Holds the rollout of a proximal step, and hands out its minibatches.

    Attributes:
        folder: where rollouts are written before they are trained on, so that a run that is killed
            asks nothing twice; None keeps them in memory alone.
        place: where the last rollout belongs; checkpoints name it by this.
        log_probs: of the minibatch that is being trained on.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.place: Place | None = None
        self.log_probs: FrozenLogProbs | None = None
        # Rollouts that the last two checkpoints go on with; None of a run that was resumed, where
        # it is not known of the one before.
        self.named: list[int | None] = []
        self._held: HeldRollout | None = None
        self._whole: Place | None = None  # where the last rollout belongs that is complete
        self._replay = Replay()
        self._replayed = 0  # rollouts that the checkpoint was trained on beside its own
        self._schedule: Schedule | None = None  # of the proximal step that is being taken
        self._effective: Tensor | None = None  # sample size of a step that is reweighted [N]
        self._reweighed: tuple[int, int] | None = None  # for which round and step
        self._recording: Recording | None = None
        self._ahead: Ahead | None = None  # where the next rollout is drawn meanwhile

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the rollout that it was trained on."""
        if self.place is None or self._schedule is None:
            return {}
        whole = None if self._whole is None else asdict(self._whole)
        return {
            "place": asdict(self.place),
            "schedule": asdict(self._schedule),
            "whole": whole,
            "replayed": len(self._replay.rollouts),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from a checkpoint."""
        self.place = Place(**state_dict["place"]) if state_dict else None
        self._schedule = Schedule(**state_dict["schedule"]) if state_dict else None
        whole = state_dict.get("whole")
        self._whole = None if whole is None else Place(**whole)
        self._replayed = state_dict.get("replayed", 0)
        self._held, self._replay = None, Replay()

    def close(self) -> None:
        """Wait for a rollout that is being drawn ahead, and let it go."""
        if self._ahead is not None:
            self._ahead.close()

    def named_by_checkpoint(self) -> None:
        """A checkpoint was written: the rollout that it names stays, and that of the one before."""
        if self.place is not None:
            self.named = [*self.named[-1:], self.place.number]

    def recording(self, game: OnlineGame, step: ProximalStep) -> Recording:
        """Who plays and judges the parts of the rollout that is drawn now."""
        assert self.place is not None  # `minibatch` has found it
        assert self._schedule is not None
        steps = self._schedule.epochs * self._schedule.minibatches
        self._recording = Recording(game, step, self.place, self.folder, steps, self._ahead)
        return self._recording

    def schedule(self, game: OnlineGame, num_prompts: int | None) -> Schedule:
        """How a rollout of so many prompts is trained on.

        Raises:
            UserError: that is not known, but several minibatches are wanted; or they do not divide
                it.
        """
        rollout, trainer = game.rollout, trainer_of(game)
        assert isinstance(rollout, Sample)
        assert rollout.epochs is not None
        accumulate = 1 if trainer is None else trainer.accumulate_grad_batches
        if num_prompts is None:
            if rollout.minibatch is not None:
                raise UserError(
                    "model.rollout.minibatch needs to know how many prompts a rollout has: train "
                    "with TextPrompts or TablePrompts, or set game.rollout_prompts"
                )
            num_prompts = accumulate  # one minibatch an epoch, whatever their number
        return Schedule(
            num_prompts, rollout.epochs, rollout.minibatch, accumulate, rollout.held_out
        )

    def optimizer_steps(self, game: OnlineGame) -> int:
        """Optimiser steps of a proximal step: of the prompts that are held, or will be."""
        prompts = game.rollout_prompts if self._held is None else len(self._held.prompts)
        return self.schedule(game, prompts).optimizer_steps

    def loss(self, game: OnlineGame, prompts: Prompts) -> Tensor:
        """The loss of the next minibatch; at the start of a proximal step its rollout is drawn.

        Args:
            game: the game, whose position moves on.
            prompts: N prompts of the rollout; where the next one is drawn ahead, and N of that.

        Raises:
            OracleStoppedError: the oracle cannot be asked any more, or answers too little.
            UserError: N is no multiple of an optimiser step's prompts.
            DivergenceError: the loss is not finite.
        """
        step, coming = game.step, None
        if game.rollout.ahead:
            self._ahead = self._ahead or Ahead()
            prompts, coming = halves(prompts)
            step = trained(step)
        part = self._minibatch(game, prompts)
        if self._ahead is not None and coming is not None:
            self._draw_ahead(self._ahead, game, coming)
        with game.timer.phase("score"):
            self.log_probs = part.log_probs
            loss = game.improve(step, part.prompts, part.responses, part.payoffs)
            self.log_probs = None
            figures = self._figures(game, step)
        if figures and (trainer := trainer_of(game)) is not None:
            # Not at every step: Lightning would hand a figure to the loggers again and again.
            game.log_dict(figures, logger=False)
            for logger in trainer.loggers:
                numbers = {tag: float(figure) for tag, figure in figures.items()}
                logger.log_metrics(numbers, trainer.global_step)
        return loss

    def _draw_ahead(self, ahead: Ahead, game: OnlineGame, coming: Prompts) -> None:
        """Begin to draw the next rollout, behind which nothing ends the run within a gradient step.

        Before the last training step of the first gradient step a signal may: the run goes back to
        where this rollout was not drawn yet, and draws it again by the player that has drawn it.
        """
        schedule, progress = self._schedule, game.progress
        assert schedule is not None
        taken = progress.epoch * schedule.minibatches + progress.minibatch
        if taken == schedule.accumulate:
            game.copy_("policy", BEHIND)
        if taken >= schedule.accumulate:
            ahead.begin(game, coming)

    def goes_on(self, game: OnlineGame) -> bool:
        """Whether more steps are taken on the held rollout than were planned.

        So it is while people answer the next one, whole passes of it, up to the most there may be.
        All processes go on, or none.
        """
        progress, most = game.progress, game.rollout.max_epochs
        if self._ahead is None or self._schedule is None or not game.oracle.asks_ahead:
            return False
        if progress.minibatch:  # in the middle of such a pass
            return True
        (waiting,) = game.accounts.reduce([not self._ahead.is_answered])
        if not waiting or (most is not None and progress.epoch >= most):
            return False
        progress.extra_epochs += 1
        if progress.stream:  # the prompts of the round stay for as long
            progress.stream[0] += self._schedule.minibatches
        return True

    @torch.no_grad()
    def _figures(self, game: OnlineGame, step: ProximalStep) -> dict[str, Tensor]:
        """What is logged of all rollouts: at the end of an epoch, the loss of what is held out."""
        figures: dict[str, Mean] = {}
        if self._effective is not None:  # this is the first step on it
            sizes = Mean(self._effective.sum(), len(self._effective))
            figures["rollout/effective_sample_size"] = sizes
            self._effective = None
            if game.oracle.asks_ahead:
                extra = torch.tensor(float(game.progress.extra_epochs))
                figures["rollout/extra_epochs"] = Mean(extra, 1)
        losses, judged = [], 0
        for part in self._held_out(game):  # as many in all processes
            policy, algorithm = game.policy, game.algorithm
            given = part.prompts, part.responses, part.payoffs
            batch = score(policy, step, *given, game.beta, part.log_probs, game.rollout.clip)
            losses.append(algorithm.loss(step, batch).sum())
            judged += int(part.payoffs.valid.any(-1).sum())
        if losses:
            figures["rollout/held_out_loss"] = Mean(torch.stack(losses).sum(), judged)
        of_all = of_all_processes(trainer_of(game), figures)
        return {tag: figure.value for tag, figure in of_all.items() if figure.number}

    def _minibatch(self, game: OnlineGame, prompts: Prompts) -> HeldRollout:
        """What the next training step is taken on; the position moves on."""
        progress, step = game.progress, game.step
        held = self._held
        is_here = held is not None and held.number == progress.rollouts - 1
        begins = progress.epoch == progress.minibatch == 0
        if begins and not step.reweighted:
            self._schedule = self.schedule(game, len(prompts))
            previous = self._before(game) if game.rollout.replay else None
            self._held = self._drawn(game, step, prompts)
            self._begin_replay(game, step, self._held, previous)
        else:
            own = held.prompts if held is not None and is_here else prompts
            self._refuse_other_schedule(game, len(own))
            if not is_here:
                self._held = self._read_or_drawn_anew(game, prompts)
            game.accounts.unless_stopped(lambda: None)  # a signal may have come
        schedule = self._schedule
        assert self._held is not None
        assert schedule is not None
        if step.reweighted and self._reweighed != (progress.round, progress.step):
            self._reweigh(game, step)
        place = self._held.round, self._held.number
        rows = schedule.rows(training_seed(), *place, progress.epoch, progress.minibatch)
        progress.batches += 1
        progress.minibatch += 1
        if progress.minibatch == schedule.minibatches:
            progress.epoch, progress.minibatch = progress.epoch + 1, 0
        return self._replay.beside(self._held.take(rows, game.device), rows, game.device)

    def _held_out(self, game: OnlineGame) -> list[HeldRollout]:
        """At the end of an epoch, minibatches of the prompts that are not trained on; else none."""
        if game.progress.minibatch or self._held is None or self._schedule is None:
            return []
        parts = self._schedule.held_out_rows(training_seed(), self._held.round)
        return [self._held.take(rows, game.device) for rows in parts]

    def _refuse_other_schedule(self, game: OnlineGame, num_prompts: int) -> None:
        """Refuse to go on within a proximal step in other minibatches than it was begun in."""
        now = self.schedule(game, num_prompts)
        if self._schedule is None:
            self._schedule = now
        if now != self._schedule:
            raise UserError(
                "this proximal step was begun on a rollout of "
                f"{self._schedule.said()}, and goes on with {now.said()}: leave data.batch_size, "
                "trainer.accumulate_grad_batches, the number of processes and model.rollout as "
                "they were"
            )

    # The rollout ----------------------------------------------------------------------------------

    def _drawn(self, game: OnlineGame, step: ProximalStep, prompts: Prompts) -> HeldRollout:
        """Draw and judge; what a run that was killed has had judged already is read."""
        self._held = self._effective = self._reweighed = None  # before the next one is there
        number = game.progress.rollouts
        self.place = place_of(game, number, len(prompts))
        encoded = game.policy.encode(prompts)
        responses, payoffs = game.play_and_judge(step, encoded)
        assert self._recording is not None
        log_probs = self._recording.log_probs()
        if effective := self._recording.effective:  # of the parts that were judged now
            self._effective = torch.cat(effective)
        self._recording = None
        game.progress.rollouts += 1
        self._whole = self.place
        if self.folder is not None and game.local_rank == 0 and None not in self.named:
            kept = [each for each in self.named if each is not None]
            rollout_files.forget_all_but(self.folder, [*kept, number])
        held = encoded.to("cpu"), compact(responses), payoffs, log_probs
        return HeldRollout(number, game.progress.round, *held)

    def _read_or_drawn_anew(self, game: OnlineGame, prompts: Prompts) -> HeldRollout:
        """The rollout that a resumed run is in the middle of; all processes have it, or none."""
        encoded = game.policy.encode(prompts)
        found = self._read(game, self.place, encoded)
        (lost,) = game.accounts.reduce([found is None])
        if lost or found is None:
            return self._drawn_anew(game, prompts)
        if game.rollout.replay:
            self._read_replay(game)
        return found

    def _read(
        self, game: OnlineGame, place: Place | None, encoded: Prompts | None
    ) -> HeldRollout | None:
        """A rollout that a checkpoint names; None where a part is missing.

        Args:
            game: the game.
            place: where the rollout belongs.
            encoded: its prompts; None reads them, too.
        """
        if self.folder is None or place is None:
            return None
        # A checkpoint is the first process's; of a run of other processes or another seed no
        # rollout is taken.
        place, found = replace(place, rank=game.global_rank), []
        if place != replace(place, **run_of(game)):
            return None
        given = [None] * place.parts if encoded is None else encoded.split(place.parts)
        for number, prompts in enumerate(given):
            file = place.file(self.folder, number)
            part = rollout_files.read(file, place.header(number, prompts))
            if part is None:
                return None
            found.append(part)
        if encoded is None:
            written = [part.prompts for part in found if part.prompts is not None]
            if len(written) < len(found):
                return None
            encoded = Prompts.joined(written)
        return HeldRollout(
            place.number,
            place.round,
            encoded.to("cpu"),
            Responses.joined([part.responses for part in found]),
            Payoffs.joined([part.payoffs for part in found]),
            FrozenLogProbs.joined([part.log_probs for part in found]),
        )

    def _before(self, game: OnlineGame) -> HeldRollout | None:
        """The rollout before the one that is to be drawn; a resumed run reads it."""
        if self._held is not None or not game.progress.rollouts:
            return self._held
        found = self._read(game, self._whole, None)
        (lost,) = game.accounts.reduce([found is None])
        if lost or found is None:
            self._say_lost(game)
            return None
        self._read_replay(game)
        return found

    def _read_replay(self, game: OnlineGame) -> None:
        """What is replayed beside the rollout that was read; all processes have it, or none."""
        if self.folder is not None and self._whole is not None:
            self._replay.read(self.folder, replace(self._whole, rank=game.global_rank))
        (lost,) = game.accounts.reduce([len(self._replay.rollouts) < self._replayed])
        if lost:
            self._replay = Replay()
            self._say_lost(game)

    def _begin_replay(
        self,
        game: OnlineGame,
        step: ProximalStep,
        present: HeldRollout,
        previous: HeldRollout | None,
    ) -> None:
        """Weigh earlier rollouts for the step that begins, and write them beside its own."""
        sizes = self._replay.begin(game, step, present, previous)
        if sizes:
            self._effective = torch.cat(sizes)
        if self.folder is not None and self.place is not None:
            self._replay.write(self.folder, self.place)

    @staticmethod
    def _say_lost(game: OnlineGame) -> None:
        if game.global_rank == 0:
            print(
                "Earlier rollouts that would be replayed are not there any more: the run goes on "
                "without them.",
                file=sys.stderr,
            )

    def _drawn_anew(self, game: OnlineGame, prompts: Prompts) -> HeldRollout:
        """Where the rest of a rollout is to be trained on, but it is lost."""
        if game.global_rank == 0:
            print(
                "The rollout that the checkpoint was trained on is not there any more: responses "
                "are drawn and judged anew, by the policy as it is now, for the rest of its steps.",
                file=sys.stderr,
            )
        step = game.step
        if step.reweighted:
            step = game.plan[game.progress.step - 1]
        self._replay = Replay()
        return self._drawn(game, step, prompts)

    def _reweigh(self, game: OnlineGame, step: ProximalStep) -> None:
        """Take the step before's answers for this one's, against another opponent."""
        assert self._held is not None
        self._held, size = weighed(game, step, self._held, missing(step, self._held))
        sizes = [size, *self._replay.go_on(game, step)]
        if game.progress.epoch == game.progress.minibatch == 0:  # else it was logged already
            self._effective = torch.cat(sizes)
        self._reweighed = game.progress.round, game.progress.step
