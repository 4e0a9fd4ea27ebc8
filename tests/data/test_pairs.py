"""Pairs for preference models: what is read, what is refused, and in which order it is given."""

# ruff: noqa: E501  # tables of one row a line

import itertools
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from paths import CONFIGS
from rows import assistant, system, trainer, user, write
from torch.nn.functional import binary_cross_entropy_with_logits

from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.data.pairs import Pairs, PreferencePairs
from nlhf_zoo.data.texts.pair_rows import Columns, PairRow
from nlhf_zoo.errors import UserError

LABEL = {"prompt": "p", "chosen": "a", "rejected": "b"}
PROBABILITY = {"prompt": "p", "first": "a", "second": "b", "probability": 0.25}


def read(tmp_path, *rows, **options):
    """The training pairs of a file with these rows."""
    path = write(tmp_path / "pairs.jsonl", *rows)
    return PreferencePairs(path, batch_size=1, **options).training_pairs


def labels(prompts, each=1):
    return [
        {"prompt": f"p{prompt}", "chosen": f"good {prompt} {number}", "rejected": f"bad {number}"}
        for prompt in range(prompts)
        for number in range(each)
    ]


# ---- what is read --------------------------------------------------------------------------------


def test_labels_and_probabilities(tmp_path):
    (pair,) = read(tmp_path, LABEL | {"source": "ignored"})
    assert pair == PairRow(0, [user("p")], "a", "b", 1.0)
    (pair, certain) = read(tmp_path, PROBABILITY, PROBABILITY | {"probability": 1})
    assert pair == PairRow(0, [user("p")], "a", "b", 0.25)
    assert certain == PairRow(1, [user("p")], "a", "b", 1.0)


PROMPT = [system("s"), user("hello"), assistant("hi"), user("p")]
CHOSEN, REJECTED = [*PROMPT, assistant("a")], [*PROMPT, assistant("b")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PROMPT, "chosen": "a", "rejected": "b"},
        {"prompt": PROMPT, "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED},
        {"prompt": "p", "chosen": CHOSEN, "rejected": REJECTED},
        {"chosen": CHOSEN, "rejected": REJECTED},
    ],
)
def test_all_ways_to_write_a_conversation_are_one_pair(tmp_path, row):
    assert read(tmp_path, row) == [PairRow(0, PROMPT, "a", "b", 1.0)]


def test_columns_can_be_named(tmp_path):
    row = {"question": "p", "good": "a", "bad": "b", "first": 3}
    columns = Columns(prompt="question", chosen="good", rejected="bad", first="response_0")
    assert read(tmp_path, row, columns=columns) == [PairRow(0, [user("p")], "a", "b", 1.0)]


def test_a_data_set_of_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    talks = [[*PROMPT, assistant(f"a{i}")] for i in range(3)]
    rows = [{"chosen": talk, "rejected": REJECTED, "score": 1} for talk in talks]
    saved = {split: datasets.Dataset.from_list(rows) for split in ("train", "test")}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "set")
    data = PreferencePairs(str(tmp_path / "set"), 1, limit=2)
    assert data.training_pairs == [PairRow(i, PROMPT, f"a{i}", "b", 1.0) for i in range(2)]
    data = PreferencePairs(str(tmp_path / "set"), 1, split="test", columns=Columns(chosen="best"))
    with pytest.raises(UserError, match=r"row 0 of .*set \(test\) has no column 'best'.*score"):
        data.load()


# ---- what is refused -----------------------------------------------------------------------------

TALK = [user("p"), assistant("a")]


def label(**changed):
    return LABEL | changed


