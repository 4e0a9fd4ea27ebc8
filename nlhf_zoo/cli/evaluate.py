"""``nlhf evaluate``: who wins of two, and how often; any oracle."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nlhf_zoo.cli.inputs import arguments_of, move, with_source
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.cli.tournament.answering import Drawing, read_field, refuse_lone_reference
from nlhf_zoo.cli.tournament.command import ANSWERS, keeping
from nlhf_zoo.cli.tournament.entrants import Entrant, read_entrants, read_tournament_prompts
from nlhf_zoo.cli.tournament.judging import Judge, text_oracle
from nlhf_zoo.cli.tournament.playing import play
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.oracles.ledger import spent, summary
from nlhf_zoo.solvers.intervals import score_interval
from nlhf_zoo.solvers.length_control import length_control

_HELP = """usage: nlhf evaluate POLICY --against WHO --oracle CLASS --prompts FILE [options]

Who wins of two, and how often, by any oracle: one answer of each to each prompt, judged in both
orders where the oracle looks at one of them first. POLICY is a run's folder or checkpoint, the
folder of an adapter of peft, or a model's folder or its name on the hub; or a .jsonl file of
answers, lines of {"prompt": ..., "response": ...}, one for each prompt.

  --against WHO      reference or base: the policy's own; or another policy, or a file of answers
  --oracle CLASS     who judges; it may be another one than that of the run
  --prompts FILE     a .jsonl file of prompts, lines of {"prompt": ...}
  --num_prompts N    the first of the file (default: all)
  --num_responses K  answers of both to each prompt, compared one by one (default: 1)
  --budget ANSWERS   judge no more pairs than this: fewer prompts
  --output FOLDER    figures, all judgements, and the oracle's answers, with which an evaluation
                     that was interrupted goes on (default: evaluation)
  --seed_everything N, --max_new_tokens N, --as_conversation BOOL, --device DEVICE, --batch_size N,
  --allow_code: as of nlhf sample
"""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How two did against each other.

    Args:
        wins: judgements with P(policy > other) above 1/2.
        ties: those with 1/2, equal answers among them.
        losses: those below.
        invalid: answers that could not be had, which count for nobody.
        rate: mean over prompts of P(policy > other).
        low: end of its interval at 95 %, over prompts.
        high: the other end.
        rate_at_equal_length: the same if both wrote as much; NaN where nothing determines it.
        characters: mean of both answers.
        truncated: share of both answers that was cut at the limit of tokens.
        prompts: with a valid judgement.
    """

    wins: int
    ties: int
    losses: int
    invalid: int
    rate: float
    low: float
    high: float
    rate_at_equal_length: float
    characters: tuple[float, float]
    truncated: tuple[float, float]
    prompts: int


