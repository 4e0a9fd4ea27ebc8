"""What is found on language models: the small one, which is known exactly, and one of 10 M."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections import defaultdict
from pathlib import Path

from nlhf_zoo.cli.main import main as nlhf
from reproductions.ledger import ROOT, Figures

RUNS = ROOT / "runs" / "reproductions"


def comparison(config: str, queries: int | None = None) -> Path:
    """The folder of a comparison of configs/compare, which goes on where it was interrupted.

    One that has ended is played anew: its figures are of the code and the options of that time.
    """
    output = RUNS / f"{config}_{queries or 'own'}"
    budget = [] if queries is None else ["--budget.queries", str(queries)]
    path = ROOT / "configs" / "compare" / f"{config}.yaml"
    again = ["--overwrite"] if (output / "results.csv").is_file() else []
    nlhf(["compare", "--config", str(path), "--output", str(output), *budget, *again])
    return output


def exploitabilities(folder: Path) -> dict[str, dict[int, float]]:
    """Mean exploitability over the prompts of each seed that is reported, by method."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (folder / "results.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            found[row["algorithm"]][int(row["seed"])].append(float(row["exploitability"]))
    most = max(len(seeds) for seeds in found.values())
    return {
        name: {seed: statistics.fmean(each) for seed, each in seeds.items()}
        for name, seeds in found.items()
        if len(seeds) == most  # of a sweep the best value alone plays all seeds
    }


def share_of_the_best_rival(
    config: str, method: str, floor: float, factor: float, choosing: int, queries: int | None = None
) -> Figures:
    """A method's exploitability above what the language's adapters can reach, beside its rivals'.

    Each with the learning rate that was best on a seed that is not reported. `excess` is its mean
    over the seeds, `rival_excess` that of the best rival, by the same seeds. `difference` is the
    mean over the seeds of the method's less `factor` times the rival's, with the ends of Student's
    99 % interval.
    """
    from scipy.stats import t as student

    all_seeds = exploitabilities(comparison(config, queries))
    left = {
        name.partition(" (")[0]: {s: e - floor for s, e in seeds.items() if s != choosing}
        for name, seeds in all_seeds.items()
    }
    means = {name: statistics.fmean(seeds.values()) for name, seeds in left.items()}
    rival = min((name for name in means if name != method), key=means.__getitem__)
    differences = [left[method][seed] - factor * left[rival][seed] for seed in left[method]]
    mean, num = statistics.fmean(differences), len(differences)
    half = student.ppf(0.995, num - 1) * statistics.stdev(differences) / math.sqrt(num)
    return {
        "excess": means[method],
        "rival_excess": means[rival],
        "share": means[method] / means[rival],
        "difference": mean,
        "difference_low": mean - half,
        "difference_high": mean + half,
        "seeds": float(num),
        **{f"excess_of_{name.replace(' ', '_').replace('-', '_')}": m for name, m in means.items()},
    }


def ten_million(method: str) -> Figures:
    """A method on the 10 M model, read from the table of docs/ten_million.md.

    `win` is its mean win rate over the six other policies by the held-out oracle, with the ends of
    its 95 % interval; `lower` by how much it is less exploitable than the untrained model, with the
    ends of its interval; `exploitability` its own, `rival` the least of the others. One seed.
    """
    rows = {}
    number = r"([+-]?[\d.]+)"
    for line in (ROOT / "docs" / "ten_million.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and re.fullmatch(rf"{number} \({number} to {number}\)", cells[1]):
            rows[cells[0]] = cells[1:]
    exploitability = {name: float(cells[0].split()[0]) for name, cells in rows.items()}
    lower, half = map(float, rows[method][1].split(" ± "))
    win = [float(value) for value in re.findall(number, rows[method][4])]
    return {
        "win": win[0],
        "win_low": win[1],
        "win_high": win[2],
        "lower": lower,
        "lower_low": lower - half,
        "lower_high": lower + half,
        "exploitability": exploitability[method],
        "rival": min(value for name, value in exploitability.items() if name != method),
    }
