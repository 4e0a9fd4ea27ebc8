"""``nlhf oracle``: what an oracle says of sample responses, before anyone trains against it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo.cli.first_prompts import PromptCollector, silent_trainer
from nlhf_zoo.cli.oracle.options import ReportOptions
from nlhf_zoo.cli.oracle.report import report_answers, report_table
from nlhf_zoo.cli.parser import GameArgumentParser, shorten
from nlhf_zoo.cli.refusals import refuse_misfits
from nlhf_zoo.cli.trainer import GameCLI, run
from nlhf_zoo.data.texts.listed_responses import read_listed
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.oracles.asking import ResponseSample, samples_of
from nlhf_zoo.oracles import BernoulliLabels, PreferenceOracle
from nlhf_zoo.oracles.texts import conversations, response_texts
from nlhf_zoo.oracles.wrappers.budgeted import BudgetedOracle
from nlhf_zoo.oracles.wrappers.listed import ListedResponses
from nlhf_zoo.random_streams import random_stream
from nlhf_zoo.records import PLAIN, Prompts

_HELP = """usage: nlhf oracle --oracle CLASS [--oracle.option ...] [--responses FILE] [options]
       nlhf oracle --config CONFIG [options of nlhf fit] [options]

What an oracle says of sample responses, before anyone trains against it: whether the order in which
responses are shown matters, how many triples of responses are cycles, whether the longer response
wins, how many answers are invalid, how far the members of an ensemble agree, and what a thousand
queries cost. Each pair is asked about in both orders.

An oracle of texts needs responses: lines of {"prompt": ..., "responses": [two or more texts]}, or a
configuration, whose reference and policy draw them. An oracle over a table is looked at as it is.

  --responses FILE   a .jsonl file of sample responses
  --num_prompts N    prompts of the training data, with --config (default: 8)
  --num_responses K  responses to each, half of them the reference's (default: 4)
  --max_queries Q    ask about no more pairs than this
  --output FILE      a .json file of the figures and all answers
  --figure FILE      a .png of the first prompts' preferences, and of one order against the other

