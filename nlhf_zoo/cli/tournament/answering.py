"""What each entrant answers: read from a file, or drawn once and kept in the output folder."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nlhf_zoo.cli.drawing import drawn
from nlhf_zoo.cli.inputs import as_the_run, move, prompts_digest
from nlhf_zoo.cli.policies import checkpoint_of, load_policy, run_options, weights_digest
from nlhf_zoo.cli.tournament.entrants import Answers, Entrant, Field, read_answers
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.oracles.text_oracle import conversations
from nlhf_zoo.policies.loading import LoadedPlayer
from nlhf_zoo.records import Prompts

REFERENCES = ("reference", "base")  # of the first policy that is named
_DRAWN, _HOW = "answers", "how.json"


@dataclass(frozen=True, slots=True)
class Drawing:
    """How policies answer.

    Args:
        seed: of what is drawn.
        max_new_tokens: of the longest answer; None for a run's own, and 64 of what is no run.
        as_conversation: make each text the message of a user; None for what a run did.
        device: where models lie.
        batch_size: prompts at a time.
        allow_code: run code that a run's configuration names.
    """

    seed: int = 0
    max_new_tokens: int | None = None
    as_conversation: bool | None = None
    device: str = "auto"
    batch_size: int = 8
    allow_code: bool = False


def refuse_lone_reference(entrants: Sequence[Entrant]) -> None:
    """Refuse ``reference`` where no entrant is a policy that has one."""
    has_policy = any(not e.is_answers and e.source not in REFERENCES for e in entrants)
    for entrant in entrants:
        if entrant.source in REFERENCES and not has_policy:
            raise UserError(
                f"{entrant.source} is that of the first policy, and no entrant is a policy: name "
                "the model itself"
            )


def read_field(
    entrants: Sequence[Entrant],
    prompts: Prompts,
    path: str,
    folder: Path,
    how: Drawing,
    num: int = 1,
) -> Field:
    """The answers of all entrants to the prompts of a file.

    Args:
        entrants: of different names.
        prompts: different ones.
        path: where they were read from.
        folder: the output, which keeps what is drawn.
        how: policies answer.
        num: answers to each prompt, which then stands so often among those of the field.

    Raises:
        UserError: a policy cannot be loaded, a file cannot be read, or the folder keeps answers
            that were drawn otherwise.
    """
    talks = conversations(prompts, "the tournament")
    asked = _asked(entrants, prompts, path, how)
    answers = []
    for number, entrant in enumerate(entrants):
        if entrant.is_answers:
            if num > 1:
                raise UserError(
                    f"{entrant.source} has one answer to each prompt: leave --num_responses at 1"
                )
            found = read_answers(entrant.source, talks)
            if found.others:
                print(
                    f"{entrant.source} answers {found.others} prompts that are not in {path}: "
                    "these are left out",
                    file=sys.stderr,
                )
        else:
            of = _source(entrant, entrants)
            found = _kept(number, entrant, of, asked[entrant.name], folder / _DRAWN, how, num)
        answers.append(found)
    return Field(
        [entrant.name for entrant in entrants],
        [talk for talk in talks for _ in range(num)],
        [own.texts for own in answers],
        np.array([own.truncated for own in answers]),
    )


def _source(entrant: Entrant, entrants: Sequence[Entrant]) -> str:
    """Whose a policy is: a reference that of the first policy."""
    if entrant.source not in REFERENCES:
        return entrant.source
    return next(e.source for e in entrants if not e.is_answers and e.source not in REFERENCES)


def _asked(
    entrants: Sequence[Entrant], prompts: Prompts, path: str, how: Drawing
) -> dict[str, Prompts]:
    """The prompts as each policy is asked them: a run as it was trained, what is no run as given.

    Raises:
        UserError: that differs, and nobody has said how what is no run is to be asked.
    """
    sources = {e.name: _source(e, entrants) for e in entrants if not e.is_answers}
    asked = {
        name: as_the_run(prompts, path, how.as_conversation, source)
        for name, source in sources.items()
    }
    digests = {name: prompts_digest(own) for name, own in asked.items()}
    if len({*digests.values()}) < 2:
        return asked
    are_runs = [name for name, source in sources.items() if run_options(source)]
    first = are_runs[0]
    other = next(name for name, digest in digests.items() if digest != digests[first])
    differ = (
        f"{first} is asked as its run was trained, {_form(asked[first])}, "
        f"and {other} {_form(asked[other])}"
    )
    if how.as_conversation is None and len(are_runs) < len(asked):
        raise UserError(f"{differ}: give --as_conversation true or false for all of them")
    print(f"{differ}.", file=sys.stderr)
    return asked


def _form(prompts: Prompts) -> str:
    if prompts.conversations is None:
        return "by bare texts"
    with_system = prompts.conversations[0][0]["role"] == "system"
    return "by conversations" + " with a system message" * with_system


def _kept(
    number: int, entrant: Entrant, source: str, asked: Prompts, folder: Path, how: Drawing, num: int
) -> Answers:
    """A policy's answers: those of the folder, or drawn now."""
    slug = re.sub(r"[^A-Za-z0-9]+", "_", entrant.name)[-40:].strip("_")
    file, told = folder / f"{number}_{slug}.jsonl", folder / f"{number}_{slug}_{_HOW}"
    wanted = {
        "name": entrant.name,
        "source": source,
        "player": "policy" if entrant.source == source else entrant.source,
        "weights": weights_digest(source),
        "prompts": prompts_digest(asked),
        "answers": num,
        **{k: v for k, v in asdict(how).items() if k not in ("device", "allow_code")},
    }
    if told.is_file() and file.is_file():
        kept = json.loads(told.read_text(encoding="utf-8"))
        if differing := [name for name in wanted if kept.get(name) != wanted[name]]:
            raise UserError(
                f"{file} holds answers of {entrant.name} that were drawn with another "
                f"{differing[0]}: give another --output"
            )
        # Not splitlines: a text may hold what that takes for the end of a line, as U+2028.
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        rows = [json.loads(line) for line in lines]
    else:
        player = _player(entrant, source, how)
        rows = _draw(player, asked, how, num, number)
        folder.mkdir(parents=True, exist_ok=True)
        with written(file) as beside:
            written_rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            beside.write_text("".join(written_rows), encoding="utf-8")
        with written(told) as beside:
            beside.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    return Answers([row["response"] for row in rows], [row["truncated"] for row in rows])


