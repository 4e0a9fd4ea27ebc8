"""Memory of players and of trained log-probabilities of language models.

    python -m benchmarks.language_memory [--gpu] [--only rows]

Players: bytes of all tensors that are alive after three rounds of Nash-MP (anchor, lookahead,
reference, and what a half step puts back) over those of online DPO (policy and reference), against
three adapters with the state of their optimisers.

Rows: by how much a trained log-probability and its backward raise the memory in use, of so many
responses, whole, in chunks of rows (``max_tokens_per_chunk``), and with activations computed again
layer by layer (``gradient_checkpointing``); and its seconds, of a processor's own on a CPU. On a
GPU the model has the shape of Qwen2.5-0.5B, in bfloat16.

Log-probabilities: by how much one trained log-probability and its backward raise the memory in
use, with the softmax in chunks and whole, each in a process of its own; a vocabulary of 256 shows
what the model's body takes. On a CPU it is the process's resident memory (Linux), on a GPU what
torch has allocated.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.language import HALF_BILLION, TINY, Size, Turns, fit, gpu_now, make_game
from nlhf_zoo.algorithms import NashMP, OnlineDPO
from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.policies import CausalLMPolicy
from nlhf_zoo.policies.language_model.chunk_size import ChunkSize
from nlhf_zoo.policies.language_model.modes import checkpoint_activations
from nlhf_zoo.records import Prompts, Responses

MIB = 2**20
VOCABULARIES, LENGTHS, WHOLE = (256, 8192, 32768), (256, 512), 2**40


def alive() -> int:
    """Bytes of all tensors."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def players(algorithm: PolicyOptimizer, device: str) -> tuple[int, int, int]:
    """Bytes alive after three rounds, those of one adapter, and with its optimiser's state."""
    size = Size(prompts=2, prompt_tokens=8, new_tokens=4)
    game = make_game(algorithm, size)
    rounds = 3 * game.gradient_steps_per_round
    fit(game, size, rounds, Turns(lambda: None, lambda: 0.0), "gpu" if device == "cuda" else "cpu")
    optimizer = game.trainer.optimizers[0]
    optimizer.zero_grad()
    adapter = sum(p.nbytes for p in game.policy.parameters() if p.requires_grad)
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    return alive(), adapter, adapter + state


def log_prob(vocabulary: int, length: int, chunk: int, device: str) -> int:
    """Bytes that a trained log-probability and its backward take at most."""
    shape = {**Size().shape, "vocab_size": vocabulary, "num_hidden_layers": 2}
    policy, prompts, responses = scored(Size(shape, prompts=4, new_tokens=length), device)
    policy._score.softmax_chunk = chunk
    return step(policy, prompts, responses, device)[0]


def rows(size: Size, max_tokens: int | str | None, again: bool, device: str) -> tuple[int, float]:
    """Bytes that a trained log-probability and its backward take at most, and its seconds.

    Args:
        size: of model and batch.
        max_tokens: of a chunk.
        again: compute activations again, layer by layer.
        device: where.
    """
    policy, prompts, responses = scored(size, device)
    policy._chunk_size = ChunkSize(max_tokens).to(device)
    if again:
        checkpoint_activations(policy.language_model)
        policy._score.trained_mode = True
    return step(policy, prompts, responses, device)


def scored(size: Size, device: str) -> tuple[CausalLMPolicy, Prompts, Responses]:
    """A policy, and responses to prompts as it would draw them; what is made once, is made."""
    policy = make_game(OnlineDPO(), size).policy.to(device)
    prompts = policy.encode(size.batch())
    shape = (size.prompts, size.num, size.new_tokens)
    tokens = torch.randint(size.shape["vocab_size"], shape, device=device)
    weight = torch.full(shape[:2], 1 / size.num, device=device)
    few = Responses(tokens[..., :1], tokens[..., :1] >= 0, weight)
    with torch.no_grad():  # checks, and the libraries' own buffers
        policy.log_prob({"policy": 1.0}, prompts, few)
    return policy, prompts, Responses(tokens, tokens >= 0, weight)


