"""Oracles that are models of texts: batches of like lengths, and scores against pairs.

    python -m benchmarks.oracles [--repeats 3] [--threads 1]
    python -m benchmarks.oracles --gpu

The models are random Llamas of about 10 M parameters with a head for sequences, read in batches of
16; with ``--gpu`` they have the shape of Qwen2.5-0.5B, in bfloat16 on a GPU.

Batches: 128 texts whose lengths are spread as those of responses are, log-normal with a median of
96 tokens, from 8 to 512: batches of like lengths, the longest first, against batches of the same
texts as they come, by the same code.

Scores: K responses of one player against L of another to each of 2 prompts, by a reward model
(K + L passes) and by a pair model that reads them in one order (K x L passes of texts nearly twice
as long) and in both. Both read the same texts with the same body.

Both sides of a ratio take turns in one process; seconds are the process's CPU seconds, on a GPU
wall clock until it is idle. Figures are medians, and a ratio is the median of the turns' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.language import HALF_BILLION, TEN_MILLION, RandomModel
from nlhf_zoo.oracles import PairModelOracle, RewardModelOracle
from nlhf_zoo.records import Prompts, Responses
from nlhf_zoo.text_models.encoding import Tokens
from nlhf_zoo.text_models.network import TextModel

NUM_TEXTS, MEDIAN, SPREAD, SHORTEST, LONGEST = 128, 96, 0.8, 8, 512
NUM_PROMPTS, PROMPT_WORDS = 2, 32
SIDES = ((2, 2), (4, 4), (8, 8))
Work = Callable[[], object]


def seconds(work: Work, gpu: bool) -> float:
    """What one piece of work takes."""
    if not gpu:
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turn(works: Sequence[Work], repeats: int, gpu: bool) -> tuple[list[float], list[float]]:
    """Median seconds of each, and of its ratios to the first."""
    for work in works:
        work()
    turns = [[seconds(work, gpu) for work in works] for _ in range(repeats)]
    columns = list(zip(*turns, strict=True))
    ratios = [[turn[number] / turn[0] for turn in turns] for number in range(len(works))]
    return [*map(statistics.median, columns)], [*map(statistics.median, ratios)]


def save_model(folder: Path, shape: dict[str, object]) -> None:
    """A random classifier with one output, and a tokenizer whose words are numbers."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(**(shape | {"pad_token_id": 0, "num_labels": 1}))
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    RandomModel(TEN_MILLION | {"vocab_size": 1024}).load().tokenizer.save_pretrained(folder)


def lengths(count: int) -> list[int]:
    """Numbers of tokens as those of responses are spread."""
    stream = torch.Generator().manual_seed(1)
    drawn = (MEDIAN * torch.randn(count, generator=stream).mul(SPREAD).exp()).long()
    return drawn.clamp(SHORTEST, LONGEST).tolist()


def tokens() -> list[Tokens]:
    """Texts of these lengths."""
    stream = torch.Generator().manual_seed(2)
    return [
        tuple(torch.randint(1, 1024, (length,), generator=stream).tolist())
        for length in lengths(NUM_TEXTS)
    ]


def batches(model: TextModel, repeats: int, gpu: bool) -> None:
    """Print what sorting by length saves."""
    texts, size = tokens(), model.batch_size

    def as_they_come() -> None:
        for start in range(0, len(texts), size):
            model(texts[start : start + size])

    (like, mixed), (_, ratio) = in_turn([lambda: model(texts), as_they_come], repeats, gpu)
    print("| texts | like lengths, s | as they come, s | ratio |\n|---|---|---|---|")
    print(f"| {NUM_TEXTS} | {like:.2f} | {mixed:.2f} | {ratio:.2f} |\n", flush=True)


def written(num: int, seed: int) -> Responses:
    """Responses of words to each prompt."""
    stream = torch.Generator().manual_seed(seed)
    sizes = iter(lengths(NUM_PROMPTS * num))
    rows = [[words(next(sizes), stream) for _ in range(num)] for _ in range(NUM_PROMPTS)]
    shape = NUM_PROMPTS, num, 1
    mask = torch.ones(shape, dtype=torch.bool)
    return Responses(mask.long(), mask, torch.full(shape[:2], 1 / num), text=rows)


def words(number: int, stream: torch.Generator) -> str:
    """A text of as many tokens."""
    return " ".join(map(str, torch.randint(1, 1024, (number,), generator=stream).tolist()))


def scores(folder: Path, repeats: int, gpu: bool) -> None:
    """Print what pairs cost against scores."""
    reward = RewardModelOracle(str(folder), template="{prompt} 1 {response}")
    template = "{prompt} 1 {first} 2 {second}"
    pair = PairModelOracle(str(folder), template, order="none")
    both = PairModelOracle(str(folder), template)
    oracles = [oracle.to("cuda" if gpu else "cpu") for oracle in (reward, pair, both)]
    stream = torch.Generator().manual_seed(3)
    text = [words(PROMPT_WORDS, stream) for _ in range(NUM_PROMPTS)]
    prompts = Prompts(torch.arange(NUM_PROMPTS), text=text)
    print("| K x L | reward model, s | pair model, s | both orders, s | pair / reward | both |")
    print("|---|---|---|---|---|---|")
    for num, opponents in SIDES:
        first, second = written(num, 4), written(opponents, 5)
        works = [lambda o=o, f=first, s=second: o(prompts, f, s) for o in oracles]
        took, ratios = in_turn(works, repeats, gpu)
        row = " | ".join(f"{one:.2f}" for one in [*took, *ratios[1:]])
        print(f"| {num} x {opponents} | {row} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = HALF_BILLION if given.gpu else TEN_MILLION
        save_model(folder, shape | {"max_position_embeddings": 2048})
        loaded = RewardModelOracle(str(folder), template="{prompt} {response}").models[0]
        assert isinstance(loaded, TextModel)
        batches(loaded.to("cuda" if given.gpu else "cpu"), given.repeats, given.gpu)
        scores(folder, given.repeats, given.gpu)


if __name__ == "__main__":
    main()
