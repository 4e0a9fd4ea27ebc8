"""``nlhf from-trl``: arguments of TRL's trainers as one of our configurations.

Nothing of TRL is imported, and no script is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlhf_zoo.cli.files import refuse_output
from nlhf_zoo.cli.from_trl import parts, training
from nlhf_zoo.cli.from_trl.algorithm import algorithm
from nlhf_zoo.cli.from_trl.reading import read
from nlhf_zoo.cli.from_trl.sheet import Noted, Sheet
from nlhf_zoo.cli.from_trl.versions import TRAINERS, trainer_of, version_of
from nlhf_zoo.cli.from_trl.writing import configuration, report
from nlhf_zoo.cli.parser import SentenceParser
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written


def main(args: list[str]) -> None:
    """Run ``nlhf from-trl`` with what stands behind it on the command line."""
    parser = SentenceParser(
        prog="nlhf from-trl",
        description="One of our configurations from the arguments of TRL's NashMDConfig, "
        "OnlineDPOConfig or XPOConfig, and what became of each of them, line by line.",
    )
    parser.add_argument(
        "file",
        type=str,
        help="a script (.py), which is read and not run; the JSON of a dumped configuration; or "
        "the YAML of TRL's command line",
    )
    parser.add_argument("--output", type=str, default="config.yaml", help="the file to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the file where there is one"
    )
    parser.add_argument("--trainer", type=str, help=f"{', '.join(TRAINERS)}: whose arguments")
    parser.add_argument("--trl_version", type=str, help="of TRL, by which its defaults are taken")
    parser.add_argument(
        "--num_prompts", type=int, help="rows of the data set, for numbers of steps"
    )
    parser.add_argument("--processes", type=int, default=1, help="that train (default: 1)")
    parser.add_argument("--epoch", type=int, help="whose entries of lists are taken, from 0")
    from_trl(**parser.parse_args(args).as_dict())


def from_trl(
    file: str,
    output: str = "config.yaml",
    overwrite: bool = False,
    trainer: str | None = None,
    trl_version: str | None = None,
    num_prompts: int | None = None,
    processes: int = 1,
    epoch: int | None = None,
) -> None:
    """Write a configuration, and print what became of each argument.

    Args:
        file: a script, a dumped configuration, or options of TRL's command line.
        output: the file to write.
        overwrite: replace it where there is one.
        trainer: whose arguments they are, where the file does not say it.
        trl_version: of TRL, by which its defaults are taken.
        num_prompts: rows of the data set.
        processes: that train.
        epoch: whose entries of lists are taken.

    Raises:
        UserError: the file cannot be read, or has what has no counterpart; nothing is written then.
    """
    source, target = Path(file), Path(output)
    refuse_output("--output", target, [source])
    if target.exists() and not overwrite:
        raise UserError(f"--output {output} exists: give another name, or --overwrite")
    for name, value, least in (
        ("num_prompts", num_prompts, 1),
        ("processes", processes, 1),
        ("epoch", epoch, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if trainer is not None and trainer not in TRAINERS:
        raise UserError(f"--trainer is one of {', '.join(TRAINERS)}, not {trainer!r}")
    found = read(source)
    if trainer is not None and found.trainer not in (None, trainer):
        raise UserError(f"--trainer is {trainer}, but {source} makes a {found.trainer}Config")
    said = found.trainer or trainer or trainer_of(found.given)
    version = version_of(said, found.given, found.whole, trl_version, found.module)
    sheet = Sheet(found, version, epoch, num_prompts, processes)
    if num_prompts is None:
        sheet.num_prompts = training.num_rows(sheet)
    for what in found.open:
        sheet.by_hand(what, "no literal: set it, where it matters, in the file that is written")
    blocks = _blocks(sheet)
    sheet.finish()
    if sheet.problems:
        raise UserError(_refusal(source, sheet.problems))
    with written(target) as path:
        if sheet.guessed:  # no option of ours: `nlhf fit` refuses the file while it stands there
            blocks["SET_BY_HAND"] = Noted(
                sheet.guessed, "defaults of TRL stand in their places: set them, remove this key"
            )
        path.write_text(configuration(blocks, _head(source, sheet)), encoding="utf-8")
    print(report(sheet.lines))
    print(f"\nThe defaults are those of TRL {version.name}. Next: nlhf doctor --config {target}")


def _blocks(sheet: Sheet) -> dict[str, Any]:
    """The whole configuration."""
    game = algorithm(sheet)
    steps = training.total_steps(sheet)
    seed = sheet.get("seed")
    sheet.say("kept", "seed", f"seed_everything: {seed}")
    optimizer = training.optimizer(sheet)
    model = {
        "beta": game.pop("beta"),
        "policy": parts.policy(sheet),
        "oracle": parts.oracle(sheet),
        **game,
        "optimizer": optimizer,
        **training.schedule(sheet, steps),
    }
    oracle, algorithm_block = model["oracle"], model["algorithm"]
    if algorithm_block["class_path"].endswith("OnlineIPO"):  # on labels
        init_args = {"oracle": oracle, "payoff": "sign"}
        model["oracle"] = {"class_path": "nlhf_zoo.Transformed", "init_args": init_args}
    return {
        "seed_everything": seed,
        "model": {"class_path": "nlhf_zoo.OnlineGame", "init_args": model},
        "data": training.prompts(sheet),
        "trainer": training.trainer(sheet, steps),
    }


def _head(source: Path, sheet: Sheet) -> list[str]:
    """What stands above the configuration."""
    version = sheet.version
    name = f"{version.trainer}Config of {source.name}, by nlhf from-trl (TRL {version.name})."
    rows = [f"{line.kind}: {line.theirs} -> {line.ours}" for line in sheet.lines]
    return [name, *(row for row in rows if row.startswith(("by hand", "differs", "translated")))]


def _refusal(source: Path, problems: Sequence[str]) -> str:
    """All that has no counterpart, at once."""
    if len(problems) == 1:
        return f"{source}: {problems[0]}"
    first = f"{source}: {len(problems)} things have no counterpart, and nothing was written:"
    return " ".join([first, *(f"({n}) {one}." for n, one in enumerate(problems, 1))])
