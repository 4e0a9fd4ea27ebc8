"""``nlhf bench``: a fixed set of games on which an algorithm is compared with all of ours.

docs/bench.md says what the parts are, and how results are submitted and checked.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Literal

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.cli.bench import exact, figure, results
from nlhf_zoo.cli.bench.checking import check as checked
from nlhf_zoo.cli.bench.games import BETAS, GAMES
from nlhf_zoo.cli.bench.methods import Method, ours
from nlhf_zoo.cli.bench.results import Figure
from nlhf_zoo.cli.parser import SentenceParser, with_values
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written

Part = Literal["exact"]
_QUERIES = {"exact": 200}
_MOST_SEED = 10**6


def main(args: list[str]) -> None:
    """Run ``nlhf bench`` with what stands behind it on the command line."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # for an algorithm of the user's own; last, so that it hides nothing
    title = "An algorithm beside all of ours, on a fixed set of games."
    parser = SentenceParser(prog="nlhf bench", description=title)
    parser.add_function_arguments(bench, skip={"algorithm", "arguments"})
    help = "one more algorithm, such as my_module.Mine"
    parser.add_argument("--algorithm", type=PolicyOptimizer, help=help)
    config = parser.parse_args(with_values(args, ("--allow_code", "--overwrite")))
    arguments = parser.dump(config, format="json", skip_unset=False)
    try:
        parts = parser.instantiate(config)
    except ValueError as error:
        raise UserError(f"--algorithm: {error}") from error
    bench(**parts, arguments=arguments)


def bench(
    part: Part = "exact",
    seeds: list[int] = [0, 1, 2, 3, 4],  # noqa: B006  # which is only read
    queries: int | None = None,
    algorithm: PolicyOptimizer | None = None,
    output: Path = Path("bench"),
    check: Path | None = None,
    allow_code: bool = False,
    overwrite: bool = False,
    arguments: str = "{}",
) -> None:
    """Play a part of the benchmark, print its table, and write table, figure and results.

    Args:
        part: exact, tables in closed form.
        seeds: of the games; intervals are over them.
        queries: budget of each method, for each game; the part's own if not given.
        algorithm: one more algorithm, such as my_module.Mine.
        output: a folder for results.json, table.md and figure.png.
        check: a file of results, which is played again and compared; nothing is written.
        allow_code: run code that such a file names, besides that of nlhf_zoo.
        overwrite: whether earlier results in the output folder are replaced.
        arguments: the arguments as they were given, in JSON.
    """
    if check is not None:
        if not checked(check, allow_code, _again):
            raise SystemExit(1)
        return
    queries = _QUERIES[part] if queries is None else queries
    _refuse(seeds, queries, output, overwrite)
    methods = ours()
    if algorithm is not None:
        own = Method(type(algorithm).__name__, json.loads(arguments)["algorithm"], algorithm)
        if not algorithm.closed_form:
            raise UserError(f"{own.name} has no closed form, which the exact part is played in")
        methods = [method for method in methods if method.name != own.name] + [own]
    methods = [method for method in methods if method.algorithm.closed_form]
    played = exact.play(methods, seeds, queries)
    figures = _figures(played)
    conditions = {f"β = {beta:g}": f"beta={beta:g}" for beta in BETAS}
    found = results.summaries(figures, conditions)
    text = _heading(seeds, queries) + results.table(found, list(conditions)) + "\n"
    content = results.content(part, methods, figures, seeds, queries)
    output.mkdir(exist_ok=True)
    figure.draw(played, {m.name: m.name for m in methods}, queries, output / "figure.png")
    for name, written_text in (("table.md", text), ("results.json", json.dumps(content))):
        with written(output / name) as beside:
            beside.write_text(written_text + "\n" * (name == "results.json"), encoding="utf-8")
    print(text)
    print(f"Table, figure and results: {output}/")


def _again(part: str, methods: list[Method], seeds: list[int], queries: int) -> list[Figure]:
    """A part, played as a file of results says."""
    if part not in _QUERIES:
        raise UserError(f"there is no part {part!r}: the file is of another version")
    _refuse_numbers(seeds, queries)
    return _figures(exact.play(methods, seeds, queries))


def _figures(played: list[exact.Played]) -> list[Figure]:
    return [
        Figure(one.method, f"{game}, beta={one.beta:g}", seed, value)
        for one in played
        for (game, seed), value in one.final.items()
    ]


def _heading(seeds: list[int], queries: int) -> str:
    return (
        f"Exploitability after {queries:,} queries a game: geometric mean over {len(GAMES)} "
        f"games and {len(seeds)} seeds,\nwith the interval that holds the mean of as many other "
        f"seeds in {results.LEVEL:.0%} of cases; the worst; games below {results.SOLVED:g}.\n\n"
    )


def _refuse(seeds: list[int], queries: int, output: Path, overwrite: bool) -> None:
    """Refuse what cannot be played or written."""
    _refuse_numbers(seeds, queries)
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file: give the name of a folder")
    if (output / "results.json").exists() and not overwrite:
        raise UserError(f"--output {output} has results: give another folder, or --overwrite")


def _refuse_numbers(seeds: list[int], queries: int) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= s <= _MOST_SEED for s in seeds):
        raise UserError(
            f"--seeds must be different whole numbers from 0 to {_MOST_SEED:,}, at least one, but "
            f"they are {seeds}"
        )
    if not 10 <= queries <= 100_000:
        raise UserError(f"--queries must lie between 10 and 100,000, but it is {queries}")
