"""Hearing what an oracle is asked and says, without asking it anything."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from nlhf_zoo.data.texts import conversation_key
from nlhf_zoo.game import designs
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.text_oracle import Question, TextOracle
from nlhf_zoo.records import Comparison, Prompts, Responses


@dataclass(frozen=True, slots=True)
class HeardPair:
    """A prompt with one response, and what was said of it and an opponent's.

    Args:
        prompts: the prompt, as a batch of one.
        response: to it, likewise.
        opponent: likewise; None where nothing was asked.
        preference: P(response > opponent), NaN where there is no valid answer.
        among_themselves: whether both are of one player.
        orders: what was said of each order, where both were asked.
    """

    prompts: Prompts
    response: Responses
    opponent: Responses | None = None
    preference: float = math.nan
    among_themselves: bool = False
    orders: tuple[float, float] | None = None


class Listener:
    """Hears what an oracle is asked and says, of one pair to each of some prompts.

    Args:
        oracle: of the game.
        num: prompts, the first that come.
    """

    def __init__(self, oracle: PreferenceOracle, num: int) -> None:
        self.num = num
        self._pairs: dict[str, HeardPair] = {}  # by prompts
        self._told: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
        self._oracles = [part for part in oracle.modules() if isinstance(part, TextOracle)]
        for part in self._oracles:
            part.told = self._tell
        self._hook = oracle.register_forward_hook(self._hear)

    def end(self) -> list[HeardPair]:
        """Hear no more; what was heard."""
        self._hook.remove()
        for part in self._oracles:
            part.told = None
        return [replace(pair, orders=self._orders(key, pair)) for key, pair in self._pairs.items()]

    def _hear(
        self,
        _: PreferenceOracle,
        given: tuple[Prompts, Responses, Responses],
        comparison: Comparison,
    ) -> None:
        prompts, first, second = given
        other = int(first is second)  # of responses among themselves the second one
        if other >= second.num:
            return
        for row, key in enumerate(_keys(prompts)):
            if key in self._pairs or len(self._pairs) == self.num:
                continue
            here, which = (torch.tensor([number]) for number in (row, other))
            is_valid = bool(comparison.valid[row, 0, other])
            self._pairs[key] = HeardPair(
                prompts.take([row]),
                designs.singled(first, here, torch.zeros_like(here)),
                designs.singled(second, here, which),
                float(comparison.preference[row, 0, other]) if is_valid else math.nan,
                first is second,
            )

    def _tell(self, question: Question, first: float, second: float) -> None:
        """Remember P(first > second) as said of both orders, where there is a figure of each."""
        if not math.isnan(first) and not math.isnan(second):
            key = question.prompt_key, question.first, question.second
            self._told.setdefault(key, []).append((first, second))

    def _orders(self, key: str, pair: HeardPair) -> tuple[float, float] | None:
        """What one oracle said of a pair; of several there is no one answer."""
        if pair.opponent is None:
            return None
        ours, theirs = text_of(pair.response), text_of(pair.opponent)
        said = [*self._told.get((key, ours, theirs), ())]
        turned = self._told.get((key, theirs, ours), ())
        said += [(1 - second, 1 - first) for first, second in turned]
        return said[0] if len(said) == 1 else None


def _keys(prompts: Prompts) -> list[str]:
    """Each prompt as one text that no other has."""
    if prompts.conversations is not None:
        return [*map(conversation_key, prompts.conversations)]
    texts = prompts.text or [str(number) for number in prompts.ids.tolist()]
    return [conversation_key([{"role": "user", "content": text}]) for text in texts]


def text_of(response: Responses) -> str:
    """The text of a single response, or its tokens where it has none."""
    if response.text is None:
        return " ".join(map(str, response.tokens[0, 0].tolist()))
    return response.text[0][0]
