"""All checks in one go; and the cheap ones, which a run makes before its first step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import lightning as L

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health import adapters, capabilities, players, probe, scoring
from nlhf_zoo.health.check import Check, Finding, Note, skipped
from nlhf_zoo.health.chosen_pairs import chosen_pairs
from nlhf_zoo.health.dry_run import MakeTrainer, dry_run
from nlhf_zoo.health.oracles.answers import listening, oracle_answers
from nlhf_zoo.health.oracles.judges import models_of
from nlhf_zoo.health.preservation import restored_after
from nlhf_zoo.health.prompts import how_written, without_template
from nlhf_zoo.oracles import HumanOracle
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.records import Prompts

_Check = Callable[[], Finding | Sequence[Finding] | None]
Context = Callable[[], AbstractContextManager[object]]

_BATCHES = 10  # that are looked at for responses that do not end
_REHEARSAL = "one round"  # its trainer brings a context of its own
_NOBODY = "people are asked in a run: give model.oracle.path to have them asked here"


class HealthCheck(L.Callback):
    """Refuse to train a language model that fails a cheap check of `nlhf doctor`.

    On the first batch, where the model lies where it will be trained; the oracle is not asked. What
    may be meant is said on standard error: an algorithm's own warning, prompts of plain text where
    there is a chat template, pairs that are chosen by answers, and responses nearly all of which
    are cut in the first batches.
    """

    def __init__(self) -> None:
        self._done = False
        self._cut: list[float] = []  # shares of the first batches

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check once."""
        if not self._done and isinstance(pl_module, OnlineGame):
            refuse_unhealthy(pl_module, batch)
            form, pairs = without_template(pl_module.policy, batch), chosen_pairs(pl_module)
            said = [
                pl_module.algorithm.warning,
                form and f"Prompts are {form}",
                pairs and f"Pairs are {pairs.figure}.",
            ]
            for sentence in filter(None, said if trainer.is_global_zero else []):
                print(sentence, file=sys.stderr)
        self._done = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Look at the first batches for responses that do not end."""
        share = trainer.callback_metrics.get("rollout/truncated")
        if share is None or len(self._cut) == _BATCHES:
            return
        self._cut.append(float(share))
        mean = sum(self._cut) / len(self._cut)
        if len(self._cut) == _BATCHES and mean >= scoring.NEARLY_ALL and trainer.is_global_zero:
            print(f"{mean:.0%} of the responses are cut: {scoring.CUT}", file=sys.stderr)


def refuse_unhealthy(game: OnlineGame, prompts: Prompts) -> None:
    """Refuse to train a language model that fails a cheap check; others are not looked at.

    A few passes over two prompts with short responses of random tokens; the oracle is not asked.
    Padding and generator are those of the trial that the policy makes at its first use.

    Args:
        game: the game; it is left as it was.
        prompts: some to train on, at least one.
    """
    policy = game.policy
    if not isinstance(policy, CausalLMPolicy):
        return
    with restored_after(game):
        game.eval()
        few = policy.encode(prompts)
        tried = probe.random_tokens(policy, few.take(range(min(2, len(few)))))
        checks: list[Callable[[], Check | Sequence[Check]]] = [
            partial(players.adapters_apart, game),  # what is merged is unmerged at the first use
            partial(capabilities.trial, policy),
            lambda: players.reference_stays(game, tried, players.scattered_reference(game, tried)),
            partial(players.players_differ, game, tried, mixture=False),
            partial(players.policy_alone_trains, game),
            partial(scoring.dropout_off, game, tried),
        ]
        for check in checks:
            found = check()
            for one in [found] if isinstance(found, Check) else found:
                _refuse(one)


def _refuse(check: Check) -> None:
    """Raise what a failed check says."""
    if check.passed is False:
        limit = f" ({check.limit})" if check.limit else ""
        raise UserError(
            f"this model cannot be trained as it is: {check.name}: {check.figure}{limit}: "
            f"{check.advice}"
        )


def run_checks(
    game: OnlineGame,
    prompts: Prompts,
    make_trainer: MakeTrainer | None = None,
    context: Context = nullcontext,
) -> Iterator[tuple[str, Sequence[Finding]]]:
    """Make all checks, each when it is asked for.

    Args:
        game: the game; it is left as it was when all checks are made, or the iterator is closed.
        prompts: B prompts, as they were read.
        make_trainer: makes a trainer for the rehearsal of a round; None leaves that out.
        context: in which log-probabilities are computed, such as a trainer's autocast.

    Yields:
        what is looked at next, and what was found of what was looked at last.
    """
    found: Sequence[Finding] = []
    with restored_after(game):
        for title, check in _checks(game, prompts, make_trainer, context):
            yield title, found
            with nullcontext() if title == _REHEARSAL else context():
                found = _try(title, check)
    yield "", found


def _try(title: str, check: _Check) -> Sequence[Finding]:
    """What a check finds; what it stumbles over is a finding too."""
    try:
        found = check()
    except UserError as error:
        return [Check(title, False, "could not be checked", "", str(error))]
    except Exception as error:  # one check that fails must not hide the others
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return [Check(title, False, "could not be checked", "", said)]
    if found is None:
        return []
    return [found] if isinstance(found, Check | Note) else found


def _warning(game: OnlineGame) -> Note | None:
    """What the algorithm itself warns of, with its arguments."""
    return Note("a warning", warning) if (warning := game.algorithm.warning) else None


def _trial(game: OnlineGame) -> list[Finding]:
    """What the policy's own trial says; nothing of a policy that is no language model."""
    if not isinstance(game.policy, CausalLMPolicy):
        return []
    return [*capabilities.trial(game.policy), *capabilities.notes(game.policy)]


