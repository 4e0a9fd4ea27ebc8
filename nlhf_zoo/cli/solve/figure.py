"""``nlhf solve --figure``: the equilibrium, with its intervals, and who beats whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlhf_zoo.cli.files import refuse_output
from nlhf_zoo.cli.solve.reading import short
from nlhf_zoo.cli.solve.solved import Solved
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.majority import beats

SUFFIXES = (".png", ".svg")
_MOST_PROMPTS = 4  # that are drawn
_MOST_ALTERNATIVES = 12  # of a prompt


def check_figure(
    path: Path | None, worst_case: list[Path] | None, others: Sequence[Path | None]
) -> None:
    """Refuse a figure that cannot be drawn or written."""
    if path is None:
        return
    if worst_case is not None:
        raise UserError("--figure is of one game: leave it or --worst_case out")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--figure {path} must end in {' or '.join(SUFFIXES)}")
    refuse_output("--figure", path, others)


def draw(solved: Solved, path: Path) -> None:
    """Draw the first prompts, one below the other.

    Raises:
        UserError: the file cannot be written.
    """
    # Slow to import, and a command without a figure needs neither.
    from nlhf_zoo.metrics.figures.canvas import new_figure, plain, save_figure
    from nlhf_zoo.metrics.figures.votes import draw_lottery, draw_majority

    game, found = solved.game, solved.bootstrap
    probability = solved.nash.log_policy.exp().numpy()
    shown = range(min(_MOST_PROMPTS, len(game.prompts)))
    orders = [_order(probability[i, : len(game.names[i])]) for i in shown]
    heights = [1.6 + 0.3 * max(len(order), 6) for order in orders]
    with new_figure(9.5, sum(heights) + 0.3) as figure:
        axes = figure.subplots(len(shown), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
        for i, order, (left, right) in zip(shown, orders, axes, strict=True):
            ends = None
            if found is not None:
                ends = np.stack([found.low[i].numpy()[order], found.high[i].numpy()[order]])
            names = [plain(short(game.names[i][j])) for j in order]
            draw_lottery(left, probability[i, order], names, ends)
            wins = beats(game.preference[i]).numpy()[np.ix_(order, order)]
            draw_majority(right, wins, solved.structure.smith[i].numpy()[order], names)
            left.set_title(plain(short(game.prompts[i])) or " ", loc="left")
        title = f"{plain(game.where.name)}: {_title(solved, len(shown), orders)}"
        figure.suptitle(title, fontsize=10)
        try:
            save_figure(figure, path)
        except OSError as error:
            raise UserError(f"--figure {path} could not be written: {error.strerror}") from error


def _order(probability: np.ndarray) -> np.ndarray:
    return np.argsort(-probability, kind="stable")[:_MOST_ALTERNATIVES]


def _title(solved: Solved, shown: int, orders: list[np.ndarray]) -> str:
    game = solved.game
    of_payoff = "" if solved.payoff == "identity" else f", payoff {solved.payoff}"
    said = f"β = {solved.beta:g}{of_payoff}"
    if (found := solved.bootstrap) is not None:
        said += f"; black lines hold {100 * found.how.level:g}% of {found.how.number} resamples"
    if len(game.prompts) > shown:
        said += f"; the first {shown} of {len(game.prompts)} prompts"
    if any(len(order) < len(game.names[i]) for i, order in enumerate(orders)):
        said += f"; the {_MOST_ALTERNATIVES} most probable alternatives"
    return said
