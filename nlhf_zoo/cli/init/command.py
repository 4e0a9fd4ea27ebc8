"""``nlhf init``: a commented configuration from the answers to four questions.

Nothing heavy is imported: the questions are there at once.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from nlhf_zoo.cli.files import refuse_output
from nlhf_zoo.cli.init.questions import QUESTIONS, asked
from nlhf_zoo.cli.init.writing import Named, files_of
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written

_HELP = """usage: nlhf init [options]

Writes a commented configuration for `nlhf fit`, from the answers to four questions, which are asked
at a terminal where no option answers them.

  --have WHAT        votes, rule (a model and a rule), judge (a model and a judge), or pairs (of
                     responses, from which a preference model is trained first, by a second file)
  --model MODEL      the folder of a model, or its name on the hub; votes have none
  --algorithm NAME   such as NashMP, or recommend: that of docs/which_algorithm.md (default)
  --rounds N         the budget (default: 500 of votes, 200 of a language model)
  --save FOLDER      where runs are saved (default: runs/WHAT)
  --data FILE        of votes, prompts or pairs (default: votes.csv, prompts.jsonl, pairs.jsonl)
  --function NAME    of a rule, as my_rules.shorter_wins (default: a rule of nlhf_zoo)
  --judge MODEL      who judges, as its server calls it (default: Qwen/Qwen2.5-7B-Instruct)
  --judge_url URL    where (default: http://localhost:8000/v1)
  --output FILE      what is written (default: config.yaml)
  --overwrite        write over a file that is there
"""
_DATA = {
    "votes": "votes.csv", "rule": "prompts.jsonl", "judge": "prompts.jsonl", "pairs": "pairs.jsonl"
}  # fmt: skip
_OF = {"function": "rule", "judge": "judge", "judge_url": "judge"}


class InitOptions(argparse.Namespace):
    """What was given; None where nothing was."""

    have: str | None
    model: str | None
    algorithm: str | None
    rounds: str | None
    save: str | None
    data: str | None
    function: str | None
    judge: str | None
    judge_url: str | None
    output: Path
    overwrite: str


def main(args: list[str]) -> None:
    """Run ``nlhf init`` with what stands behind it on the command line."""
    if {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    options = _parse(args)
    output = options.output
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"--output {output} must end with .yaml: it is a configuration")
    refuse_output("--output", output, [Path(options.data)] if options.data else [])
    given = {name: getattr(options, name) for name in QUESTIONS}
    if options.have == "votes":
        if options.model is not None:
            raise UserError("--model is of language models, and --have is votes: leave it out")
        given["model"] = options.data  # which file the votes are in is asked in its place
    answers = asked(given)
    have = answers["have"]
    for name, of in _OF.items():
        if getattr(options, name) is not None and have != of:
            raise UserError(f"--{name} is of --have {of}, and it is {have}: leave it out")
    named = Named(
        answers["model"] if have == "votes" else options.data or _DATA[have],
        options.function or "nlhf_zoo.oracles.rules.shorter_wins",
        options.judge or "Qwen/Qwen2.5-7B-Instruct",
        options.judge_url or "http://localhost:8000/v1",
    )
    files = files_of(answers, named, output)
    _write(files, options.overwrite == "true")
    _say(have, files, named)


def _parse(args: Sequence[str]) -> InitOptions:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in (*QUESTIONS, "data", *_OF):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    parser.add_argument("--output", type=Path, default=Path("config.yaml"))
    parser.add_argument(
        "--overwrite", nargs="?", const="true", default="false", choices=("true", "false")
    )
    try:
        options, rest = parser.parse_known_args(args, InitOptions())
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from error
    if rest:
        raise UserError(f"unrecognized arguments: {rest[0]}: `nlhf init --help` tells the options")
    return options


def _write(files: dict[Path, str], overwrite: bool) -> None:
    """Write all files, or none where one of them is there."""
    for path in files:
        if path.exists() and not overwrite:
            raise UserError(f"{path} is there already: give another --output, or --overwrite")
    for path, text in files.items():
        with written(path) as beside:
            beside.write_text(text, encoding="utf-8")


def _say(have: str, files: dict[Path, str], named: Named) -> None:
    """What was written, and what comes next."""
    print(f"Written: {', '.join(map(str, files))}. Comments say what one would change first.")
    if not Path(named.data).is_file():
        print(f"{named.data} is not there yet: the comment at its `path` says what it holds.")
    *before, last = (shlex.quote(str(path)) for path in files)
    print("Next:")
    for path in before:
        print(f"  nlhf fit --config {path}")
    if have == "judge":
        print(f"  nlhf oracle --probe --config {last}")
    print(f"  nlhf doctor --config {last}\n  nlhf fit --config {last}")
