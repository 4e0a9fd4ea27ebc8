"""Policies that are trained no more: a checkpoint's tensors, an adapter of peft, a whole model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.language_model.players import LoRA
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.policies.language_model.sources import ModelSource, Pretrained
from nlhf_zoo.records import PLAIN, Decoding, Prompts, Responses
from nlhf_zoo.records.finite import refuse_diverged
from nlhf_zoo.text_models.loading import Source

_POLICY = "policy."  # in the names of a game's checkpoint


@dataclass(frozen=True, slots=True)
class LoadedPlayer:
    """A player of a policy that was loaded: what is sampled, scored and compared.

    Attributes:
        name: what a user calls it.
        policy: holds it, in evaluation.
        player: whose weights, of the policy's players.
    """

    name: str
    policy: Policy
    player: str = "policy"

    @property
    def reference(self) -> LoadedPlayer:
        """The policy's own reference."""
        return LoadedPlayer("reference", self.policy, "reference")

    def sample(
        self, prompts: Prompts, num: int, rng: torch.Generator, decoding: Decoding = PLAIN
    ) -> Responses:
        """Draw ``num`` independent responses a prompt."""
        return self.policy.sample({self.player: 1.0}, prompts, num, decoding, rng)

    @torch.no_grad()
    def log_prob(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Log-probability of each response [B, K]."""
        return self.policy.log_prob({self.player: 1.0}, prompts, responses)


def from_adapter(
    folder: Path, base: str | None = None, max_new_tokens: int = 64, dtype: str = "auto"
) -> CausalLMPolicy:
    """A folder of a LoRA adapter of peft as ``policy``; ``reference`` is its base, without it.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        base: hub name or folder of the base model, where it is not the one that the adapter names.
        max_new_tokens: of the longest response.
        dtype: of the base's weights.

    Raises:
        UserError: the adapter or its base cannot be loaded, or they do not belong together.
    """
    adapter = Source(str(folder), f"the adapter {folder}").adapter()
    if adapter is None:
        raise UserError(f"{folder} is no adapter of peft")
    tokenizer = str(folder) if (folder / "tokenizer_config.json").is_file() else None
    revision = adapter.base_revision if base is None else None
    source = Pretrained(
        base or adapter.base,
        dtype=dtype,  # type: ignore[arg-type]  # whose words the command line has checked
        revision=revision,
        tokenizer=tokenizer,
    )
    policy = CausalLMPolicy(source, adapter=str(folder), max_new_tokens=max_new_tokens)
    policy.bind((), None)
    policy.let_base_be_reference()
    return policy.eval()


def from_model(name: str, max_new_tokens: int = 64, dtype: str = "auto") -> CausalLMPolicy:
    """A whole model, of a folder or the hub: ``policy`` and ``reference`` are one.

    Raises:
        UserError: it cannot be loaded.
    """
    source: ModelSource = Pretrained(name, dtype=dtype)  # type: ignore[arg-type]  # as above
    # An adapter of zeros: the base's weights are held once for both players.
    policy = CausalLMPolicy(source, lora=LoRA(r=1), max_new_tokens=max_new_tokens)
    policy.bind((), None)
    return policy.eval()


def load_tensors(policy: Policy, ckpt: Path, made_from: object) -> None:
    """Load the players of a checkpoint; none of their tensors may be missing, and none left over.

    Args:
        policy: bound to the run's players and actions.
        ckpt: a checkpoint of `nlhf fit`.
        made_from: where the policy was described, for the sentence.

    Raises:
        UserError: the two do not belong together, or the run had diverged.
    """
    content = torch.load(ckpt, map_location="cpu", weights_only=True, mmap=True)
    state = {
        name.removeprefix(_POLICY): value
        for name, value in content["state_dict"].items()
        if name.startswith(_POLICY)
    }
    kept = policy.checkpoint_keys()
    more = state.keys() - kept - policy.optional_checkpoint_keys()
    for what, names in (("lacks", kept - state.keys()), ("has also", more)):
        if names:
            raise UserError(
                f"{ckpt} is no checkpoint of {made_from}: it {what} {len(names)} parameters, "
                f"{min(names)} among them"
            )
    refuse_diverged(state)
    try:
        policy.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{ckpt} is no checkpoint of {made_from}: {cause(error)}") from error


def refuse_other_tokens(first: LoadedPlayer, second: LoadedPlayer) -> None:
    """Refuse two language models of which one cannot score what the other has drawn.

    Raises:
        UserError: their tokenizers have other tokens, or write conversations otherwise.
    """
    ours, theirs = (_tokens(each.policy) for each in (first, second))
    if ours == theirs or first.policy is second.policy:
        return
    what = "tokens" if ours[0] != theirs[0] else "chat template"
    raise UserError(
        f"{first.name} and {second.name} have tokenizers with another {what}, so that neither "
        "can score what the other says: give models of one tokenizer"
    )


def _tokens(policy: Policy) -> tuple[Any, Any]:
    tokenizer = getattr(policy, "tokenizer", None)
    if tokenizer is None:
        return None, None
    return tokenizer.get_vocab(), tokenizer.chat_template
