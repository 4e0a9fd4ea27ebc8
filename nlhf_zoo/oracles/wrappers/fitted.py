"""A preference model that is fitted to answers while they come, and answers the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, distributed
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.oracles.wrappers.base import WrappedTextOracle
from nlhf_zoo.records.random_streams import random_stream, run_seed
from nlhf_zoo.solvers.fitted_preference import (
    fit_members,
    member_preferences,
    most_disputed,
    pair_features,
)
from nlhf_zoo.text_models.features import HashedNgrams, TextFeatures

_CPU = torch.device("cpu")  # where it is fitted, wherever its state lies


@final
class FittedOracle(WrappedTextOracle):
    """Asks another oracle about some pairs, and answers the others by what it learnt from these.

    For people, whose answers are few and dear. Of the questions that come together a share is put
    to the other oracle: those on which a small ensemble disagrees most. Its members are fits of one
    general preference (`nlhf_zoo.solvers.fitted_preference`), each under weights of the Bayesian
    bootstrap and with a prior mean of its own; the plain fit answers the rest, and all are fitted
    anew to what has come. A question that the other oracle leaves without an answer stays without
    one.

    What the model answers is counted apart, as ``modelled`` in the ledger, and is no query. Each
    answer that was asked for is first foreseen: ``foreseen`` is the share of these on whose side
    the model was, which is less than its share among all pairs, for it asks where it is unsure.

    It runs in one process. All that it has learnt is in the checkpoint.

    Args:
        oracle: who is asked.
        features: of responses; `HashedNgrams` if not given.
        share: of questions that come together, rounded up, that the other oracle is asked.
        min_answers: that it has before it answers any question itself; until then all are asked.
        members: fits in the ensemble, beside the plain one.
        l2: precision of the parameters, which holds the plain fit near 0, where every pair ties.
        remembered: answers that it is fitted to; the oldest give way to newer ones.
        seed: of the bootstrap; None takes the run's seed.

    Raises:
        UserError: a number makes no sense.
    """

    learns = True
    first: Tensor
    second: Tensor
    answer: Tensor
    weight: Tensor
    centre: Tensor
    parameters_of_fits: Tensor
    counts: Tensor

    def __init__(
        self,
        oracle: TextOracle,
        features: TextFeatures | None = None,
        share: float = 0.25,
        min_answers: int = 100,
        members: int = 8,
        l2: float = 0.1,
        remembered: int = 4096,
        seed: int | None = None,
    ) -> None:
        super().__init__(oracle)
        _refuse(share, min_answers, members, l2, remembered)
        self.features = HashedNgrams() if features is None else features
        self.share = share
        self.min_answers = min_answers
        self.l2 = l2
        self.seed = run_seed(seed)
        size = self.features.size
        double = torch.float64
        self.register_buffer("first", torch.zeros(remembered, size, dtype=double))
        self.register_buffer("second", torch.zeros(remembered, size, dtype=double))
        self.register_buffer("answer", torch.zeros(remembered, dtype=double))
        # Of the plain fit, which comes first, and of the members.
        self.register_buffer("weight", torch.ones(1 + members, remembered, dtype=double))
        centre = torch.zeros(1 + members, size * (size + 1) // 2, dtype=double)
        centre[1:].normal_(0, l2**-0.5, generator=random_stream(self.seed, 0, 0, _CPU, "prior"))
        self.register_buffer("centre", centre)
        self.register_buffer("parameters_of_fits", centre.clone())
        # Answers that were learnt from; those that were foreseen; and those of them rightly.
        self.register_buffer("counts", torch.zeros(3, dtype=torch.long))

    @property
    @override
    def fingerprint(self) -> str:
        """The other oracle's, and how it is fitted; what it has learnt is not in it."""
        return (
            f"fitted {type(self.features).__name__} {self.features.size} {self.share} "
            f"{self.min_answers} {self.l2} {self.seed}\n{self.oracle.fingerprint}"
        )

    @property
    def foreseen(self) -> float:
        """Share of the answers asked for on whose side the model was before; NaN before any."""
        _, foreseeable, rightly = self.counts.tolist()
        return rightly / foreseeable if foreseeable else math.nan

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """The model's answers, and those of the other oracle to what is asked.

        Raises:
            UserError: there are several processes, each of which would learn something else.
            OracleStoppedError: the other oracle cannot be asked any more.
        """
        together = distributed.is_available() and distributed.is_initialized()
        if together and distributed.get_world_size() > 1:
            raise UserError("FittedOracle learns in one process alone: set trainer.devices to 1")
        open_ = list(range(len(questions)))
        missing = self.min_answers - int(self.counts[0])
        if missing > 0:
            # At first by a coin that the texts toss: which they are does not depend on the order.
            coin = {n: questions[n].digest("first", ordered=False) for n in open_}
            begin = sorted(sorted(open_, key=coin.__getitem__)[:missing])
            yield from self._ask_for(questions, begin)
            open_ = sorted({*open_} - {*begin})
        if not open_:
            return
        if int(self.counts[0]) < self.min_answers:  # some were left without an answer
            yield from self._ask_for(questions, open_)
            return
        plain, *members = self.preferences([questions[n] for n in open_])
        num = math.ceil(self.share * len(open_))
        disputed = most_disputed(torch.stack(members), num).tolist()
        asked = [open_[place] for place in disputed]
        rest = sorted({*range(len(open_))} - {*disputed})
        if rest:
            self.ledger.charge(modelled=len(rest))
            for place in rest:
                yield open_[place], plain[place].item()
        foreseen = {open_[place]: plain[place].item() for place in disputed}
        yield from self._ask_for(questions, asked, foreseen)

    def preferences(self, questions: Sequence[Question]) -> Tensor:
        """P(first > second) of the plain fit, and of each member, float64 [1 + M, n]."""
        pairs = pair_features(*self._described(questions))
        return member_preferences(pairs, self.parameters_of_fits.cpu())

    def _ask_for(
        self,
        questions: Sequence[Question],
        numbers: Sequence[int],
        foreseen: Mapping[int, float] | None = None,
    ) -> Iterator[Answer]:
        """The other oracle's answers, which are learnt from when all of them are there."""
        found: list[tuple[int, float]] = []
        for place, answer in self.oracle.answers([questions[n] for n in numbers]):
            if 0 <= answer <= 1:  # and not NaN, for no answer
                found.append((numbers[place], answer))
            yield numbers[place], answer
        found.sort()  # and not as they came: people are not always as quick
        if foreseen is not None:
            told = [(foreseen[n] > 0.5) == (p > 0.5) for n, p in found if p != 0.5]
            self.counts[1:] += torch.tensor([len(told), sum(told)])
        if found:
            self._learn([questions[n] for n, _ in found], [p for _, p in found])

    def _learn(self, questions: Sequence[Question], answers: list[float]) -> None:
        device = self.first.device
        first, second = self._described(questions)
        answer = torch.tensor(answers, dtype=torch.float64)
        capacity = len(self.answer)
        known = int(self.counts[0])
        kept = slice(max(0, len(answers) - capacity), None)
        places = torch.arange(known, known + len(answers))[kept] % capacity
        self.first[places] = first[kept].to(device)
        self.second[places] = second[kept].to(device)
        self.answer[places] = answer[kept].to(device)
        self.weight[1:, places] = self._draws(known, len(answers))[:, kept].to(device)
        self.counts[0] += len(answers)
        num = min(capacity, int(self.counts[0]))
        pairs = pair_features(self.first[:num].cpu(), self.second[:num].cpu())
        weight, answer = self.weight[:, :num].cpu(), self.answer[:num].cpu()
        centre, start = self.centre.cpu(), self.parameters_of_fits.cpu()
        fits = fit_members(pairs, answer, weight, self.l2, centre, start)
        self.parameters_of_fits.copy_(fits)

    def _draws(self, known: int, num: int) -> Tensor:
        """Exponential weights of new answers for each member [M, num]: a stream for each call."""
        drawn = torch.empty(len(self.weight) - 1, num, dtype=torch.float64)
        return drawn.exponential_(generator=random_stream(self.seed, 0, known, _CPU, "answers"))

    def _described(self, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
        """Features of first and second responses, each text once."""
        keys = [q.prompt_key for q in questions]
        pairs = list(zip(keys, questions, strict=True))
        texts = list(dict.fromkeys((key, t) for key, q in pairs for t in (q.first, q.second)))
        place = {text: number for number, text in enumerate(texts)}
        features = self.features(texts)
        first = [place[key, q.first] for key, q in pairs]
        second = [place[key, q.second] for key, q in pairs]
        return features[first], features[second]


def _refuse(share: float, min_answers: int, members: int, l2: float, remembered: int) -> None:
    if not 0 < share <= 1:
        raise UserError(f"FittedOracle.share must be above 0 and at most 1, but it is {share}")
    if not (math.isfinite(l2) and l2 > 0):
        raise UserError(f"FittedOracle.l2 must be a finite number above 0, but it is {l2}")
    if min_answers < 1:
        raise UserError(f"FittedOracle.min_answers must be at least 1, but it is {min_answers}")
    if members < 2:
        raise UserError(
            f"FittedOracle.members must be at least 2, for one cannot disagree, but it is {members}"
        )
    if remembered < min_answers:
        raise UserError(
            f"FittedOracle.remembered is {remembered}, and it answers nothing before it has "
            f"min_answers {min_answers}: raise it"
        )
