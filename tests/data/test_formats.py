"""Rows in shapes that others publish, rows that cannot be used, and files in other ways of JSON."""

import datetime
from dataclasses import replace

import pytest
import torch
from paths import CONFIGS
from rows import assistant, system, user, write

from nlhf_zoo.cli.main import main
from nlhf_zoo.data.pairs import PreferencePairs
from nlhf_zoo.data.text_prompts import TextPrompts, read_prompts
from nlhf_zoo.data.texts.pair_rows import Columns
from nlhf_zoo.data.texts.row_source import Dropped, RowSource
from nlhf_zoo.errors import UserError

HH = {
    "chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.\n\nHuman: Two\n\nlines: ok\n\nAssistant: good",
    "rejected": "\n\nHuman: Hi?\n\nAssistant: Yes.\n\nHuman: Two\n\nlines: ok\n\nAssistant: bad\n",
}
HH_PROMPT = [user("Hi?"), assistant("Yes."), user("Two\n\nlines: ok")]


def said(speaker, value):
    return {"from": speaker, "value": value}


SHAREGPT = {
    "conversations": [said("system", ""), said("human", "p")],
    "chosen": said("gpt", "a"),
    "rejected": said("gpt", "b"),
}


def arena(winner, **more):
    names = {"model_a": "vicuna", "model_b": "alpaca", "winner": winner, "judge": "author_0"}
    return {"prompt": "p", "response_a": "a", "response_b": "b"} | names | more


def pairs(tmp_path, *rows, **options):
    data = PreferencePairs(write(tmp_path / "pairs.jsonl", *rows), 1, **options)
    return [(p.conversation, p.first, p.second, p.probability) for p in data.training_pairs]


def prompts(tmp_path, *rows, shape="columns", unusable="refuse", name="p.jsonl"):
    source = RowSource(write(tmp_path / name, *rows), "train", None, None, "prompts", "{}")
    dropped = Dropped(unusable)
    return read_prompts(source, "prompt", shape=shape, dropped=dropped), dropped


# ---- shapes --------------------------------------------------------------------------------------


def test_dialogues_as_text_are_read_as_conversations(tmp_path):
    assert pairs(tmp_path, HH, format="hh") == [(HH_PROMPT, "good", "bad\n", 1.0)]
    read, _ = prompts(tmp_path, HH, shape="hh")
    assert read.conversations == [HH_PROMPT]


@pytest.mark.parametrize(
    "text",
    [
        "Human: Hi",
        "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
        "\n\nAssistant: a",
        "said\n\nHuman: a",
    ],
)
def test_what_is_no_dialogue_is_unusable(tmp_path, text):
    rows = [HH, HH | {"chosen": text}]
    with pytest.raises(UserError, match=r"line 2 .* no dialogue .*data\.unusable"):
        pairs(tmp_path, *rows, format="hh")
    assert len(pairs(tmp_path, *rows, format="hh", unusable="drop")) == 1


def test_messages_of_from_and_value(tmp_path):
    assert pairs(tmp_path, SHAREGPT, format="sharegpt") == [([user("p")], "a", "b", 1.0)]
    talk = {"conversations": [said("human", "p"), said("gpt", "a")]}
    read, _ = prompts(tmp_path, talk, shape="sharegpt")
    assert read.conversations == [[user("p")]]


@pytest.mark.parametrize(
    ("winner", "share"),
    [("model_a", 1), ("model_b", 0), ("tie", 0.5), ("tie (bothbad)", 0.5), ("both_bad", 0.5)],
)
def test_votes_of_an_arena_are_probabilities(tmp_path, winner, share):
    assert pairs(tmp_path, arena(winner), format="arena") == [([user("p")], "a", "b", share)]
    parts = assistant([{"type": "text", "text": "a"}])
    talks = {"conversation_a": [user("p"), parts], "conversation_b": [user("p"), assistant("b")]}
    row = talks | {"winner": winner}
    assert pairs(tmp_path, row, format="arena") == [([user("p")], "a", "b", share)]
    read, _ = prompts(tmp_path, row, shape="arena")
    assert read.conversations == [[user("p")]]


