"""Asking an oracle about sample responses: its answers, and what it says of either order."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations

import torch
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo.data.texts.conversations import message
from nlhf_zoo.data.texts.listed_responses import ListedRows
from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.oracles import CachedOracle, PreferenceOracle, RuleOracle
from nlhf_zoo.oracles.ledger import spent
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.oracles.wrappers.ensemble import EnsembleOracle, weighted_mean
from nlhf_zoo.records import Conversation, Prompts, Responses

_Slots = list[float | None]  # None: not asked; NaN: no answer


@dataclass(frozen=True, slots=True)
class Answers:
    """What an oracle said of all pairs of some responses.

    Args:
        questions: Q pairs.
        places: of each pair, the number of its sample, of the first response and of the second.
        probability: P(first > second) as a game is told it [Q]; NaN where there was no answer, or
            the pair was not asked about.
        forward: the same by one look at the first response first [Q].
        backward: P(second > first) by one look at the second response first [Q].
        asked: which pairs were asked about, bool [Q].
        seconds: that ``probability`` took.
        cost: what that cost, by the fields of a ledger.
        total: what everything cost, likewise.
        stopped: why the oracle stopped, None where it did not.
        members: ``probability`` of each member of an ensemble, M tensors [Q].
    """

    questions: list[Question]
    places: list[tuple[int, int, int]]
    probability: Tensor
    forward: Tensor
    backward: Tensor
    asked: Tensor
    seconds: float
    cost: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)
    stopped: OracleStoppedError | None = None
    members: Sequence[Tensor] = ()

    def matrices(self) -> list[Tensor]:
        """P of the responses to each prompt, [K, K] each; NaN for what is not known."""
        sizes = [0] * (1 + max(sample for sample, _, _ in self.places))
        for sample, _, second in self.places:
            sizes[sample] = max(sizes[sample], second + 1)
        found = [torch.full((size, size), torch.nan, dtype=torch.float64) for size in sizes]
        for (sample, first, second), p in zip(self.places, self.probability.tolist(), strict=True):
            found[sample][first, second], found[sample][second, first] = p, 1 - p
        for matrix in found:
            matrix.fill_diagonal_(0.5)
        return found


@torch.no_grad()
def ask(oracle: PreferenceOracle, samples: Sequence[ResponseSample]) -> Answers:
    """Ask about all pairs of responses, and about each in both orders.

    A rule that prefers a place is not refused here, since that is what a report shows; behind a
    cache it is, which would remember one answer for both orders.

    Args:
        oracle: who is asked, one that reads texts.
        samples: responses to each prompt.
    """
    oracle.eval()
    questions, places = [], []
    for number, sample in enumerate(samples):
        for first, second in combinations(range(len(sample.responses)), 2):
            one, other = sample.responses[first], sample.responses[second]
            questions.append(Question(sample.conversation, one[0], other[0], one[1], other[1]))
            places.append((number, first, second))
    with ExitStack() as stack:
        for rule in _rules(oracle):
            stack.enter_context(rule.unchecked())
        return _ask(oracle, samples, questions, places)


def _rules(oracle: PreferenceOracle) -> list[RuleOracle]:
    """All rules within an oracle but those behind a cache."""
    parts = list(oracle.modules())
    caches = [part for part in parts if isinstance(part, CachedOracle)]
    cached = {id(part) for cache in caches for part in cache.modules()}
    return [part for part in parts if isinstance(part, RuleOracle) and id(part) not in cached]


def _ask(
    oracle: PreferenceOracle,
    samples: Sequence[ResponseSample],
    questions: list[Question],
    places: list[tuple[int, int, int]],
) -> Answers:
    if isinstance(oracle, EnsembleOracle):
        said = [_ask(member, samples, questions, places) for member in oracle.members]
        return _weighted(said, oracle.weights)
    if isinstance(oracle, TextOracle):
        return _ask_questions(oracle, questions, places)
    return _ask_matrices(oracle, samples, questions, places)


def _weighted(said: Sequence[Answers], weights: Sequence[float]) -> Answers:
    """What an ensemble says; it has no answer where one of its members has none."""
    totals = [Counter(one.cost) for one in said], [Counter(one.total) for one in said]
    cost, total = (dict(sum(counts, Counter())) for counts in totals)
    return Answers(
        said[0].questions,
        said[0].places,
        weighted_mean([one.probability for one in said], weights),
        weighted_mean([one.forward for one in said], weights),
        weighted_mean([one.backward for one in said], weights),
        torch.stack([one.asked for one in said]).all(0),
        sum(one.seconds for one in said),
        cost,
        total,
        next((one.stopped for one in said if one.stopped is not None), None),
        [one.probability for one in said],
    )


def _ask_questions(
    oracle: TextOracle, questions: list[Question], places: list[tuple[int, int, int]]
) -> Answers:
    """Ask a text oracle: for its answers first, whose cost is that of a game."""
    before = spent(oracle)
    told, forward, backward = (_empty(questions) for _ in range(3))
    cost, seconds, stopped = before, 0.0, None
    looks_itself = type(oracle).in_given_order is TextOracle.in_given_order
    looks = 2 if looks_itself else 3
    with tqdm(
        desc="oracle",
        total=looks * len(questions),
        unit=" answers",
        delay=1,
        leave=False,
        file=sys.stderr,
    ) as bar:
        try:
            began = time.perf_counter()
            try:
                _fill(told, oracle.answers(questions), bar)
            finally:
                seconds, cost = time.perf_counter() - began, spent(oracle)
            if looks_itself:
                forward = told
            else:
                again = [replace(question, again=True) for question in questions]
                _fill(forward, oracle.in_given_order(again), bar)
            _fill(backward, oracle.in_given_order([one.swapped() for one in questions]), bar)
        except OracleStoppedError as error:
            stopped = error
    after = spent(oracle)
    return Answers(
        questions,
        places,
        _tensor(told),
        _tensor(forward),
        _tensor(backward),
        torch.tensor([answer is not None for answer in told], dtype=torch.bool),
        seconds,
        {name: cost[name] - before[name] for name in before},
        {name: after[name] - before[name] for name in before},
        stopped,
    )


def _ask_matrices(
    oracle: PreferenceOracle,
    samples: Sequence[ResponseSample],
    questions: list[Question],
    places: list[tuple[int, int, int]],
) -> Answers:
    """Ask another kind of oracle, prompt by prompt, for all responses against all."""
    found: list[Tensor] = []
    seconds, stopped = 0.0, None
    for sample in tqdm(samples, desc="oracle", unit=" prompts", delay=1, leave=False):
        began = time.perf_counter()
        try:
            found.append(_matrix(oracle, sample))
        except OracleStoppedError as error:
            stopped = error
            break
        finally:
            seconds += time.perf_counter() - began
    nothing = torch.tensor(torch.nan, dtype=torch.float64)
    known = [
        (found[sample][i, j], found[sample][j, i]) if sample < len(found) else (nothing, nothing)
        for sample, i, j in places
    ]
    forward, backward = (torch.stack(side) for side in zip(*known, strict=True))
    asked = torch.tensor([sample < len(found) for sample, _, _ in places])
    cost = {"queries": int(asked.sum())}
    return Answers(
        questions, places, forward, forward, backward, asked, seconds, cost, cost, stopped
    )


def _matrix(oracle: PreferenceOracle, sample: ResponseSample) -> Tensor:
    """P of all responses to a prompt, float64 [K, K], NaN where invalid."""
    talk, texts = sample.conversation, [text for text, _ in sample.responses]
    prompts = Prompts(torch.zeros(1, dtype=torch.long), None, None, [talk[-1]["content"]], [talk])
    shape = (1, len(texts), 1)
    responses = Responses(
        torch.zeros(shape, dtype=torch.long),
        torch.ones(shape, dtype=torch.bool),
        torch.full(shape[:2], 1 / len(texts)),
        text=[texts],
        truncated=torch.tensor([[cut for _, cut in sample.responses]]),
    )
    comparison = oracle(prompts, responses, responses)
    preference: Tensor = comparison.preference[0].double().cpu()
    return preference.masked_fill(~comparison.valid[0].cpu(), torch.nan)


def _empty(questions: Sequence[Question]) -> _Slots:
    return [None] * len(questions)


def _fill(slots: _Slots, answers: Iterator[Answer], bar: tqdm[None]) -> None:
    for number, answer in answers:
        slots[number] = answer
        bar.update()


def _tensor(slots: _Slots) -> Tensor:
    values = [torch.nan if answer is None else answer for answer in slots]
    return torch.tensor(values, dtype=torch.float64)


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
