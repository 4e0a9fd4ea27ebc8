"""Play the claims of the ledger, keep what comes out, and write the page.

python -m reproductions [PAPER | PAPER/CLAIM ...] [--reduced] [--page]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence

import torch

from nlhf_zoo import __version__
from nlhf_zoo.cli.quiet import quiet
from reproductions.ledger import Claim, Result, read_papers, read_results, write_results
from reproductions.page import PAGE, page


def play(claim: Claim, reduced: bool) -> Result:
    """One run."""
    begun = time.process_time()
    with quiet():
        figures = claim.measure(reduced)
    where = (
        f"nlhf_zoo {__version__}, torch {torch.__version__}, one thread of "
        f"{os.cpu_count()} cores, CPU ({platform.machine()})"
    )
    seconds = round(time.process_time() - begun, 1)
    return Result(claim.run, dict(claim.arguments), figures, seconds, where)


def keep(claim: Claim, result: Result) -> None:
    """Write a result beside those of the paper's other claims; of claims that are gone, none."""
    (paper,) = (paper for paper in read_papers() if paper.number == claim.paper)
    results = {**read_results(paper.number), claim.name: result}
    names = {each.name for each in paper.claims}
    write_results(paper.number, {name: results[name] for name in results if name in names})


def chosen(names: Sequence[str]) -> list[Claim]:
    """The claims that have runs and are named; all where nothing is.

    Raises:
        ValueError: a name is of no paper and no claim.
    """
    claims = [claim for paper in read_papers() for claim in paper.claims]
    for name in names:
        if not any(name in (claim.paper, claim.key) for claim in claims):
            raise ValueError(f'"{name}" is neither a paper nor a claim of configs/reproductions')
    named = [c for c in claims if not names or c.paper in names or c.key in names]
    return [claim for claim in named if claim.run]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m reproductions", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PAPER or PAPER/CLAIM")
    parser.add_argument("--reduced", action="store_true", help="short forms; nothing is kept")
    parser.add_argument("--page", action="store_true", help="write the page of what is kept, alone")
    given = parser.parse_args()
    try:
        claims = [] if given.page else chosen(given.names)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    for claim in claims:
        if given.reduced and claim.reduced is None:
            continue
        result = play(claim, given.reduced)
        told = ", ".join(f"{name} {value:.4g}" for name, value in result.figures.items())
        verdict = claim.verdict(result.figures)
        print(f"{claim.key}: {verdict} ({result.cpu_seconds:g} s)\n    {told}", flush=True)
        if not given.reduced:
            keep(claim, result)
    if not given.reduced:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
