"""A table of what a judge says of listed responses."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from nlhf_zoo.data.tables.files import require_memory
from nlhf_zoo.data.texts.conversations import ListedRows, read_listed
from nlhf_zoo.errors import UserError, shown
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.tables.base import DTYPES, Precision, TableOracle
from nlhf_zoo.oracles.text_oracle import TextOracle
from nlhf_zoo.records import Comparison, Prompts, Responses

_PAIRS = 256  # that are put to the oracle at once, at least where there are so many


@final
class ListedResponses(PreferenceOracle):
    """A table game of an oracle that reads texts, over responses listed in a file.

    So a judge, a pair model or a rule works with tabular policies, in closed form and with exact
    metrics. All pairs are asked about once, N (N - 1) / 2 for a prompt of N responses, when the
    table is first needed. Put a `CachedOracle` inside to pay for them once and not once a run.

    Args:
        oracle: who judges.
        path: a .jsonl file of one object a line: "prompt" (text, which is one message of the
            user's, or a list of messages with role and content), "responses" (two or more different
            texts) and, optionally, "names" of these for reports. Prompts may have different numbers
            of responses.
        dtype: precision of the answers.

    Raises:
        UserError: the file cannot be read, or a line cannot be used.
    """

    _support: Tensor

    def __init__(self, oracle: TextOracle, path: str | Path, dtype: Precision = "float64") -> None:
        super().__init__()
        self.oracle = oracle
        self.path = Path(path)
        self.dtype = dtype
        self.rows = read_listed(path)
        self.tolerance = oracle.tolerance
        sizes = torch.tensor([len(texts) for texts in self.rows.responses])
        shape = len(sizes), int(sizes.max())
        require_memory(16 * shape[0] * shape[1] ** 2, f"the table of {path} {[*shape, shape[1]]}")
        self.register_buffer("_support", torch.arange(shape[1]) < sizes[:, None], persistent=False)
        self._asked: TableOracle | None = None

    @property
    @override
    def support(self) -> Tensor:
        return self._support

    @property
    @override
    def prompts(self) -> Prompts:
        ids = torch.arange(len(self._support), device=self._support.device)
        return Prompts(ids, text=self.rows.prompts, conversations=self.rows.conversations)

    @property
    @override
    def action_names(self) -> list[list[str]]:
        return self.rows.names

    @property
    @override
    def table(self) -> Tensor:
        """The whole preference [C, N, N], 1/2 where there is no response; asked for at first use.

        Raises:
            UserError: the oracle has no answer to a pair.
            OracleStoppedError: the oracle cannot be asked any more.
        """
        return self._answered().table

    @property
    @override
    def answers_table(self) -> bool:
        return True  # without asking for the table

    @override
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        self._refuse_other_texts(prompts, first, second)
        comparison: Comparison = self._answered()(prompts, first, second)
        return comparison

    @override
    def expected(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> tuple[Tensor, Tensor]:
        self._refuse_other_texts(prompts, first, second)
        return self._answered().expected(prompts, first, second)

    def _refuse_other_texts(self, prompts: Prompts, *sides: Responses) -> None:
        """Refuse a language model's responses, unless they are those of the file, in its order."""
        for responses in sides:
            if responses.text is None:
                continue
            listed = [self.rows.responses[number] for number in prompts.ids.tolist()]
            if not responses.enumerated or [[*row] for row in responses.text] != listed:
                raise UserError(
                    f"the policy's responses are not those listed in {self.path}: play them with "
                    f"TabularPolicy, or put {type(self.oracle).__name__} in place of "
                    "ListedResponses to judge a language model's own"
                )

    def _answered(self) -> TableOracle:
        if self._asked is None:
            table = _ask_about_all(self.oracle, self.rows, str(self.path))
            asked = TableOracle(table.to(DTYPES[self.dtype]), self._support.cpu())
            self._asked = asked.to(self._support.device)
        return self._asked


@torch.no_grad()
def _ask_about_all(oracle: TextOracle, rows: ListedRows, path: str) -> Tensor:
    """P(y > y') of all listed responses, float64 [C, N, N]; refuses a pair without an answer."""
    size = max(map(len, rows.responses))
    table = torch.full((len(rows.responses), size, size), 0.5, dtype=torch.float64)
    total = sum(map(_num_pairs, rows.responses))
    with tqdm(
        total=total, desc="listed responses", unit="pair", delay=1, leave=False, file=sys.stderr
    ) as progress:
        for chosen in _parts(rows.responses):
            answer = _ask(oracle, rows, chosen)
            if not answer.valid.all():
                place, *pair = answer.valid.logical_not().nonzero()[0].tolist()
                one, other = (shown(rows.responses[chosen[place]][number]) for number in pair)
                raise UserError(
                    f"{type(oracle).__name__} has no answer to a pair of line {chosen[place] + 1} "
                    f"of {path}, {one} and {other}: a table needs all of them, so ask again, or "
                    "leave one of the two out"
                )
            for number, preference in zip(chosen, answer.preference, strict=True):
                num = len(rows.responses[number])
                table[number, :num, :num] = preference[:num, :num]
            progress.update(sum(_num_pairs(rows.responses[number]) for number in chosen))
    return table


def _ask(oracle: TextOracle, rows: ListedRows, chosen: Sequence[int]) -> Comparison:
    """The comparison of all responses to some prompts [B, N, N], N the most of one of them.

    A prompt of fewer responses has its first one again, behind the others: of equal texts nothing
    is asked, and the first pair without an answer is one of the file's.
    """
    texts = [rows.responses[number] for number in chosen]
    size = max(map(len, texts))
    filled = [row + row[:1] * (size - len(row)) for row in texts]
    talk = rows.conversations
    prompts = Prompts(
        torch.tensor(chosen),
        text=[rows.prompts[number] for number in chosen],
        conversations=None if talk is None else [talk[number] for number in chosen],
    )
    tokens = torch.zeros(len(chosen), size, 1, dtype=torch.long)
    weight = torch.full(tokens.shape[:2], 1 / size, dtype=torch.float64)
    responses = Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight, text=filled)
    comparison: Comparison = oracle(prompts, responses, responses)
    return comparison


def _parts(responses: Sequence[Sequence[str]]) -> Iterator[list[int]]:
    """Numbers of prompts that are asked about together."""
    part: list[int] = []
    pairs = 0
    for number, texts in enumerate(responses):
        part.append(number)
        pairs += _num_pairs(texts)
        if pairs >= _PAIRS:
            yield part
            part, pairs = [], 0
    if part:
        yield part


def _num_pairs(texts: Sequence[str]) -> int:
    return len(texts) * (len(texts) - 1) // 2
