"""vLLM's own engine, in a process that it starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.policies.language_model.exporting import plain_model
from nlhf_zoo.policies.language_model.generation import Request
from nlhf_zoo.policies.language_model.players import AdapterPlayers
from nlhf_zoo.policies.language_model.sources import ModelSource, Pretrained
from nlhf_zoo.policies.language_model.vllm.adapters import AdapterVersion, folder_of
from nlhf_zoo.policies.language_model.vllm.limits import room_for
from nlhf_zoo.policies.language_model.vllm.rows import Completion, Row

_SEEN = "CUDA_VISIBLE_DEVICES"
_SET_HERE = frozenset(
    {"model", "revision", "dtype", "enable_lora", "max_lora_rank", "max_loras", "max_cpu_loras",
     "gpu_memory_utilization", "skip_tokenizer_init", "generation_config", "logprobs_mode",
     "enable_prefix_caching", "seed", "disable_log_stats"}
)  # fmt: skip


class Engine:
    """An engine with room for an adapter of each player.

    Args:
        source: of the base model; one that has no name or folder is written for the engine.
        players: whose base model it is.
        gpu_memory: share of a GPU's memory.
        further: arguments of `vllm.LLM`.

    Raises:
        UserError: vLLM is not installed, or does not start.
    """

    def __init__(
        self,
        source: ModelSource,
        players: AdapterPlayers,
        gpu_memory: float,
        further: Mapping[str, Any],
    ) -> None:
        if taken := sorted(_SET_HERE & further.keys()):
            raise UserError(
                f"model.policy.generator.engine_args sets {taken[0]}, which follows from the "
                "policy: leave it out"
            )
        llm, self._params, self._lora_request = _vllm()
        self.root = folder_of(self, "nlhf-vllm-")
        slots = len(players.names)
        arguments = {
            **_model(source, players, self.root / "base"),
            "dtype": _dtype(players),
            "enable_lora": True,
            "max_lora_rank": room_for(_rank(players)),
            "max_loras": slots,
            "max_cpu_loras": slots,
            "gpu_memory_utilization": gpu_memory,
            "skip_tokenizer_init": True,  # it reads and writes tokens alone
            "generation_config": "vllm",  # the model's own defaults are another law
            "logprobs_mode": "raw_logprobs",  # before temperature and truncation
            "enable_prefix_caching": True,
            "seed": 0,
            "disable_log_stats": True,
            **further,
        }
        device = next(players.parameters()).device
        self._devices = [device] if device.type == "cuda" else []
        try:
            # vLLM seeds the whole process.
            with torch.random.fork_rng(self._devices), seeing_only(device):
                self._llm = llm(**arguments)
        except Exception as error:
            raise UserError(
                "model.policy.generator: vLLM does not start with this model "
                f"({type(error).__name__}: {cause(error)}): its own messages say more"
            ) from error

    @property
    def adapters(self) -> set[int]:
        """Numbers of the adapters that it holds."""
        return {*self._llm.llm_engine.list_loras()}

    def load(self, version: AdapterVersion) -> None:
        """Load an adapter; refused where the engine does not take it."""
        try:
            self._llm.llm_engine.add_lora(self._request(version))
        except Exception as error:
            raise UserError(
                f"model.policy.generator: vLLM does not take this adapter ({cause(error)})"
            ) from error

    def drop(self, version: AdapterVersion) -> None:
        """Free the room of an adapter."""
        self._llm.llm_engine.remove_lora(version.number)

    def complete(self, rows: Sequence[Row]) -> list[Completion]:
        """Draw all rows in one batch.

        What was cached of prompts is forgotten first, so that a draw depends on its rows alone.
        """
        self._llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": row.prompt} for row in rows]
        params = [self._params(seed=row.seed, **sampling(row.request)) for row in rows]
        adapters = [self._request(row.adapter) for row in rows]
        try:
            with torch.random.fork_rng(self._devices):
                found = self._llm.generate(prompts, params, lora_request=adapters, use_tqdm=False)
        except Exception as error:
            raise UserError(
                f"model.policy.generator: vLLM could not draw ({type(error).__name__}: "
                f"{cause(error)}): its own messages say more"
            ) from error
        return [_read(one.outputs[0], row) for one, row in zip(found, rows, strict=True)]

    def close(self) -> None:
        """End the engine's process and remove its folders."""
        self._llm.llm_engine.engine_core.shutdown()
        shutil.rmtree(self.root, ignore_errors=True)

    def _request(self, version: AdapterVersion) -> Any:
        return self._lora_request(version.name, version.number, str(version.folder))


@contextmanager
def seeing_only(device: torch.device) -> Iterator[None]:
    """Start processes that see this GPU alone: else each rank's engine would take the first."""
    if device.type != "cuda":
        yield
        return
    seen = os.environ.get(_SEEN)
    names = seen.split(",") if seen else [str(number) for number in range(device.index + 1)]
    os.environ[_SEEN] = names[device.index]
    try:
        yield
    finally:
        if seen is None:
            del os.environ[_SEEN]
        else:
            os.environ[_SEEN] = seen


def sampling(request: Request) -> dict[str, Any]:
    """How a token is drawn and what ends a response, as vLLM's `SamplingParams` have it."""
    how, ends = request.decoding, [*request.ends]
    early = bool(request.min_new_tokens and ends)
    return {
        "n": 1,
        "temperature": how.temperature,
        "top_k": how.top_k,
        "top_p": how.top_p,
        "min_p": how.min_p,
        "max_tokens": request.max_new_tokens,
        "min_tokens": request.min_new_tokens,
        "ignore_eos": True,  # the ends are those of the request, and no others
        "stop_token_ids": ends,
        "logprobs": None if early else 0,  # of the token that was drawn
        "logprob_token_ids": ends if early else None,
        "detokenize": False,
    }


def _read(output: Any, row: Row) -> Completion:
    tokens, ends = list(output.token_ids), row.request.ends
    early = row.request.min_new_tokens if ends else 0
    at_ends = [[found[end].logprob for end in ends] for found in output.logprobs[:early]]
    log_probs = [found[t].logprob for found, t in zip(output.logprobs, tokens, strict=True)]
    return Completion(tokens, log_probs, at_ends, output.finish_reason == "stop")


def _vllm() -> tuple[Any, Any, Any]:
    # Before its import: nothing on standard output, which is a command's own, and no report of use.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # an extra
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            f"model.policy.generator VLLMGenerator needs vLLM ({cause(error)}): pip install "
            "'nlhf_zoo[vllm]'"
        ) from error
    return LLM, SamplingParams, LoRARequest


def _model(source: ModelSource, players: AdapterPlayers, folder: Path) -> dict[str, Any]:
    """The base model's name, or the folder that it is written to."""
    if isinstance(source, Pretrained):
        return {"model": source.name, "revision": source.revision}
    with plain_model(players, None) as model:
        model.save_pretrained(folder)
    return {"model": str(folder)}


def _dtype(players: AdapterPlayers) -> str:
    """Of the base model's weights, as vLLM writes it."""
    weight = players.language_model("policy").get_output_embeddings().weight
    return str(weight.dtype).removeprefix("torch.")


def _rank(players: AdapterPlayers) -> int:
    found = players.parameters_of("policy").items()
    return max(parameter.shape[0] for name, parameter in found if "lora_A" in name)
