"""The results of a tournament as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from nlhf_zoo.cli.tournament.standings import Standings
from nlhf_zoo.solvers.ratings import Array

_LONGEST = 32  # characters of a name in print
_MATRIX = 12  # entrants up to which the win matrix is printed
_INTERVAL = "95 %"


def standings_rows(found: Standings) -> list[list[str]]:
    """The table of entrants, the best first, as cells; its header is the first row."""
    header = ["entrant", "win rate", _INTERVAL, "Bradley-Terry", _INTERVAL, "Elo", "Nash average"]
    header += ["in resamples", "characters", "at equal length"]
    rows = [header]
    several = not found.nash.unique
    for i in found.order:
        nash = f"{found.nash.probability[i]:.3f}"
        if several:
            nash += f" ({found.nash.low[i]:.3f} to {found.nash.high[i]:.3f})"
        rows.append(
            [
                short(found.names[i]),
                _number(found.rate[i], ".3f"),
                _interval(found.rate_interval, i, ".3f"),
                _number(found.rating[i], "+.2f"),
                _interval(found.rating_interval, i, "+.2f"),
                _number(found.elo[i], ".0f"),
                nash,
                _number(found.nash_played[i], ".0%"),
                _number(found.length[i], ".0f"),
                _number(found.controlled_rate[i], ".3f"),
            ]
        )
    return rows


def matrix_rows(found: Standings, intervals: bool) -> list[list[str]]:
    """The win matrix in the order of the ratings, row against column, with Wilson's intervals."""
    order = found.order
    rows = [["wins against", *(short(found.names[j]) for j in order)]]
    for i in order:
        cells = []
        for j in order:
            rate = _number(found.pairs.rate[i, j], ".2f")
            if intervals and rate != "-":
                rate += f" ({_interval(found.pairs.wilson, (i, j), '.2f')})"
            cells.append("" if i == j else rate)
        rows.append([short(found.names[i]), *cells])
    return rows


def sentences(found: Standings, prior: float, ended: str) -> list[str]:
    """What the tables do not say, a sentence each."""
    pairs = found.pairs
    judged, ties, invalid = (
        int(table.sum()) // 2 for table in (pairs.judged, pairs.ties, pairs.invalid)
    )
    cycles, triples = found.cycles
    share = f", {cycles / triples:.0%}" if triples else ""
    several = (
        ""
        if found.nash.unique
        else (
            "; it is one of several, the nearest to uniform, and the interval of each probability "
            "over all of them stands beside it"
        )
    )
    slope = found.controlled.slope
    taste = "longer" if slope > 0 else "shorter"
    lengths = (
        "Nothing determines win rates at equal length."
        if math.isnan(slope)
        else f"At equal quality the {taste} answer has odds of {math.exp(abs(slope)):.2f} to 1 "
        f"where lengths differ by {found.controlled.scale:.0f} characters, as they do on average "
        "(root mean square)."
    )
    clones = found.clones
    unmoved = max(clone.nash_average for clone in clones)
    most = max(range(len(clones)), key=lambda i: _or_zero(clones[i].elo))
    return [
        f"{judged} valid judgements, {ties} ties among them; {invalid} invalid answers, which "
        f"count for nobody: {ended}.",
        f"Each pair has {prior:g} pseudo-ties. Intervals are of 95 %, the wider of that of the "
        "model and of 1,000 resamples of the prompts.",
        f"{cycles} of {triples} triples of entrants are cycles{share}.",
        f"The Nash average is exploited by {found.nash.exploitability:.1e}{several}.",
        f"A clone of any one entrant would change the Nash average of others by {unmoved:.1e} at "
        f"most, and one of {short(found.names[most])} somebody's Elo by {clones[most].elo:.1f}.",
        lengths,
    ]


def text(rows: Sequence[Sequence[str]]) -> str:
    """A table in print: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    header, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *body))


def results_text(found: Standings, prior: float, ended: str) -> str:
    """Everything, in print."""
    parts = [text(standings_rows(found))]
    if len(found.names) <= _MATRIX:
        parts.append(text(matrix_rows(found, intervals=False)))
    parts.append("\n".join(sentences(found, prior, ended)) + "\n")
    return "\n".join(parts)


def results_markdown(found: Standings, title: str, prior: float, ended: str) -> str:
    """Everything, in Markdown."""
    parts = [
        f"# {title}\n",
        markdown(standings_rows(found)),
        "Win rates of rows against columns, with Wilson's intervals:\n",
        markdown(matrix_rows(found, intervals=True)),
        "\n".join(f"- {sentence}" for sentence in sentences(found, prior, ended)) + "\n",
        "![Ratings](ratings.png)\n\n![Win matrix](win_matrix.png)\n",
    ]
    return "\n".join(parts)


def results_csv(found: Standings) -> str:
    """One row an entrant, the best first."""
    columns: dict[str, Array] = {
        "win_rate": found.rate,
        "win_rate_low": found.rate_interval[0],
        "win_rate_high": found.rate_interval[1],
        "bradley_terry": found.rating,
        "bradley_terry_low": found.rating_interval[0],
        "bradley_terry_high": found.rating_interval[1],
        "elo": found.elo,
        "nash_average": found.nash.probability,
        "nash_average_low": found.nash.low,
        "nash_average_high": found.nash.high,
        "nash_average_played": found.nash_played,
        "mean_characters": found.length,
        "length_controlled_win_rate": found.controlled_rate,
    }
    rows: list[list[object]] = [
        ["rank", "entrant", *columns, "clone_changes_nash_average", "clone_changes_elo"]
    ]
    for rank, i in enumerate(found.order, 1):
        cells = [_cell(column[i]) for column in columns.values()]
        clone = found.clones[i]
        rows.append([rank, found.names[i], *cells, _cell(clone.nash_average), _cell(clone.elo)])
    return _csv(rows)


def pairs_csv(found: Standings) -> str:
    """One row a pair, the better entrant first."""
    pairs = found.pairs
    header = ["first", "second", "judged", "wins", "ties", "invalid", "win_rate"]
    header += ["wilson_low", "wilson_high", "bootstrap_low", "bootstrap_high"]
    header += ["length_controlled_win_rate"]
    rows: list[list[object]] = [[*header]]
    order = found.order
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            figures = [pairs.wins, pairs.ties, pairs.invalid, pairs.rate, *pairs.wilson]
            figures += [*pairs.bootstrap, found.controlled.rates]
            cells = [_cell(table[i, j]) for table in figures]
            rows.append([found.names[i], found.names[j], int(pairs.judged[i, j]), *cells])
    return _csv(rows)


def short(name: str) -> str:
    """A name on one line, and not too long a one: the end of a path says most."""
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return name if len(name) <= _LONGEST else "..." + name[3 - _LONGEST :]


def _csv(rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _cell(value: float) -> str:
    """A figure of a CSV: empty where it is unknown."""
    return "" if math.isnan(value) else f"{value:.10g}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _interval(ends: tuple[Array, Array], at: int | tuple[int, int], form: str) -> str:
    low, high = float(ends[0][at]), float(ends[1][at])
    return "-" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
