"""What was exported, loaded again by plain transformers and peft, and compared with the player."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.players import Players

_LENGTH = 16  # tokens of the text that is compared
# Largest difference of a log-probability, for each token: a merged weight is rounded once more.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION = 0.1


def with_adapter(model: Any, folder: Path) -> Any:
    """A base model with the adapter of a folder, as peft puts it there."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = PeftModel.from_pretrained(model, str(folder))
    lost = next((str(w.message) for w in said if "missing adapter keys" in str(w.message)), None)
    if lost is not None:
        raise UserError(
            f"peft does not find again what it wrote of this adapter ({lost.splitlines()[0]}): "
            "export the player merged"
        )
    return made


def refuse_another(players: Players, player: str, written: Any, remedy: str) -> None:
    """Refuse what gives a text another log-probability than the player does.

    Args:
        players: of the policy.
        player: whose weights were written.
        written: the model that was made of what was written.
        remedy: what to do instead.

    Raises:
        UserError: their log-probabilities differ by more than rounding.
    """
    rows = players.language_model(player).get_input_embeddings().weight.shape[0]
    rng = torch.Generator().manual_seed(0)
    # The last half of a vocabulary may have the names of images.
    text = torch.randint(max(1, rows // 2), (1, _LENGTH), generator=rng)
    with players.playing([player], 1):
        ours = _log_prob(players.module(player), text)
    theirs = _log_prob(written.eval(), text)
    limit = max(_ROUNDING.get(p.dtype, _LOW_PRECISION) for p in written.parameters())
    gap = float((ours - theirs).abs().mean())
    if not gap <= limit:
        raise UserError(
            f"what was written is not the player {player!r}: loaded again, it gives a text "
            f"log-probabilities that differ by {gap:.3g} a token (at most {limit:g}): {remedy}"
        )


@torch.no_grad()
def _log_prob(model: Any, text: Tensor) -> Tensor:
    """Of each token but the first [S - 1], in main memory."""
    text = text.to(next(model.parameters()).device)
    law = model(input_ids=text, use_cache=False).logits[0, :-1].double().log_softmax(-1)
    found: Tensor = law.gather(-1, text[0, 1:, None])[:, 0].cpu()
    return found
