"""Many algorithms in one batch play what each plays alone, and ask as many queries."""

import pytest
import torch
from zoo import CLOSED_FORM, AgainstOne, normal_logits

from nlhf_zoo import algorithms
from nlhf_zoo.algorithms.batched_rounds import BatchedRounds, Row, can_be_batched
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.algorithms.products import products_of_rounds
from nlhf_zoo.data.tables import games

TABLE, LOG_MU = games.uniform_random(3, 5, seed=3), normal_logits(3, 5, seed=1).log_softmax(-1)
MADE = [row.make() for row in CLOSED_FORM]
ROWS = [Row(a, beta) for a in MADE if can_be_batched(a) for beta in (0.1, 0.03)]


def alone(row, rounds):
    players = dict.fromkeys(("policy", *row.algorithm.players), LOG_MU)
    return ClosedFormRounds(row.algorithm, row.beta, TABLE, LOG_MU, players).run(0, rounds)


def test_a_batch_plays_what_each_algorithm_plays_alone():
    batch = BatchedRounds(ROWS, TABLE, LOG_MU)
    batch.play(7)
    kept = [number for number in range(len(ROWS)) if number % 3]
    first = batch.log_policy().log_softmax(-1)
    batch.keep(kept)
    batch.play(260)  # over the round where logits are normalised
    later = batch.log_policy().log_softmax(-1)
    place = {number: i for i, number in enumerate(kept)}
    for number, row in enumerate(ROWS):
        played = alone(row, 267 if number in place else 7)
        expected = played.log_policy.log_softmax(-1)
        torch.testing.assert_close(first[number], expected[6], rtol=0, atol=1e-10)
        if number in place:
            # Logs of some hundreds, of iterates that leave the simplex, have fewer digits.
            torch.testing.assert_close(later[place[number]], expected[266], rtol=1e-9, atol=1e-8)
        assert products_of_rounds(row.algorithm, 7) == played.queries[:7].tolist()


def test_almost_every_closed_form_is_batched():
    alone = {type(a) for a in MADE if not can_be_batched(a) and not a.adaptive}
    # Which may divide by a deviation; and by score.
    assert alone <= {algorithms.PairwiseGRPO, algorithms.REBEL}
    with pytest.raises(ValueError, match="OnlineDPO cannot be played in a batch"):
        BatchedRounds([Row(algorithms.OnlineDPO(), 0.1)], TABLE, LOG_MU)
    with pytest.raises(ValueError, match="every action of every game exists"):
        BatchedRounds(ROWS, TABLE, LOG_MU.where(LOG_MU.amin() < LOG_MU, -torch.inf))


def test_two_algorithms_of_one_kind_keep_apart():
    rows = [Row(AgainstOne({who: 1.0}), 0.1) for who in ("anchor", "reference")]
    rows.append(Row(algorithms.EGPO(), 0.1))
    batch = BatchedRounds(rows, TABLE, LOG_MU)
    batch.play(5)
    for row, log_policy in zip(rows, batch.log_policy(), strict=True):
        expected = alone(row, 5).log_policy[-1].log_softmax(-1)
        torch.testing.assert_close(log_policy.log_softmax(-1), expected, rtol=0, atol=1e-12)
