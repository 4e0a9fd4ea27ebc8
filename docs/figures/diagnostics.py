"""The example of docs/oracles/diagnostics.md: a judge that prefers the first place, and its figure.

python docs/figures/diagnostics.py
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

from nlhf_zoo.cli.main import main as nlhf

FOLDER = Path(__file__).parent
# The same four ways to answer each prompt: curt, kind, learned, long.
SAMPLES = {
    "Why is the sky blue?": [
        "Rayleigh scattering.",
        "Good question! Air scatters blue light more than red light.",
        "Scattering goes with the fourth power of the frequency.",
        "Sunlight has all colours, and air sends the blue part of it in all directions, so that "
        "blue comes from everywhere.",
    ],
    "How do I boil an egg?": [
        "Eight minutes.",
        "Happy to help! Put it into boiling water for eight minutes.",
        "Egg white sets at 62 degrees, yolk at 68.",
        "Bring water to the boil, lower the egg into it with a spoon, wait for eight minutes, then "
        "cool it in cold water.",
    ],
    "What is a prime?": [
        "A number with two divisors.",
        "Sure! It is a number that only 1 and itself divide.",
        "A positive integer that generates a prime ideal.",
        "It is a whole number above 1 that cannot be written as a product of two smaller ones, as "
        "7 cannot, and 6 can.",
    ],
}
# Curt beats learned, learned beats kind, and kind beats curt; the long response is a kind one.
KINDS = {text: kind for texts in SAMPLES.values() for kind, text in zip("CKLK", texts, strict=True)}
BEATS = {"CL": 1, "LK": 1, "KC": 1, "LC": -1, "KL": -1, "CK": -1}


def judge(prompt: str, first: str, second: str) -> float:
    """P(first > second): by kind, a little by length, and by who is first."""
    score = 1.2 * BEATS.get(KINDS[first] + KINDS[second], 0)
    score += 0.02 * (len(first) - len(second)) + 0.5
    return 1 / (1 + math.exp(-score))


def main() -> None:
    """Ask, print and draw."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        rows = [{"prompt": prompt, "responses": texts} for prompt, texts in SAMPLES.items()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        rule = ["--oracle", "RuleOracle", "--oracle.function", "diagnostics.judge"]
        rule += ["--oracle.check_symmetry", "false"]
        figure = ["--figure", str(FOLDER / "diagnostics.png")]
        nlhf(["oracle", *rule, "--responses", str(path), *figure])


if __name__ == "__main__":
    main()
