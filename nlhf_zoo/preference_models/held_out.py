"""Figures of a preference model on pairs that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, permutations
from typing import final

import torch
from torch import Tensor
from torchmetrics import Metric

from nlhf_zoo.data.pairs import Pairs
from nlhf_zoo.data.texts import conversation_key
from nlhf_zoo.metrics.preference import (
    CalibrationError,
    CyclicTriples,
    PreferenceAccuracy,
    PreferenceLogLoss,
    SymmetryError,
)
from nlhf_zoo.preference_models.reader import Shown
from nlhf_zoo.records import Conversation

_RESPONSES = 8  # of a prompt, whose triples are looked at: 56 preferences, also of a cross-encoder


@final
class HeldOut:
    """Collects pairs of an evaluation, and says how good the preferences for them are.

    Each pair is shown in both orders, and the two answers are averaged, as an oracle does.
    """

    def __init__(self) -> None:
        self._shown: list[Shown] = []
        self._labels: list[Tensor] = []
        self.unread = 0  # pairs of the last figures that could not be read

    def begin(self) -> None:
        """Forget what was seen before."""
        self._shown, self._labels = [], []

    def add(self, pairs: Pairs) -> None:
        """Take in pairs of this process."""
        self._shown += zip(pairs.conversations, pairs.first, pairs.second, strict=True)
        self._labels.append(pairs.probability)

    def figures(
        self, preferences: Callable[[Sequence[Shown]], Tensor], device: torch.device
    ) -> dict[str, Tensor]:
        """All figures by name; over all processes, which call this together.

        A figure is NaN where there is nothing to tell it from: cyclic_triples, where no prompt has
        three responses. Pairs that cannot be read have no part: ``preferences``, which gives
        P(first > second) of pairs as they are shown [n], is NaN for them.
        """
        num = len(self._shown)
        triples = list(_several(self._shown))
        sets = [[(talk, *two) for two in permutations(texts, 2)] for talk, texts in triples]
        swapped = [(talk, second, first) for talk, first, second in self._shown]
        asked = [*self._shown, *swapped, *chain(*sets)]
        answers = preferences(asked).to(device)  # at once: each text is read once
        forward, backward = answers[:num], answers[num : 2 * num]
        label = torch.cat([*self._labels, torch.zeros(0)]).to(device)
        known = ~(forward + backward).isnan()
        self.unread = num - int(known.sum())
        forward, backward, label = forward[known], backward[known], label[known]
        probability = (forward + 1 - backward) / 2
        of_labels: dict[str, Metric] = {
            "accuracy": PreferenceAccuracy(),
            "ece": CalibrationError(),
            "log_loss": PreferenceLogLoss(),
        }
        for metric in of_labels.values():
            metric.to(device).update(probability, label)
        symmetry, cycles = SymmetryError().to(device), CyclicTriples().to(device)
        symmetry.update(forward, backward)
        cycles.update(answers.new_zeros(0, 1, 1))  # torchmetrics warns where there was none
        left = answers[2 * num :]
        for _, texts in triples:
            size = len(texts) * (len(texts) - 1)
            table = _table(left[:size], len(texts))
            cycles.update(table[None], ~table.isnan()[None])
            left = left[size:]
        return {name: metric.compute() for name, metric in of_labels.items()} | {
            "symmetry_error": symmetry.compute()["mean"],
            "cyclic_triples": cycles.compute(),
        }


def _several(shown: Iterable[Shown]) -> Iterator[tuple[Conversation, list[str]]]:
    """Prompts with three or more different responses, of which the first few."""
    found: dict[str, tuple[Shown, dict[str, None]]] = {}
    for one in shown:
        key = conversation_key(one[0])
        responses = found.setdefault(key, (one, {}))[1]
        responses |= dict.fromkeys(one[1:])
    for one, responses in found.values():
        if len(responses) >= 3:
            yield one[0], list(responses)[:_RESPONSES]


def _table(answers: Tensor, size: int) -> Tensor:
    """P [N, N] from the answers to all ordered pairs, 1/2 on its diagonal."""
    table = answers.new_full((size, size), 0.5)
    table[~torch.eye(size, dtype=torch.bool, device=table.device)] = answers
    return table
