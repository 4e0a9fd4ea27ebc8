"""Sample responses to prompts, to try an oracle on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nlhf_zoo.data.conversations import message
from nlhf_zoo.data.listed_responses import ListedRows
from nlhf_zoo.records import Conversation


@dataclass(frozen=True, slots=True)
class ResponseSample:
    """Different responses to a prompt.

    Args:
        conversation: the prompt; one of plain text is one message of the user's.
        responses: K texts and whether each was cut before it ended, no two of them equal.
    """

    conversation: Conversation
    responses: Sequence[tuple[str, bool]]

    @property
    def num_pairs(self) -> int:
        """K (K - 1) / 2."""
        return len(self.responses) * (len(self.responses) - 1) // 2

    def limited(self, num_pairs: int) -> ResponseSample:
        """The first responses, so many that they make no more pairs than this."""
        num = len(self.responses)
        while num * (num - 1) // 2 > num_pairs:
            num -= 1
        return ResponseSample(self.conversation, self.responses[:num])


def samples_of(rows: ListedRows) -> list[ResponseSample]:
    """The responses of a file, none of them cut."""
    talks: Sequence[Conversation] = rows.conversations or [
        [message("user", text)] for text in rows.prompts
    ]
    return [
        ResponseSample(talk, [(text, False) for text in texts])
        for talk, texts in zip(talks, rows.responses, strict=True)
    ]


def limited(samples: Sequence[ResponseSample], max_pairs: int) -> list[ResponseSample]:
    """The first samples, so many that they make no more pairs than this.

    Of the last one there may be a part: cycles and a matrix need all pairs of some responses.
    """
    kept = []
    for sample in samples:
        part = sample.limited(max_pairs)
        max_pairs -= part.num_pairs
        if part.num_pairs:
            kept.append(part)
    return kept
