"""Our own decoder against `generate` of transformers, on the same model, sizes and tokens.

    python -m benchmarks.decoding [--tokens 128 256] [--repeats 3] [--threads 1] [--tiny]
    python -m benchmarks.decoding --gpu [--tiny]

The model is that of `benchmarks.language`. On a CPU seconds are CPU seconds of the process; the
engines take turns, figures are medians, and a ratio is the median of the turns' ratios. `generate`
is that of peft's model with its adapter active, as one writes it by hand.

Rows of very different lengths: every first response to a prompt has 16 tokens, and every second
one 256; the ideal is the time of the short ones alone and that of the long ones alone.

With `--gpu`: a random model of the shape of Qwen2.5-0.5B in bfloat16, 64 prompts, 2 responses, 256
tokens; tokens a second, what a token step takes, its share of the time in which the memory alone
would deliver what it moves, and the step of online DPO with its peak memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.language import (
    HALF_BILLION,
    MIXTURE,
    TINY,
    PlainLoop,
    Size,
    Turn,
    Turns,
    copy_bandwidth,
    fit,
    gpu_now,
    make_game,
    peak_memory,
)
from nlhf_zoo.algorithms import OnlineDPO
from nlhf_zoo.policies import NativeGenerator, TransformersGenerator
from nlhf_zoo.policies.language_model.decoding.floor import moved_bytes, read_bytes
from nlhf_zoo.policies.language_model.generation import Drawn, Generator, Request
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.policies.language_model.stops import Stops
from nlhf_zoo.records import PLAIN, Mixture

POLICY: Mixture = {"policy": 1.0}
MIXED: Mixture = {"policy": 1 - MIXTURE, "reference": MIXTURE}
Work = Callable[[], Any]


class CutShort(Stops):
    """Ends every second row after some tokens, and no other.

    Args:
        tokens: of the short rows.
    """

    found = -1
    on_device = True

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    @override
    def after(self, state: Tensor, token: Tensor) -> Tensor:
        # 0 for a row that is not known yet, an odd number for short rows: all begin together.
        if not bool(state.any()):
            state = 1 + torch.arange(len(state), device=state.device) % 2
        state = state + 2
        return state.masked_fill((state % 2 == 1) & (state > 2 * self.tokens), self.found)


def draw(
    policy: CausalLMPolicy,
    engine: Generator,
    size: Size,
    who: Mixture = POLICY,
    stops: Stops | None = None,
) -> Drawn:
    """Responses of a policy by an engine."""
    prompts = policy.encode(size.batch())
    assert prompts.tokens is not None
    assert prompts.mask is not None
    request = Request(
        who=who,
        tokens=prompts.tokens,
        mask=prompts.mask,
        num=size.num,
        decoding=PLAIN,
        max_new_tokens=size.new_tokens,
        ends=(),
        pad=0,
        rng=torch.Generator(policy.device).manual_seed(0),
        drawing=policy.capabilities.drawing,
        stops=stops,
    )
    return engine.draw(policy._players, request)


def turns(work: dict[str, Work], repeats: int, now: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each, in turn; the first turn warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, each in work.items():
            began = now()
            each()
            seconds[name].append(now() - began)
    return {name: found[1:] for name, found in seconds.items()}


def ratio(one: list[float], other: list[float]) -> float:
    """Median of the turns' ratios."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def policy_of(size: Size, engine: Generator, device: str = "cpu") -> CausalLMPolicy:
    """The policy of a game with this engine."""
    policy = make_game(OnlineDPO(), size, engine).policy.to(device)
    assert isinstance(policy, CausalLMPolicy)
    return policy


def decodes(sizes: list[Size], repeats: int) -> None:
    """Print what drawing costs, of the policy and of a mixture."""
    print("| new tokens | who | engine | seconds | over generate | target |")
    print("|---|---|---|---|---|---|")
    for size in sizes:
        plain, policy = PlainLoop(size), policy_of(size, NativeGenerator())
        other = policy_of(size, TransformersGenerator())
        work: dict[str, Work] = {
            "policy | generate, by hand": plain.decode,
            "policy | TransformersGenerator": lambda: draw(other, other.generator, size),  # noqa: B023
            "policy | NativeGenerator": lambda: draw(policy, policy.generator, size),  # noqa: B023
            "mixture | TransformersGenerator": lambda: draw(other, other.generator, size, MIXED),  # noqa: B023
            "mixture | NativeGenerator": lambda: draw(policy, policy.generator, size, MIXED),  # noqa: B023
        }
        found = turns(work, repeats, time.process_time)
        for name, seconds in found.items():
            over = ratio(seconds, found["policy | generate, by hand"])
            target = "0.80" if name == "policy | NativeGenerator" else ""
            middle = statistics.median(seconds)
            print(
                f"| {size.new_tokens} | {name} | {middle:.2f} | {over:.2f} | {target} |", flush=True
            )
    print()


def steps(sizes: list[Size], repeats: int) -> None:
    """Print a step of Nash-MD over two decodes by hand and the update."""
    print("| Nash-MD's step, new tokens | engine | seconds | over two decodes | target |")
    print("|---|---|---|---|---|")
    for size in sizes:
        for engine in (TransformersGenerator(), NativeGenerator()):
            turn = Turn("Nash-MD", size, repeats, engine)
            _, fewer = turn.floors()
            over, middle = ratio(turn.seconds[1:], fewer[1:]), statistics.median(turn.seconds[1:])
            target = "1.10" if isinstance(engine, NativeGenerator) else ""
            name = type(engine).__name__
            print(
                f"| {size.new_tokens} | {name} | {middle:.2f} | {over:.2f} | {target} |", flush=True
            )
    print()


