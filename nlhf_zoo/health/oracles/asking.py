"""Asking an oracle about sample responses, or for its table; what it answers, as records."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from nlhf_zoo.data.texts.conversations import ListedRows, message
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.oracles import CachedOracle, PreferenceOracle, RuleOracle
from nlhf_zoo.oracles.ledger import spent
from nlhf_zoo.oracles.text_oracle import (
    Question,
    TextOracle,
    conversations,
    last_words,
    response_texts,
)
from nlhf_zoo.oracles.wrappers.ensemble import Agreement, EnsembleOracle, same_side, weighted_mean
from nlhf_zoo.records import PLAIN, Conversation, Prompts, Responses
from nlhf_zoo.records.random_streams import random_stream

MOST_ACTIONS = 2048  # of a table: of more, a random part is taken
_SEED = 20_250_520  # of that part

# ---- what is asked about -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResponseSample:
    """Different responses to a prompt."""

    conversation: Conversation  # the prompt; one of plain text is one message of the user's
    responses: Sequence[tuple[str, bool]]  # K texts, all different, and whether each was truncated

    @property
    def num_pairs(self) -> int:
        """K (K - 1) / 2."""
        return math.comb(len(self.responses), 2)

    @property
    def questions(self) -> list[Question]:
        """A question for each pair of responses."""
        return [
            Question(self.conversation, one[0], other[0], one[1], other[1])
            for one, other in combinations(self.responses, 2)
        ]


def listed_samples(rows: ListedRows) -> list[ResponseSample]:
    """The responses of a file, none of them truncated."""
    talks = rows.conversations or [[message("user", text)] for text in rows.prompts]
    return [
        ResponseSample(talk, [(text, False) for text in texts])
        for talk, texts in zip(talks, rows.responses, strict=True)
    ]


@torch.no_grad()
def draw_samples(game: OnlineGame, prompts: Prompts, num: int) -> list[ResponseSample]:
    """Different responses of the reference and of the policy to each prompt.

    Of ``num`` that are drawn, equal ones among them, half are the reference's, rounded down.
    """
    game.eval()
    policy, name = game.policy, type(game.oracle).__name__
    prompts = policy.encode(prompts)
    drawn: list[dict[str, bool]] = [{} for _ in prompts.ids]
    shares = {"reference": num // 2, "policy": num - num // 2}
    for number, (player, share) in enumerate(shares.items()):
        rng = random_stream(0, 0, number, prompts.ids.device, "report")
        responses = policy.sample({player: 1.0}, prompts, share, PLAIN, rng)
        truncated = responses.truncated
        for row, texts in enumerate(response_texts(responses, name)):
            ends = [False] * share if truncated is None else truncated[row].tolist()
            drawn[row] |= zip(texts, ends, strict=True)
    talks = conversations(prompts, name)
    samples = [ResponseSample(talk, [*row.items()]) for talk, row in zip(talks, drawn, strict=True)]
    return [sample for sample in samples if len(sample.responses) > 1]


def limited(samples: Sequence[ResponseSample], max_pairs: int) -> list[ResponseSample]:
    """The first samples, so many that they make no more pairs than this.

    Of the last one there may be a part: cycles and a matrix need all pairs of some responses.
    """
    taken = []
    for sample in samples:
        num = (1 + math.isqrt(1 + 8 * max_pairs)) // 2  # the largest of num (num - 1) / 2 pairs
        part = replace(sample, responses=sample.responses[:num])
        max_pairs -= part.num_pairs
        if part.num_pairs:
            taken.append(part)
    return taken


# ---- what is answered ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answers:
    """What an oracle says of all Q pairs of some responses."""

    samples: Sequence[ResponseSample]  # to each prompt; pairs are in the order of their `questions`
    # P(first > second) as a game gets it [Q]; NaN without an answer, or where it was not asked.
    probability: Tensor
    forward: Tensor  # the same by one look at the first response first [Q]
    backward: Tensor  # P(second > first) by one look at the second response first [Q]
    asked: Tensor  # which pairs were asked about, bool [Q]
    tolerance: float  # the asymmetry that the oracle admits
    seconds: float  # that `probability` took
    cost: Counter[str]  # what that cost, by the fields of a ledger
    total: Counter[str]  # what everything cost, likewise
    stopped: OracleStoppedError | None = None  # why the oracle stopped, if it did
    agreement: Agreement | None = None  # of the members of an ensemble, on `probability`
    last_words: str = ""  # what came in place of an answer, to be put behind a figure

    @property
    def questions(self) -> list[Question]:
        """The Q questions about all samples, in order."""
        return [question for sample in self.samples for question in sample.questions]

    def matrices(self) -> list[Tensor]:
        """P of the responses to each prompt, [K, K] each; NaN for what is not known."""
        matrices = []
        parts = self.probability.split([sample.num_pairs for sample in self.samples])
        for sample, probability in zip(self.samples, parts, strict=True):
            num = len(sample.responses)
            P = torch.full((num, num), 0.5, dtype=torch.float64)
            pair = torch.triu_indices(num, num, offset=1).unbind()
            P[pair], P.mT[pair] = probability, 1 - probability
            matrices.append(P)
        return matrices


@dataclass(frozen=True, slots=True)
class TableAnswers:
    """What an oracle over a table says."""

    table: Tensor  # P [C, N, N]
    support: Tensor  # which actions each prompt has, bool [C, N]
    agreement: Agreement | None = None  # of the members of an ensemble

    def matrices(
        self, num_prompts: int | None = None, num_actions: int | None = None
    ) -> list[Tensor]:
        """P among the actions that each prompt has, float64 [N, N] each; None stands for all.

        Of the first prompts; of one that has more actions than asked for, a random part is taken.
        """
        matrices = []
        for P, exists in zip(self.table[:num_prompts], self.support[:num_prompts], strict=True):
            actions = exists.nonzero().flatten().cpu()
            actions = actions[_part_of(len(actions), num_actions)]
            matrices.append(P.cpu()[actions[:, None], actions].double())
        return matrices


def both_orders(matrices: Sequence[Tensor]) -> Tensor:
    """P(a > b) and P(b > a) of each of the Q pairs of all matrices P [N, N], as [2, Q]."""
    pairs = [torch.triu_indices(len(P), len(P), offset=1).unbind() for P in matrices]
    both = zip(matrices, pairs, strict=True)
    return torch.cat([torch.stack([P[pair], P.mT[pair]]) for P, pair in both], 1)


# ---- asking --------------------------------------------------------------------------------------


@torch.no_grad()
def read_table(oracle: PreferenceOracle, num_actions: int = MOST_ACTIONS) -> TableAnswers:
    """The table of an oracle with a support.

    Of one that holds no table in memory, among ``num_actions`` at most, which all prompts have.
    """
    support, table = oracle.support, oracle.table
    assert support is not None
    if table is None:
        prompts = oracle.prompts
        assert prompts is not None
        actions = _part_of(support.shape[1], num_actions).expand(len(support), -1)[..., None]
        weight = torch.full(actions.shape[:2], 1 / actions.shape[1], dtype=torch.float64)
        responses = Responses(actions, torch.ones_like(actions, dtype=torch.bool), weight)
        table = oracle(prompts, responses, responses).preference
        support = support[:, : actions.shape[1]]
    agreement = oracle.agreement() if isinstance(oracle, EnsembleOracle) else None
    return TableAnswers(table, support, agreement)


def _part_of(num: int, most: int | None) -> Tensor:
    """All of so many actions, or a random part of them, in order."""
    if most is None or num <= most:
        return torch.arange(num)
    rng = torch.Generator().manual_seed(_SEED)
    return torch.randperm(num, generator=rng)[:most].sort().values


@torch.no_grad()
def ask(oracle: PreferenceOracle, samples: Sequence[ResponseSample]) -> Answers:
    """Ask an oracle of texts about all pairs of responses, and about each in both orders.

    A rule that prefers a place is not refused here, since that is what a report shows; behind a
    cache it is, which would remember one answer for both orders.

    Raises:
        UserError: there is no pair of responses, or the oracle refuses one.
    """
    if not any(sample.num_pairs for sample in samples):
        raise UserError("all responses to each prompt are equal: there is nothing to compare")
    oracle.eval()
    caches = [part for part in oracle.modules() if isinstance(part, CachedOracle)]
    cached = {part for cache in caches for part in cache.modules()}
    rules = [part for part in {*oracle.modules()} - cached if isinstance(part, RuleOracle)]
    with ExitStack() as stack:
        for rule in rules:
            stack.enter_context(rule.unchecked())
        return replace(_ask(oracle, samples), last_words=last_words(oracle))


def _ask(oracle: PreferenceOracle, samples: Sequence[ResponseSample]) -> Answers:
    if isinstance(oracle, EnsembleOracle):
        return _ask_members(oracle, samples)
    if isinstance(oracle, TextOracle):
        return _ask_texts(oracle, samples)
    return _ask_matrices(oracle, samples)


def _ask_members(oracle: EnsembleOracle, samples: Sequence[ResponseSample]) -> Answers:
    """Ask each member; the ensemble has no answer where one of them has none."""
    members = [_ask(member, samples) for member in oracle.members]
    answers = [member.probability for member in members]
    agreeing, compared = same_side(answers, ~torch.stack(answers).isnan())
    return Answers(
        samples,
        weighted_mean(answers, oracle.weights),
        weighted_mean([member.forward for member in members], oracle.weights),
        weighted_mean([member.backward for member in members], oracle.weights),
        torch.stack([member.asked for member in members]).all(0),
        oracle.tolerance,
        sum(member.seconds for member in members),
        sum((member.cost for member in members), Counter()),
        sum((member.total for member in members), Counter()),
        next((member.stopped for member in members if member.stopped is not None), None),
        Agreement(agreeing.double() / compared, compared),
    )


def _ask_texts(oracle: TextOracle, samples: Sequence[ResponseSample]) -> Answers:
    """Ask for answers as a game does, whose cost is reported; then look at each order."""
    questions = [question for sample in samples for question in sample.questions]
    again = [replace(question, again=True) for question in questions]
    swapped = [question.swapped() for question in questions]
    looks = [
        (oracle.answers, questions),
        (oracle.in_given_order, again),
        (oracle.in_given_order, swapped),
    ]
    if type(oracle).in_given_order is TextOracle.in_given_order:
        del looks[1]  # its answers are looks at the first response first
    found: list[list[float | None]] = [[None] * len(questions) for _ in looks]
    before, seconds, costs, stopped = Counter(spent(oracle)), [], [], None
    total = len(looks) * len(questions)
    with tqdm(desc="oracle", total=total, unit=" answers", delay=1, leave=False) as bar:
        for (answers, shown), row in zip(looks, found, strict=True):
            began = time.perf_counter()
            try:
                for number, answer in answers(shown):
                    row[number] = answer
                    bar.update()
            except OracleStoppedError as error:
                stopped = error
                break
            finally:
                seconds.append(time.perf_counter() - began)
                costs.append(Counter(spent(oracle)) - before)
    rows = [[math.nan if answer is None else answer for answer in row] for row in found]
    probabilities = torch.tensor(rows, dtype=torch.float64)
    return Answers(
        samples,
        probability=probabilities[0],
        forward=probabilities[-2],
        backward=probabilities[-1],
        asked=torch.tensor([answer is not None for answer in found[0]]),
        tolerance=oracle.tolerance,
        seconds=seconds[0],
        cost=costs[0],
        total=costs[-1],
        stopped=stopped,
    )


def _ask_matrices(oracle: PreferenceOracle, samples: Sequence[ResponseSample]) -> Answers:
    """Ask another kind of oracle, prompt by prompt, for all responses against all."""
    sides, stopped = [torch.empty(2, 0, dtype=torch.float64)], None
    began = time.perf_counter()
    try:
        for sample in tqdm(samples, desc="oracle", unit=" prompts", delay=1, leave=False):
            sides.append(both_orders([_matrix(oracle, sample)]))
    except OracleStoppedError as error:
        stopped = error
    seconds = time.perf_counter() - began
    found = torch.cat(sides, 1)
    num, total = found.shape[1], sum(sample.num_pairs for sample in samples)
    forward, backward = pad(found, (0, total - num), value=torch.nan)
    asked, cost = torch.arange(total) < num, Counter(queries=num)
    return Answers(
        samples, forward, forward, backward, asked, oracle.tolerance, seconds, cost, cost, stopped
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
        truncated=torch.tensor([[truncated for _, truncated in sample.responses]]),
    )
    comparison = oracle(prompts, responses, responses)
    preference: Tensor = comparison.preference[0].double().cpu()
    return preference.masked_fill(~comparison.valid[0].cpu(), torch.nan)
