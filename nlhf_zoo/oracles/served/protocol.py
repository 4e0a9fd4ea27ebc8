"""What an oracle's server and those who ask it say to each other: JSON, and nothing else.

``GET /v1/oracle`` gives the `Description`. ``POST /v1/batches`` puts a batch of questions of one
kind (`Kind`) under an id of its own, and gives what is answered so far; put again under the same id
it is not asked again. The token stands in the header ``Authorization: Bearer ...``. Numbers of
tables are their bytes in base64, so that they arrive to the bit.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.text_oracle import Question
from nlhf_zoo.records import Conversation, Responses

PROTOCOL = 1
DESCRIPTION, BATCHES = "/v1/oracle", "/v1/batches"
LONGEST_BODY = 2**26  # bytes of a request, 64 MiB; a longer one is refused
WAIT = 10.0  # seconds after which the server says what it has, and the client asks again
KEPT = 3600.0  # seconds for which the server remembers a batch that nobody has acknowledged

# What is asked for: answers about pairs of texts; P of actions of a table [B, K, L]; products P o
# [B, K]; the whole table.
Kind = Literal["questions", "comparisons", "products", "table"]

_TYPES = {"float64": "<f8", "float32": "<f4", "int64": "<i8", "bool": "|b1"}


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a served oracle before it is asked.

    Args:
        oracle: name of its class.
        fingerprint: differs where answers may; see `description.fingerprint_of`.
        is_table: whether it is asked about actions of a table, or else about texts.
        counts: whether it counts what it is asked.
        tolerance: the asymmetry that it admits.
        symmetric: of texts, whether the answer to a swapped question is 1 minus the answer.
        reads_truncated: of texts, whether it matters that one was cut.
        answers_table: whether its answers are the entries of its table, which may be had.
        support: of a table, which actions each prompt has, bool [C, N], as `encoded`.
        names: of the actions, C lists.
        texts: the prompts of a table as texts.
        conversations: the same as conversations.
    """

    oracle: str
    fingerprint: str
    is_table: bool
    counts: bool
    tolerance: float
    symmetric: bool = True
    reads_truncated: bool = False
    answers_table: bool = False
    support: Mapping[str, Any] | None = None
    names: Sequence[Sequence[str]] | None = None
    texts: Sequence[str] | None = None
    conversations: Sequence[Conversation] | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {"protocol": PROTOCOL, **asdict(self)}

    @classmethod
    def of_json(cls, content: Any, where: str) -> Description:
        """As it was received.

        Raises:
            UserError: it is none, or of another version of the protocol.
        """
        protocol = content.get("protocol") if isinstance(content, dict) else None
        if not isinstance(protocol, int):
            raise UserError(f"{where} is no server of `nlhf serve-oracle`: give the url of one")
        if protocol != PROTOCOL:
            raise UserError(
                f"the oracle's server at {where} speaks version {protocol} of its protocol, and "
                f"this is version {PROTOCOL}: run both with the same version of nlhf_zoo"
            )
        try:
            return cls(**{name: content[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise UserError(
                f"the oracle's server at {where} does not say its {error.args[0]}: run both with "
                "the same version of nlhf_zoo"
            ) from error


# ---- numbers -------------------------------------------------------------------------------------


def encoded(tensor: Tensor) -> dict[str, Any]:
    """A tensor as JSON: its type, its shape, and its bytes, least first, in base64."""
    name = str(tensor.dtype).removeprefix("torch.")
    raw = tensor.detach().cpu().contiguous().numpy().astype(_TYPES[name], copy=False).tobytes()
    return {"dtype": name, "shape": [*tensor.shape], "data": base64.b64encode(raw).decode("ascii")}


def decoded(content: Any, dtypes: Sequence[str], dims: int) -> Tensor:
    """The tensor that ``encoded`` has written, of one of these types, with so many dimensions.

    Raises:
        ValueError: it is no such tensor.
    """
    try:
        name, shape = content["dtype"], content["shape"]
        if (
            name not in dtypes
            or len(shape) != dims
            or not all(type(n) is int and n >= 0 for n in shape)
        ):
            raise ValueError(f"a tensor of type {name} and shape {shape}")
        raw = base64.b64decode(content["data"], validate=True)
        array = np.frombuffer(raw, dtype=_TYPES[name]).reshape(shape)
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError("what should be a tensor is none") from error
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))


# ---- questions -----------------------------------------------------------------------------------


def questions_to_json(questions: Sequence[Question]) -> dict[str, Any]:
    """Questions as they are sent: each conversation once."""
    places: dict[str, int] = {}
    conversations: list[list[dict[str, str]]] = []
    rows = []
    for question in questions:
        place = places.setdefault(question.prompt_key, len(places))
        if place == len(conversations):
            conversations.append([dict(message) for message in question.conversation])
        rows.append(
            [
                place,
                question.first,
                question.second,
                question.first_truncated,
                question.second_truncated,
                question.again,
            ]
        )
    return {"conversations": conversations, "questions": rows}


def questions_of_json(content: Mapping[str, Any]) -> list[Question]:
    """The questions that ``questions_to_json`` has written.

    Raises:
        ValueError: they are none.
    """
    talks, rows = content.get("conversations"), content.get("questions")
    if not isinstance(talks, list) or not isinstance(rows, list):
        raise ValueError("no list of conversations and no list of questions")
    if not all(map(_is_conversation, talks)):
        raise ValueError("a conversation is no list of messages of texts")
    if not all(map(_is_question, rows)):
        raise ValueError("a question is no list of a number, two texts and three truth values")
    if not all(0 <= row[0] < len(talks) for row in rows):
        raise ValueError("a question is of no conversation")
    return [Question(talks[row[0]], *row[1:]) for row in rows]


def _is_conversation(talk: object) -> bool:
    return (
        isinstance(talk, list)
        and bool(talk)
        and all(
            isinstance(message, dict)
            and {"role", "content"} <= message.keys()
            and all(isinstance(text, str) for text in message.values())
            for message in talk
        )
    )


def _is_question(row: object) -> bool:
    kinds = [int, str, str, bool, bool, bool]
    return isinstance(row, list) and [type(part) for part in row] == kinds


# ---- actions -------------------------------------------------------------------------------------


def actions_to_json(responses: Responses, weights: bool) -> dict[str, Any]:
    """Responses of a table as they are sent: all of them, or their actions [B, K]."""
    sent: dict[str, Any] = {"actions": None if responses.enumerated else encoded(responses.actions)}
    if weights:
        weight = responses.weight
        is_sent = weight.dtype in (torch.float32, torch.float64)
        sent["weight"] = encoded(weight if is_sent else weight.double())
    return sent


def actions_of_json(content: Any, num_prompts: int, num_actions: int) -> Responses:
    """The responses that ``actions_to_json`` has written, to so many prompts.

    Raises:
        ValueError: they are none, or of actions that there are not.
    """
    if not isinstance(content, dict):
        raise ValueError("no actions")
    given = content.get("actions")
    if given is None:
        actions = torch.arange(num_actions).expand(num_prompts, num_actions)
    else:
        actions = decoded(given, ["int64"], 2)
    if len(actions) != num_prompts or not bool(((actions >= 0) & (actions < num_actions)).all()):
        raise ValueError("actions that there are not")
    tokens = actions[:, :, None]
    weight = torch.full(actions.shape, 1 / max(1, actions.shape[1]), dtype=torch.float64)
    if content.get("weight") is not None:
        weight = decoded(content["weight"], ["float32", "float64"], 2)
    if weight.shape != actions.shape:
        raise ValueError("weights of other actions")
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return Responses(tokens, mask, weight, enumerated=given is None)


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: so half a character, which UTF-8 has not, arrives as it is."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def of_bytes(body: bytes) -> Any:
    """What is written in JSON.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("JSON that is too deep") from error
