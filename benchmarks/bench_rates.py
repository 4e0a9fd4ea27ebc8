"""Choose the learning rates of the benchmark's language part, a method at a time.

    python -m benchmarks.bench_rates [--folder runs/bench_rates]

Each method trains the language of 4 letters at each rate, on the part's own budget, from a seed
that ``nlhf bench`` never takes, so that nothing is chosen by what is reported. The rate with the
least mean exploitability, by the oracle that trained, is the method's. What it prints is the table
`nlhf_zoo.cli.bench.rates.LANGUAGE`; interrupted, it goes on by the same command.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from nlhf_zoo.cli.bench import language
from nlhf_zoo.cli.bench.methods import ours
from nlhf_zoo.cli.compare.command import compared
from nlhf_zoo.cli.compare.configuration import BudgetLimits, Configuration
from nlhf_zoo.cli.yaml_rules import dump

RATES = (0.001, 0.003, 0.01)
SEEDS = [2_000_000]  # nlhf bench takes none above a million
LETTERS = 4
QUERIES = 30_720


def main() -> None:
    """Print a table of the exploitability at each rate, and the table of the package."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_rates"))
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.yaml"
    base.write_text(dump({"model": language._model(LETTERS)}), encoding="utf-8")
    able = language._those_that_can(ours(), base, LETTERS)
    swept = [{"optimizer.lr": rate} for rate in RATES]
    results = compared(
        Configuration(
            output=folder,
            budget=BudgetLimits(queries=QUERIES),
            games={"language": {"oracle": language._oracle(LETTERS)}},
            algorithms={name: replace(own, choices=swept) for name, own in able.items()},
            seeds=SEEDS,
            betas=[language.BETA],
        )
    )
    print(f"| algorithm |{''.join(f' {rate:g} |' for rate in RATES)}")
    print(f"|---|{'---:|' * len(RATES)}")
    chosen = {}
    for name in able:
        own = [result for result in results if result.entry.algorithm == name]
        cells = [f"{result.figures('exploitability').mean():.4f}" for result in own]
        best = next(place for place, result in enumerate(own) if result.best)
        chosen[name] = RATES[best]
        cells[best] = f"**{cells[best]}**"
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nLANGUAGE = {")
    for name, rate in chosen.items():
        print(f'    "{name}": {rate:g},')
    print("}")


if __name__ == "__main__":
    main()
