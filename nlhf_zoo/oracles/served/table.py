"""An oracle over a table that stands behind a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.data.tables.files import require_memory
from nlhf_zoo.errors import OracleStoppedError, UserError, shown
from nlhf_zoo.oracles.ledger import Ledger
from nlhf_zoo.oracles.served.oracle import ServedPart, end_if_stopped, settle
from nlhf_zoo.oracles.served.protocol import Kind, actions_to_json, decoded, encoded
from nlhf_zoo.oracles.tables.base import TableOracle, all_valid
from nlhf_zoo.records import Comparison, Prompts, Responses

_FLOATS = ("float32", "float64")
_ROOM = 2**20  # bytes of a reply beside its numbers


@final
class ServedTable(ServedPart):
    """An oracle over a table behind the server that `nlhf serve-oracle` runs.

    Prompts, actions and their names are the served oracle's. Where its answers are the entries of
    its table, this is read from the server once, when it is first needed, and nothing is asked
    afterwards; the closed form and exact metrics then work as with the oracle itself. Where they
    are not, because a budget counts them or the table is too large to be held, each question goes
    to the server.

    Args:
        url: of the server, http://127.0.0.1:8765 for instance.
        token_env: environment variable that holds its token; null for a server without one.
        token_file: file that holds the token, in the place of a variable.
        timeout: seconds for a whole request; the server says within ten what it has.
        patience: seconds without any reply after which the server is taken for down, and the run
            ends with a checkpoint.

    Raises:
        UserError: there is no such server, the token is not its own, or it serves no table.
    """

    _support: Tensor
    _table: Tensor | None

    def __init__(
        self,
        url: str,
        token_env: str | None = None,
        token_file: str | None = None,
        timeout: float = 60.0,
        patience: float = 300.0,
    ) -> None:
        super().__init__()
        description = self._reach(url, token_env, token_file, timeout, patience)
        if not description.is_table:
            raise UserError(
                f"the oracle at {url}, {description.oracle}, reads texts and is over no table: "
                "put ServedOracle in the place of ServedTable"
            )
        try:
            support = decoded(description.support, ["bool"], 2)
        except ValueError as error:
            raise UserError(f"the oracle at {url} does not say which actions it has") from error
        self.register_buffer("_support", support, persistent=False)
        self.register_buffer("_table", None, persistent=False)
        self._has_table = True  # until the server says that it has none
        if description.counts:  # else it is a table that costs nothing
            self.ledger = Ledger()

    @property
    @override
    def support(self) -> Tensor:
        return self._support

    @property
    @override
    def prompts(self) -> Prompts:
        ids = torch.arange(len(self._support), device=self._support.device)
        said = self.description
        return Prompts(ids, text=said.texts, conversations=said.conversations)

    @property
    @override
    def action_names(self) -> list[list[str]] | None:
        names = self.description.names
        return None if names is None else [[*row] for row in names]

    @property
    @override
    def answers_table(self) -> bool:
        return self.description.answers_table

    @property
    @override
    def table(self) -> Tensor | None:
        """The served oracle's, read from the server at first use; None where it has none.

        Raises:
            UserError: it does not fit in memory, or the served oracle has no answer to a pair.
            OracleStoppedError: the server, or its oracle, cannot be asked any more.
        """
        if self._table is None and self._has_table:
            num_prompts, num_actions = self._support.shape
            num_bytes = 8 * num_prompts * num_actions**2
            require_memory(4 * num_bytes, f"the table of the oracle at {self.client.url}")
            reply = self._asked("table", {}, 2 * num_bytes + _ROOM)
            self._has_table = reply.get("table") is not None
            if self._has_table:
                shape = [num_prompts, num_actions, num_actions]
                self._table = self._numbers(reply["table"], shape).to(self._support.device)
        return self._table

    @override
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        first, second = self._of_actions(prompts, first), self._of_actions(prompts, second)
        if self.answers_table:
            comparison: Comparison = self._local()(prompts, first, second)
            return comparison
        shape = [len(prompts), first.num, second.num]
        return Comparison(*self._look_up("comparisons", prompts, first, second, shape))

    @override
    def expected(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> tuple[Tensor, Tensor]:
        """The product, which the server makes: never [B, K, L] numbers on their way."""
        first, second = self._of_actions(prompts, first), self._of_actions(prompts, second)
        if self.answers_table:
            return self._local().expected(prompts, first, second)
        return self._look_up("products", prompts, first, second, [len(prompts), first.num])

    def _local(self) -> TableOracle:
        table = self.table
        if table is None:
            raise OracleStoppedError(f"the oracle at {self.client.url} does not give its table")
        return TableOracle(table, self._support)

    def _of_actions(self, prompts: Prompts, responses: Responses) -> Responses:
        """Responses as actions; a language model's by the names of these."""
        num_actions = self._support.shape[1]
        if responses.enumerated and responses.num != num_actions:
            raise ValueError(f"{responses.num} responses are enumerated, of {num_actions} actions")
        if responses.text is None:
            return responses
        names = self.description.names
        rows = []
        for prompt, texts in zip(prompts.ids.tolist(), responses.text, strict=True):
            places = {name: place for place, name in enumerate(names[prompt] if names else ())}
            if missing := [text for text in texts if text not in places]:
                raise UserError(
                    f"{shown(missing[0])} is no response that the oracle at {self.client.url} "
                    "lists: play its table with TabularPolicy, or a language model that draws "
                    "these alone"
                )
            rows.append([places[text] for text in texts])
        tokens = torch.tensor(rows, device=responses.tokens.device)[:, :, None]
        mask = torch.ones_like(tokens, dtype=torch.bool)
        return replace(responses, tokens=tokens, mask=mask, text=None, truncated=None)

    def _look_up(
        self,
        kind: Kind,
        prompts: Prompts,
        first: Responses,
        second: Responses,
        shape: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """What the server says, of this shape, and its validity."""
        numbers = 8
        for size in shape:
            numbers *= size
        require_memory(4 * numbers, "the preferences between all these responses")
        content = {
            "prompts": encoded(prompts.ids),
            "first": actions_to_json(first, weights=False),
            "second": actions_to_json(second, weights=kind == "products"),
        }
        reply = self._asked(kind, content, 2 * numbers + _ROOM)
        preference = self._numbers(reply.get("preference"), shape)
        valid = all_valid(preference)
        if reply.get("valid") is not None:
            valid = self._numbers(reply["valid"], shape, ["bool"])
        device = first.weight.device
        return preference.to(device), valid.to(device)

    def _asked(self, kind: Kind, content: dict[str, Any], longest: int) -> dict[str, Any]:
        """The last reply to a batch; the server has counted it, and what it says is settled."""
        *_, reply = self.client.ask(kind, self.fingerprint, content, longest)
        if self.description.counts:
            settle(self.ledger, Counter(), reply)
        end_if_stopped(reply, self.client.url)
        return reply

    def _numbers(
        self, content: Any, shape: Sequence[int], dtypes: Sequence[str] = _FLOATS
    ) -> Tensor:
        try:
            found = decoded(content, dtypes, len(shape))
            if [*found.shape] != [*shape]:
                raise ValueError("another shape")
        except ValueError as error:
            raise OracleStoppedError(
                f"the server at {self.client.url} gives no numbers of the shape {[*shape]} "
                f"({error}): see that it is one of `nlhf serve-oracle`, and go on"
            ) from error
        return found
