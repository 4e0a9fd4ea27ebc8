"""Who is asked about the pairs of a tournament, and what was said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.cli.tournament.entrants import Field
from nlhf_zoo.cli.tournament.given_order import GivenOrder, has_places
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import (
    BernoulliLabels,
    BudgetedOracle,
    CachedOracle,
    EnsembleOracle,
    OrderSwap,
    PreferenceOracle,
    Transformed,
)
from nlhf_zoo.oracles.text_oracle import Question, TextOracle, last_words
from nlhf_zoo.solvers.ratings import Array

Place = tuple[int, int, int]  # a prompt and two entrants, the lesser number first


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was said of two entrants' answers to a prompt.

    Args:
        preference: P(first > second), the mean of both orders where there are two; NaN where it is
            invalid.
        forward: the same by one look at the first answer first; None of an oracle without places.
        backward: P(second > first) by one look at the second answer first; likewise.
        asked: whether the oracle was asked: equal answers tie without a question.
    """

    preference: float
    forward: float | None = None
    backward: float | None = None
    asked: bool = True


_TIE = Judgement(0.5, asked=False)


def text_oracle(oracle: PreferenceOracle) -> TextOracle:
    """The oracle whose probabilities count.

    Labels are drawn from the probabilities of another, and a budget changes none, though it still
    holds. A tournament counts wins, whatever a game pays for them.

    Raises:
        UserError: it reads no texts, or has no single answer.
    """
    while isinstance(oracle, BernoulliLabels | BudgetedOracle | Transformed):
        oracle = oracle.oracle
    if isinstance(oracle, EnsembleOracle):
        raise UserError(
            "a tournament asks one oracle: give a member of the EnsembleOracle, and play again "
            "with another for each"
        )
    if not isinstance(oracle, TextOracle):
        raise UserError(
            f"{type(oracle).__name__} looks its answers up in a table and reads no texts: give an "
            "oracle of texts, such as RewardModelOracle, JudgeOracle or RuleOracle"
        )
    return oracle


@dataclass
class Judge:
    """An oracle that remembers its answers in a file, and everything that was asked.

    Args:
        oracle: who is asked.
        path: the file of answers; of an oracle that is a cache already, its own is taken.
        field: whose answers are judged.
    """

    oracle: PreferenceOracle
    path: Path
    field: Field
    judgements: dict[Place, Judgement] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        oracle = text_oracle(self.oracle)
        oracle.eval()
        inside = oracle.oracle if isinstance(oracle, OrderSwap) else oracle
        self.both = has_places(oracle)
        if isinstance(inside, CachedOracle):
            self.asked: TextOracle = inside
            self.both = not inside.symmetric
        else:
            self.asked = CachedOracle(GivenOrder(inside) if self.both else inside, self.path)

    def judge(self, places: Sequence[Place]) -> Iterator[Judgement]:
        """Judge some places, each for the first time, and say so one by one as answers come.

        Raises:
            OracleStoppedError: the oracle cannot be asked any more; what it said is remembered.
        """
        questions, waiting = [], []
        for place in places:
            question = self.field.question(*place)
            if question is None:
                self.judgements[place] = _TIE
                yield _TIE
            else:
                questions.append(question)
                waiting.append(place)
        looks = 1 + self.both
        # The two orders of a pair follow each other: what breaks off leaves few pairs half asked.
        shown = [look for q in questions for look in (q, q.swapped())[:looks]]
        half: dict[int, tuple[int, float]] = {}
        for number, answer in self.asked.answers(shown) if shown else ():
            pair, turned = divmod(number, looks)
            if not self.both:
                done = Judgement(answer)
            elif pair in half:
                done = _both(half.pop(pair), (turned, answer))
            else:
                half[pair] = (turned, answer)
                continue
            self.judgements[waiting[pair]] = done
            yield done

    @property
    def num_asked(self) -> int:
        """How many pairs of answers the oracle was asked about, or its memory."""
        return sum(each.asked for each in self.judgements.values())

    @property
    def num_invalid(self) -> int:
        """How many of them have no answer."""
        return sum(math.isnan(each.preference) for each in self.judgements.values())

    def preference(self) -> Array:
        """P(i > j) on each prompt [C, N, N], NaN where nothing valid was said."""
        num = len(self.field.names)
        table = np.full((self.field.num_prompts, num, num), np.nan)
        for (prompt, i, j), judgement in self.judgements.items():
            table[prompt, i, j] = judgement.preference
            table[prompt, j, i] = 1 - judgement.preference
        return table

    def met(self) -> NDArray[np.intp]:
        """On how many prompts each two were compared [N, N], whatever was said."""
        num = len(self.field.names)
        met = np.zeros((num, num), dtype=np.intp)
        for _, i, j in self.judgements:
            met[i, j] += 1
            met[j, i] += 1
        return met

    def refuse_silence(self) -> None:
        """Refuse an oracle that answered nothing.

        Raises:
            UserError: it did not.
        """
        if self.num_invalid and self.num_invalid == self.num_asked:
            raise UserError(
                f"{type(text_oracle(self.oracle)).__name__} has no answer to any of "
                f"{self.num_asked} pairs{last_words(self.oracle)}"
            )


def _both(one: tuple[int, float], other: tuple[int, float]) -> Judgement:
    """The mean of two looks, each with whether it was the swapped one."""
    (_, forward), (_, backward) = sorted((one, other))
    return Judgement((forward + 1 - backward) / 2, forward, backward)


def questions_of(field: Field) -> list[Place]:
    """All places of a round robin, prompt by prompt."""
    num = len(field.names)
    return [
        (prompt, i, j)
        for prompt in range(field.num_prompts)
        for i in range(num)
        for j in range(i + 1, num)
    ]


__all__ = ["Judge", "Judgement", "Place", "Question", "questions_of", "text_oracle"]
