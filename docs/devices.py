"""Makes the tables of docs/devices.md: what a run holds in the memory of a device, by arithmetic.

python docs/devices.py [--write], from the root of the repository. The formulas are exact for what
they count, and tests hold them to models of transformers; what they leave out the page says.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).with_name("devices.md")
GIB = 2**30
BF16, F32 = 2, 4  # bytes of a number
RANK = 16  # of the adapters
ROWS, LENGTH = 16, 1024  # 4 prompts with 4 responses each, of so many tokens in all
CHUNK = 2048  # tokens whose activations are held at a time: max_tokens_per_chunk
GPUS = 8


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder as Llama's or Qwen2's.

    Attributes:
        name: of a model that has them.
        hidden: H.
        inner: I, of the feed-forward layers.
        layers: L.
        heads: of attention, each of H / heads numbers.
        key_heads: of keys and values.
        vocabulary: V.
        tied: whether the embedding is the output layer, too.
        biases: whether queries, keys and values have one, as Qwen2's.
    """

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool
    biases: bool

    @property
    def keys(self) -> int:
        """K: numbers of a token's keys in a layer, and as many of its values."""
        return self.hidden // self.heads * self.key_heads

    @property
    def linear(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of a layer."""
        h, i, k = self.hidden, self.inner, self.keys
        return [(h, h), (h, k), (h, k), (h, h), (h, i), (h, i), (i, h)]

    @property
    def ends(self) -> int:
        """Parameters of the embedding and of the output layer: (1 or 2) V H."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """N = (1 or 2) V H + L (sum of in x out + biases + 2 H) + H."""
        layer = sum(a * b for a, b in self.linear) + 2 * self.hidden
        layer += (self.hidden + 2 * self.keys) * self.biases
        return self.ends + self.layers * layer + self.hidden

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA on all linear layers of the body: A = L r (sum of in + out)."""
        return self.layers * rank * sum(a + b for a, b in self.linear)

    def cache_of_token(self) -> int:
        """Bytes of a token in the key-value cache, in bfloat16: 2 L K x 2."""
        return 2 * self.layers * self.keys * BF16

    def activations_of_token(self, rank: int | None) -> int:
        """Bytes that one layer keeps of a token until its backward.

        With LoRA, a base in bfloat16 and adapters in float32: 36 H + 10 I + 4 K + 28 r + 4 heads +
        8, for peft gives each adapter its input in float32. Where all weights train, in float32:
        32 H + 16 I + 8 K + 4 heads + 8.
        """
        h, i, k = self.hidden, self.inner, self.keys
        same = 4 * self.heads + 8
        if rank is None:
            return 32 * h + 16 * i + 8 * k + same
        return 36 * h + 10 * i + 4 * k + 28 * rank + same

    def activations(self, tokens: int, rank: int | None, checkpointing: bool) -> int:
        """Bytes of so many tokens in the body; computed again, each layer keeps its input alone."""
        layer = tokens * self.activations_of_token(rank)
        if not checkpointing:
            return self.layers * layer
        return self.layers * tokens * self.hidden * (F32 if rank is None else BF16) + layer


SHAPES = (
    Shape("Qwen2.5-0.5B", 896, 4864, 24, 14, 2, 151936, tied=True, biases=True),
    Shape("Qwen2.5-7B", 3584, 18944, 28, 28, 4, 152064, tied=False, biases=True),
    Shape("Llama-3.1-70B", 8192, 28672, 80, 64, 8, 128256, tied=False, biases=False),
)


def trained(players: int, half_step: bool) -> int:
    """Bytes that go with each trained parameter, in float32.

    Its weight, its gradient and two moments of AdamW; its weight in each further player; and, for
    an algorithm with a half step, weight and moments of the start of the round.
    """
    return 4 * F32 + players * F32 + (3 * F32 if half_step else 0)


def size(number: float) -> str:
    """Bytes as a cell has them."""
    gib = number / GIB
    return f"{gib:,.1f}" if gib < 100 else f"{gib:,.0f}"


def lora() -> Iterator[list[str]]:
    """A row for each shape, of Nash-MP with LoRA, in GiB."""
    yield ["GiB, with LoRA", "base", "adapters", "cache", "activations", "computed again", "in all"]
    for shape in SHAPES:
        base = shape.parameters * BF16
        adapters = shape.adapter(RANK) * trained(players=2, half_step=True)
        cache = ROWS * LENGTH * shape.cache_of_token()
        whole, again = (shape.activations(CHUNK, RANK, c) for c in (False, True))
        # A rollout is over before the first backward.
        total = base + adapters + max(cache, again)
        yield [shape.name, *map(size, (base, adapters, cache, whole, again, total))]


def shared() -> Iterator[list[str]]:
    """A row for each shape, of Nash-MP with LoRA and a base that 8 GPUs share, in GiB."""
    yield [
        f"GiB, with LoRA, on each of {GPUS}", "its share", "gathered", "activations",
        "`fsdp2_layerwise`, in all", "`fsdp2`, in all",
    ]  # fmt: skip
    for shape in SHAPES:
        base, ends = shape.parameters * BF16, shape.ends * BF16
        adapters = shape.adapter(RANK) * trained(players=2, half_step=True)
        cache = ROWS * LENGTH * shape.cache_of_token()
        again = shape.activations(CHUNK, RANK, True)
        # Embedding and output layer, as long as a pass takes, and a layer.
        share, gathered = base / GPUS, ends + (base - ends) / shape.layers
        training = share + gathered + again
        by_layer = max(training, share + gathered + cache)
        at_once = max(training, share + base + cache)
        totals = adapters + by_layer, adapters + at_once
        yield [shape.name, *map(size, (share, gathered, again, *totals))]


def full() -> Iterator[list[str]]:
    """A row for each shape where all weights train, in GiB."""
    yield [
        "GiB, all weights", "online DPO", f"on each of {GPUS}", "Nash-MP", f"on each of {GPUS}",
        "activations, computed again", "of a checkpoint",
    ]  # fmt: skip
    for shape in SHAPES:
        number, again = shape.parameters, shape.activations(CHUNK, None, True)
        cells = []
        for players, half_step in ((1, False), (3, True)):  # the reference is a copy here
            held = number * trained(players, half_step)
            cells += [held, held / GPUS]
        # Of the policy, the anchor and the lookahead, and of AdamW twice: there is a round's start.
        written = number * F32 * (3 + 2 + 3)
        yield [shape.name, *map(size, (*cells, again, written))]


def table(rows: Iterator[list[str]]) -> str:
    """Markdown of rows, the first of which is the head."""
    head, *others = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *others))


def page() -> str:
    """The page with its tables made anew."""
    text = PAGE.read_text(encoding="utf-8")
    for name, rows in (("lora", lora()), ("shared", shared()), ("full", full())):
        marks = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.S)
        assert pattern.search(text), name
        made = f"{marks[0]}\n{table(rows)}\n{marks[1]}"
        text = pattern.sub(lambda _, made=made: made, text)  # type: ignore[misc]
    return text


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(table(lora()), table(shared()), table(full()), sep="\n\n")


if __name__ == "__main__":
    main()
