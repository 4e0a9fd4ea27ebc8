"""A held rollout on disk: one file a part, there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.files import naming, written
from nlhf_zoo.game.held_rollout import FrozenLogProbs
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.records import Prompts, Responses

FOLDER = "rollouts"  # beside the checkpoints
_FORMAT = 1
_OF_RESPONSES = ("tokens", "mask", "weight", "truncated", "log_prob")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a rollout: what was drawn, judged and scored, in main memory.

    Args:
        responses: K to each of its prompts; tokens of 32 bits, without text.
        payoffs: what the oracle said.
        log_probs: of the players as they were.
        drawn: tokens that were drawn, those of opponents too.
        oracle: what the oracle keeps in its state, behind this part.
        prompts: that were encoded, where the rollout is to be replayed, without their text.
    """

    responses: Responses
    payoffs: Payoffs
    log_probs: FrozenLogProbs
    drawn: int
    oracle: Mapping[str, Tensor]
    prompts: Prompts | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which run a part belongs; another's part is never taken for it.

    Args:
        round: of the game, with the proximal step in it.
        step: number of the proximal step.
        number: of the rollout.
        parts: that it has in this process.
        rank: number of the process.
        world_size: processes.
        seed: of the run.
        oracle: who judges.
        weights: digest of all that the players' laws depend on.
        options: of rollout and decoding, as text.
    """

    round: int
    step: int
    number: int
    parts: int
    rank: int
    world_size: int
    seed: int
    oracle: str
    weights: str
    options: str

    def header(self, part: int, prompts: Prompts | None = None) -> dict[str, Any]:
        """What a part's file says of itself; of any prompts where none are given."""
        own = {name: getattr(self, name) for name in self.__slots__}
        of = {} if prompts is None else {"prompts": digest_of_prompts(prompts)}
        return {"format": _FORMAT, **own, "part": part, **of}

    def file(self, folder: Path, part: int) -> Path:
        """Where a part lies in the folder of all rollouts."""
        return folder_of(folder, self.number) / f"rank{self.rank}-part{part}.safetensors"

    def replayed(self, folder: Path, ago: int) -> Path:
        """Where a rollout lies that is replayed beside this one, drawn so many before it."""
        return folder_of(folder, self.number) / f"rank{self.rank}-replayed{ago}.safetensors"


def folder_of(folder: Path, number: int) -> Path:
    """Where a rollout lies."""
    return folder / f"{number:08d}"


def forget_all_but(folder: Path, numbers: Iterable[int]) -> None:
    """Delete rollouts that no checkpoint goes on with."""
    kept = {folder_of(folder, number).name for number in numbers}
    for other in folder.glob("[0-9]" * 8):
        if other.name not in kept:
            shutil.rmtree(other, ignore_errors=True)


def write(file: Path, part: Part, header: Mapping[str, Any]) -> None:
    """Write a part.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    from safetensors.torch import save_file

    payoffs, log_probs = part.payoffs, part.log_probs
    tensors = _tensors_of("responses", part.responses)
    if part.responses.explored is not None:
        tensors |= _tensors_of("explored", part.responses.explored)
    tensors |= {f"payoffs.{name}": found for name, found in payoffs.tensors().items()}
    tensors |= {f"players.{name}": found for name, found in log_probs.players.items()}
    tensors |= {"sampler": log_probs.sampler}
    tensors |= {f"oracle.{name}": found for name, found in part.oracle.items()}
    if part.prompts is not None:
        tensors |= {f"prompts.{name}": found for name, found in part.prompts.tensors().items()}
    numbers = {
        "queries": payoffs.queries,
        "answers": payoffs.answers,
        "invalid": payoffs.invalid,
        "version": part.responses.version,
        "drawn": part.drawn,
    }
    with naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with written(file) as beside:
        # clones: what shares memory is refused
        owned = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        said = {"header": json.dumps(header), "numbers": json.dumps(numbers)}
        save_file(owned, beside, metadata=said)


def read(file: Path, header: Mapping[str, Any]) -> Part | None:
    """Read a part; None where there is none, or another's, or what is no such file."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            own, expected = json.loads(said.get("header", "null")), json.loads(json.dumps(header))
            if {name: own[name] for name in expected} != expected:
                return None
            numbers = json.loads(said["numbers"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None

    def of(kind: str) -> dict[str, Any]:
        prefix = f"{kind}."
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    responses: dict[str, Any] = {**of("responses"), "version": numbers["version"]}
    if explored := of("explored"):
        responses["explored"] = Responses(**explored)
    counts = {name: numbers[name] for name in ("queries", "answers", "invalid")}
    return Part(
        Responses(**responses),
        Payoffs(**of("payoffs"), **counts),
        FrozenLogProbs(tensors["sampler"], of("players")),
        numbers["drawn"],
        of("oracle"),
        Prompts(**prompts) if (prompts := of("prompts")) else None,
    )


def _tensors_of(kind: str, responses: Responses) -> dict[str, Tensor]:
    """Those of some responses, by the names that they have in a file."""
    found = {f"{kind}.{name}": getattr(responses, name) for name in _OF_RESPONSES}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def digest_of_prompts(prompts: Prompts) -> str:
    """A digest of what a player and an oracle read."""
    found = hashlib.sha256(json.dumps(prompts.ids.tolist()).encode())
    for tokens in tokens_of(prompts) if prompts.tokens is not None else ():
        found.update(json.dumps(tokens).encode())
    return found.hexdigest()


def tokens_of(prompts: Prompts) -> list[list[int]]:
    """The tokens of each prompt, without padding; of a table's its number."""
    if prompts.tokens is None or prompts.mask is None:
        return [[number] for number in prompts.ids.tolist()]
    rows = zip(prompts.tokens.cpu(), prompts.mask.bool().cpu(), strict=True)
    return [tokens[mask].tolist() for tokens, mask in rows]


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A digest of the bits of tensors, and of their names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        found.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
