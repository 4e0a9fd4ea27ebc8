"""``nlhf fit | validate | test | predict``: LightningCLI, with its traps taken out."""

from __future__ import annotations

import csv
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException
from torch.multiprocessing.spawn import ProcessExitedException

# Imported, in part, so that short class names resolve on the command line and in YAML files.
from nlhf_zoo.callbacks import (
    CollapseWatch,
    Dashboard,
    GameFigures,
    GameProgressBar,
    HangWatch,
    QueryLog,
    ResumeState,
    TimeLog,
)
from nlhf_zoo.cli import ending, limits, processes, refusals, resuming, rollouts
from nlhf_zoo.cli.arguments import refuse_overridden, with_model
from nlhf_zoo.cli.files import config_files, read_config, refuse_bad_files
from nlhf_zoo.cli.parser import (
    SentenceParser,
    as_user_errors,
    find_own_code,
    shorten,
    taken_out,
    with_values,
)
from nlhf_zoo.cli.quiet import GAME_TRAINER, quiet
from nlhf_zoo.cli.trust import closed_environment, refuse_foreign_code
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.data.stream import TextData
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import naming
from nlhf_zoo.game.lightning_internals import is_played_elsewhere, is_trial, send_to_children
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health import HealthCheck, ReferenceFingerprint
from nlhf_zoo.metrics.processes import run_folder
from nlhf_zoo.oracles.ledger import ledgers, spent, summary
from nlhf_zoo.preference_models import PreferenceModel
from nlhf_zoo.signals import SignalWatch, end_at_once


class GameArgumentParser(SentenceParser, LightningArgumentParser):
    """LightningCLI's parser, whose errors are one sentence."""

    def dump(self, namespace: Namespace, *others: Any, **options: Any) -> str:
        """The configuration as it would run, of several budgets with the last one alone."""
        if "trainer" in namespace:
            namespace = namespace.clone()
            resuming.keep_last(namespace["trainer"])
        return str(super().dump(namespace, *others, **options))


