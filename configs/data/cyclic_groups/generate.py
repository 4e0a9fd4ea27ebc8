"""Makes the data of docs/preference_models.md: three groups of words, each of which beats the next.

    python configs/data/cyclic_groups/generate.py [FOLDER]

A prompt is two letters from a to h, a response three. The first letter of a response tells its
group: a to e is rock, f and g paper, h scissors; paper beats rock, rock beats scissors, scissors
beats paper. Half of the pairs are of paper and rock, a quarter is of each other kind: then
a Bradley-Terry model, which must rank the groups, ranks paper first, and is right half of the time.
Prompts and responses of the held-out pairs occur in no pair to train on.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

LETTERS = "abcdefgh"
GROUPS = {"rock": "abcde", "paper": "fg", "scissors": "h"}
# Who wins and who loses, in these shares.
KINDS = [("paper", "rock")] * 2 + [("rock", "scissors"), ("scissors", "paper")]
TRAINING, HELD_OUT = 1600, 400  # pairs


def pairs(
    number: int, prompts: list[str], words: dict[str, list[str]], stream: random.Random
) -> list[dict[str, str]]:
    """Pairs of all kinds in their shares, in random order."""
    rows = []
    for place in range(number):
        winner, loser = KINDS[place % len(KINDS)]
        rows.append(
            {
                "prompt": stream.choice(prompts),
                "chosen": stream.choice(words[winner]),
                "rejected": stream.choice(words[loser]),
            }
        )
    stream.shuffle(rows)
    return rows


def split(texts: list[str], stream: random.Random) -> tuple[list[str], list[str]]:
    """Two thirds, and the rest."""
    texts = list(texts)
    stream.shuffle(texts)
    cut = len(texts) * 2 // 3
    return sorted(texts[:cut]), sorted(texts[cut:])


def main(folder: Path) -> None:
    """Write train.jsonl, held_out.jsonl and prompts.jsonl, the held-out prompts for a policy."""
    stream = random.Random(0)
    prompts = split(["".join(p) for p in itertools.product(LETTERS, repeat=2)], stream)
    words: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for group, first in GROUPS.items():
        all_words = ["".join(word) for word in itertools.product(first, LETTERS, LETTERS)]
        for part, some in zip(words, split(all_words, stream), strict=True):
            part[group] = some
    files = {
        "train": pairs(TRAINING, prompts[0], words[0], stream),
        "held_out": pairs(HELD_OUT, prompts[1], words[1], stream),
        "prompts": [{"prompt": prompt} for prompt in prompts[1]],
    }
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