def step(
    policy: CausalLMPolicy, prompts: Prompts, responses: Responses, device: str
) -> tuple[int, float]:
    """Bytes that are in use at most beside those before, and seconds."""
    now = gpu_now if device == "cuda" else time.process_time
    before, began = memory(device), now()
    policy.log_prob({"policy": 1.0}, prompts, responses).sum().backward()
    return peak(device) - before, now() - began


def memory(device: str) -> int:
    """Bytes in use; the peak counts from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _of_process("VmRSS")


def peak(device: str) -> int:
    """Bytes in use at most."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _of_process("VmHWM")


def _of_process(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


def apart(work: Callable[..., Any], *arguments: object) -> Any:
    """What a process of its own returns."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(work, *arguments).result()


def of_rows(device: str, tiny: bool) -> None:
    """Print what rows take, and how long."""
    counts, chunks = (8, 16, 32), (2048, 512)
    sizes = [Size(prompts=count // 2, new_tokens=128) for count in counts]
    if device == "cuda":
        counts, chunks = (32, 64, 128, 256), (16384, 4096)
        shape, dtype = HALF_BILLION, torch.bfloat16
        sizes = [Size(shape, count // 2, 32, 256, dtype=dtype) for count in counts]
    if tiny:
        counts, chunks = (4, 8), (64, 32)
        sizes = [Size(TINY, count // 2, 8, 8) for count in counts]
    kinds: dict[str, tuple[int | str | None, bool]] = {"whole": (None, False)}
    kinds |= {f"chunks of {tokens:,}": (tokens, False) for tokens in chunks}
    kinds |= {"layers again": (None, True), f"both, {chunks[0]:,}": (chunks[0], True)}
    if device == "cuda":
        kinds["auto"] = ("auto", False)
    print(f"| rows x tokens | {' | '.join(f'{kind}, MiB | s' for kind in kinds)} |")
    print("|---|" + "---|---|" * len(kinds))
    for count, size in zip(counts, sizes, strict=True):
        found = [apart(rows, size, *kind, device) for kind in kinds.values()]
        row = " | ".join(f"{number / MIB:,.0f} | {seconds:.1f}" for number, seconds in found)
        print(f"| {count} x {size.prompt_tokens + size.new_tokens} | {row} |", flush=True)
    print()


def of_players(device: str) -> None:
    """Print what players add."""
    all_bytes, adapter, with_state = apart(players, NashMP(inner_steps=1), device)
    without, _, _ = apart(players, OnlineDPO(), device)
    added, three = all_bytes - without, 3 * with_state
    print("| adapter, MiB | players of Nash-MP add | three adapters with optimisers | ratio |")
    print("|---|---|---|---|")
    row = " | ".join(f"{number / MIB:.1f}" for number in (adapter, added, three))
    print(f"| {row} | {added / three:.2f} |\n", flush=True)


def of_softmax(device: str) -> None:
    """Print what the softmax takes."""
    print("| vocabulary | tokens of 8 responses | chunks of 1024, MiB | whole, MiB |")
    print("|---|---|---|---|")
    for length in LENGTHS:
        for vocabulary in VOCABULARIES:
            peaks = (apart(log_prob, vocabulary, length, chunk, device) for chunk in (1024, WHOLE))
            row = " | ".join(f"{number / MIB:,.0f}" for number in peaks)
            print(f"| {vocabulary} | 8 x {length} | {row} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--only", choices=["players", "rows", "softmax"])
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = "cuda" if arguments.gpu else "cpu"
    if arguments.gpu and not torch.cuda.is_available():
        raise SystemExit("--gpu needs a GPU, and torch sees none here")
    torch.set_num_threads(1)
    import peft
    import transformers

    warnings.simplefilter("ignore")  # of short runs, without validation: not the tables' reader's
    transformers.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, ", end="")
    print(f"peft {peft.__version__}\n")
    if arguments.only in (None, "players"):
        of_players(device)
    if arguments.only in (None, "rows"):
        of_rows(device, arguments.tiny)
    if arguments.only in (None, "softmax"):
        of_softmax(device)


if __name__ == "__main__":
    main()