def _player(entrant: Entrant, source: str, how: Drawing) -> LoadedPlayer:
    loaded = load_policy(
        source, max_new_tokens=how.max_new_tokens, allow_code=how.allow_code, name=entrant.name
    )
    if (
        entrant.source == "base"
        and getattr(loaded.policy, "adapter", None)
        and checkpoint_of(Path(source))
    ):
        raise UserError(
            f"the run {source} started from an adapter, so that its reference is no bare model: "
            "name the base model in the place of base"
        )
    move(loaded.policy, how.device)
    player = "policy" if entrant.source == source else "reference"
    return LoadedPlayer(entrant.name, loaded.policy, player)


def _draw(
    player: LoadedPlayer, prompts: Prompts, how: Drawing, num: int, stream: int
) -> list[dict[str, Any]]:
    rows = []
    parts = drawn(player, prompts, num, how.seed, how.batch_size, stream=stream)
    for batch, responses in parts:
        assert responses.text is not None
        cut = responses.truncated
        for i, texts in enumerate(responses.text):
            asked = batch.text[i] if batch.conversations is None else batch.conversations[i]  # type: ignore[index]
            for k, text in enumerate(texts):
                truncated = False if cut is None else bool(cut[i, k])
                rows.append({"prompt": asked, "response": text, "truncated": truncated})
    return rows