def test_a_winner_that_is_not_read_is_refused(tmp_path):
    """With two answers mapped onto chosen and rejected, the first would win in every row."""
    columns = Columns(chosen="response_a", rejected="response_b")
    with pytest.raises(
        UserError, match=r"'winner', which may say .*'response_b'.*data\.format: arena"
    ):
        pairs(tmp_path, arena("model_b"), columns=columns)
    row = {"prompt": "p", "answer_0": "a", "answer_1": "b", "better_response_id": 1}
    with pytest.raises(UserError, match="'better_response_id', which may say"):
        pairs(tmp_path, row, columns=Columns(chosen="answer_0", rejected="answer_1"))
    good = {"prompt": "p", "chosen": "a", "rejected": "b", "winner": "gpt-4"}
    assert pairs(tmp_path, good)[0][3] == 1  # the columns say themselves which was chosen
    asked = {"question": "p", "chosen": "a", "rejected": "b", "label": 1}
    assert pairs(tmp_path, asked, columns=Columns(prompt="question"))[0][3] == 1  # likewise


SHAPES = {
    "hh": HH,
    "sharegpt": SHAREGPT,
    "arena": {name: cell for name, cell in arena("tie").items() if name != "prompt"},
    "messages": {"messages": [user("p"), assistant("a")]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_recognised(tmp_path, shape):
    with pytest.raises(UserError, match=f"such rows are read with data.format: {shape}"):
        prompts(tmp_path, SHAPES[shape])
    if shape not in ("messages", "arena"):
        with pytest.raises(UserError, match=f"such rows are read with data.format: {shape}"):
            pairs(tmp_path, SHAPES[shape])


def test_data_are_looked_at_before_a_model_is_loaded(tmp_path, capsys):
    """The configuration names a model that does not exist: nobody comes as far."""
    path = write(tmp_path / "rows.jsonl", SHAPES["messages"])
    options = [f"--data.path={path}", f"--model.policy.model={tmp_path / 'no_model'}"]
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(CONFIGS / "lm/pair_model.yaml"), *options])
    assert end.value.code == 2
    assert "such rows are read with data.format: messages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "options", "sentence"),
    [
        (PreferencePairs, {"format": "messages"}, r"data\.format is one of"),
        (
            PreferencePairs,
            {"format": "hh", "columns": Columns(prompt="q")},
            r"data\.columns is for",
        ),
        (TextPrompts, {"format": "json"}, r"data\.format is one of"),
        (
            TextPrompts,
            {"format": "messages", "column": "text"},
            r"data\.column is for data\.format",
        ),
        (TextPrompts, {"unusable": "keep"}, r"data\.unusable is one of"),
    ],
)
def test_options_that_do_not_fit(tmp_path, data, options, sentence):
    path = write(tmp_path / "rows.jsonl", {"prompt": "p"})
    with pytest.raises(UserError, match=sentence):
        data(path, 1, **options)


# ---- what cannot be used -------------------------------------------------------------------------

LABEL = {"prompt": "p", "chosen": "a", "rejected": "b"}
UNUSABLE_PAIRS = {
    "no response": LABEL | {"rejected": None},
    "an empty response": LABEL | {"chosen": " "},
    "equal responses": LABEL | {"chosen": "b"},
    "no prompt": LABEL | {"prompt": None},
    "an empty prompt": LABEL | {"prompt": ""},
    "an empty message": LABEL | {"prompt": [user("")]},
    "a message without content": LABEL | {"prompt": [{"role": "user", "content": None}]},
    "a message of role 'tool'": LABEL | {"prompt": [{"role": "tool", "content": "x"}, user("p")]},
    "nothing to answer": LABEL | {"prompt": [system("s")]},
    "text that is not Unicode": LABEL | {"chosen": "\ud800"},
    "conversations that differ before their last message": {
        "chosen": [user("p"), assistant("a")],
        "rejected": [user("q"), assistant("b")],
    },
    "a prompt that is not what its responses answer": {
        "prompt": "q",
        "chosen": [user("p"), assistant("a")],
        "rejected": [user("p"), assistant("b")],
    },
}


@pytest.mark.parametrize("reason", UNUSABLE_PAIRS)
def test_pairs_that_cannot_be_used_are_counted_by_reason(tmp_path, reason):
    path = write(tmp_path / "pairs.jsonl", UNUSABLE_PAIRS[reason], LABEL, UNUSABLE_PAIRS[reason])
    with pytest.raises(UserError, match=r"line 1 .*: correct it, or set data\.unusable to drop"):
        PreferencePairs(path, 1).load()
    data = PreferencePairs(path, 1, unusable="drop")
    assert [pair.row for pair in data.training_pairs] == [1]
    assert data.loaded.notes == [f"{path}: 2 of 3 rows were left out ({reason}: 2)"]


