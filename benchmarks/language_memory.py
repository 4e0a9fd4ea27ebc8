"""Memory of players and of trained log-probabilities of language models.

    python -m benchmarks.language_memory [--gpu]

Players: bytes of all tensors that are alive after three rounds of Nash-MP (anchor, lookahead,
reference, and what a half step puts back) over those of online DPO (policy and reference), against
three adapters with the state of their optimisers.

Log-probabilities: by how much one trained log-probability and its backward raise the memory in
use, with the softmax in chunks and whole, each in a process of its own; a vocabulary of 256 shows
what the model's body takes. On a CPU it is the process's resident memory (Linux), on a GPU what
torch has allocated.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.language import Size, Turns, fit, make_game
from nlhf_zoo.algorithms import NashMP, OnlineDPO
from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.records import Responses

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
    size = Size(shape, prompts=4, new_tokens=length)
    policy = make_game(OnlineDPO(), size).policy.to(device)
    prompts = policy.encode(size.batch())
    tokens = torch.randint(vocabulary, (4, 2, length), device=device)
    weight = torch.full((4, 2), 0.5, device=device)
    responses = Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight)
    with torch.no_grad():  # what is made once: checks, and the libraries' own buffers
        policy.log_prob(
            {"policy": 1.0}, prompts, Responses(tokens[..., :1], tokens[..., :1] >= 0, weight)
        )
    policy._score.softmax_chunk = chunk
    before = memory(device)
    policy.log_prob({"policy": 1.0}, prompts, responses).sum().backward()
    return peak(device) - before


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


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    device = "cuda" if parser.parse_args().gpu else "cpu"
    torch.set_num_threads(1)
    import peft
    import transformers

    warnings.simplefilter("ignore")  # of short runs, without validation: not the tables' reader's
    transformers.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, ", end="")
    print(f"peft {peft.__version__}\n")
    all_bytes, adapter, with_state = apart(players, NashMP(inner_steps=1), device)
    without, _, _ = apart(players, OnlineDPO(), device)
    added, three = all_bytes - without, 3 * with_state
    print("| adapter, MiB | players of Nash-MP add | three adapters with optimisers | ratio |")
    print("|---|---|---|---|")
    row = " | ".join(f"{number / MIB:.1f}" for number in (adapter, added, three))
    print(f"| {row} | {added / three:.2f} |\n", flush=True)
    print("| vocabulary | tokens of 8 responses | chunks of 1024, MiB | whole, MiB |")
    print("|---|---|---|---|")
    for length in LENGTHS:
        for vocabulary in VOCABULARIES:
            peaks = (apart(log_prob, vocabulary, length, chunk, device) for chunk in (1024, WHOLE))
            row = " | ".join(f"{number / MIB:,.0f}" for number in peaks)
            print(f"| {vocabulary} | 8 x {length} | {row} |", flush=True)


if __name__ == "__main__":
    main()
