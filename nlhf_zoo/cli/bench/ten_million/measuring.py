"""What a run's policy answers to held-out prompts, as it is kept, and what two oracles say of it.

Figures are computed from the kept files alone, when they are made and when they are checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo.cli.bench.results import EFFECTIVE, EXPLOITABILITY, HELD_OUT
from nlhf_zoo.cli.bench.ten_million import making
from nlhf_zoo.cli.bench.ten_million.setting import Setting
from nlhf_zoo.cli.policies import load_policy
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.game.certifying import DrawnResponses, draw_responses, judged_exploitability
from nlhf_zoo.oracles import GeneralPreferenceModelOracle
from nlhf_zoo.records import Prompts, Responses
from nlhf_zoo.records.random_streams import random_stream

OF_REFERENCE, OF_OTHERS = "wins over reference", "wins over others"
MEASURES = (EXPLOITABILITY, HELD_OUT, OF_REFERENCE, OF_OTHERS, EFFECTIVE)
FILE = "responses.jsonl"
Oracles = Mapping[str, GeneralPreferenceModelOracle]


def keep(folder: Path, seed: int, setting: Setting) -> None:
    """Draw a run's responses to the held-out prompts, score them, and write them beside it."""
    asked = setting.asked()
    player = load_policy(str(folder), allow_code=True)  # which is what was run just now
    with written(folder / FILE) as beside, beside.open("w", encoding="utf-8") as file:
        for number in range(len(asked)):
            rng = random_stream(seed, 0, number, asked.ids.device, "certificate")
            one = player.policy.encode(asked.take([number]))
            drawn = draw_responses(player, player.reference, one, setting.plan, rng)
            row = {
                "responses": _texts(drawn.scored),
                "log_ratio": drawn.log_ratio[0].tolist(),
                "from_reference": drawn.from_reference,
                "opponents": _texts(drawn.opponents),
            }
            file.write(json.dumps(row) + "\n")


def _texts(responses: Responses) -> list[tuple[str, bool]]:
    """Each response to the first prompt, and whether it was cut."""
    assert responses.text is not None
    cut = responses.truncated
    row = [False] * responses.num if cut is None else cut[0].tolist()
    return list(zip(responses.text[0], row, strict=True))


@dataclass(frozen=True, slots=True)
class Kept:
    """The responses of a run, as a file has them.

    Args:
        drawn: what estimates are made from.
    """

    drawn: DrawnResponses

    def some(self, num: int) -> tuple[Responses, Responses]:
        """The first so many responses of the reference, and of the policy's opponents."""
        scored, met = self.drawn.scored, self.drawn.opponents
        assert scored.text is not None
        assert met.text is not None
        number = min(num, self.drawn.from_reference)
        theirs, ours = (
            _responses([[(text, False) for text in row[:number]] for row in texts])
            for texts in (scored.text, met.text)
        )
        return theirs, ours


def read(path: Path, setting: Setting) -> Kept:
    """A run's responses.

    Raises:
        UserError: the file is not there, or damaged.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        scored = _responses([row["responses"] for row in rows])
        ratio = torch.tensor([row["log_ratio"] for row in rows], dtype=torch.float64)
        half = {int(row["from_reference"]) for row in rows}
        met = _responses([row["opponents"] for row in rows])
        number = setting.prompts, setting.responses
        shapes = {(*one.weight.shape,) for one in (scored, met)} | {(*ratio.shape,)}
        if shapes != {number} or half != {setting.responses // 2}:
            raise ValueError(f"its numbers of prompts and responses are not {number}")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no file of responses of nlhf bench: {error}") from error
    return Kept(DrawnResponses(scored, met, ratio, half.pop()))


def _responses(rows: Sequence[Sequence[Any]]) -> Responses:
    """Texts as responses; the tokens that drew them are not known any more."""
    blank = torch.zeros(len(rows), len(rows[0]), 1, dtype=torch.long)
    return Responses(
        blank,
        blank.bool(),
        torch.full(blank.shape[:2], 1 / blank.shape[1]),
        text=[[str(text) for text, _ in row] for row in rows],
        truncated=torch.tensor([[bool(cut) for _, cut in row] for row in rows]),
    )


def figures(
    entrants: Mapping[str, Kept | None], oracles: Oracles, setting: Setting
) -> dict[str, dict[str, float]]:
    """Figures of the methods of one seed, by method and measure.

    Args:
        entrants: what each method's policy answered; None of one that has left the numbers.
        oracles: by `making.TRAINING` and `making.HELD_OUT`.
        setting: how it was measured.
    """
    asked = setting.asked()
    found = {name: dict.fromkeys(MEASURES, math.nan) for name in entrants}
    there = {name: kept for name, kept in entrants.items() if kept is not None}
    for name, own in found.items():
        if name not in there:
            own[EXPLOITABILITY] = own[HELD_OUT] = math.inf
            continue
        least = []
        for measure, oracle in ((EXPLOITABILITY, making.TRAINING), (HELD_OUT, making.HELD_OUT)):
            judged = judged_exploitability(
                there[name].drawn, oracles[oracle], asked, setting.plan
            ).estimates
            own[measure] = judged.value.mean().item()
            least.append(judged.effective.min().item())
        own[EFFECTIVE] = min(least)
    held_out = oracles[making.HELD_OUT]
    for name, rate in _over_others(there, held_out, asked, setting.met).items():
        found[name][OF_OTHERS] = rate
    for name, kept in there.items():
        theirs, ours = kept.some(setting.met)
        lost = held_out.compare_all(asked, theirs, ours)
        found[name][OF_REFERENCE] = 1 - _mean(lost.preference, lost.valid)
    return found


def _over_others(
    entrants: Mapping[str, Kept], oracle: GeneralPreferenceModelOracle, asked: Prompts, num: int
) -> dict[str, float]:
    """The mean win rate of each over each other; not known of one alone."""
    if len(entrants) < 2:
        return {}
    every = Responses.beside([kept.some(num)[1] for kept in entrants.values()])
    judged = oracle.compare_all(asked, every, every)
    each, size = every.num // len(entrants), len(entrants)

    def of_pairs(of: torch.Tensor) -> torch.Tensor:
        return of.view(len(asked), size, each, size, each).permute(1, 3, 0, 2, 4)

    preference, valid = of_pairs(judged.preference), of_pairs(judged.valid)
    return {
        name: sum(_mean(preference[i, j], valid[i, j]) for j in range(size) if j != i) / (size - 1)
        for i, name in enumerate(entrants)
    }


def _mean(preference: torch.Tensor, valid: torch.Tensor) -> float:
    """Of the answers that could be had."""
    return preference[valid].mean().item()