# The second row of a file of labels, and what is said of it.
BAD = {
    "not JSON": ("{prompt: 1}", "is not JSON"),
    "no rejected": ({"prompt": "p", "chosen": "a"}, "has no column 'rejected'.*it has prompt, chosen"),
    "no columns": ({"text": "p"}, r"has no column 'first'|has no column 'chosen'"),
    "no probability": ({"prompt": "p", "first": "a", "second": "b"}, "no column 'probability'"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "has no column 'prompt'"),
    "mixed row": (label(**PROBABILITY), "has both 'chosen' and 'first'"),
    "mixed file": (PROBABILITY, "has a probability, and the rows before it a label"),
    "empty chosen": (label(chosen=" "), "has an empty 'chosen'.*data.unusable"),
    "equal": (label(chosen="b"), "has the same text as 'chosen' and 'rejected'.*data.unusable"),
    "null": (label(rejected=None), "neither text nor a list of messages as 'rejected', but null"),
    "number": (label(prompt=3), "neither text nor a list of messages as 'prompt', but a number"),
    "surrogate": (label(chosen="\ud800"), "chosen that is not Unic"),
    "one of each": (label(chosen=TALK), "text and a list of messages as 'chosen' and 'rejected'"),
    "no response": ({"chosen": TALK, "rejected": [user("p")]}, "messages as 'rejected' that do not end with the assistant's"),
    "no text": (
        {"chosen": TALK, "rejected": [{"role": "assistant", "content": 3}]},
        "has as 'rejected' a message whose content is a number, not text",
    ),
    "no messages": ({"chosen": [], "rejected": TALK}, "messages as 'chosen' that do not end with the"),
    "other beginnings": (
        {"chosen": TALK, "rejected": [user("q"), assistant("b")]},
        "conversations as 'chosen' and 'rejected' that differ before their last message",
    ),
    "other prompt": (
        {"prompt": "q", "chosen": TALK, "rejected": [user("p"), assistant("b")]},
        "has a 'prompt' that is not what its responses answer",
    ),
    "answered prompt": (label(prompt=TALK), "ends with a message of the assistant's"),
}  # fmt: skip
BAD_PROBABILITIES = {
    1.5: "has 1.5 as 'probability', which is no probability",
    -1: "has -1 as 'probability'",
    float("nan"): "has nan as 'probability'",
    "0.5": r"has text as 'probability', not a number in \[0, 1\]",
    True: "has true or false as 'probability', not a number",
}
BAD_ROWS = [(LABEL, row, message) for row, message in BAD.values()] + [
    (PROBABILITY, PROBABILITY | {"probability": value}, message)
    for value, message in BAD_PROBABILITIES.items()
]


@pytest.mark.parametrize(
    ("good", "bad", "message"), BAD_ROWS, ids=[*BAD, *map(str, BAD_PROBABILITIES)]
)
def test_a_bad_row_is_named_by_its_line(tmp_path, good, bad, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, good, bad)
    assert str(error.value).startswith(f"line 2 of {tmp_path}/pairs.jsonl ")
    assert "\n" not in str(error.value)