def main(args: list[str]) -> None:
    """Run ``nlhf evaluate`` with what stands behind it on the command line."""
    if not args or {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    named = with_source(args, "policy")
    with quiet():
        evaluate(**arguments_of(evaluate, named, "nlhf evaluate"))


def evaluate(
    policy: str,
    against: str,
    oracle: PreferenceOracle,
    prompts: str,
    num_prompts: int | None = None,
    num_responses: int = 1,
    budget: int | None = None,
    output: Path = Path("evaluation"),
    seed_everything: int = 0,
    max_new_tokens: int | None = None,
    as_conversation: bool | None = None,
    device: str = "auto",
    batch_size: int = 8,
    allow_code: bool = False,
) -> None:
    """Let two answer prompts, have them judged, print and write how they did.

    Args:
        policy: a run's folder or checkpoint, an adapter of peft, a model or a file of answers.
        against: reference, base, or another of these.
        oracle: who judges.
        prompts: a .jsonl file.
        num_prompts: the first of the file.
        num_responses: answers of both to each.
        budget: pairs that may be judged.
        output: a folder.
        seed_everything: of the answers.
        max_new_tokens: of the longest.
        as_conversation: make each text the message of a user.
        device: where models lie.
        batch_size: prompts at a time.
        allow_code: run code that a run's configuration names.
    """
    if num_responses < 1:
        raise UserError(f"--num_responses must be at least 1, but it is {num_responses}")
    if budget is not None and budget < 1:
        raise UserError(f"--budget must be at least 1, but it is {budget}")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is no folder: give the name of one")
    text_oracle(oracle)
    # A policy may play itself: each draws for itself.
    other = f"{against} again" if against == policy else against
    entrants = [*read_entrants([f"{policy}={policy}", f"{other}={against}"])]
    refuse_lone_reference(entrants)
    asked = read_tournament_prompts(prompts, num_prompts)
    how = Drawing(seed_everything, max_new_tokens, as_conversation, device, batch_size, allow_code)
    output.mkdir(parents=True, exist_ok=True)
    field = read_field(entrants, asked, prompts, output, how, num_responses)
    move(oracle, device)
    judge = Judge(oracle, output / ANSWERS, field)
    with keeping(judge, output):
        ended = play(judge, "all", 1.0, budget, seed_everything)
        judge.refuse_silence()
    found = figures(judge, num_responses)
    print(_table(found, entrants, type(oracle).__name__, prompts, ended))
    _write(found, output)
    print(f"The oracle was asked {summary(spent(judge.asked)) or 'nothing new'}.")
    print(f"Figures and judgements: {output}/")


def figures(judge: Judge, num_responses: int) -> Evaluation:
    """How the first entrant did against the second."""
    preference, field = judge.preference(), judge.field
    each = preference[:, 0, 1].reshape(-1, num_responses)
    valid = ~np.isnan(each)
    answered = valid.any(1)
    mean = np.where(valid, each, 0.0).sum(1)[answered] / valid.sum(1)[answered]
    number = len(mean)
    judged = int(valid.sum())
    low, high = score_interval(float(mean.sum()), float((mean**2).sum()), number, most=judged)
    controlled = length_control(preference, field.lengths, 1.0)
    lengths, cut = field.lengths.mean(0), field.truncated.mean(1)
    return Evaluation(
        wins=int((each > 0.5).sum()),
        ties=int((each == 0.5).sum()),
        losses=int((each < 0.5).sum()),
        invalid=judge.num_invalid,
        rate=float(mean.mean()) if number else math.nan,
        low=low,
        high=high,
        rate_at_equal_length=float(controlled.rates[0, 1]),
        characters=(float(lengths[0]), float(lengths[1])),
        truncated=(float(cut[0]), float(cut[1])),
        prompts=number,
    )


def _table(found: Evaluation, entrants: list[Entrant], oracle: str, path: str, ended: str) -> str:
    ours, theirs = (entrant.name for entrant in entrants)
    interval = "one prompt tells nothing of others"
    if not math.isnan(found.low):
        interval = f"{found.low:.3f} to {found.high:.3f}"
    equal = found.rate_at_equal_length
    at_equal = "-" if math.isnan(equal) else f"{equal:.3f}"
    cut = " and ".join(f"{share:.0%}" for share in found.truncated)
    lengths = " and ".join(f"{length:.0f}" for length in found.characters)
    return (
        f"{ours} against {theirs}, judged by {oracle} on {found.prompts} prompts of {path}\n"
        f"  wins, ties, losses     {found.wins}, {found.ties}, {found.losses}\n"
        f"  win rate               {found.rate:.3f}   (mean over prompts; a tie is one half)\n"
        f"  95 % interval          {interval}   (over prompts)\n"
        f"  at equal length        {at_equal}\n"
        f"  mean characters        {lengths}\n"
        f"  cut at the limit       {cut}\n"
        f"  invalid answers        {found.invalid}\n"
        f"  {ended}"
    )


def _write(found: Evaluation, output: Path) -> None:
    plain = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(found).items()
    }
    with written(output / "evaluation.json") as beside:
        beside.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
