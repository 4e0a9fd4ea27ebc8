"""Processes share prompts and rows: none is repeated, none is left out, and all go on together."""

import copy
from functools import partial
from itertools import chain
from types import SimpleNamespace

import pytest
import rows
import zoo
from together import together, trainer

from data.test_text_prompts import Game, attach, batches, ids, write
from nlhf_zoo.algorithms import OnlineDPO
from nlhf_zoo.data import TablePrompts
from nlhf_zoo.data.pairs import PreferencePairs
from nlhf_zoo.data.text_prompts import TextPrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.oracles import MatrixOracle

UNEVEN = [(3, 2), (5, 4), (1, 3), (2, 2)]


def table(num, rank, size, batch_size=None, reuse=None):
    """The prompts of a table in one of several processes."""
    game = SimpleNamespace(
        oracle=MatrixOracle(zoo.small_games(num)[0]), reuse=reuse, gradient_steps_per_round=1,
        progress=SimpleNamespace(batches=0, stream=[]),
    )  # fmt: skip
    data = TablePrompts(batch_size)
    data.trainer = trainer(rank, size)
    data.trainer.lightning_module = game
    return data


def texts(num, rank, size, folder):
    path = write(folder, *"abcdefghijkl"[: num + size])
    return attach(TextPrompts(path, 1, num_validation=num), rank=rank, size=size)


def evaluated(data_of, num, size):
    """The numbers of the prompts of each process, by batch; those of texts begin behind others."""
    each = [ids(data_of(rank=rank, size=size).val_dataloader()) for rank in range(size)]
    return [[[i - size if i >= 0 else i for i in one] for one in rank] for rank in each]


@pytest.mark.parametrize(("num", "size"), UNEVEN)
def test_all_evaluate_as_many_batches_of_prompts(num, size, tmp_path):
    """A prompt stands in where a process has none of its own."""
    found = evaluated(partial(texts, num, folder=tmp_path), num, size)
    assert {len(rank) for rank in found} == {-(-num // size)}
    seen = [i for rank in found for batch in rank for i in batch]
    assert sorted(i for i in seen if i >= 0) == [*range(num)]
    assert seen.count(-1) == -num % size
    all_of_them = [*texts(num, 0, size, tmp_path).predict_dataloader()]
    assert [i - size for i in chain(*ids(all_of_them))] == [*range(num)]
    # Those of a table were evaluated by each process.
    tables = [[*table(num, rank, size, 1).val_dataloader()] for rank in range(size)]
    assert [ids(one) for one in tables] == found
    assert [*chain(*ids(table(num, 0, size).predict_dataloader()))] == [*range(num)]


@pytest.mark.parametrize(("num", "size"), UNEVEN)
def test_all_evaluate_as_many_batches_of_pairs(num, size, tmp_path):
    kept = max(num, size)
    pairs = [{"prompt": str(i), "chosen": f"a{i}", "rejected": "b"} for i in range(2 * kept)]
    path = rows.write(tmp_path / "pairs.jsonl", *pairs)
    each = []
    for rank in range(size):
        data = PreferencePairs(path, 1, num_validation=kept)
        data.trainer = trainer(rank, size)
        data.load(size)
        each.append([batch.first for batch in data.val_dataloader()])
    assert len({len(rank) for rank in each}) == 1
    seen = [text for rank in each for batch in rank for text in batch]
    assert sorted(seen) == sorted(pair.first for pair in data.validation_pairs)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_five_prompts_of_a_table_are_one_batch_of_all_processes(size):
    each = [table(5, rank, size) for rank in range(size)]
    drawn = [next(iter(data.train_dataloader())).ids.tolist() for data in each]
    assert [*chain(*drawn)] == [*range(5)]
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1
    assert [data.trainer.lightning_module.rollout_prompts for data in each] == [*map(len, drawn)]


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="5 prompts cannot be shared among 6 processes"):
        table(5, 0, 6).train_dataloader()
    # Minibatches of a rollout would be more in one process than in another.
    with pytest.raises(UserError, match="5 prompts cannot be shared evenly among 2 processes"):
        table(5, 0, 2, reuse=object()).train_dataloader()


@pytest.mark.parametrize("sizes", [[2, 4, 1], [1, 3], [4, 2], [2, 2]])
@pytest.mark.parametrize(("steps", "stop"), [(1, 2), (2, 4), (2, 3)])
def test_other_processes_go_on_where_the_stream_stood(sizes, steps, stop, tmp_path):
    """Also within a round: who goes on takes the rest of its steps from its first prompt on."""
    path, progress = write(tmp_path, *(f"w{i}" for i in range(25))), None
    place = taken = 0
    for size in sizes:
        game = Game(gradient_steps=steps)
        game.progress = copy.deepcopy(progress) or game.progress  # as from a checkpoint
        each = [
            ids(batches(attach(TextPrompts(path, 2, shuffle=False), game, rank, size), stop))
            for rank in range(size)
        ]
        for found in zip(*each, strict=True):
            assert [*chain(*found)] == [i % 25 for i in range(place, place + 2 * size)]
            taken += 1
            if taken == steps:
                place, taken = place + 2 * size, 0
        progress = game.progress
        progress.batches += stop


def test_accumulation_may_change_where_a_run_goes_on(tmp_path):
    path, game = write(tmp_path, *(f"w{i}" for i in range(25))), Game(gradient_steps=2)
    seen = []
    for accumulate in (1, 3):
        data = attach(TextPrompts(path, 2, shuffle=False), game)
        data.trainer.accumulate_grad_batches = accumulate
        seen += ids(batches(data, 3))
        game.progress.batches += 3
    # Three steps, the first of the second round among them; then that round's second step.
    assert seen == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [6, 7]]


def test_a_table_is_validated_once_by_all():
    """By the mean over prompts, not over processes; a stand-in is not asked about."""

    def of_process(process):
        game = zoo.small_game(OnlineDPO(), 3, realisation=GradientSteps(), wrap=zoo.Spy)
        zoo.scatter_players(game)
        game._trainer, game.log = process, lambda *_, **__: None
        data = table(3, process.global_rank, 2, 1)
        for number, prompts in enumerate(data.val_dataloader()):
            game.validation_step(prompts, number)
        metric = game.validation.vs_reference
        return float(metric.mean_value), float(metric.weight), len(game.oracle.asked)

    (one, num, asked), (other, fewer, less) = together(2, of_process)
    assert (num, fewer) == (2, 1)
    assert (asked, less) == (2, 1)
    game = zoo.small_game(OnlineDPO(), 3, realisation=GradientSteps())
    zoo.scatter_players(game)
    ours, theirs = (game.log_policy(name).exp() for name in ("policy", "reference"))
    P = zoo.small_games(3)[0]
    expected = (ours[:, :, None] * P * theirs[:, None, :]).sum((-2, -1))
    assert (one + other) / (num + fewer) == pytest.approx(float(expected.mean()), abs=1e-6)
