"""What an engine with adapters cannot draw, refused in one sentence before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.players import AdapterPlayers, LoRA, Players
from nlhf_zoo.policies.language_model.sources import ModelSource, Pretrained
from nlhf_zoo.records import Decoding, Mixture

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM 0.32 makes room for
_COLDEST, _HOTTEST = 0.01, 2.0  # temperatures that it takes as they are
_INSTEAD = "or set model.policy.generator to NativeGenerator"


def room_for(rank: int) -> int:
    """The smallest rank that the engine makes room for, of those that hold ``rank``.

    Raises:
        UserError: there is none.
    """
    for room in RANKS:
        if rank <= room:
            return room
    raise UserError(
        f"model.policy.lora.r is {rank}, and vLLM takes ranks of at most {RANKS[-1]}: set a "
        f"smaller one, {_INSTEAD}"
    )


def refuse_policy(source: ModelSource, lora: LoRA | None, adapter: str | None) -> None:
    """Refuse a policy whose players are no adapters that the engine takes.

    Args:
        source: of the base model.
        lora: shape of the adapters; None where all weights train.
        adapter: folder of the adapter that policy and reference start from, whose shape replaces
            that of ``lora``.
    """
    if lora is None:
        raise UserError(
            "vLLM draws from adapters on one base model, and with model.policy.lora null all "
            f"weights train: set model.policy.lora, {_INSTEAD}"
        )
    if isinstance(source, Pretrained) and source.four_bit:
        raise UserError(
            "vLLM would draw from other weights than those in 4 bits that are trained on: set "
            f"model.policy.model.four_bit to false, {_INSTEAD}"
        )
    if adapter is None:
        room_for(lora.r)
        if lora.target_modules == "all-linear-and-experts":
            _refuse_experts()
        return
    config = _written(Path(adapter))
    patterns = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    room_for(max((rank for rank in ranks if isinstance(rank, int)), default=1))
    if config.get("target_parameters"):
        _refuse_experts()


def refuse_players(players: Players) -> AdapterPlayers:
    """Refuse players that became something else than plain adapters of linear layers."""
    if not isinstance(players, AdapterPlayers):
        raise UserError(f"vLLM draws from adapters alone: set model.policy.lora, {_INSTEAD}")
    names = players.parameters_of("policy")
    if any("lora_embedding" in name for name in names):
        raise UserError(
            "vLLM takes no adapter of the embedding layer: leave it out of "
            f"model.policy.lora.target_modules, {_INSTEAD}"
        )
    return players


def refuse_drawing(who: Mixture, decoding: Decoding) -> str:
    """Refuse a law that the engine has not.

    Returns:
        the one player that draws.
    """
    players = [player for player, weight in who.items() if weight]
    if len(players) != 1:
        raise UserError(
            f"vLLM draws from one player at a time, and here a mixture of {' and '.join(players)} "
            "draws, token by token: set model.policy.generator to NativeGenerator, or choose an "
            "algorithm without a mixture of players"
        )
    if not _COLDEST <= decoding.temperature <= _HOTTEST:
        raise UserError(
            f"vLLM takes temperatures from {_COLDEST} to {_HOTTEST:g}, not "
            f"{decoding.temperature:g}: set another one, {_INSTEAD}"
        )
    if decoding.top_p < 1 and decoding.min_p:
        raise UserError(
            "vLLM applies min_p before top_p, and the trainer after it, which is another law: set "
            f"one of the two alone, {_INSTEAD}"
        )
    return players[0]


def _refuse_experts() -> None:
    raise UserError(
        "adapters of experts that lie in one tensor are not drawn from by vLLM here: set "
        f'model.policy.lora.target_modules to "all-linear", {_INSTEAD}'
    )


def _written(folder: Path) -> dict[str, Any]:
    """An adapter's configuration; of one that cannot be read its loading says more."""
    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
