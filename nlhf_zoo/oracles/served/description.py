"""What a server says of its oracle before it is asked, and which oracles cannot be served."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.ledger import Ledger, ledgers
from nlhf_zoo.oracles.served.protocol import Description, encoded
from nlhf_zoo.oracles.text_oracle import TextOracle
from nlhf_zoo.oracles.wrappers.bernoulli import BernoulliLabels
from nlhf_zoo.oracles.wrappers.budgeted import BudgetedOracle
from nlhf_zoo.oracles.wrappers.listed import ListedResponses
from nlhf_zoo.oracles.wrappers.transformed import Transformed


def refuse_unservable(oracle: PreferenceOracle) -> None:
    """Refuse an oracle whose answers would depend on who asks first.

    Raises:
        UserError: labels are drawn, from a stream that goes on with each call; or what would be
            handed on is a payoff, and no probability.
    """
    if any(isinstance(part, Transformed) for part in oracle.modules()):
        raise UserError(
            "a server hands on probabilities, and Transformed answers with payoffs: serve the "
            "oracle within, and put Transformed around ServedOracle in the run's configuration"
        )
    if any(isinstance(part, BernoulliLabels) for part in oracle.modules()):
        raise UserError(
            "BernoulliLabels draws by the number of calls so far, so that behind a server a label "
            "would depend on who asks first: serve the oracle within, and put BernoulliLabels "
            "around ServedOracle in the run's configuration"
        )


def asked_by_question(oracle: PreferenceOracle) -> TextOracle | None:
    """Who answers question by question; None of a table, and of several oracles of texts.

    A budget is passed over, and holds all the same: it is a gate of the ledgers within it.
    """
    while isinstance(oracle, BudgetedOracle):
        oracle = oracle.oracle
    return oracle if isinstance(oracle, TextOracle) else None


def described(oracle: PreferenceOracle) -> Description:
    """What those who will ask it must know.

    Raises:
        UserError: it has no fingerprint, or cannot be served.
    """
    refuse_unservable(oracle)
    try:
        fingerprint = fingerprint_of(oracle)
    except UserError as error:
        raise UserError(
            "an oracle without a fingerprint cannot be served, for a run that resumes could not "
            f"tell whether it is the same one: {error}"
        ) from error
    support, prompts = oracle.support, oracle.prompts
    texts = [part for part in oracle.modules() if isinstance(part, TextOracle)]
    talks = None if prompts is None else prompts.conversations
    return Description(
        oracle=type(oracle).__name__,
        fingerprint=fingerprint,
        is_table=support is not None,
        counts=bool(ledgers(oracle)),
        tolerance=oracle.tolerance,
        symmetric=all(part.symmetric for part in texts),
        reads_truncated=any(part.reads_truncated for part in texts),
        answers_table=oracle.answers_table,
        support=None if support is None else encoded(support),
        names=oracle.action_names,
        texts=None if prompts is None or prompts.text is None else [*prompts.text],
        conversations=None if talks is None else [[dict(m) for m in talk] for talk in talks],
    )


def fingerprint_of(oracle: PreferenceOracle) -> str:
    """A text that differs where an oracle's answers may; of one of texts its own fingerprint.

    Of another it covers the kinds of its parts, their tensors and plain arguments, the fingerprints
    of those that read texts, and what it lists. Take it before the oracle is asked.

    Raises:
        UserError: an oracle of texts within has none.
    """
    if (asked := asked_by_question(oracle)) is not None:
        return asked.fingerprint
    prompts = oracle.prompts
    whole = {
        "parts": [_part(part) for part in oracle.modules() if not isinstance(part, Ledger)],
        "names": oracle.action_names,
        "prompts": None if prompts is None else [prompts.text, prompts.conversations],
    }
    text = json.dumps(whole, sort_keys=True, default=list)
    return f"{type(oracle).__name__} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _part(part: nn.Module) -> Any:
    kind = f"{type(part).__module__}.{type(part).__qualname__}"
    if isinstance(part, TextOracle):
        return [kind, part.fingerprint]
    if not isinstance(part, PreferenceOracle) or isinstance(part, BudgetedOracle):
        return kind  # of an oracle of texts, which has spoken for it; or without a say in answers
    tensors = {name: _digest(tensor) for name, tensor in part.named_buffers(recurse=False)}
    listed = part.rows.responses if isinstance(part, ListedResponses) else None
    return [kind, tensors, _plain(vars(part)), listed]


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those that are numbers, texts or lists of such; not what torch keeps in a module."""
    kept: dict[str, Any] = {}
    for name, value in arguments.items():
        values = value if isinstance(value, list | tuple) else [value]
        if name != "training" and all(isinstance(one, bool | int | float | str) for one in values):
            kept[name] = value
    return kept


def _digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.blake2b(raw.data, digest_size=16).hexdigest()
    return f"{digest} {tensor.dtype} {[*tensor.shape]}"
