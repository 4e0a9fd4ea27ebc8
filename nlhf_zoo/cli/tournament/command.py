"""``nlhf tournament``: policies and answers against each other, judged by an oracle.

docs/tournament.md says what each figure is, and what the output folder receives.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nlhf_zoo.cli.inputs import arguments_of, move
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.cli.tournament import tables
from nlhf_zoo.cli.tournament.answering import Drawing, read_field, refuse_lone_reference
from nlhf_zoo.cli.tournament.entrants import Entrant, read_entrants, read_tournament_prompts
from nlhf_zoo.cli.tournament.judging import Judge, text_oracle
from nlhf_zoo.cli.tournament.playing import Pairing, play
from nlhf_zoo.cli.tournament.standings import Standings, standings
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.metrics.figures.canvas import DPI, new_figure
from nlhf_zoo.metrics.figures.tournaments import draw_ratings, draw_win_matrix
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.oracles.ledger import spent, summary

_HELP = """usage: nlhf tournament ENTRANT ENTRANT ... --oracle CLASS --prompts FILE [options]

Entrants answer each prompt once, and an oracle judges them in pairs, in both orders where it looks
at one answer first: win rates with intervals, Bradley-Terry, Elo, the Nash average, cycles, lengths
and win rates at equal length.

An entrant is NAME=SOURCE or SOURCE. A source is a run's folder or checkpoint, the folder of an
adapter of peft, a model's folder or its name on the hub; reference, that of the first policy named;
or a .jsonl file of answers, lines of {"prompt": ..., "response": ...}, one for each prompt.

  --oracle CLASS     who judges; it may be another one than that of any run
  --prompts FILE     a .jsonl file of prompts, lines of {"prompt": ...}
  --num_prompts N    the first of the file (default: all)
  --pairing all      all pairs on all prompts, or swiss: those whose order is open, until the
                     intervals of all neighbours part (default: all)
  --budget ANSWERS   judge no more pairs of answers than this; both orders of a pair are one answer
  --prior R          pseudo-ties of each pair, as of nlhf solve (default: 1)
  --seed_everything N  of answers, resamples and the order of prompts (default: 0)
  --max_new_tokens N, --as_conversation BOOL, --device DEVICE, --batch_size N, --allow_code: as of
                     nlhf sample, for the answers of policies
  --output FOLDER    what is written: tables, figures, judgements and the oracle's answers, with
                     which a tournament that was killed goes on (default: tournament)