def test_prompts_that_cannot_be_used_are_counted_and_the_others_keep_their_numbers(tmp_path):
    rows = [None, "a", " ", "b", None]
    rows = [{"prompt": prompt} for prompt in rows]
    with pytest.raises(UserError, match=r"line 1 .* null: correct it, or set data\.unusable"):
        prompts(tmp_path, *rows)
    read, dropped = prompts(tmp_path, *rows, unusable="drop")
    assert (read.text, read.ids.tolist()) == (["a", "b"], [1, 3])
    assert dropped.reasons == {"no prompt": 2, "an empty prompt": 1}
    with pytest.raises(UserError, match="has no row that can be used: there is no prompt to play"):
        prompts(tmp_path, rows[0], unusable="drop")


def test_an_empty_system_message_is_none(tmp_path):
    talks = [[{"role": "system", "content": content}, user("p")] for content in ("", None, " ")]
    read, _ = prompts(tmp_path, *({"prompt": talk} for talk in talks))
    assert read.conversations == [[user("p")]] * 3
    row = {"chosen": [system(""), user("p"), assistant("a")], "rejected": [system(""), user("p"), assistant("b")]}  # fmt: skip  # noqa: E501
    assert pairs(tmp_path, row) == [([user("p")], "a", "b", 1.0)]


def test_a_row_that_is_named_is_the_right_one_though_others_were_dropped(tmp_path):
    class Refusing(torch.nn.Module):
        def encode(self, prompts):
            if any("no" in text for text in prompts.text):
                raise UserError("no")
            tokens = torch.ones(len(prompts), 1, dtype=torch.long)
            return replace(prompts, tokens=tokens, mask=tokens.bool())

    rows = [{"prompt": prompt} for prompt in (None, "a", "no")]
    data = TextPrompts(write(tmp_path / "p.jsonl", *rows), 1, unusable="drop")
    with pytest.raises(UserError, match=r"line 3 of .* cannot be encoded: no"):
        data.load(Refusing())


# ---- ways to write JSON --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.jsonl", '\ufeff{"prompt": "a"}\n{"prompt": "b"}\n'),
        ("p.json", '{"prompt": "a"}\n{"prompt": "b"}\n'),
        ("p.json", '[{"prompt": "a"}, {"prompt": "b"}]'),
        ("p.json", '\ufeff\n [\n  {"prompt": "a"},\n  {"prompt": "b"}\n]\n'),
    ],
)
def test_byte_order_marks_and_lists_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    data = RowSource(str(tmp_path / name), "train", None, None, "prompts", "{}")
    assert [row.values["prompt"] for row in data.rows()] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.json", '[{"prompt": "a"}, 3]', r"entry 2 of .* holds a number.*: let the list hold"),
        ("p.json", '[{"prompt": "a"},\n {"prompt": }]', r"p\.json is not JSON: .* of its line 2"),
        ("p.json", '[{"prompt": "a"}, {"prompt": null}]', r"entry 2 of .* null"),
        ("p.json", '[{"prompt": "a", "prompt": "b"}]', "has the key 'prompt' twice"),
        ("p.jsonl", '[{"prompt": "a"}]', r"line 1 of .* holds a list.*: write one object a line"),
    ],
)
def test_lists_are_refused_by_their_entry(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    source = RowSource(str(tmp_path / name), "train", None, None, "prompts", "{}")
    with pytest.raises(UserError, match=sentence):
        read_prompts(source, "prompt")


@pytest.mark.parametrize(
    ("written", "arrives"),
    [(["2024-01-01"], datetime.datetime), (["007", 7], int), (["true", {"a": 1}], bool)],
)
def test_what_the_datasets_library_makes_of_texts_is_told(tmp_path, monkeypatch, written, arrives):
    """As of datasets 5.2: dates, and texts of a column of several types, are parsed."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "train.jsonl", *({"prompt": one} for one in written))
    source = RowSource(str(tmp_path / "rows"), "train", None, None, "prompts", "{}")
    assert isinstance(next(iter(source.rows())).values["prompt"], arrives)
    sentence = "the datasets library may have made of a text: give the rows as a .jsonl file"
    with pytest.raises(UserError, match=sentence):
        read_prompts(source, "prompt")
    text = RowSource(
        write(tmp_path / "p.jsonl", {"prompt": written[0]}), "train", None, None, "", ""
    )
    assert read_prompts(text, "prompt").text == [written[0]]
