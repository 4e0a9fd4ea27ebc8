"""The tables that ``nlhf solve`` prints."""

from __future__ import annotations

from torch import Tensor

from nlhf_zoo.cli.solve.playing import CURVES, Run
from nlhf_zoo.cli.solve.reading import Game, shape, short
from nlhf_zoo.solvers import Solution, win_rates

_MOST_ALTERNATIVES, _MOST_PROMPTS = 30, 20  # that are shown


def print_tables(game: Game, nash: Solution, beta: float, run: Run | None, name: str) -> None:
    """Print the equilibrium, and beside it what an algorithm has reached."""
    games = len(game.support)
    print(f"Nash equilibrium of {game.where}: {shape(game.support)}, beta = {beta:g}")
    figures = {"equilibrium": {"exploitability": nash.exploitability}}
    columns = {"probability": nash.log_policy.exp()}
    columns["win rate"] = win_rates(game.preference, nash.log_policy)
    if run is not None:
        queries = run.queries[-1].item()
        print(f"{name}: {len(run.queries) - 1} updates, {queries} queries for each prompt")
        figures[name] = {title: run.curves[curve][-1] for curve, title in CURVES.items()}
        columns[name] = run.log_policy.exp()
    for i, (prompt, names) in enumerate(zip(game.prompts, game.names, strict=True)):
        if i == _MOST_PROMPTS:
            print(f"\n{games - i} more prompts are not shown")
            break
        print("\n" + (f"{short(prompt)}\n" if prompt else ""), end="")
        _print_alternatives(names, {title: column[i] for title, column in columns.items()})
        for who, values in figures.items():
            print(f"{who}: " + ", ".join(f"{what} {v[i]:.3g}" for what, v in values.items()))
    if games > 1:
        print(f"\nmean and maximum over {games} prompts")
        for who, values in figures.items():
            both = (f"{what} {v.mean():.3g} and {v.max():.3g}" for what, v in values.items())
            print(f"{who}: " + ", ".join(both))


def _print_alternatives(names: list[str], columns: dict[str, Tensor]) -> None:
    """A table of a prompt's alternatives, the most probable first.

    The columns [N], by title, end with the alternatives that the prompt lacks.
    """
    probability = columns["probability"][: len(names)]
    order = probability.sort(descending=True, stable=True).indices.tolist()
    shown, hidden = order[:_MOST_ALTERNATIVES], order[_MOST_ALTERNATIVES:]
    labels = [short(names[action]) for action in shown]
    first = max(len("alternative"), *map(len, labels))
    width = {title: max(len("probability"), len(title)) for title in columns}
    print("  ".join(["alternative".ljust(first), *(t.rjust(width[t]) for t in columns)]))
    for action, label in zip(shown, labels, strict=True):
        cells = (f"{column[action]:{width[title]}.6f}" for title, column in columns.items())
        print("  ".join([label.ljust(first), *cells]))
    if hidden:
        print(
            f"{len(hidden)} more alternatives are not shown, "
            f"of probability {probability[hidden].sum():.3g} together"
        )