class GameCLI(LightningCLI):
    """LightningCLI for games: OnlineGame by default, errors in one sentence, exact resumes."""

    def __init__(self, command: str, **options: Any) -> None:
        self.command = command
        super().__init__(**options)  # all of the command runs in there

    @property
    def trains(self) -> bool:
        """Whether the command goes on with the training of a checkpoint's run."""
        return self.command == "fit"

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there
        """The command that is given alone: a parser for each of the others takes its time."""
        return {self.command: super().subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """An OnlineGame on a table unless told otherwise."""
        for option, cls in (("model", OnlineGame), ("data", TablePrompts)):
            parser.set_defaults({option: {"class_path": f"{cls.__module__}.{cls.__qualname__}"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; a broken interpolation is the user's error like any other."""
        try:  # not by `as_user_errors`: --print_config prints here, and its reader may have gone
            super().parse_arguments(parser, args)
        except OmegaConfBaseException as error:
            raise UserError(f"an interpolation in the configuration fails: {error}") from error
        except UserError:
            raise
        except ValueError as error:  # by --print_config, of what YAML cannot hold
            raise UserError(shorten(str(error))) from error

    def _set_seed(self) -> None:
        """Set it; one out of bounds is the user's error."""
        with as_user_errors("--seed_everything: "):
            super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Do not take model arguments from a checkpoint.

        LightningCLI would replace the configuration's, even the algorithm, by those in the file,
        and say nothing.
        """

    def before_instantiate_classes(self) -> None:
        """Look at strategy and data, before a model is loaded, and at the checkpoint."""
        config = self.config[self.subcommand]
        refusals.refuse_strategy_name(config["trainer"]["strategy"], config["model"]["class_path"])
        resuming.keep_last(self.config[self.subcommand]["trainer"])
        resuming.name_loggers(self.config[self.subcommand])
        self._look_at_data()
        self._find_checkpoint()

    def _look_at_data(self) -> None:
        """Refuse rows of text that are not what the options say of them."""
        data = self.config[self.subcommand].get("data")
        if data is None or not issubclass(resolve_name(data["class_path"]), TextData):
            return
        with as_user_errors():
            made = self._parser(self.subcommand).instantiate(Namespace(data=data))  # type: ignore[no-untyped-call]
            made["data"].look()

    def _find_checkpoint(self) -> None:
        """Find the checkpoint, and refuse one that another configuration made."""
        self._resumed: dict[str, Any] = {}
        self._other_oracle = False
        config = self.config[self.subcommand]
        limits.refuse_numbers(config["trainer"], trains=self.subcommand == "fit")
        requested = config.get("ckpt_path")
        if requested is None:
            return
        if not requested:
            raise UserError("ckpt_path is empty: give a checkpoint, or leave it out")
        runs = resuming.runs_folder(config)
        checkpoint = Path(requested)
        if requested == "last":
            checkpoint = resuming.last_checkpoint(config, runs)
        if not checkpoint.is_file():
            raise UserError(
                f"ckpt_path {requested} is no file: give a checkpoint, or `last` for the last run's"
            )
        run = checkpoint.absolute().parent.parent
        self._dump_config()
        saved = run / "config.yaml"
        resuming.refuse_other_config(saved, self.config_dump, self.trains)
        self._other_oracle = resuming.has_other_oracle(saved, self.config_dump)
        resuming.refuse_other_file(checkpoint)
        self._resumed["ckpt_path"] = str(checkpoint)
        version = resuming.version_of(run, config)
        if version is not None:  # go on in that run's folder
            self._resumed["trainer.logger.init_args.version"] = version

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Without callbacks of ours that the configuration has its own of.

        Nor the progress bar where none is wanted: Lightning would refuse ours.
        """
        config = self.config[self.subcommand]["trainer"]
        left_out = resuming.kinds_of_callbacks(config)
        if config.get("enable_progress_bar") is False:
            left_out.append(GameProgressBar)
        callbacks = self.trainer_defaults["callbacks"]
        self.trainer_defaults["callbacks"] = [c for c in callbacks if type(c) not in left_out]
        kwargs |= resuming.default_logger(config, self.model)
        if config.get("default_root_dir") == os.getcwd():
            kwargs["default_root_dir"] = os.curdir  # else it is as if nobody had given it
        trainer = super().instantiate_trainer(**kwargs)
        processes.prepare(trainer)
        return trainer

    def instantiate_classes(self) -> None:
        """Make the parts; what they refuse is the user's error."""
        config = self.config[self.subcommand]
        written = {key: config.get(key) for key in self._resumed} | {"ckpt_path": None}
        for key, value in self._resumed.items():
            config[key] = value
        try:
            with as_user_errors():
                super().instantiate_classes()
            if isinstance(self.model, OnlineGame):
                self.model.loads_oracle = not self._other_oracle
        finally:
            for key, value in written.items():  # config.yaml starts such a run, and resumes none
                config[key] = value

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it, and see to what no one else can say.

        Where a file cannot be written, and the error does not name it, the run's folder is named.
        Where another process has ended, what that one has said is all there is to say.
        """
        try:
            self._run_and_name_folder(subcommand)
        except ProcessExitedException as error:
            raise processes.end_of_launched(self.trainer, error) from None
        except Exception as error:
            if (end := processes.end_of(self.trainer, error)) is error:
                raise
            raise end from error

    def _run_and_name_folder(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:
            loggers = self.trainer.loggers
            if error.filename is not None or not loggers:
                raise
            with naming(loggers[0].log_dir or loggers[0].save_dir or "a logger"):
                raise

    def before_fit(self) -> None:
        """Refuse what could not end well, before anything is computed or written."""
        refusals.refuse_endless(self.trainer, self.datamodule)
        limits.refuse_waiting(self.trainer)
        if isinstance(self.model, OnlineGame):
            if not self._resumed:
                limits.refuse_idle(self.trainer, self.model)
            refusals.refuse_misfits(self.trainer, self.model, self.datamodule)
            rollouts.forecast(self.trainer, self.model)
        if isinstance(self.model, PreferenceModel):
            refusals.refuse_other_data(self.trainer, self.datamodule)
            refusals.refuse_optimizer(self.trainer, self.model)
        if not is_trial(self.trainer):
            limits.refuse_names(self.trainer)
            refusals.refuse_unwritable(self.trainer)
        if is_played_elsewhere(self.trainer):
            _pass_signals_on(self.trainer)

    def predict(self, **kwargs: Any) -> None:
        """Print the probability of each response as CSV, where the responses can be listed."""
        if isinstance(self.model, PreferenceModel):
            raise UserError(
                "nlhf predict prints a policy's responses: of a preference model `nlhf validate` "
                "gives the figures, and `nlhf oracle` the answers"
            )
        if isinstance(self.model, OnlineGame):
            refusals.refuse_unlisted(self.model)
        log_probs = self.trainer.predict(**kwargs)
        if not (isinstance(self.model, OnlineGame) and log_probs and self.trainer.is_global_zero):
            return
        names = self.model.oracle.action_names
        table = csv.writer(sys.stdout)
        table.writerow(("prompt", "response", "probability"))
        for prompt, row in enumerate(torch.cat([*log_probs]).exp().tolist()):
            for response, probability in enumerate(row[: len(names[prompt])] if names else row):
                name = names[prompt][response] if names else response
                table.writerow((prompt, name, probability))

    def after_fit(self) -> None:
        """Say how it ended and where everything lies; refuse where too many answers are missing."""
        if is_played_elsewhere(self.trainer):
            return  # it was played in other processes, which had counts and folder
        folder = run_folder(self.trainer)  # asks all processes
        game = self.model if isinstance(self.model, OnlineGame) else None
        if self.trainer.is_global_zero and not is_trial(self.trainer):
            if game is not None and ledgers(game.oracle):
                print(f"The oracle was asked: {summary(spent(game.oracle))}")
            for line in ending.lines(self.trainer, self.model):
                print(line)
            print(f"Logs, metrics and checkpoint: {folder}")
        # The loop looks at whole windows of steps, and a short run has none.
        if game is not None and (sentence := game.accounts.too_many_invalid()):
            raise UserError(sentence)
        if not self._resumed:
            limits.refuse_empty(self.trainer, self.model)


def _pass_signals_on(trainer: L.Trainer) -> None:
    """Let a signal end the processes that play, which then end this one; a second one at once."""

    def again(signum: int) -> None:
        send_to_children(trainer, signal.SIGKILL)
        end_at_once(signum)

    SignalWatch().install(first=partial(send_to_children, trainer), again=again)


def run(args: Sequence[str], cli: Callable[..., GameCLI] = GameCLI) -> None:
    """Run one command of the Trainer, `fit`, `validate`, `test` or `predict`, with its options."""
    args, allow_code = taken_out(with_values(args, ["--allow_code"]), "--allow_code")
    refuse_bad_files(args)
    refuse_overridden(args)
    args = with_model(args)
    if args[0] != "fit":  # what is looked at may be somebody else's run
        for file in config_files(args):
            refuse_foreign_code(read_config(file), Path(file), allow_code)
    find_own_code()
    torch.set_float32_matmul_precision("highest")  # log-probabilities must not lose digits to tf32
    with quiet(), closed_environment(allow_code or args[0] == "fit"):
        cli(
            args[0],
            seed_everything_default=0,
            trainer_defaults={
                "callbacks": [
                    HangWatch(),
                    ResumeState(),
                    HealthCheck(),
                    ReferenceFingerprint(),
                    QueryLog(),
                    TimeLog(),
                    CollapseWatch(),
                    Dashboard(),
                    GameFigures(),
                    GameProgressBar(),
                ],
                **GAME_TRAINER,
            },
            save_config_callback=resuming.SaveGameConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=GameArgumentParser,
            parser_kwargs={"parser_mode": "omegaconf+", "prog": "nlhf"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=list(args),
        )
