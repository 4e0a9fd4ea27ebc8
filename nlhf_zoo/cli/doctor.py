"""``nlhf doctor``: the checks of a game's health, on the user's own model, prompts and oracle.

It takes the arguments of ``nlhf fit``, builds the same parts with the same trainer, and trains
nothing that stays: a round is rehearsed and taken back. The oracle is asked, for a few prompts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from nlhf_zoo.cli.looking import LookingCLI
from nlhf_zoo.cli.parser import taken_out, with_values
from nlhf_zoo.cli.trainer import run
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health import Check, Finding, run_checks

_HELP = """usage: nlhf doctor --config CONFIG [options of nlhf fit] [options]

Checks what must never go wrong silently, on your own model, prompts and oracle: the reference is
the reference, players differ, padding and batch do not matter, dropout is off, the end of a
sequence is scored once, the generator draws what is scored, the oracle is symmetric, a resumed run
is the same run, queries are counted as they are asked. One line each; the exit code is 1 if one
fails. Nothing is trained or written, but a cache keeps what it is told; the oracle is asked about a
few prompts, within its budget.

  --num_prompts N  how many prompts of the training data are looked at (default: 4)
  --no_rehearsal   play no round: the oracle is asked about a few pairs only, but neither resuming
                   nor counting is checked

`nlhf fit --help` tells the other options.
"""
# Options of the trainer that say how a step is computed. Others say for how long, on how many
# machines, and what is written.
_KEPT_OPTIONS = ("gradient_clip_val", "gradient_clip_algorithm", "deterministic")


def main(args: list[str]) -> None:
    """Run ``nlhf doctor`` with what stands behind it; the exit code is 1 if a check fails."""
    if {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    args, no_rehearsal = taken_out(with_values(args, ["--no_rehearsal"]), "--no_rehearsal")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_prompts", type=int, default=4)
    try:
        known, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"--num_prompts: {error.message}") from error
    if known.num_prompts < 1:
        raise UserError(f"--num_prompts must be at least 1, but it is {known.num_prompts}")
    run(["fit", *rest], partial(DoctorCLI, known.num_prompts, not no_rehearsal))


class DoctorCLI(LookingCLI):
    """Builds what ``nlhf fit`` would train, and examines it instead."""

    what = "doctor examines an OnlineGame, not"

    def __init__(self, num_prompts: int, rehearsal: bool, command: str, **options: Any) -> None:
        self.num_prompts = num_prompts
        self.rehearsal = rehearsal
        super().__init__(command, **options)

    def fit(self, model: OnlineGame, ckpt_path: str | None = None, **_: Any) -> None:
        """Examine the game in place of a fit (LightningCLI calls this)."""
        trainer, prompts = self.first_prompts(model, self.num_prompts, ckpt_path)
        context = trainer.precision_plugin.forward_context
        make_trainer = self.make_trainer if self.rehearsal else None
        if not _report(model, run_checks(model, prompts, make_trainer, context)):
            raise SystemExit(1)

    def more_options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What says how a step is computed."""
        options = {name: config[name] for name in _KEPT_OPTIONS}
        if self.trainer.strategy.root_device.type == "cuda" and options["deterministic"] is None:
            options["deterministic"] = "warn"  # equal bits are asked of equal steps
        return options


def _report(game: OnlineGame, findings: Iterator[tuple[str, Sequence[Finding]]]) -> bool:
    """Print one line for each finding as it is made; whether no check fails."""
    passed, failed = 0, list[Check]()
    with tqdm(desc="doctor", unit=" checks", delay=1, leave=False, file=sys.stderr) as bar:
        for title, found in findings:
            for finding in found:
                with tqdm.external_write_mode(file=sys.stdout):
                    print(finding, flush=True)
                if isinstance(finding, Check):
                    passed += finding.passed is True
                    if finding.passed is False:
                        failed.append(finding)
            bar.set_postfix_str(title)
            bar.update()
    name = type(game.algorithm).__name__
    print(f"{name}: {passed} checks passed, {len(failed)} failed")
    if failed:
        print("What to change:")
    for check in failed:
        print(f"  {check.name}: {check.advice or check.figure}")
    return not failed