def _raise(error: Exception) -> None:
    raise error


def _checks(
    game: OnlineGame, prompts: Prompts, make_trainer: MakeTrainer | None, context: Context
) -> Iterator[tuple[str, _Check]]:
    """All checks in order; the game is prepared for each when it is asked for."""
    with restored_after(game):
        game.eval()
        yield "algorithm", partial(_warning, game)
        yield "prompts", partial(how_written, game, prompts)
        yield "adapters", partial(players.adapters_apart, game)  # others would unmerge them
        yield "model", partial(_trial, game)
        try:
            with context():
                tried = probe.drawn(game.policy, prompts)
                before = players.scattered_reference(game, tried)
        except Exception as error:
            yield "responses", partial(_raise, error)
            return  # nothing else can be looked at without any
        yield "reference", partial(players.reference_stays, game, tried, before)
        yield "base model", partial(players.reference_is_loaded, game, tried)
        yield "players", partial(players.players_differ, game, tried)
        yield "mixtures", partial(players.mixture_of_one, game, tried)
        yield "training", partial(players.policy_alone_trains, game)
        yield "gradient", partial(players.gradient_reaches, game, tried)
        yield "adapters' gradient", partial(adapters.gradient_everywhere, game, tried)
        yield "padding", partial(scoring.padding_and_batch, game, tried)
        yield "dropout", partial(scoring.dropout_off, game, tried)
        yield "end of sequence", partial(scoring.end_scored_once, game, tried)
        yield "responses", partial(scoring.responses_end, game, tried)
        yield "generator", partial(scoring.generator_agrees, game, prompts)
    yield "pairs", partial(chosen_pairs, game)
    yield "judge", partial(models_of, game.oracle)
    with listening(game.oracle) as asked:
        people = [part for part in game.oracle.modules() if isinstance(part, HumanOracle)]
        asks = all(part.path is not None for part in people)
        nobody = partial(skipped, "the oracle answers, and a round is played", _NOBODY)
        yield "oracle", partial(oracle_answers, game, prompts) if asks else nobody
        if make_trainer is not None and asks:
            yield _REHEARSAL, partial(dry_run, game, prompts, make_trainer)
    yield "text", partial(scoring.read_back, game, tried)
    game.eval()
    yield "speed", partial(scoring.speed, game, prompts)
    yield "size", partial(scoring.size, game)
    yield "adapters' share", partial(adapters.weights_with_adapters, game)
    yield "queries", lambda: Note("the oracle was asked", f"{asked.queries} queries")
