"""``nlhf bench``: a fixed set of games on which an algorithm is compared with all of ours.

docs/bench.md says what the parts are, and how results are submitted and checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.cli.bench import exact, figure, results
from nlhf_zoo.cli.bench.checking import Here
from nlhf_zoo.cli.bench.checking import check as checked
from nlhf_zoo.cli.bench.games import VOTES
from nlhf_zoo.cli.bench.methods import Method, ours
from nlhf_zoo.cli.bench.played import Played
from nlhf_zoo.cli.parser import SentenceParser, find_own_code, with_values
from nlhf_zoo.errors import UserError, nearest
from nlhf_zoo.files import written
from nlhf_zoo.solvers.sampled import LEAST_EFFECTIVE


class _Part(NamedTuple):
    """What a part's numbers are.

    Args:
        queries: the budget, where none is given; see ``least`` and ``most``.
        least: the smallest budget.
        most: the largest.
        unit: of queries.
        relative: how far a figure may differ where it is played again. Machines round differently,
            and training carries that on.
        trains: whether methods have learning rates there.
        seeds: where none are given.
        geometric: whether means of exploitability are geometric; else figures are estimates, which
            may be negative.
    """

    queries: int
    least: int
    most: int
    unit: str
    relative: float
    trains: bool = True
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    geometric: bool = True


_PARTS = {
    "exact": _Part(200, 10, 100_000, "queries a game", 1e-3, trains=False),
    "language": _Part(30_720, 2_048, 10_000_000, "queries a prompt", 0.05),
    "ten_million": _Part(
        2_048, 128, 10_000_000, "queries a prompt", 0.05, seeds=(0,), geometric=False
    ),
}
_MOST_SEED = 10**6


def main(args: list[str]) -> None:
    """Run ``nlhf bench`` with what stands behind it on the command line."""
    find_own_code()
    title = "An algorithm beside all of ours, on a fixed set of games."
    parser = SentenceParser(prog="nlhf bench", description=title)
    parser.add_function_arguments(bench, skip={"algorithm", "arguments"})
    help = "one more algorithm, such as my_module.Mine"
    parser.add_argument("--algorithm", type=PolicyOptimizer, help=help)
    config = parser.parse_args(with_values(args, ("--allow_code", "--overwrite", "--small")))
    arguments = parser.dump(config, format="json", skip_unset=False)
    try:
        parts = parser.instantiate(config)
    except ValueError as error:
        raise UserError(f"--algorithm: {error}") from error
    bench(**parts, arguments=arguments)


def bench(
    part: Literal["exact", "language", "ten_million"] = "exact",
    seeds: list[int] | None = None,
    queries: int | None = None,
    small: bool = False,
    beside: list[str] | None = None,
    algorithm: PolicyOptimizer | None = None,
    rate: float | None = None,
    output: Path = Path("bench"),
    check: Path | None = None,
    allow_code: bool = False,
    overwrite: bool = False,
    arguments: str = "{}",
) -> None:
    """Play a part of the benchmark, print its table, and write table, figure and results.

    Args:
        part: exact, tables in closed form; language, a small language model by gradients; or
            ten_million, one of 10.7 M parameters against a general preference model.
        seeds: of the games, or of the runs; intervals are over them. Five if not given; of
            ten_million one.
        queries: budget of each method, for each game or prompt; the part's own if not given.
        small: the smallest setting, to see that it runs: few games, or the smaller model.
        beside: the names of ours that are played, such as [NashMP, OnlineIPO]; all if not given.
        algorithm: one more algorithm, such as my_module.Mine.
        rate: learning rate of that one, where the part trains; 0.003 if not given, of ten_million
            0.001.
        output: a folder for results.json, table.md and figure.png.
        check: a file of results, which is played again and compared; nothing is written.
        allow_code: run code that such a file names, besides that of nlhf_zoo.
        overwrite: whether earlier results in the output folder are replaced.
        arguments: the arguments as they were given, in JSON.
    """
    if check is not None:
        _refuse_beside_check(
            {
                "--part": part != "exact",
                "--seeds": seeds is not None,
                "--queries": queries is not None,
                "--small": small,
                "--beside": beside is not None,
                "--algorithm": algorithm is not None,
                "--rate": rate is not None,
            }
        )
        if not checked(check, allow_code, _again):
            raise SystemExit(1)
        return
    queries = _PARTS[part].queries if queries is None else queries
    seeds = [*_PARTS[part].seeds] if seeds is None else seeds
    _refuse(part, seeds, queries, output, overwrite)
    _refuse_rate(part, rate, algorithm)
    if not beside and beside is not None and algorithm is None:
        raise UserError("--beside names none, and there is no --algorithm: name one at least")
    methods = _chosen(ours(), beside)
    if algorithm is not None:
        own = Method(type(algorithm).__name__, json.loads(arguments)["algorithm"], algorithm, rate)
        methods = [method for method in methods if method.name != own.name] + [own]
        if part == "exact" and not algorithm.closed_form:
            raise UserError(f"{own.name} has no closed form, which the exact part is played in")
        if algorithm.by_score:
            raise UserError(f"{own.name} takes scores of single responses, and the games have none")
    output.mkdir(exist_ok=True)
    played, evidence = _play(part, small, methods, seeds, queries, output / "runs", overwrite)
    figures = [each for one in played for each in one.figures]
    conditions = list(dict.fromkeys(one.condition for one in played))
    geometric = _PARTS[part].geometric
    found = results.summaries(figures, conditions, geometric)
    text = _heading(part, seeds, queries) + results.table(found, conditions, geometric) + "\n"
    named = {one.method for one in played}
    methods = [method for method in methods if method.name in named]
    content = results.content(part, small, methods, figures, seeds, queries, evidence)
    figure.draw(played, found, geometric, queries, _PARTS[part].unit, output / "figure.png")
    for name, lines in (("table.md", text), ("results.json", json.dumps(content) + "\n")):
        with written(output / name) as place:
            place.write_text(lines, encoding="utf-8")
    print(text)
    print(f"Table, figure and results: {output}/")


def _play(
    part: str,
    small: bool,
    methods: list[Method],
    seeds: list[int],
    queries: int,
    runs: Path,
    overwrite: bool,
) -> tuple[list[Played], results.Evidence]:
    """Play a part: what was played, and the files that its figures are computed from."""
    if part == "exact":
        return exact.play(methods, seeds, queries, small), {}
    if part == "ten_million":
        from nlhf_zoo.cli.bench.ten_million import part as ten_million

        return ten_million.play(methods, seeds, queries, runs, overwrite, small)
    from nlhf_zoo.cli.bench import language  # which imports Lightning

    return language.play(methods, seeds, queries, runs, overwrite, small), {}


def _again(found: Mapping[str, Any], methods: list[Method], folder: Path) -> Here:
    """A part, played as a file of results says, or computed from the responses that it keeps."""
    part, small, seeds, queries = (found[key] for key in ("part", "small", "seeds", "queries"))
    if part not in _PARTS:
        raise UserError(f"there is no part {part!r}: the file is of another version")
    _refuse_numbers(part, seeds, queries)
    relative = _PARTS[part].relative
    if part == "ten_million":
        from nlhf_zoo.cli.bench.ten_million.part import NOT_CHECKED, check_evidence

        names = [method.name for method in methods]
        figures, wrong = check_evidence(found["evidence"], names, seeds, folder, small)
        return Here(figures, relative, wrong, NOT_CHECKED)
    with TemporaryDirectory() as runs:
        played, _ = _play(part, small, methods, seeds, queries, Path(runs), overwrite=False)
    return Here([each for one in played for each in one.figures], relative)


def _heading(part: str, seeds: list[int], queries: int) -> str:
    budget = f"after {queries:,} {_PARTS[part].unit}"
    number = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    if part == "ten_million":
        return (
            f"Exploitability {budget}, estimated on held-out prompts, {number}: by the "
            "oracle that\ntrained, and by a held-out one; and the latter's win rates over the "
            "reference and the others. ESS is the\nleast effective sample size: below "
            f"{LEAST_EFFECTIVE:g} the samples cannot tell, and nothing is claimed.\n\n"
        )
    return (
        f"Exploitability {budget}: geometric mean over all games and "
        f"{number},\nwith the interval that holds the mean of as many other seeds in "
        f"{results.LEVEL:.0%} of cases; the worst; games below {results.SOLVED:g}; and held-out, "
        f"the\nsame of what {VOTES} votes on each pair have trained.\n\n"
    )


def _refuse(part: str, seeds: list[int], queries: int, output: Path, overwrite: bool) -> None:
    """Refuse what cannot be played or written."""
    _refuse_numbers(part, seeds, queries)
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file: give the name of a folder")
    if (output / "results.json").exists() and not overwrite:
        raise UserError(f"--output {output} has results: give another folder, or --overwrite")


def _chosen(methods: list[Method], names: list[str] | None) -> list[Method]:
    """Those of our methods that are named; all where none are."""
    if names is None:
        return methods
    known = [method.name for method in methods]
    for name in names:
        if name not in known:
            raise UserError(f"--beside: there is no algorithm {name!r}{nearest(name, known)}")
    return [method for method in methods if method.name in names]


def _refuse_rate(part: str, rate: float | None, algorithm: PolicyOptimizer | None) -> None:
    if rate is None:
        return
    if not (0 < rate < math.inf):
        raise UserError(f"--rate must be a finite number above 0, but it is {rate}")
    if algorithm is None or not _PARTS[part].trains:
        raise UserError(
            "--rate is that of the algorithm that --algorithm names, in a part that trains: "
            "leave it out"
        )


def _refuse_beside_check(given: Mapping[str, bool]) -> None:
    """Refuse options that a check would leave unread."""
    if others := [name for name, is_given in given.items() if is_given]:
        raise UserError(f"--check plays what its file says: leave {others[0]} out")


def _refuse_numbers(part: str, seeds: list[int], queries: int) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= s <= _MOST_SEED for s in seeds):
        raise UserError(
            f"--seeds must be different whole numbers from 0 to {_MOST_SEED:,}, at least one, but "
            f"they are {seeds}"
        )
    least, most = _PARTS[part].least, _PARTS[part].most
    if not least <= queries <= most:
        raise UserError(f"--queries must lie between {least:,} and {most:,}, but it is {queries}")
