"""Reward functions of batches of responses, as TRL's trainers take them, as the judge."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.data.texts import conversation_key
from nlhf_zoo.data.texts.conversations import as_conversation, checked_prompt
from nlhf_zoo.data.texts.row_source import RowSource
from nlhf_zoo.errors import UserError, shown
from nlhf_zoo.oracles.rules.fingerprint import UnseenError, rule_fingerprint
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.records import Conversation

RewardFunction = Callable[..., list[Any]]
Preference = Literal["sigmoid", "comparison"]
_Text = tuple[Conversation, str]  # a prompt and a response to it


@final
class RewardFunctionOracle(TextOracle):
    r"""P(first > second | prompt) from functions that give rewards to batches of responses.

    .. math:: P(y > y') = \sigma\Big(\sum_f w_f (r_f(x, y) - r_f(x, y')) / temperature\Big)

    or, by comparison, 1, 1/2 or 0 by the sign of the sum. Each function is called with `prompts`
    and `completions`, lists of n, and the columns of the prompts' rows by name, and gives n
    rewards. None (or NaN) is no reward. A function that has none for both responses is left out of
    the sum; where it has one for a single one of them, or no function has any, the pair is invalid.

    Args:
        functions: one function or several, by import path.
        preference: sigmoid, a Bradley-Terry model of the rewards, whose single scores algorithms
            may take as well; or comparison, the larger sum wins.
        weights: w_f; null is 1 for each.
        temperature: divides differences of rewards; for sigmoid.
        conversational: give prompts as lists of messages, and completions as lists of one message
            of the assistant's; false gives both as texts.
        rows: file or data set of the prompts, whose other columns the functions get; null for none.
        column: what the rows call the prompt.
        batch_size: responses of a call.

    Raises:
        UserError: an option is out of its range, or a function does not take such a call.
    """

    tolerance = 1e-6  # the rounding of P and 1 - P to the precision of the responses' weights

    def __init__(
        self,
        # In this order: jsonargparse takes a list for a function as it writes a run's config.yaml.
        functions: list[RewardFunction] | RewardFunction,
        preference: Preference,
        weights: list[float] | None = None,
        temperature: float = 1.0,
        conversational: bool = False,
        rows: str | None = None,
        column: str = "prompt",
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        self.functions = [*functions] if isinstance(functions, list) else [functions]
        self.names = [_name(function) for function in self.functions]
        self.weights = torch.tensor(_weights(weights, len(self.functions)), dtype=torch.float64)
        if preference not in get_args(Preference):
            raise UserError(
                f"RewardFunctionOracle.preference is one of {get_args(Preference)}, not "
                f"{preference!r}"
            )
        if not 0 < temperature < math.inf:
            raise UserError(
                "RewardFunctionOracle.temperature must be a finite number above 0, not "
                f"{temperature}"
            )
        if batch_size < 1:
            raise UserError(f"RewardFunctionOracle.batch_size must be at least 1, not {batch_size}")
        self.preference = preference
        self.temperature = temperature
        self.conversational = conversational
        self.batch_size = batch_size
        self.column = column
        self._columns = None if rows is None else _columns(rows, column)
        for name, function in zip(self.names, self.functions, strict=True):
            _refuse_signature(function, name, self._column_names())
        # Now, for their files may be edited while they answer.
        self._digests, self._unseen = self._look()

    @property
    @override
    def fingerprint(self) -> str:
        """The functions by name and source, and the options, as `RuleOracle` has them.

        Raises:
            UserError: what a function holds cannot be described.
        """
        if self._unseen:
            raise UserError(
                f"answers of {self._unseen}: give the function a name in a module, or leave out "
                "CachedOracle"
            )
        options = [self.preference, self.weights.tolist(), self.temperature, self.conversational]
        return f"reward functions {json.dumps([*self._digests, *options])}"

    @property
    @override
    def has_scores(self) -> bool:
        return self.preference == "sigmoid"

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        asked, stopped = self.admitted(questions)
        sides = [(one, text) for one in asked for text in (one.first, one.second)]
        texts = {(one.prompt_key, text): (one.conversation, text) for one, text in sides}
        place = {key: number for number, key in enumerate(texts)}
        rewards = self._rewards([*texts.values()])
        found = rewards[[place[one.prompt_key, text] for one, text in sides]]
        yield from enumerate(self._preferences(found[::2], found[1::2]).tolist())
        if stopped is not None:
            raise stopped

    @override
    def _scores(self, texts: Sequence[_Text]) -> Tensor:
        """The weighted sum over the temperature; NaN where a function has none."""
        return self._rewards(texts) @ self.weights / self.temperature

    def _preferences(self, first: Tensor, second: Tensor) -> Tensor:
        """P(first > second) [n] by rewards [n, F]."""
        unsaid = first.isnan() & second.isnan()
        apart = torch.where(unsaid, 0.0, first - second) @ self.weights
        apart = apart.masked_fill(unsaid.all(-1), math.nan)
        if self.preference == "sigmoid":
            return (apart / self.temperature).sigmoid()
        return torch.where(apart.isnan(), apart, 0.5 + 0.5 * apart.sign())  # sign of NaN is 0

    def _rewards(self, texts: Sequence[_Text]) -> Tensor:
        """Rewards [n, F] of prompts with a response; NaN for none."""
        found: list[list[float]] = []
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            given = self._given(batch)
            each = [
                self._call(function, name, given, batch)
                for function, name in zip(self.functions, self.names, strict=True)
            ]
            found += map(list, zip(*each, strict=True))
        shape = len(texts), len(self.functions)
        return torch.tensor(found, dtype=torch.float64).reshape(shape)

    def _given(self, batch: Sequence[_Text]) -> dict[str, list[Any]]:
        """The arguments of a call."""
        prompts: list[Any] = [[dict(one) for one in talk] for talk, _ in batch]
        completions: list[Any] = [[{"role": "assistant", "content": text}] for _, text in batch]
        if not self.conversational:
            if long := next((talk for talk, _ in batch if len(talk) > 1), None):
                raise UserError(
                    f"a prompt is a conversation of {len(long)} messages, and reward functions "
                    "get texts: set RewardFunctionOracle.conversational to true"
                )
            prompts = [talk[0]["content"] for talk, _ in batch]
            completions = [text for _, text in batch]
        rows = [self._row(talk) for talk, _ in batch]
        columns = {name: [row[name] for row in rows] for name in self._column_names()}
        return {"prompts": prompts, "completions": completions, **columns}

    def _row(self, talk: Conversation) -> Mapping[str, Any]:
        if self._columns is None:
            return {}
        found = self._columns.get(conversation_key(talk))
        if found is None:
            raise UserError(
                f"RewardFunctionOracle.rows has no row of the prompt {shown(talk[-1]['content'])}: "
                "give the rows that the prompts come from"
            )
        return found

    def _column_names(self) -> list[str]:
        return [*next(iter(self._columns.values()), {})] if self._columns else []

    def _call(
        self,
        function: RewardFunction,
        name: str,
        given: dict[str, list[Any]],
        batch: Sequence[_Text],
    ) -> list[float]:
        """The rewards of a batch by one function."""
        try:
            said = list(function(**given))
        except Exception as error:  # of the user's own code: of any kind
            raise UserError(
                f"the reward function {name} failed with {type(error).__name__}: {error}"
            ) from error
        if len(said) != len(batch):
            raise UserError(
                f"the reward function {name} gave {len(said)} rewards for {len(batch)} completions"
            )
        return [_reward(one, name, text) for one, (_, text) in zip(said, batch, strict=True)]

    def _look(self) -> tuple[list[str], str]:
        """Digests of the functions and of the rows; or what cannot be seen, and why."""
        digests: list[str] = []
        for name, function in zip(self.names, self.functions, strict=True):
            try:
                digests.append(rule_fingerprint(function))
            except UnseenError as error:  # which matters to a cache alone
                return [], f"the reward function {name} cannot be remembered, for {error}"
        if self._columns is not None:
            rows = json.dumps(self._columns, sort_keys=True, default=str)
            digests.append(hashlib.sha256(rows.encode()).hexdigest())
        return digests, ""


def _reward(said: Any, name: str, text: str) -> float:
    """One reward; NaN for none."""
    try:
        value = math.nan if said is None else float(said)
    except (TypeError, ValueError):
        value = math.inf
    if isinstance(said, str) or math.isinf(value):
        raise UserError(
            f"the reward function {name} gave {said!r:.80}, and no finite number nor None, for "
            f"the completion {shown(text)}"
        )
    return value


def _weights(weights: list[float] | None, num: int) -> list[float]:
    if not num:
        raise UserError("RewardFunctionOracle.functions names no function")
    weights = [1.0] * num if weights is None else weights
    if len(weights) != num:
        raise UserError(
            f"RewardFunctionOracle.weights has {len(weights)} numbers for {num} functions"
        )
    if not all(map(math.isfinite, weights)) or not all(weights):
        raise UserError("RewardFunctionOracle.weights must be finite numbers other than 0")
    return weights


def _columns(path: str, column: str) -> dict[str, Mapping[str, Any]]:
    """The other columns of each prompt's row, by the prompt.

    Raises:
        UserError: a row has no prompt, or two rows of one prompt are not alike.
    """
    found: dict[str, Mapping[str, Any]] = {}
    example = f'{{"{column}": "...", "answer": "..."}}'
    for row in RowSource(path, "train", None, None, "prompts", example).rows():
        if column not in row.values:
            raise row.error(f"has no column {column!r}: set RewardFunctionOracle.column")
        prompt = checked_prompt(row, row.values[column], repr(column), drop_last_assistant=True)
        others = {name: value for name, value in row.values.items() if name != column}
        if found.setdefault(conversation_key(as_conversation(prompt)), others) != others:
            raise row.error("has the prompt of a row before it, and other columns than that")
    names = {tuple(sorted(row)) for row in found.values()}
    if len(names) > 1:
        raise UserError(f"{path}: rows have different columns, but reward functions get lists")
    return found


def _name(function: object) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{getattr(named, '__qualname__', '')}"


def _refuse_signature(function: Callable[..., object], name: str, columns: list[str]) -> None:
    """Refuse what cannot be called so, before anything else is made."""
    if not callable(function):
        raise UserError(f"RewardFunctionOracle.functions must be functions, not {function!r}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # without a signature, in C
        return
    given = ["prompts", "completions", *columns]
    try:
        signature.bind(**dict.fromkeys(given))
    except TypeError as error:
        raise UserError(
            f"the reward function {name} gets {', '.join(given)} by name, but it takes "
            f"{signature}: give the rows with its columns as RewardFunctionOracle.rows, let it "
            "take **columns, and do without tokens and the trainer's state, which no oracle sees"
        ) from error
