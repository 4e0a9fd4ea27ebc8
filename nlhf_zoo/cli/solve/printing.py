"""What ``nlhf solve`` prints: a table for each prompt, its certificate, and what else is known."""

from __future__ import annotations

from torch import Tensor

from nlhf_zoo.cli.solve import bootstrap, reading, structure
from nlhf_zoo.cli.solve.playing import CURVES
from nlhf_zoo.cli.solve.solved import Solved
from nlhf_zoo.solvers import Solution
from nlhf_zoo.solvers.payoffs import PayoffName

_SEVERAL = (
    "not unique: the nearest of several to the reference, the limit of small beta; all of them are "
    "a set of dimension {}, each probability between least and most"
)
_BEGINNING = 24  # characters of an answer, where several stand in a line
_MOST_PROMPTS = 20  # that are shown


def title_of(beta: float, payoff: PayoffName) -> str:
    """What is solved, in words."""
    return f"beta = {beta:g}" + ("" if payoff == "identity" else f", payoff {payoff}")


def print_tables(solved: Solved) -> None:
    """Print the equilibrium, beside it what an algorithm has reached, and what the wins say."""
    game, nash, run = solved.game, solved.nash, solved.run
    games = len(game.support)
    shape = reading.shape(game.support)
    print(f"Nash equilibrium of {game.where}: {shape}, {title_of(solved.beta, solved.payoff)}")
    figures = {"equilibrium": {"exploitability": nash.exploitability}}
    columns = {"probability": nash.log_policy.exp()}
    columns[solved.of_rates] = solved.rates
    if game.shares is not None and not game.is_uniform:
        columns["share"] = game.shares
    if run is not None:
        asked = sorted({*run.queries[-1].flatten().tolist()})
        queries = f"{asked[0]}" if len(asked) == 1 else f"{asked[0]} to {asked[-1]}"
        name = solved.algorithm
        print(f"{name}: {len(run.queries) - 1} updates, {queries} queries for each prompt")
        figures[name] = {title: run.curves[curve][-1] for curve, title in CURVES.items()}
        columns[name] = run.log_policy.exp()
    if solved.bootstrap is not None:
        columns |= bootstrap.columns_of(solved.bootstrap, solved.beta)
        print("\n".join(bootstrap.sentences(solved.bootstrap)))
    for i, prompt in enumerate(game.prompts):
        if i == _MOST_PROMPTS:
            print(f"\n{games - i} more prompts are not shown")
            break
        print("\n" + (f"{reading.short(prompt)}\n" if prompt else ""), end="")
        own = dict(columns)
        if not nash.unique[i]:
            own |= dict(zip(("least", "most"), solved.ends, strict=True))
        reading.print_alternatives(game.names[i], {what: values[i] for what, values in own.items()})
        for who, values in figures.items():
            print(f"{who}: " + ", ".join(f"{what} {v[i]:.3g}" for what, v in values.items()))
        print("\n".join(_sentences(solved, i)))
    if games > 1:
        _print_all(nash, figures)


def _sentences(solved: Solved, number: int) -> list[str]:
    """What is to be said of a prompt."""
    nash, names = solved.nash, solved.game.names[number]
    if solved.game.shares is not None:  # answers, whose beginnings are many words
        names = [reading.short(name, _BEGINNING) for name in names]
    said = [] if nash.unique[number] else [_SEVERAL.format(nash.dimension[number])]
    said += structure.sentences(solved.structure, number, names)
    if solved.bootstrap is not None:
        said += bootstrap.sentences(solved.bootstrap, number)
    return said


def _print_all(nash: Solution, figures: dict[str, dict[str, Tensor]]) -> None:
    """The means and maxima over prompts."""
    games = len(nash.dimension)
    print(f"\nmean and maximum over {games} prompts")
    for who, values in figures.items():
        both = (f"{what} {v.mean():.3g} and {v.max():.3g}" for what, v in values.items())
        print(f"{who}: " + ", ".join(both))
    if several := int((~nash.unique).sum()):
        print(f"{several} of {games} prompts have several equilibria")
