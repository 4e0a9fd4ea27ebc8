"""What ``nlhf solve`` prints: a table for each prompt, its certificate, and what else is known."""

from __future__ import annotations

from torch import Tensor

from nlhf_zoo.cli.solve import reading
from nlhf_zoo.cli.solve.playing import CURVES, Run
from nlhf_zoo.cli.solve.reading import Game
from nlhf_zoo.cli.solve.structure import Structure, sentences
from nlhf_zoo.solvers import Solution, win_rates
from nlhf_zoo.solvers.payoffs import PayoffName

_SEVERAL = (
    "not unique: the nearest of several to the reference, the limit of small beta; all of them are "
    "a set of dimension {}, each probability between least and most"
)
_MOST_PROMPTS = 20  # that are shown


def title_of(beta: float, payoff: PayoffName) -> str:
    """What is solved, in words."""
    return f"beta = {beta:g}" + ("" if payoff == "identity" else f", payoff {payoff}")


def print_tables(
    game: Game,
    nash: Solution,
    ends: tuple[Tensor, Tensor],
    structure: Structure,
    title: str,
    against: str,
    run: Run | None,
    name: str,
) -> None:
    """Print the equilibrium, beside it what an algorithm has reached, and what the wins say.

    Args:
        game: what was solved.
        nash: its equilibria.
        ends: the least and the largest probability of each alternative in any equilibrium [C, N].
        structure: of the preference.
        title: what was solved, in words.
        against: what each alternative gets against the equilibrium is called so.
        run: what the algorithm did.
        name: of the algorithm.
    """
    games = len(game.support)
    shape = reading.shape(game.support)
    print(f"Nash equilibrium of {game.where}: {shape}, {title}")
    figures = {"equilibrium": {"exploitability": nash.exploitability}}
    columns = {"probability": nash.log_policy.exp()}
    columns[against] = win_rates(game.preference, nash.log_policy)
    if game.shares is not None and not game.is_uniform:
        columns["share"] = game.shares
    if run is not None:
        asked = sorted({*run.queries[-1].flatten().tolist()})
        queries = f"{asked[0]}" if len(asked) == 1 else f"{asked[0]} to {asked[-1]}"
        print(f"{name}: {len(run.queries) - 1} updates, {queries} queries for each prompt")
        figures[name] = {title: run.curves[curve][-1] for curve, title in CURVES.items()}
        columns[name] = run.log_policy.exp()
    for i, prompt in enumerate(game.prompts):
        if i == _MOST_PROMPTS:
            print(f"\n{games - i} more prompts are not shown")
            break
        print("\n" + (f"{reading.short(prompt)}\n" if prompt else ""), end="")
        own = dict(columns)
        if not nash.unique[i]:
            own |= dict(zip(("least", "most"), ends, strict=True))
        reading.print_alternatives(game.names[i], {what: values[i] for what, values in own.items()})
        for who, values in figures.items():
            print(f"{who}: " + ", ".join(f"{what} {v[i]:.3g}" for what, v in values.items()))
        if not nash.unique[i]:
            print(_SEVERAL.format(nash.dimension[i]))
        for sentence in sentences(structure, i, game.names[i]):
            print(sentence)
    if games > 1:
        _print_all(nash, figures)


def _print_all(nash: Solution, figures: dict[str, dict[str, Tensor]]) -> None:
    """The means and maxima over prompts."""
    games = len(nash.dimension)
    print(f"\nmean and maximum over {games} prompts")
    for who, values in figures.items():
        both = (f"{what} {v.mean():.3g} and {v.max():.3g}" for what, v in values.items())
        print(f"{who}: " + ", ".join(both))
    if several := int((~nash.unique).sum()):
        print(f"{several} of {games} prompts have several equilibria")
