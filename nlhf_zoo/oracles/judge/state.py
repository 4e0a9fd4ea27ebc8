"""What is known of a judge from what it has answered and refused so far."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

# A refusal of one question, by its text: a filter, a limit of length, what a server cannot do.
_OF_ONE = frozenset({None, 400, 403, 413, 422, 424, 451})
# Where answers were had these are such, too; before, there is no credit or no such model.
_OF_ONE_LATER = _OF_ONE | {402, 404}
FEW = 8  # different prompts in a row; refusals before the first answer, where there are no others
_MANY = 256  # refusals in a row, of however few prompts


@dataclass(slots=True)
class JudgeState:
    """What one call leaves to the next."""

    silent: float = 0.0  # seconds of asking since the last answer
    next_send: float = 0.0  # when the rate allows the next request, on the monotonic clock
    last_error: str = ""  # what the judge said last that was no verdict; the key is hidden
    has_answers: bool = False  # it has sent a completion
    has_verdicts: bool = False  # one of them was a verdict
    refused: list[str] = field(default_factory=list)  # prompts of the last questions in a row

    def answer(self) -> None:
        """Take note of a completion."""
        self.has_answers = True
        self.refused.clear()

    def refusal(self, prompt: str, status: int | None, waiting: Set[str]) -> bool:
        """Take note of a refusal.

        One question may be refused for what it says, and so may all questions of one prompt. It is
        another thing where the first ones all are, or many in a row, of different prompts; or by a
        status that speaks of no question. Before the first answer prompts that are still waiting
        may have it: refusals arrive faster than completions.

        Args:
            prompt: of the question, by its key.
            status: of HTTP; None where a reply could not be read.
            waiting: prompts, by their keys, with questions that are open or unasked.

        Returns:
            whether the judge will refuse all that follow, as far as can be seen.
        """
        self.refused.append(prompt)
        prompts = set(self.refused)
        alike = len(prompts) >= FEW
        if not self.has_answers:
            alike = alike or (len(self.refused) >= FEW and waiting <= prompts)
            return status not in _OF_ONE or alike
        alike = alike or len(self.refused) >= _MANY
        return status not in _OF_ONE_LATER or alike
