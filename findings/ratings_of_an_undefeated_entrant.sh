#!/bin/sh
# Shows what two rating libraries say of an entrant that won all 20 of its games: evalica 0.4.2 gives every entrant the
# same score, after 2 of its 100 iterations, and arena-rank 0.1.1 the most certain rating of all.
#
# The likelihood of Bradley and Terry has no maximum there: the winner's strength grows without end. arena-rank's optimiser
# stops somewhere, and there its sandwich estimate of the variance is all but 0, so that the interval is 0.01 points wide
# at a rating 3,700 above the next; with one game lost it is 455 points wide. choix 0.4.1 raises, for the same games.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv-ratings"
"$folder/venv-ratings/bin/pip" install --quiet choix==0.4.1 evalica==0.4.2 arena-rank==0.1.1 jax==0.8.1
cat > "$folder/finding.py" <<'END'
import choix
import evalica
import numpy as np
import pandas as pd
from arena_rank.models.bradley_terry import BradleyTerry
from arena_rank.utils.data_utils import PairDataset

NAMES = "best", "middle", "worst"
UNDEFEATED = {("best", "middle"): 10, ("best", "worst"): 10, ("middle", "worst"): 7, ("worst", "middle"): 3}
ONE_LOST = {**UNDEFEATED, ("best", "middle"): 9, ("middle", "best"): 1}


def by_evalica(wins):
    won = [pair for pair, count in wins.items() for _ in range(count)]
    found = evalica.bradley_terry([a for a, _ in won], [b for _, b in won], [evalica.Winner.X] * len(won))
    return [float(found.scores[name]) for name in NAMES], found.iterations


def by_arena_rank(wins):
    games = [(a, b, "model_a") for (a, b), count in wins.items() for _ in range(count)]
    games = PairDataset.from_pandas(pd.DataFrame(games, columns=["model_a", "model_b", "winner"]))
    found = BradleyTerry(n_competitors=len(NAMES)).compute_ratings_and_cis(games)
    place = [games.competitors.index(name) for name in NAMES]
    width = found["rating_upper"] - found["rating_lower"]
    return [float(found["ratings"][i]) for i in place], [float(width[i]) for i in place]


def by_choix(wins):
    table = np.zeros((3, 3))
    for (a, b), count in wins.items():
        table[NAMES.index(a), NAMES.index(b)] = count
    try:
        return choix.ilsr_pairwise_dense(table).tolist()
    except ValueError as error:
        return f"ValueError: {str(error)[:60]}"


same, iterations = by_evalica(UNDEFEATED)
apart, _ = by_evalica(ONE_LOST)
ratings, widths = by_arena_rank(UNDEFEATED)
_, usual = by_arena_rank(ONE_LOST)
raised = by_choix(UNDEFEATED)
print("evalica, undefeated:", same, "after", iterations, "iterations; with one game lost:", apart)
print("arena-rank, undefeated:", ratings, "widths", widths, "; with one game lost the first is", usual[0])
print("choix, undefeated:", raised)
changed = not (
    len({*same}) == 1 and len({*apart}) == 3
    and ratings[0] - ratings[1] > 2000 and widths[0] < 0.1 < 100 < min(widths[1:] + usual)
    and isinstance(raised, str)
)
raise SystemExit(int(changed))
END
OMP_NUM_THREADS=1 "$folder/venv-ratings/bin/python" "$folder/finding.py"
