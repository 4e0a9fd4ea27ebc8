"""``nlhf solve --responses``: the game of some answers to a prompt, by any oracle."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo.cli.solve import reading
from nlhf_zoo.cli.solve.reading import Game
from nlhf_zoo.data.tables.files import require_memory
from nlhf_zoo.data.texts import DrawnResponses, read_drawn
from nlhf_zoo.data.texts.conversations import as_conversations, last_messages
from nlhf_zoo.errors import OracleStoppedError, UserError, shown
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.oracles.ledger import spent, summary
from nlhf_zoo.oracles.text_oracle import last_words
from nlhf_zoo.oracles.wrappers.transformed import Transformed
from nlhf_zoo.records import Prompts, Responses

Invalid = Literal["refuse", "leave_out"]

_PAIRS = 256  # that are put to the oracle at once, at least where there are so many
_CERTIFIED = 1e-9  # by which an answer may win more than half of its comparisons, by rounding


@dataclass(frozen=True, slots=True)
class Alternatives:
    """The different answers to a prompt."""

    prompt: DrawnResponses
    places: list[int]  # of each answer's first copy among those that were drawn [N]
    counts: list[int]  # how often each was drawn [N]

    @property
    def texts(self) -> list[str]:
        """The answers [N]."""
        return [self.prompt.texts[place] for place in self.places]

    @property
    def labels(self) -> list[str]:
        """A name for each: the file's own, or its number among those drawn and its beginning."""
        own = self.prompt
        return [own.names[i] or _label(i + 1, own.texts[i]) for i in self.places]

    def take(self, kept: Sequence[int]) -> Alternatives:
        """Some of them."""
        places, counts = ([row[i] for i in kept] for row in (self.places, self.counts))
        return Alternatives(self.prompt, places, counts)


@dataclass(frozen=True, slots=True)
class Judged:
    """The game of the answers, and what it took to know it."""

    game: Game
    alternatives: list[Alternatives]  # C, without those that were left out
    drawn: int  # answers of the file
    different: int  # of these, to their prompts
    asked: int  # pairs that the oracle was asked about
    invalid: int  # of these, pairs without an answer
    left_out: list[str]  # labels of the answers that were left out for it
    oracle: str  # its name
    draws: bool  # whether its answers are drawn
    cost: str  # what its ledgers say


def check_answers(
    path: Path | None,
    oracle: PreferenceOracle | None,
    invalid: Invalid,
    device: str,
    worst_case: bool,
) -> None:
    """Refuse what cannot judge answers, what cannot be done with them, and options without them."""
    if path is None:
        if oracle is not None or (invalid, device) != ("refuse", "auto"):
            raise UserError("--oracle, --invalid and --device are of answers: give --responses")
        return
    if oracle is None:
        raise UserError("--responses are judged by an oracle: give --oracle CLASS")
    if worst_case:
        raise UserError(
            "--worst_case is of files of several annotators: let each annotator's oracle judge the "
            "answers once, with --output, and give each file's array `preference` as a matrix"
        )
    if oracle.support is not None:
        raise UserError(
            f"{type(oracle).__name__} is an oracle of a table and judges no texts of a file: give "
            "an oracle of texts, such as RewardModelOracle, JudgeOracle or RuleOracle"
        )
    if any(isinstance(part, Transformed) for part in oracle.modules()):
        raise UserError(
            "Transformed pays something else than a preference: give the oracle inside it, and "
            "--payoff in its place"
        )


