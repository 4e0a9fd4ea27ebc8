"""Simple rules for `RuleOracle`, to use or to start one's own from.

Each is called with (prompt, first, second), three texts, and gives P(first > second): 1, 0, or 1/2
where it sees no difference.
"""

from __future__ import annotations

import re

from nlhf_zoo.errors import UserError


def shorter_wins(prompt: str, first: str, second: str) -> float:
    """The response of fewer characters wins.

    Example:
        >>> shorter_wins("Name a fruit.", "Fig.", "An apple.")
        1.0
    """
    return _verdict(len(second) - len(first))


class Mentions:
    """A response that has the word wins against one that has not.

    Args:
        word: whole word or words; capital letters do not matter.

    Example:
        >>> Mentions("apple")("Name a fruit.", "A pineapple.", "An Apple!")
        0.0
    """

    def __init__(self, word: str) -> None:
        if not word.strip():
            raise UserError("the rule Mentions needs a word")
        self.word = word
        self._pattern = re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE)

    def __call__(self, prompt: str, first: str, second: str) -> float:
        """P(first > second)."""
        found = [self._pattern.search(text) is not None for text in (first, second)]
        return _verdict(found[0] - found[1])


class LengthBetween:
    """The response whose number of words is nearer to an interval wins.

    Args:
        shortest: words of the shortest response within the interval.
        longest: words of the longest one.

    Example:
        >>> LengthBetween(2, 4)("Name a fruit.", "One that I like.", "Fig.")
        1.0
    """

    def __init__(self, shortest: int, longest: int) -> None:
        if not 0 <= shortest <= longest:
            raise UserError(
                "the rule LengthBetween needs 0 <= shortest <= longest, "
                f"but they are {shortest} and {longest}"
            )
        self.shortest = shortest
        self.longest = longest

    def __call__(self, prompt: str, first: str, second: str) -> float:
        """P(first > second)."""
        return _verdict(self._distance(second) - self._distance(first))

    def _distance(self, text: str) -> int:
        words = len(text.split())
        return max(self.shortest - words, words - self.longest, 0)


def _verdict(difference: int) -> float:
    """1 for what is better, 0 for what is worse, 1/2 for a tie."""
    return 0.5 + 0.5 * ((difference > 0) - (difference < 0))
