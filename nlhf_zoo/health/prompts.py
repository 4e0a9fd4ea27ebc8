"""How prompts reach a language model: in which form, and how they begin and end."""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.check import Check, Finding, Note
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.records import Prompts

_SHOWN = 12  # tokens of each end


def how_written(game: OnlineGame, prompts: Prompts) -> Sequence[Finding]:
    """Begin, end and form of the first prompt, and whether any begins twice."""
    policy = game.policy
    if not isinstance(policy, CausalLMPolicy):
        return []
    prompts = policy.encode(prompts)
    assert prompts.tokens is not None
    assert prompts.mask is not None
    rows = [row[kept].tolist() for row, kept in zip(prompts.tokens, prompts.mask, strict=True)]
    words, first = policy.tokenizer, rows[0]
    twice = sum(row[:2] == 2 * [words.bos_token_id] for row in rows)
    return [
        Note("prompts are", _form(policy, prompts)),
        Note("a prompt begins", repr(words.decode(first[:_SHOWN]))),
        Note("a prompt ends", repr(words.decode(first[-_SHOWN:]))),
        Check(
            "prompts begin once",
            not twice,
            f"{twice} of {len(rows)} have their first token twice",
            "none",
            "leave it out of the texts, for the chat template writes it",
        ),
    ]


def _form(policy: CausalLMPolicy, prompts: Prompts) -> str:
    if prompts.conversations is None:
        return without_template(policy, prompts) or "plain text"
    given = f", with {policy.chat_template_kwargs}" if policy.chat_template_kwargs else ""
    return f"conversations, in the chat template of the policy's tokenizer{given}"


def without_template(policy: Policy, prompts: Prompts) -> str:
    """What is to be said of plain text where there is a chat template; empty where nothing is.

    Texts with special tokens of the tokenizer are in their template already.
    """
    if not isinstance(policy, CausalLMPolicy) or not policy.tokenizer.chat_template:
        return ""
    if prompts.conversations is not None or prompts.text is None:
        return ""
    special = [token for token in policy.tokenizer.all_special_tokens if len(token) > 1]
    if any(token in text for text in prompts.text for token in special):
        return ""
    return (
        "plain text, though the policy's tokenizer has a chat template: for a model that answers "
        "in it, set data.as_conversation to true"
    )
