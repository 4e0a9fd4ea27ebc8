"""The four questions, and which answers to them can be used."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nlhf_zoo.cli import signatures
from nlhf_zoo.errors import UserError, nearest

HAVE = ("votes", "rule", "judge", "pairs")
RECOMMEND = "recommend"

# As docs/which_algorithm.md has it: by what somebody has, the algorithm, its options, and why.
_NO_TUNING = "its rate holds at every beta and there is no step to tune"
RECOMMENDED: dict[str, tuple[str, str]] = {
    "votes": ("NashMP", f"{_NO_TUNING}; `adaptive` needs fewer queries"),
    "rule": ("NashMP", f"{_NO_TUNING}; its second question is free where a rule answers"),
    "judge": ("OnlineIPO", "one set of questions a round, where each one costs"),
    "pairs": ("OnlineIPO", "one set of questions a round, each a pass of the preference model"),
}
OPTIONS = {  # of an algorithm, where its defaults are not the place to start
    ("votes", "NashMP"): {"eta": "adaptive"},
    ("rule", "NashMP"): {"kappa": "0.1", "inner_steps": "1"},
    ("judge", "NashMP"): {"kappa": "0.1", "inner_steps": "1"},
    ("pairs", "NashMP"): {"kappa": "0.1", "inner_steps": "1"},
}
_NEEDS_MORE = {  # than a file of these can have
    "MovingMagnet": "holds another algorithm inside: start from configs/tabular/moving_magnet.yaml",
    "REBEL": "takes scores of single responses: start from configs/lm/qwen2_5_1_5b/rebel.yaml",
}
_NO_CLOSED_FORM = ("OnlineDPO", "XPO")  # which votes are played in
_VOTES = (".csv", ".json", ".jsonl", ".soc", ".soi", ".toc", ".toi")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Question:
    """A question of the four.

    Args:
        text: as it is asked.
        default: by what somebody has; None where there is none to offer.
        check: refuses an answer that cannot be used, given what somebody has.
    """

    text: Callable[[str], str]
    default: Callable[[str], str | None]
    check: Callable[[str, str], None]


def check_have(answer: str, _: str) -> None:
    """Refuse what none of the pages is for."""
    if answer not in HAVE:
        raise UserError(
            f"--have {answer!r:.60} is none of {', '.join(HAVE)}" + nearest(answer, HAVE)
        )


def check_model(answer: str, have: str) -> None:
    """Refuse what is neither a file of votes nor a folder or a name of a model."""
    option = "--data" if have == "votes" else "--model"
    if not answer.strip() or not answer.isprintable():
        raise UserError(f"{option} is empty or has characters that cannot be printed: give a name")
    path = Path(answer)
    if have == "votes":
        if path.suffix.lower() not in _VOTES:
            raise UserError(f"--data {answer} ends with none of {', '.join(_VOTES)}: give votes")
        return
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"--model {answer} has no config.json, which save_pretrained writes: give the "
                "folder of a model"
            )
    elif path.exists() or not _HUB_NAME.fullmatch(answer):
        raise UserError(f"--model {answer} is no folder, and no name on the hub: give one of these")


def check_algorithm(answer: str, have: str) -> None:
    """Refuse what is no algorithm, or cannot be started by a file of this kind."""
    known = [name for name in signatures.choices("PolicyOptimizer") if name not in _NEEDS_MORE]
    if answer in _NEEDS_MORE:
        raise UserError(f"--algorithm {answer} {_NEEDS_MORE[answer]}")
    if answer != RECOMMEND and answer not in known:
        raise UserError(
            f"--algorithm {answer} is none of {RECOMMEND}, {', '.join(known)}"
            + nearest(answer, known)
        )
    if have == "votes" and answer in _NO_CLOSED_FORM:
        raise UserError(
            f"--algorithm {answer} has no closed form, in which votes are played: choose another, "
            f"or start from configs/tabular/{'xpo' if answer == 'XPO' else 'online_dpo'}.yaml"
        )


def check_rounds(answer: str, _: str) -> None:
    """Refuse what is no number of rounds."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", answer):
        raise UserError(f"--rounds is a whole number, 1 or above, but it is {answer!r:.60}")


def check_save(answer: str, _: str) -> None:
    """Refuse what cannot be the folder of runs."""
    path = Path(answer)
    if not path.name or ".." in path.parts or not answer.isprintable():
        raise UserError(f"--save {answer!r:.60} is no name of a folder for runs: give one")
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not above.is_dir():
        raise UserError(f"--save {answer}: {above} is a file, not a folder: give another name")


def _of_model(have: str) -> str:
    if have == "votes":
        return "Which file are the votes in?"
    return "Which model do you start from: its folder, or its name on the hub?"


# By the option that answers each; votes are in a file, and have no model.
QUESTIONS: Mapping[str, Question] = {
    "have": Question(
        lambda _: (
            "What do you have: votes, a model and a rule (rule), a model and a judge (judge), or "
            "pairs of responses (pairs)?"
        ),
        lambda _: None,
        check_have,
    ),
    "model": Question(
        _of_model, lambda have: "votes.csv" if have == "votes" else None, check_model
    ),
    "algorithm": Question(
        lambda _: "Which algorithm, or the one that docs/which_algorithm.md recommends?",
        lambda _: RECOMMEND,
        check_algorithm,
    ),
    "rounds": Question(
        lambda _: "How many rounds may it take?",
        lambda have: "500" if have == "votes" else "200",
        check_rounds,
    ),
    "save": Question(lambda _: "Where are runs saved?", lambda have: f"runs/{have}", check_save),
}


def asked(given: Mapping[str, str | None]) -> dict[str, str]:
    """An answer to each question: as given, from a terminal, or by default.

    Raises:
        UserError: an answer cannot be used, or one is missing and nobody is there to ask.
    """
    answers: dict[str, str] = {}
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    for name, question in QUESTIONS.items():
        have = answers.get("have", "")
        answer = given.get(name)
        if answer is None and is_terminal:
            answer = _from_terminal(question, have)
        if answer is None:
            answer = question.default(have)
        if answer is None:
            raise UserError(
                f"--{name} is missing, and there is no terminal to ask at: {question.text(have)}"
            )
        question.check(answer, have)
        answers[name] = answer
    return answers


def _from_terminal(question: Question, have: str) -> str:
    """Ask until the answer can be used."""
    default = question.default(have)
    shown = f" [{default}]" if default is not None else ""
    while True:
        try:
            answer = input(f"{question.text(have)}{shown} ").strip() or default
        except EOFError as error:
            print()
            raise UserError("there is no answer: give all answers as options") from error
        if answer is None:
            continue
        try:
            question.check(answer, have)
        except UserError as error:
            print(f"  {error}")
            continue
        return answer