`nlhf oracle --oracle.help CLASS` tells an oracle's options, `nlhf fit --help` those of --config.
"""


def main(args: list[str]) -> None:
    """Run ``nlhf oracle``.

    Args:
        args: what stands behind ``nlhf oracle``.

    Raises:
        UserError: the arguments, the oracle or the responses cannot be used.
        SystemExit: help was asked for.
    """
    if not args or {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    options, rest = _parse(args)
    with_config = any(arg in ("-c", "--config") or arg.startswith("--config=") for arg in rest)
    with_oracle = any(arg.startswith("--oracle") for arg in rest)
    if with_config and with_oracle:
        raise UserError("--config has an oracle of its own: change it by --model.oracle")
    if with_config:
        run(["fit", *rest], partial(OracleCLI, options))
        return
    if not with_oracle:
        raise UserError("give --oracle CLASS, or --config CONFIG, whose oracle is examined")
    given = _read(options.responses)
    oracle, samples = _examined(_build(rest), given)
    if oracle.support is not None:
        report_table(oracle, options)
    elif samples is None:
        raise UserError(
            f"{type(oracle).__name__} reads texts: give --responses FILE, or a --config whose "
            "policy draws them"
        )
    else:
        report_answers(oracle, samples, options)


class OracleCLI(GameCLI):
    """Builds what ``nlhf fit`` would train, and asks its oracle instead."""

    def __init__(self, options: ReportOptions, **others: Any) -> None:
        self.options = options
        super().__init__(**others)  # all of the command runs in there

    def before_fit(self) -> None:
        """Refuse what `fit` would refuse of the parts.

        Raises:
            UserError: they do not fit each other, or are no game.
        """
        if not isinstance(self.model, OnlineGame):
            kind = type(self.model).__name__
            raise UserError(f"nlhf oracle asks the oracle of an OnlineGame, not of a {kind}")
        refuse_misfits(self.trainer, self.model, self.datamodule)

    def fit(self, model: OnlineGame, ckpt_path: str | None = None, **_: Any) -> None:
        """Ask the oracle in place of a fit (LightningCLI calls this)."""
        options = self.options
        oracle, samples = _examined(model.oracle, _read(options.responses))
        if oracle.support is not None:
            report_table(oracle, options)
            return
        if samples is None:
            collector = PromptCollector(options.num_prompts)
            trainer = silent_trainer(self.config_init[self.subcommand]["trainer"], [collector])
            trainer.fit(model, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True)
            model.to(trainer.strategy.root_device)
            with trainer.precision_plugin.forward_context():
                prompts = collector.prompts().to(model.device)
                samples = _drawn(model, prompts, options.num_responses)
        oracle.to(self.trainer.strategy.root_device)
        report_answers(oracle, samples, options)

    def after_fit(self) -> None:
        """Nothing was trained."""


# ---- what is asked, and who ----------------------------------------------------------------------


def _parse(args: Sequence[str]) -> tuple[ReportOptions, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--responses")
    parser.add_argument("--num_prompts", type=int, default=8)
    parser.add_argument("--num_responses", type=int, default=4)
    parser.add_argument("--max_queries", type=int)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    try:
        known, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from error
    return ReportOptions(**vars(known)), rest


def _build(args: list[str]) -> PreferenceOracle:
    """The oracle of ``--oracle``."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # for a rule of the user's own; last, so that it hides no package
    parser = GameArgumentParser(prog="nlhf oracle")
    parser.add_argument("--oracle", type=PreferenceOracle, required=True, enable_path=True)
    parsed = parser.parse_args(args)
    try:
        oracle: PreferenceOracle = parser.instantiate(parsed).oracle
    except UserError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise UserError(shorten(str(error)) or type(error).__name__) from error
    return oracle


def _read(path: str | None) -> list[ResponseSample] | None:
    return None if path is None else samples_of(read_listed(path))


def _examined(
    oracle: PreferenceOracle, samples: list[ResponseSample] | None
) -> tuple[PreferenceOracle, list[ResponseSample] | None]:
    """The oracle whose probabilities count, and what it is asked about.

    Labels are drawn from the probabilities of another, and a budget changes none, though it still
    holds: nobody pays for more than they allowed. What was listed for a table is put to its judge.

    Raises:
        UserError: there are two lists of responses.
    """
    while isinstance(oracle, BernoulliLabels | BudgetedOracle | ListedResponses):
        if isinstance(oracle, ListedResponses):
            if samples is not None:
                raise UserError(
                    f"ListedResponses has responses of its own, {oracle.path}: leave --responses "
                    "out"
                )
            samples = samples_of(oracle.rows)
        oracle = oracle.oracle
    return oracle, samples


@torch.no_grad()
def _drawn(game: OnlineGame, prompts: Prompts, num: int) -> list[ResponseSample]:
    """Different responses of the reference and of the policy to each prompt."""
    game.eval()
    policy, name = game.policy, type(game.oracle).__name__
    prompts = policy.encode(prompts)
    shares = {"reference": num // 2, "policy": num - num // 2}
    found: list[list[tuple[str, bool]]] = [[] for _ in prompts.ids]
    for number, (player, share) in enumerate(shares.items()):
        rng = random_stream(4, number, 0, prompts.ids.device)
        drawn = policy.sample({player: 1.0}, prompts, share, PLAIN, rng)
        cut = drawn.truncated
        for row, texts in enumerate(response_texts(drawn, name)):
            ends = [False] * share if cut is None else cut[row].tolist()
            found[row] += zip(texts, ends, strict=True)
    samples = [
        ResponseSample(talk, list(dict(responses).items()))
        for talk, responses in zip(conversations(prompts, name), found, strict=True)
    ]
    return [sample for sample in samples if sample.num_pairs]