def uneven(size: Size, short: int, repeats: int, now: Callable[[], float], device: str) -> None:
    """Print what rows of very different lengths cost over the ideal of their sum."""
    policy = policy_of(size, NativeGenerator(), device)
    other = policy_of(size, TransformersGenerator(), device)
    half = {"num": size.num // 2, "shape": size.shape, "dtype": size.dtype}
    half |= {"prompts": size.prompts, "prompt_tokens": size.prompt_tokens}
    few, many = Size(new_tokens=short, **half), Size(new_tokens=size.new_tokens, **half)
    work: dict[str, Work] = {
        "short": lambda: draw(policy, policy.generator, few),
        "long": lambda: draw(policy, policy.generator, many),
        "NativeGenerator": lambda: draw(policy, policy.generator, size, stops=CutShort(short)),
        "TransformersGenerator": lambda: draw(other, other.generator, size, stops=CutShort(short)),
    }
    lengths = draw(policy, policy.generator, size, stops=CutShort(short)).mask.sum(-1)
    assert sorted(set(lengths.tolist())) == [short, size.new_tokens]
    found = turns(work, repeats, now)
    ideal = [a + b for a, b in zip(found["short"], found["long"], strict=True)]
    print(f"| half {short}, half {size.new_tokens} tokens | seconds | over the ideal | target |")
    print("|---|---|---|---|")
    print(f"| ideal: each by itself | {statistics.median(ideal):.2f} | 1.00 | |")
    for name, target in (("NativeGenerator", "1.15"), ("TransformersGenerator", "")):
        middle, over = statistics.median(found[name]), ratio(found[name], ideal)
        print(f"| {name} | {middle:.2f} | {over:.2f} | {target} |", flush=True)
    print()


def gpu(size: Size, device: str, repeats: int, numbers: int) -> None:
    """Print tokens a second of each engine, then the step with each."""
    bandwidth = copy_bandwidth(device, numbers)
    print(f"copy {bandwidth / 1e9:.0f} GB/s\n")
    engines: dict[str, Generator] = {
        "TransformersGenerator": TransformersGenerator(),
        "TransformersGenerator, static": TransformersGenerator("static"),
        "NativeGenerator, uncaptured": NativeGenerator(cuda_graph=False),
        "NativeGenerator": NativeGenerator(),
    }
    rows = size.prompts * size.num
    print("| who | engine | seconds | tokens/s | over the first | of a perfect decoder |")
    print("|---|---|---|---|---|---|")
    for who in (POLICY, MIXED):
        policies = {name: policy_of(size, engine, device) for name, engine in engines.items()}
        work: dict[str, Work] = {
            name: lambda p=p: draw(p, p.generator, size, who)  # type: ignore[misc]  # noqa: B023
            for name, p in policies.items()
        }
        found = turns(work, repeats, gpu_now)
        read = read_bytes(policies["NativeGenerator"].language_model)
        assert read is not None
        lengths = [size.new_tokens] * rows * len(who)
        prompts = [size.prompt_tokens] * rows * len(who)
        perfect = moved_bytes(*read, prompts, lengths) / bandwidth
        for name, seconds in found.items():
            middle = statistics.median(seconds)
            over = ratio(seconds, found["TransformersGenerator"])
            figures = f"{middle:.2f} | {rows * size.new_tokens / middle:,.0f} | {over:.2f}"
            title = "policy" if who is POLICY else "mixture"
            print(f"| {title} | {name} | {figures} | {perfect / middle:.0%} |", flush=True)
    print("\n| online DPO's step | seconds | peak, GiB |\n|---|---|---|")
    for name, engine in engines.items():
        seconds = Turns(lambda: None, gpu_now)
        peak_memory()
        game = make_game(OnlineDPO(), size, engine)
        fit(game, size, repeats + 1, seconds, "cpu" if device == "cpu" else "gpu")
        middle = statistics.median(seconds.seconds[1:])
        print(f"| {name} | {middle:.2f} | {peak_memory()} |", flush=True)
    print()


def main() -> None:
    """Print the tables."""
    import peft
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="the part for a GPU, and that alone")
    parser.add_argument("--tiny", action="store_true", help="a model that takes seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # of short runs, without validation: not the tables' reader's
    transformers.logging.set_verbosity_error()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, peft {peft.__version__}")
    cuda = torch.cuda.is_available()
    if arguments.gpu:
        if not (arguments.tiny or cuda):
            raise SystemExit("--gpu needs a GPU, and torch sees none here")
        device = "cuda" if cuda else "cpu"
        size = Size(HALF_BILLION, prompts=64, new_tokens=256, dtype=torch.bfloat16)
        if arguments.tiny:
            size = Size(TINY, prompts=4, prompt_tokens=8, new_tokens=8)
        gpu(size, device, arguments.repeats, 10**5 if arguments.tiny else 2**30)
        uneven(size, 4 if arguments.tiny else 16, arguments.repeats, gpu_now, device)
        return
    print(f"{arguments.threads} thread(s), median of {arguments.repeats}\n")
    small = {"shape": TINY, "prompts": 2, "prompt_tokens": 8} if arguments.tiny else {}
    sizes = [Size(new_tokens=8 if small else n, **small) for n in arguments.tokens]
    decodes(sizes, arguments.repeats)
    uneven(
        Size(new_tokens=32 if small else 256, **small),
        4 if small else 16,
        arguments.repeats,
        time.process_time,
        "cpu",
    )
    steps(sizes, arguments.repeats)


if __name__ == "__main__":
    main()
