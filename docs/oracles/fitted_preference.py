"""The table of docs/oracles/wrappers.md: what a fitted preference knows after so many answers.

Words of two to six letters of an alphabet of four are compared by a general preference with random
parameters; answers are labels drawn from it. Run ``python docs/oracles/fitted_preference.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from nlhf_zoo.oracles import Answer, FittedOracle, Question, TextOracle
from nlhf_zoo.solvers.fitted_preference import pair_features
from nlhf_zoo.text_models.features import HashedNgrams

FEATURES = HashedNgrams(size=12, longest=2)
BUDGETS = (100, 200, 400, 800)  # answers after which the model is looked at
TOGETHER = 40  # questions that come together
TALK = [{"role": "user", "content": "a word"}]


class Drawn(TextOracle):
    """Labels of a general preference whose parameters are drawn once."""

    def __init__(self) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(1)
        size = FEATURES.size * (FEATURES.size + 1) // 2
        self.parameters_drawn = 3 * torch.randn(size, generator=stream, dtype=torch.float64)
        self.labels = torch.Generator().manual_seed(2)

    def preference(self, questions: Sequence[Question]) -> torch.Tensor:
        """P(first > second) [n]."""
        return (described(questions) @ self.parameters_drawn).sigmoid()

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """A label of each."""
        self.count(questions)
        chance = self.preference(questions)
        drawn = torch.rand(len(chance), generator=self.labels, dtype=torch.float64)
        yield from enumerate((drawn < chance).double().tolist())

    @property
    def fingerprint(self) -> str:
        """There is one such oracle."""
        return "drawn"


def described(questions: Sequence[Question]) -> torch.Tensor:
    """Features of pairs."""
    first = [(q.prompt_key, q.first) for q in questions]
    second = [(q.prompt_key, q.second) for q in questions]
    return pair_features(FEATURES(first), FEATURES(second))


def questions(number: int, seed: int) -> list[Question]:
    """Pairs of different random words."""
    rng = random.Random(seed)
    found: list[Question] = []
    while len(found) < number:
        one, other = ("".join(rng.choices("abcd", k=rng.randint(2, 6))) for _ in range(2))
        if one != other:
            found.append(Question(TALK, one, other))
    return found


def right_sides(share: float, seed: int) -> list[float]:
    """Share of the sides of unseen pairs that the model gets right, after each budget."""
    oracle = FittedOracle(Drawn(), FEATURES, share=share, min_answers=60, seed=seed)
    unseen, call, found = questions(1000, 10**6), 0, []
    truth = oracle.oracle.preference(unseen) > 0.5
    for budget in BUDGETS:
        while oracle.oracle.ledger["queries"] < budget:
            list(oracle.answers(questions(TOGETHER, 10**4 * seed + call)))
            call += 1
        model = oracle.preferences(unseen)[0] > 0.5
        found.append((model == truth).double().mean().item())
    return found


def main() -> None:
    """Print the table."""
    print("| asked | " + " | ".join(f"{budget} answers" for budget in BUDGETS) + " |")
    print("|---|" + "---|" * len(BUDGETS))
    for share, what in ((0.25, "the quarter that is disputed"), (1.0, "all")):
        runs = torch.tensor([right_sides(share, seed) for seed in range(5)])
        cells = (f"{run.mean():.3f} ({run.min():.3f} to {run.max():.3f})" for run in runs.unbind(1))
        print(f"| {what} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
