"""Votes as others read them: JSONL of all that is known, pairs for `nlhf fit`, and a summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nlhf_zoo.files import written
from nlhf_zoo.people import Pair, Vote, VoteStore, agreement

# P(first > second) that a vote stands for; a tie is 1/2, as our formats of pairs have it.
_PROBABILITY = {"first": 1.0, "second": 0.0, "neither": 0.5}


def export(store: VoteStore, path: Path) -> int:
    """Write all votes, one a line, with what was skipped and undone; how many there are."""
    return _write(path, store, lambda vote, pair: _words(vote) | _texts(pair))


def export_pairs(store: VoteStore, path: Path) -> int:
    """Write the votes that count as rows of `PreferencePairs`, one a vote; how many there are.

    A row is {prompt, first, second, probability}, and says besides whose vote it is.
    """
    return _write(path, store, _row)


def _row(vote: Vote, pair: Pair) -> dict[str, Any] | None:
    if vote.undone is not None or vote.choice not in _PROBABILITY:
        return None
    row = {**_texts(pair), "probability": _PROBABILITY[vote.choice]}
    return row | {"person": vote.person, "question": vote.question}


def _words(vote: Vote) -> dict[str, Any]:
    return {
        "vote": vote.number,
        "question": vote.question,
        "person": vote.person,
        "choice": vote.choice,
        "seconds": vote.seconds,
        "time": vote.time,
        "mirrored": vote.mirrored,
        "undone": vote.undone,
    }


def _texts(pair: Pair) -> dict[str, Any]:
    conversation: Sequence[Any] = pair.conversation
    is_text = len(conversation) == 1 and conversation[0]["role"] == "user"
    prompt = conversation[0]["content"] if is_text else conversation
    return {"prompt": prompt, "first": pair.first, "second": pair.second}


def _write(path: Path, store: VoteStore, row: Any) -> int:
    """A line for each vote of which there is one; of all questions the texts are read once."""
    pairs = {number: pair for number, pair, _ in store.questions()}
    lines = 0
    with written(path) as beside, beside.open("w", encoding="utf-8") as file:
        for vote in store.votes():
            # A question may have come since the questions were read.
            pair = pairs.get(vote.question) or store.pair(vote.question)
            if (content := row(vote, pair)) is not None:
                file.write(json.dumps(content, ensure_ascii=False) + "\n")
                lines += 1
    return lines


def summary(store: VoteStore) -> Iterator[str]:
    """Lines that say how far people are, and how far they agree."""
    progress, found = store.progress(), agreement(store.votes())
    yield (
        f"{progress.questions} questions: {progress.answered} answered, {progress.open} open, "
        f"{progress.missing} votes wanted still"
    )
    counted = Counter(
        vote.choice for vote in store.votes() if vote.undone is None and vote.choice != "skip"
    )
    yield (
        f"{counted.total()} votes: {counted['first']} for the first of the file, "
        f"{counted['second']} for the second, {counted['neither']} without a difference"
    )
    width = max(map(len, progress.votes), default=0)
    for name, votes in progress.votes.items():
        share = found.people.get(name)
        agrees = "-" if share is None else f"{share:.0%}"
        yield f"  {name:<{width}}  {votes} votes, agrees with others {agrees}"
    if progress.seconds is not None:
        yield f"A vote takes {progress.seconds:.1f} seconds (median of the last)"
    alpha = "-" if found.alpha is None else f"{found.alpha:.3f}"
    yield f"Krippendorff's alpha: {alpha} ({found.questions} questions with two votes or more)"