def judge_answers(
    path: Path | None,
    oracle: PreferenceOracle | None,
    invalid: Invalid,
    device: str,
    policies: Mapping[str, Path | None],
) -> Judged | None:
    """Ask an oracle about all pairs of the different answers to each prompt.

    Args:
        path: of the answers; nothing is asked without.
        oracle: who judges; of two answers it is asked once, the earlier one first.
        invalid: refuse a pair without an answer, or leave answers out until there is none.
        device: where the oracle lies.
        policies: files of probabilities, by what they are, which must fit before it is asked.

    Raises:
        UserError: the file cannot be read, there is nothing to compare, or a pair has no answer.
        OracleStoppedError: the oracle cannot be asked any more.
    """
    if path is None or oracle is None:
        return None
    from nlhf_zoo.cli.inputs import move  # slow to import, and no other game needs it

    reads_truncated = any(getattr(part, "reads_truncated", False) for part in oracle.modules())
    rows = [_alternatives(own, reads_truncated) for own in read_drawn(path)]
    drawn, different = (sum(sum(own.counts) for own in rows), sum(len(o.places) for o in rows))
    asked = sum(map(_num_pairs, rows))
    if not asked:
        raise UserError(f"{path} has one different answer to each prompt: nothing to compare")
    size = max(len(own.places) for own in rows)
    require_memory(16 * len(rows) * size**2, f"the table of {path} {[len(rows), size, size]}")
    for what, file in policies.items():
        halves = [torch.full((len(own.places),) * 2, 0.5) for own in rows]
        reading.read_log_policy(file, what, _game(path, rows, halves))
    move(oracle, device)
    oracle.eval()
    tables = _ask_about_all(oracle, rows)
    missing = sum(int(table.isnan().sum()) for table in tables) // 2
    left_out: list[str] = []
    if missing and invalid == "refuse":
        raise UserError(_incomplete(oracle, rows, tables, missing))
    if missing:
        kept = [_judged(table) for table in tables]
        for own, some in zip(rows, kept, strict=True):
            left_out += [label for i, label in enumerate(own.labels) if i not in some]
        rows = [own.take(some) for own, some in zip(rows, kept, strict=True)]
        tables = [table[some][:, some] for table, some in zip(tables, kept, strict=True)]
        if not any(map(_num_pairs, rows)):
            raise UserError(
                f"{type(oracle).__name__} has no answer to {missing} of {asked} pairs, too few for "
                f"a game{last_words(oracle)}"
            )
    return Judged(
        _game(path, rows, tables),
        rows,
        drawn,
        different,
        asked,
        missing,
        left_out,
        type(oracle).__name__,
        any(getattr(part, "draws_answers", False) for part in oracle.modules()),
        summary(spent(oracle)),
    )


def arrays_of_answers(judged: Judged | None) -> dict[str, Any]:
    """What the output file has beside the lottery; nothing without answers."""
    if judged is None:
        return {}
    several = len(judged.alternatives) > 1
    texts = [own.texts for own in judged.alternatives]
    return {
        "preference": judged.game.preference.numpy()[slice(None) if several else 0],
        # In JSON: an array of texts takes the length of the longest for each, and drops NULs.
        "responses": json.dumps(texts if several else texts[0]),
        "prompts": json.dumps([own.prompt.prompt for own in judged.alternatives]),
    }


def print_before(judged: Judged | None) -> None:
    """Print what was asked, and what is left out of the game."""
    if judged is None:
        return
    print(f"{judged.drawn:,} answers, {judged.different:,} of them different")
    pairs = f"{judged.asked:,} pairs, {judged.invalid:,} of them without an answer"
    print(f"{judged.oracle} was asked about {pairs}: {judged.cost}")
    if judged.left_out:
        print("Left out, as some of their pairs have no answer: " + "; ".join(judged.left_out))


def print_after(judged: Judged | None, rates: Tensor, beta: float, against: str) -> None:
    """Print what the lottery is worth against the answers, which get those rates [C, N]."""
    if judged is None:
        return
    best = float(rates.masked_fill(~judged.game.support, -torch.inf).amax())
    if best <= 0.5 + _CERTIFIED:
        print("The lottery loses to none of these answers.")
    else:
        print(
            f"The best of these answers has a {against} of {best:.6f} against the lottery, which "
            f"beta = {beta:g} keeps near their shares: with --beta 0 it loses to none of them."
        )
    if judged.draws:
        print(
            f"{judged.oracle} draws its answers: what is certified is the game of these draws, one "
            "for each pair, and not that of the probabilities behind them."
        )


def _alternatives(drawn: DrawnResponses, reads_truncated: bool) -> Alternatives:
    """The different ones: whether one was cut makes it another where the oracle reads this."""
    places: dict[tuple[str, bool], int] = {}
    counts: dict[tuple[str, bool], int] = {}
    for place, (text, cut) in enumerate(zip(drawn.texts, drawn.truncated, strict=True)):
        key = text, cut and reads_truncated
        places.setdefault(key, place)
        counts[key] = counts.get(key, 0) + 1
    return Alternatives(drawn, [*places.values()], [*counts.values()])


def _label(number: int, text: str) -> str:
    """A number and the beginning of a text; of one that shows nothing, what it is."""
    return reading.short(f"{number}: {text if text.strip() else repr(text)}")


def _num_pairs(own: Alternatives) -> int:
    return len(own.places) * (len(own.places) - 1) // 2


