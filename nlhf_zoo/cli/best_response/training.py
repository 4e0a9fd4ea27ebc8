"""Training a best response by the game's own loop, and measuring the bound that it gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.algorithms.best_response import OPPONENT, BestResponse
from nlhf_zoo.algorithms.schedules import BudgetLR
from nlhf_zoo.callbacks import Budget, GameCheckpoint, GameProgressBar
from nlhf_zoo.callbacks.held_out_bound import HeldOutBound, Look
from nlhf_zoo.cli.best_response.plan import Split, TrainingOptions
from nlhf_zoo.cli.quiet import GAME_TRAINER, quiet
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.game.lower_bound import draw_bound
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.playing import run_of
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.game.rollout_files import digest_of_tensors
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.policies import CausalLMPolicy, Policy
from nlhf_zoo.records import Prompts
from nlhf_zoo.solvers.lower_bound import MeanInterval, mean_interval

_CHECKPOINTS, _OPTIONS = "checkpoints", "options.json"
_CHECKPOINT_EVERY = 20  # training steps


class GivenPrompts(TablePrompts):
    """Prompts that are there, in a new order for each pass."""

    def __init__(self, prompts: Prompts, batch_size: int, seed: int) -> None:
        super().__init__(batch_size, shuffle=True, seed=seed)
        self.given = prompts

    @override
    def _prompts(self) -> Prompts:
        return self.given


@dataclass(frozen=True, slots=True)
class BestResponseBound:
    """What a trained best response says of a policy's exploitability.

    Args:
        interval: of the bound, on the prompts of the measurement.
        draws: by which it was measured [B, n].
        looks: the bound while training went on, on the prompts that choose.
        best: the look whose policy was measured.
        answers: of the oracle, of all three together.
        invalid: of looks and measurement, those that could not be had; the bound takes the worst.
        rounds: of training.
        split: of the prompts.
    """

    interval: MeanInterval
    draws: Tensor
    looks: Sequence[Look]
    best: Look
    answers: int
    invalid: int
    rounds: int
    split: Split


def train_best_response(
    policy: Policy,
    oracle: PreferenceOracle,
    beta: float,
    split: Split,
    options: TrainingOptions,
    folder: Path,
    shown: bool = False,
    source: str = "",
) -> BestResponseBound:
    """Train a best response to a policy's ``policy``, from that on, and measure its bound.

    A run that was ended goes on from its last checkpoint in the folder. The global random state is
    seeded.

    Args:
        policy: with its players; it is bound anew, and its ``policy`` is the response afterwards.
        oracle: who judges.
        beta: temperature of the game, above 0.
        split: prompts to train on, to choose by and to measure on.
        options: how.
        folder: for checkpoints; made if it is missing.
        shown: show a progress bar.
        source: what the policy was loaded from, for refusing to go on with another's training.

    Raises:
        UserError: the parts do not fit each other, the budget does not suffice, or the folder holds
            another training.
        OracleStoppedError: the oracle cannot be asked any more; a checkpoint is written.
    """
    rounds = options.rounds(split)
    L.seed_everything(options.seed, verbose=False)
    device = next(policy.parameters()).device  # it is bound anew on the CPU
    game = _game(policy, oracle, beta, options)
    looks = HeldOutBound(
        split.selection, options.draws, options.every, options.patience, options.rows, options.seed
    )
    resumed = _begin(folder, game, split, options, source)
    callbacks: list[L.Callback] = [
        Budget(rounds=rounds),
        looks,
        GameCheckpoint(_CHECKPOINT_EVERY, dirpath=str(folder / _CHECKPOINTS)),
    ]
    with quiet():
        trainer = L.Trainer(
            **GAME_TRAINER,
            logger=False,
            accelerator=device.type,
            devices=1 if device.type == "cpu" else [device.index or 0],
            limit_val_batches=0,
            callbacks=[*callbacks, GameProgressBar()] if shown else callbacks,
            enable_progress_bar=shown,
            default_root_dir=str(folder),
        )
        data = GivenPrompts(split.training, options.batch_of(split), options.seed)
        trainer.fit(game, data, ckpt_path=resumed)
    game.to(device)
    looks.restore(game)
    # Draws of their own, which nothing was chosen by.
    measured = draw_bound(game, split.measurement, options.measured, options.seed, 1, options.rows)
    return BestResponseBound(
        mean_interval(measured.draws),
        measured.draws,
        looks.looks,
        looks.best_look,
        game.progress.queries + looks.answers + measured.answers,
        looks.invalid + measured.invalid,
        game.progress.round,
        split,
    )


def _game(
    policy: Policy, oracle: PreferenceOracle, beta: float, options: TrainingOptions
) -> OnlineGame:
    """The game of a policy against what it was: both begin as the policy that was given."""
    if not beta > 0:
        raise UserError(
            f"a best response is trained at a temperature above 0, but beta is {beta}: without "
            "regularisation it is one response, which nothing holds near what the model writes"
        )
    given = _given(policy, options.rank)
    if isinstance(policy, CausalLMPolicy):
        policy.length_normalised = False  # the bound is of laws, which are the same without
    game = OnlineGame(
        policy,
        oracle,
        BestResponse(options.step * 2 * oracle.payoff_bound / beta),  # in units of its range
        beta,
        optimizer=partial(torch.optim.Adam, lr=options.learning_rate),
        lr_scheduler=BudgetLR,
        rollout=Sample(options.responses, options.opponents, epochs=options.epochs, held_out=0),
        realisation=GradientSteps(),
    )
    if given is not None:
        game.policy.restore(given)
    game.copy_("policy", OPPONENT)
    return game


def _given(policy: Policy, rank: int) -> dict[str, Tensor] | None:
    """What both players begin with; None of a language model that is its base, with new adapters.

    As nothing is lost by adapters of another rank then, these are of the rank that is wanted: a
    whole model was loaded with the smallest.
    """
    given = policy.snapshot()
    if not isinstance(policy, CausalLMPolicy) or policy.lora is None or policy.adapter is not None:
        return given
    if any(p.any() for name, p in given.items() if "_B" in name.rpartition("lora")[2]):
        return given
    policy.lora = replace(policy.lora, r=rank, alpha=2 * rank)
    policy.generator.attach(policy.source, policy.lora, None)
    return None


def _begin(
    folder: Path, game: OnlineGame, split: Split, options: TrainingOptions, source: str
) -> str | None:
    """Make the folder, or find the checkpoint to go on from.

    Raises:
        UserError: what was trained there is something else.
    """
    state = game.policy.state_dict()
    policy = digest_of_tensors({name: state[name] for name in game.policy.checkpoint_keys()})
    parts = (split.training, split.selection, split.measurement)
    words = json.dumps([[part.ids.tolist(), part.text, part.conversations] for part in parts])
    found = {
        "policy": [source, policy],
        "prompts": hashlib.sha256(words.encode()).hexdigest(),
        "oracle": run_of(game)["oracle"],
        "beta": game.beta,
        **asdict(options),
    }
    folder.mkdir(parents=True, exist_ok=True)
    place, last = folder / _OPTIONS, folder / _CHECKPOINTS / "last.ckpt"
    if last.is_file() and place.is_file():
        before = json.loads(place.read_text(encoding="utf-8"))
        if differing := sorted(k for k in {*found, *before} if before.get(k) != found.get(k)):
            raise UserError(
                f"{folder} holds the training of another best response (its {differing[0]} is "
                f"another): name another folder, or remove this one"
            )
        return str(last)
    with written(place) as beside:
        beside.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return None