OPTIONS = {
    "large batch": ({"batch_size": 5}, "1 x 5 pairs .* but there are 4 pairs only"),
    "all held out": (
        {"num_validation": 4},
        "num_validation is 4, which leaves none of 4 different",
    ),
    "unusable": ({"unusable": "keep"}, "data.unusable is one of .*'refuse', 'drop'"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options(tmp_path, name):
    options, message = OPTIONS[name]
    given = {"path": write(tmp_path / "pairs.jsonl", *labels(4)), "batch_size": 2} | options
    with pytest.raises(UserError, match=message):
        PreferencePairs(**given).load()


@pytest.mark.parametrize(
    ("path", "split", "place"),
    [
        (None, None, None),
        (None, "test", ("one", "test", "easy")),
        ("one", "test", ("one", "test", "easy")),
        ("other", None, ("other", "train", None)),  # whose configurations are its own
    ],
)
def test_where_validation_pairs_are_kept(path, split, place):
    data = PreferencePairs("one", 1, name="easy", validation_path=path, validation_split=split)
    source = data.validation_source
    assert (source and (source.path, source.split, source.name)) == place


def test_one_name_for_two_columns():
    with pytest.raises(UserError, match=r"data.columns has the name 'prompt' twice"):
        Columns(chosen="prompt")


def test_the_command_line_says_it_in_one_sentence(tmp_path, capsys):
    path = write(tmp_path / "pairs.jsonl", LABEL, LABEL | {"chosen": ""})
    config = str(CONFIGS / "tabular/nash_mp.yaml")
    data = ["--data", "nlhf_zoo.data.pairs.PreferencePairs", "--data.path", path]
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", config, *data, "--data.batch_size", "1", "--trainer.logger", "false"])
    assert end.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"nlhf: error: line 2 of {path} has an empty 'chosen'")


# ---- what is left out, what is held out ----------------------------------------------------------


def test_unusable_rows_are_left_out_and_counted(tmp_path, capsys):
    rows = [LABEL, LABEL | {"chosen": ""}, LABEL | {"chosen": "b"}, LABEL | {"prompt": "q"}]
    path = write(tmp_path / "pairs.jsonl", *rows)
    other = write(tmp_path / "validation.jsonl", LABEL, LABEL | {"prompt": "r"})
    data = PreferencePairs(path, 1, unusable="drop", validation_path=other)
    assert [pair.row for pair in data.training_pairs] == [0, 3]
    assert [pair.conversation[0]["content"] for pair in data.validation_pairs] == ["r"]
    fit(data, steps=1)
    err = capsys.readouterr().err
    assert "2 of 4 rows were left out (an empty response: 1, equal responses: 1)" in err
    assert "validation.jsonl: 1 of 2 pairs have a prompt that is trained on" in err
    data = PreferencePairs(write(tmp_path / "ok.jsonl", LABEL), 1, validation_path=other)
    with pytest.raises(
        UserError, match=r"line 1 of .*validation.jsonl has a prompt that is trained"
    ):
        data.load()


def test_no_prompt_is_on_both_sides(tmp_path):
    rows = labels(20, each=3)
    path = write(tmp_path / "pairs.jsonl", *rows[::3], *rows[1::3], *rows[2::3])
    sides = []
    for seed in (0, 0, 1):
        data = PreferencePairs(path, 1, num_validation=5, seed=seed)
        both = (data.training_pairs, data.validation_pairs)
        trained, held_out = ({pair.prompt_key for pair in side} for side in both)
        assert (len(trained), len(held_out)) == (15, 5)
        assert not trained & held_out
        assert len(data.training_pairs) == 45
        assert len(data.validation_pairs) == 15  # with all of their pairs
        sides.append(held_out)
    assert sides[0] == sides[1] != sides[2]


def test_nothing_that_can_be_used(tmp_path):
    bad = [LABEL | {"chosen": ""}]
    with pytest.raises(UserError, match="has no row that can be used: there are no pairs to learn"):
        read(tmp_path, *bad, unusable="drop")
    with pytest.raises(UserError, match="has no rows: there are no pairs to learn"):
        read(tmp_path)
    path = write(tmp_path / "pairs.jsonl", LABEL)
    other = write(tmp_path / "validation.jsonl", LABEL)
    data = PreferencePairs(path, 1, unusable="drop", validation_path=other)
    with pytest.raises(UserError, match=r"all prompts of .*validation.jsonl \(train\) are trained"):
        data.load()


def test_validation_pairs_of_their_own(tmp_path):
    path = write(tmp_path / "pairs.jsonl", *labels(2))
    other = write(tmp_path / "validation.jsonl", *labels(9, each=2)[4:])
    data = PreferencePairs(path, 1, validation_path=other, num_validation=3)
    assert len(data.validation_pairs) == 6
    data = PreferencePairs(path, 1, validation_path=other, num_validation=8)
    with pytest.raises(UserError, match="num_validation is 8, but the validation pairs have 7"):
        data.load()


# ---- the order -----------------------------------------------------------------------------------


class Learner(L.LightningModule):
    """Remembers which pairs it was given."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []
        self.stop_after = stop_after

    def training_step(self, batch):
        assert isinstance(batch, Pairs)
        self.seen.append(list(batch.first))
        if len(self.seen) == self.stop_after:
            raise KeyError("the power fails")
        return binary_cross_entropy_with_logits(self.weight.expand(len(batch)), batch.probability)

    def validation_step(self, batch):
        self.validated += batch.first

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, steps=-1, epochs=1, learner=None, checkpoint=None, folder=None):
    learner = learner or Learner()
    options = {"max_steps": steps, "max_epochs": epochs, "devices": 1}
    if folder is not None:
        saver = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1)
        options |= {"enable_checkpointing": True, "callbacks": [saver]}
    with quiet():
        trainer(**options).fit(learner, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return learner


def test_an_epoch_is_a_pass_and_leaves_no_pair_out(tmp_path):
    path = write(tmp_path / "pairs.jsonl", *labels(11))
    learner = fit(PreferencePairs(path, 4, num_validation=1), epochs=5)
    assert len(learner.seen) == 5 * 3  # ten pairs in batches of four
    assert all(len(batch) == 4 for batch in learner.seen)
    stream = list(itertools.chain(*learner.seen))
    passes = [stream[start : start + 10] for start in range(0, 60, 10)]
    assert all(len({*one}) == 10 for one in passes)
    assert len({tuple(one) for one in passes}) == 6  # each in an order of its own
    assert len(learner.validated) == 5
    assert not {*learner.validated} & {*stream}


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_a_resumed_run_is_given_what_is_left(tmp_path, stop):
    path = write(tmp_path / "pairs.jsonl", *labels(11))
    whole = fit(PreferencePairs(path, 4), epochs=3).seen
    killed = Learner(stop_after=stop + 1)
    with pytest.raises(KeyError):
        fit(PreferencePairs(path, 4), epochs=3, learner=killed, folder=tmp_path / "run")
    (last,) = (tmp_path / "run").glob(f"*step={stop}.ckpt")
    resumed = fit(PreferencePairs(path, 4), epochs=3, checkpoint=last, folder=tmp_path / "run").seen
    assert killed.seen[:stop] + resumed == whole


def test_other_pairs_do_not_resume(tmp_path):
    path = write(tmp_path / "pairs.jsonl", *labels(4))
    fit(PreferencePairs(path, 2), steps=1, folder=tmp_path / "run")
    (last,) = (tmp_path / "run").glob("*.ckpt")
    write(tmp_path / "pairs.jsonl", *labels(5))
    others = r"pairs of .* are not those that the checkpoint was trained"
    with pytest.raises(UserError, match=others):
        fit(PreferencePairs(path, 2), steps=2, checkpoint=last, folder=tmp_path / "run")


def test_processes_share_the_pairs(tmp_path):
    path = write(tmp_path / "pairs.jsonl", *labels(15))
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trained, validated = [], []
    for rank in range(3):
        data = PreferencePairs(path, 2, num_validation=3)
        data.trainer = SimpleNamespace(fit_loop=loop, global_rank=rank, world_size=3)
        loader = data.train_dataloader()
        assert len(loader) == 2
        trained.append([text for batch in loader for text in batch.first])
        validated += [text for batch in data.val_dataloader() for text in batch.first]
    with pytest.raises(UserError, match="3 validation pairs cannot be shared among 4 processes"):
        data.load(world_size=4)
    assert sorted(itertools.chain(*trained)) == sorted(pair.first for pair in data.training_pairs)
    assert sorted(validated) == sorted(pair.first for pair in data.validation_pairs)


# ---- the record ----------------------------------------------------------------------------------


def test_pairs_check_their_shapes():
    pairs = Pairs([[user("p")]] * 2, ["a", "b"], ["c", "d"], torch.tensor([0.25, 1.0]))
    turned = pairs.swapped()
    assert (turned.first, turned.second) == (["c", "d"], ["a", "b"])
    assert turned.probability.tolist() == [0.75, 0.0]
    assert pairs.to("meta").probability.device.type == "meta"
    with pytest.raises(ValueError, match=r"Pairs.second has 1 entries, not 2"):
        Pairs([[user("p")]] * 2, ["a", "b"], ["c"], torch.ones(2))
    with pytest.raises(ValueError, match=r"floating-point \[B\], not torch.int64 \[1\]"):
        Pairs([[user("p")]], ["a"], ["c"], torch.tensor([1]))