@torch.no_grad()
def _ask_about_all(oracle: PreferenceOracle, rows: Sequence[Alternatives]) -> list[Tensor]:
    """P(y > y') of the answers to each prompt, float64 [N, N]; NaN without an answer."""
    total, missing = sum(map(_num_pairs, rows)), 0
    sizes = [len(own.places) for own in rows]
    tables = [torch.full((size, size), 0.5, dtype=torch.float64) for size in sizes]
    with tqdm(desc="judging", total=total, unit=" pairs", delay=1, file=sys.stderr) as bar:
        for numbers, block in _parts(sizes):
            try:
                found = _ask(oracle, [rows[number] for number in numbers], block)
            except OracleStoppedError as stopped:
                raise OracleStoppedError(
                    f"{stopped}; {bar.n} of {total} pairs were judged, and a game has all"
                ) from stopped
            for number, answers in zip(numbers, found, strict=True):
                table, size = tables[number], sizes[number]
                for i in range(block.start, min(block.stop, size - 1)):
                    # The upper triangle alone: both orders of a pair are the oracle's matter.
                    row = answers[i - block.start, i + 1 - block.start : size - block.start]
                    table[i, i + 1 :], table[i + 1 :, i] = row, 1 - row
                    missing += int(row.isnan().sum())
                    bar.update(len(row))
            bar.set_postfix(invalid=missing, refresh=False)
    return tables


def _parts(sizes: Sequence[int]) -> Iterator[tuple[list[int], range]]:
    """Numbers of prompts that are asked about together, and which of their answers, by places.

    Those answers are compared with each other and with all later ones.
    """
    part: list[int] = []
    pairs = 0
    for number, size in enumerate(sizes):
        own = size * (size - 1) // 2
        if part and pairs + own > _PAIRS:
            yield part, range(max(sizes[one] for one in part))
            part, pairs = [], 0
        if own > _PAIRS:
            step = max(1, _PAIRS // size)
            for start in range(0, size - 1, step):
                yield [number], range(start, min(start + step, size))
        else:
            part.append(number)
            pairs += own
    if part:
        yield part, range(max(sizes[one] for one in part))


def _ask(oracle: PreferenceOracle, rows: Sequence[Alternatives], block: range) -> Tensor:
    """P of some answers against these and all later ones, float64; NaN where it is invalid."""
    prompts = [own.prompt.prompt for own in rows]
    size = max(len(own.places) for own in rows)
    talks = as_conversations(prompts)
    asked = Prompts(torch.arange(len(rows)), text=last_messages(prompts), conversations=talks)
    first, second = _responses(rows, block), _responses(rows, range(block.start, size))
    comparison = oracle(asked, first, second)
    preference: Tensor = comparison.preference.double().cpu()
    return preference.masked_fill(~comparison.valid.cpu(), torch.nan)


def _responses(rows: Sequence[Alternatives], chosen: range) -> Responses:
    """Some answers to each prompt; one that has fewer has its first one again, which is free."""
    places = [[(own.places[i : i + 1] or own.places[:1])[0] for i in chosen] for own in rows]
    tokens = torch.zeros(len(rows), len(chosen), 1, dtype=torch.long)
    weight = torch.full(tokens.shape[:2], 1 / len(chosen), dtype=torch.float64)
    both = [*zip(rows, places, strict=True)]
    return Responses(
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        weight,
        text=[[own.prompt.texts[i] for i in some] for own, some in both],
        truncated=torch.tensor([[own.prompt.truncated[i] for i in some] for own, some in both]),
    )


def _judged(table: Tensor) -> list[int]:
    """Answers of which all pairs have one: the one with the most that have none goes first."""
    kept = torch.arange(len(table))
    while len(kept) and (missing := table[kept][:, kept].isnan().sum(1)).any():
        worst = len(kept) - 1 - int(missing.flip(0).argmax())  # of several the last
        kept = torch.cat([kept[:worst], kept[worst + 1 :]])
    return kept.tolist()


def _incomplete(
    oracle: PreferenceOracle, rows: Sequence[Alternatives], tables: Sequence[Tensor], missing: int
) -> str:
    number = next(c for c, table in enumerate(tables) if table.isnan().any())
    one, other = (shown(rows[number].texts[i]) for i in tables[number].isnan().nonzero()[0])
    return (
        f"{type(oracle).__name__} has no answer to {missing} of {sum(map(_num_pairs, rows))} "
        f"pairs, such as {one} and {other}{last_words(oracle)}: ask again, through a CachedOracle "
        "so that nothing is paid twice, or give --invalid leave_out"
    )


def _game(path: Path, rows: Sequence[Alternatives], tables: Sequence[Tensor]) -> Game:
    """The tables as one game, whose reference are the shares of the answers that were drawn."""
    sizes = torch.tensor([len(table) for table in tables])
    size = int(sizes.max())
    preference = torch.full((len(tables), size, size), 0.5, dtype=torch.float64)
    shares = torch.zeros(len(tables), size, dtype=torch.float64)
    for number, (own, table) in enumerate(zip(rows, tables, strict=True)):
        num = len(table)
        preference[number, :num, :num] = table
        counts = torch.tensor(own.counts, dtype=torch.float64)
        shares[number, :num] = counts / counts.sum()
    titles = last_messages([own.prompt.prompt for own in rows])
    support = torch.arange(size) < sizes[:, None]
    return Game(preference, support, [own.labels for own in rows], titles, path, shares)
