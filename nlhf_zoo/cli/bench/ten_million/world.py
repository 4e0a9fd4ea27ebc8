"""Outings: a language of sentences too many to list, and people's hidden preference among them.

A prompt asks where two people go on a day of a season. An answer names a place, and may say what it
is like, how they get there, what they do, whom they take along and why:

    where do anna and tom go on monday in spring ?
    they go to the quiet beach by boat and swim with a dog , for it is fresh .

That makes eleven million answers to each of 1,008 prompts, and the model can write others.

Each word has weights of sea, wood and town. With s(y) the mean of the weights over an answer's
words that have any, people prefer y to y' with the log-odds

    3 <s x s', (1, 1, 1)> + u(x, y) - u(x, y'),

where the first term goes in a circle (wood beats town, town beats sea, sea beats wood), and u is
what all agree on: details are welcome up to three of the five, more bore, and what goes with the
season is a little better.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

Row = dict[str, str | float]

PEOPLE = ("anna", "tom", "mia", "ben", "eva", "jan", "lea", "max", "ida")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SEASONS = ("spring", "summer", "autumn", "winter")
KINDS = ("sea", "wood", "town")
CYCLE = 3.0
# The words of an answer, by kind; those of `any` have none.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "place": {
        "sea": ("beach", "harbour", "island", "lagoon", "pier", "cliff"),
        "wood": ("glade", "grove", "valley", "hut", "brook", "hill"),
        "town": ("museum", "market", "theatre", "cafe", "square", "library"),
    },
    "look": {
        "sea": ("sandy", "salty", "windy", "blue"),
        "wood": ("green", "shady", "mossy", "wild"),
        "town": ("busy", "modern", "famous", "bright"),
        "any": ("quiet", "old", "pretty", "small"),
    },
    "way": {
        "sea": ("boat", "ferry", "sail"),
        "wood": ("foot", "horse", "sledge"),
        "town": ("tram", "metro", "taxi"),
        "any": ("car", "train", "bike"),
    },
    "deed": {
        "sea": ("swim", "dive", "fish", "surf"),
        "wood": ("hike", "climb", "camp", "rest"),
        "town": ("shop", "read", "dance", "dine"),
        "any": ("play", "sing", "draw", "talk"),
    },
    "guest": {
        "sea": ("sailor", "diver", "captain"),
        "wood": ("hunter", "dog", "ranger"),
        "town": ("painter", "singer", "doctor"),
        "any": ("friend", "child", "cousin"),
    },
    "why": {
        "sea": ("breezy", "fresh", "wide"),
        "wood": ("calm", "cool", "lonely"),
        "town": ("cheap", "new", "lively"),
        "any": ("near", "free", "nice"),
    },
}
FORMS = {
    "look": "{}",
    "way": "by {}",
    "deed": "and {}",
    "guest": "with a {}",
    "why": ", for it is {}",
}
DETAILS = tuple(FORMS)
KIND_OF = {w: k for words in WORDS.values() for k, some in words.items() for w in some}
# How the model's author writes: mostly of the town, seldom of the sea.
SHARES = {"sea": 0.15, "wood": 0.3, "town": 0.55}
FITS = {"spring": "wood", "summer": "sea", "autumn": "wood", "winter": "town"}


def words() -> list[str]:
    """Each word of the language."""
    fixed = (
        *("where", "do", "and", "go", "on", "in", "?", "they", "to", "the"),
        *("by", "with", "a", ",", "for", "it", "is", "."),
    )
    return [*dict.fromkeys([*fixed, *PEOPLE, *DAYS, *SEASONS, *KIND_OF])]


def prompts() -> list[str]:
    """All prompts, in an order that is no order."""
    some = [
        f"where do {one} and {other} go on {day} in {season} ?"
        for one, other in combinations(PEOPLE, 2)
        for day in DAYS
        for season in SEASONS
    ]
    random.Random(0).shuffle(some)
    return some


def number_of_answers() -> int:
    """How many sentences the grammar has."""
    sizes = {part: sum(map(len, some.values())) for part, some in WORDS.items()}
    return sizes["place"] * math.prod(sizes[part] + 1 for part in DETAILS)


def answer(rng: random.Random, chance: float = 0.5) -> str:
    """A sentence as the model's author writes it: each detail is there with this chance."""
    kind = rng.choices(KINDS, [SHARES[k] for k in KINDS])[0]

    def word(part: str) -> str:
        of = WORDS[part]
        # Details are mostly of the place's kind or of none.
        which = rng.choices([kind, "any", rng.choice(KINDS)], [0.65, 0.25, 0.1])[0]
        return rng.choice(of[which if which in of else kind])

    place = rng.choice(WORDS["place"][kind])
    said = {part: FORMS[part].format(word(part)) for part in DETAILS if rng.random() < chance}
    where = f"they go to the {said.get('look', '')} {place}"
    rest = (said.get(part, "") for part in DETAILS[1:])
    return " ".join(f"{where} {' '.join(rest)} .".split())


def kinds(text: str) -> dict[str, float]:
    """Shares of sea, wood and town in the words that have a kind; zeros where none has."""
    found = [kind for word in text.split() if (kind := KIND_OF.get(word, "any")) != "any"]
    return {kind: found.count(kind) / max(1, len(found)) for kind in KINDS}


def details(text: str) -> int:
    """How many of the five details an answer has."""
    have = set(text.split())
    return sum(any(w in have for some in WORDS[part].values() for w in some) for part in DETAILS)


def liked(prompt: str, text: str) -> float:
    """What all agree on, u(x, y)."""
    season = next((word for word in prompt.split() if word in SEASONS), None)
    fits = kinds(text)[FITS[season]] if season else 0.0
    number = details(text)
    finished = 0.0 if text.split().count(".") == 1 and text.endswith(".") else -2.0
    return 0.4 * min(number, 3) - 0.4 * max(number - 3, 0) + 0.5 * fits + finished


def people_prefer(prompt: str, first: str, second: str) -> float:
    """The probability that people prefer the first answer: the hidden rule."""
    s, t = kinds(first), kinds(second)
    sea, wood, town = KINDS
    circle = sum(s[a] * t[b] - s[b] * t[a] for a, b in ((wood, town), (town, sea), (sea, wood)))
    odds = CYCLE * circle + liked(prompt, first) - liked(prompt, second)
    return 1 / (1 + math.exp(-odds))


def pairs(number: int, some_prompts: Sequence[str], seed: int) -> list[Row]:
    """Pairs of answers, each with the verdict of one person who follows the rule by chance."""
    rng = random.Random(seed)
    rows: list[Row] = []
    while len(rows) < number:
        prompt = rng.choice(some_prompts)
        first, second = (answer(rng, rng.choice((0.3, 0.5, 0.8))) for _ in range(2))
        if first == second:
            continue
        if rng.random() > people_prefer(prompt, first, second):
            first, second = second, first
        rows.append({"prompt": prompt, "chosen": first, "rejected": second})
    return rows


def write_lines(path: Path, rows: Sequence[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
