"""``nlhf oracle``: what an oracle says of sample responses, before anyone trains against it."""

from __future__ import annotations

from functools import partial
from typing import Any

from nlhf_zoo.cli.looking import LookingCLI
from nlhf_zoo.cli.oracle.probe import probe
from nlhf_zoo.cli.oracle.report import ReportOptions, parse, report
from nlhf_zoo.cli.parser import SentenceParser, as_user_errors, find_own_code
from nlhf_zoo.cli.trainer import run
from nlhf_zoo.data.texts.conversations import read_listed
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.oracles.asking import ResponseSample, draw_samples, listed_samples
from nlhf_zoo.oracles import BernoulliLabels, PreferenceOracle, Transformed
from nlhf_zoo.oracles.wrappers.budgeted import BudgetedOracle
from nlhf_zoo.oracles.wrappers.listed import ListedResponses

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
  --probe            ask a judge one question only, the first of the responses or one about numbers,
                     and print what came back and how it was read
  --output FILE      a .json file of the figures and all answers
  --figure FILE      a .png of the first prompts' preferences, and of one order against the other

`nlhf oracle --oracle.help CLASS` tells an oracle's options, `nlhf fit --help` those of --config.
"""


def main(args: list[str]) -> None:
    """Run ``nlhf oracle`` with what stands behind it on the command line."""
    if not args or {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    options, rest = parse(args)
    with_config = any(arg in ("-c", "--config") or arg.startswith("--config=") for arg in rest)
    with_oracle = any(arg.startswith("--oracle") for arg in rest)
    if with_config and with_oracle:
        raise UserError("--config has an oracle of its own: change it by --model.oracle")
    if with_config:
        run(["fit", *rest], partial(OracleCLI, options))
        return
    if not with_oracle:
        raise UserError("give --oracle CLASS, or --config CONFIG, whose oracle is examined")
    samples = _read(options)
    _answer(*_examined(_build(rest), samples), options)


class OracleCLI(LookingCLI):
    """Builds what ``nlhf fit`` would train, and asks its oracle instead."""

    what = "oracle asks the oracle of an OnlineGame, not of"

    def __init__(self, options: ReportOptions, command: str, **others: Any) -> None:
        self.options = options
        super().__init__(command, **others)

    def fit(self, model: OnlineGame, ckpt_path: str | None = None, **_: Any) -> None:
        """Ask the oracle in place of a fit (LightningCLI calls this)."""
        oracle, samples = _examined(model.oracle, _read(self.options))
        if oracle.support is None and not self.options.probe:
            if samples is None:
                trainer, prompts = self.first_prompts(model, self.options.num_prompts, ckpt_path)
                with trainer.precision_plugin.forward_context():
                    samples = draw_samples(model, prompts, self.options.num_responses)
            oracle.to(self.trainer.strategy.root_device)
        _answer(oracle, samples, self.options)


def _answer(
    oracle: PreferenceOracle, samples: list[ResponseSample] | None, options: ReportOptions
) -> None:
    if options.probe:
        probe(oracle, samples)
    else:
        report(oracle, samples, options)


# ---- what is asked, and who ----------------------------------------------------------------------


def _build(args: list[str]) -> PreferenceOracle:
    """The oracle of ``--oracle``."""
    find_own_code()
    parser = SentenceParser(prog="nlhf oracle")
    parser.add_argument("--oracle", type=PreferenceOracle, required=True, enable_path=True)
    parsed = parser.parse_args(args)
    with as_user_errors():
        oracle: PreferenceOracle = parser.instantiate(parsed).oracle
    return oracle


def _read(options: ReportOptions) -> list[ResponseSample] | None:
    return None if options.responses is None else listed_samples(read_listed(options.responses))


def _examined(
    oracle: PreferenceOracle, samples: list[ResponseSample] | None
) -> tuple[PreferenceOracle, list[ResponseSample] | None]:
    """The oracle whose probabilities count, and what it is asked about.

    Labels are drawn from the probabilities of another, and a budget changes none, though it still
    holds: nobody pays for more than they allowed. A payoff is made of another's preferences. What
    was listed for a table is put to its judge.
    """
    while isinstance(oracle, BernoulliLabels | BudgetedOracle | Transformed | ListedResponses):
        if isinstance(oracle, ListedResponses):
            if samples is not None:
                raise UserError(
                    f"ListedResponses has responses of its own, {oracle.path}: leave --responses "
                    "out"
                )
            samples = listed_samples(oracle.rows)
        oracle = oracle.oracle
    return oracle, samples