`nlhf tournament --oracle.help CLASS` tells an oracle's options.
"""
ANSWERS = "answers.sqlite"  # the oracle's, in the output folder


def main(args: list[str]) -> None:
    """Run ``nlhf tournament`` with what stands behind it on the command line."""
    if not args or {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    number = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    entrants = read_entrants(args[:number])
    options = arguments_of(tournament, args[number:], "nlhf tournament", skip=("entrants",))
    with quiet():
        tournament(entrants, **options)


def tournament(
    entrants: list[Entrant],
    oracle: PreferenceOracle,
    prompts: str,
    num_prompts: int | None = None,
    pairing: Pairing = "all",
    budget: int | None = None,
    prior: float = 1.0,
    output: Path = Path("tournament"),
    seed_everything: int = 0,
    max_new_tokens: int | None = None,
    as_conversation: bool | None = None,
    device: str = "auto",
    batch_size: int = 8,
    allow_code: bool = False,
) -> None:
    """Play a tournament, print its tables and write its files.

    Args:
        entrants: two at least, of different names.
        oracle: who judges.
        prompts: a .jsonl file.
        num_prompts: the first of the file.
        pairing: all pairs, or Swiss pairing.
        budget: pairs of answers that may be judged.
        prior: pseudo-ties of each pair.
        output: a folder, made if it is not there.
        seed_everything: of answers, resamples and the order of prompts.
        max_new_tokens: of the longest answer of a policy.
        as_conversation: make each text the message of a user.
        device: where models lie.
        batch_size: prompts at a time.
        allow_code: run code that a run's configuration names.
    """
    _check(budget, prior, output)
    text_oracle(oracle)
    refuse_lone_reference(entrants)
    asked = read_tournament_prompts(prompts, num_prompts)
    how = Drawing(seed_everything, max_new_tokens, as_conversation, device, batch_size, allow_code)
    output.mkdir(parents=True, exist_ok=True)
    field = read_field(entrants, asked, prompts, output, how)
    move(oracle, device)
    judge = Judge(oracle, output / ANSWERS, field)
    with keeping(judge, output):
        ended = play(judge, pairing, prior, budget, seed_everything)
        judge.refuse_silence()
    found = standings(judge, prior, seed_everything)
    title = f"{len(field.names)} entrants on {field.num_prompts} prompts of {prompts}"
    _write(found, output, title, prior, ended)
    print(f"{title}, judged by {type(oracle).__name__}\n")
    print(tables.results_text(found, prior, ended))
    print(f"The oracle was asked {summary(spent(judge.asked)) or 'nothing new'}.")
    print(f"Tables, figures and judgements: {output}/")


def _check(budget: int | None, prior: float, output: Path) -> None:
    if budget is not None and budget < 1:
        raise UserError(f"--budget must be at least 1, but it is {budget}")
    if not (math.isfinite(prior) and prior >= 0):
        raise UserError(f"--prior must be a finite number, 0 or above, but it is {prior}")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is no folder: give the name of one")
    above = next(parent for parent in (output, *output.absolute().parents) if parent.exists())
    if not os.access(above, os.W_OK):
        raise UserError(f"--output {output}: the folder {above} cannot be written to")


@contextmanager
def keeping(judge: Judge, output: Path) -> Iterator[None]:
    """Write what was judged, also where the oracle stops in between."""
    try:
        yield
    finally:
        if judge.judgements:
            _write_judgements(judge, output / "judgements.jsonl")


def _write_judgements(judge: Judge, path: Path) -> None:
    field = judge.field
    with written(path) as beside, beside.open("w", encoding="utf-8") as file:
        for (prompt, i, j), judgement in sorted(judge.judgements.items()):
            first, second = field.responses[i][prompt], field.responses[j][prompt]
            valid = not math.isnan(judgement.preference)
            row = {
                "prompt": field.prompts[prompt],
                "first": field.names[i],
                "second": field.names[j],
                "first_response": first,
                "second_response": second,
                "preference": judgement.preference if valid else None,
                "first_shown_first": _or_null(judgement.forward),
                "second_shown_first": _or_null(judgement.backward),
                "asked": judgement.asked,
                "first_characters": len(first),
                "second_characters": len(second),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _or_null(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _write(found: Standings, output: Path, title: str, prior: float, ended: str) -> None:
    """Write tables and figures.

    Raises:
        UserError: the folder cannot be written to.
    """
    texts = {
        "results.md": tables.results_markdown(found, title, prior, ended),
        "pairs.csv": tables.pairs_csv(found),
        "results.csv": tables.results_csv(found),
    }
    try:
        _draw(found, output)
        for name, text in texts.items():
            with written(output / name) as path:
                path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {output} could not be written to: {error.strerror}") from error


def _draw(found: Standings, output: Path) -> None:
    order, num = found.order, len(found.names)
    names = [tables.short(found.names[i]) for i in order]
    with new_figure(7, 1.2 + 0.32 * num) as figure:
        interval = (found.rating_interval[0][order], found.rating_interval[1][order])
        label = "Bradley-Terry rating, logits of a win (mean 0), with 95 % intervals"
        draw_ratings(figure.subplots(), names, found.rating[order], interval, label)
        with written(output / "ratings.png") as path:
            figure.savefig(path, dpi=1.5 * DPI, format="png")
    side = max(4.0, 2.2 + 0.62 * num)
    with new_figure(side + 1.0, side) as figure:
        square = np.ix_(order, order)
        low, high = (end[square] for end in found.pairs.wilson)
        label = "win rate of row over column, with Wilson's 95 % interval"
        draw_win_matrix(figure.subplots(), names, found.pairs.rate[square], (low, high), label)
        with written(output / "win_matrix.png") as path:
            figure.savefig(path, dpi=1.5 * DPI, format="png")
