"""Prompts of real use: read, checked, encoded, shared among processes and resumed."""

# ruff: noqa: E501  # tables of one row a line

import csv
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from rows import assistant, system, trainer, user
from rows import write as write_rows
from torch import nn

from nlhf_zoo.data.text_prompts import TextPrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Prompts

BOS, PAD = 1, 9


class Words(nn.Module):
    """Stands in for a language model: a token a word, a number by its length and first letter."""

    def __init__(self, bos: bool = False, room: int = 1000, shift: int = 0) -> None:
        super().__init__()
        self.bos, self.room, self.shift = bos, room, shift
        self.encoded = 0

    def encode(self, prompts: Prompts) -> Prompts:
        if prompts.tokens is not None:
            if prompts.tokens.shape[1] > self.room:
                raise UserError("no room for a response")
            return prompts
        self.encoded += len(prompts)
        rows = [self.tokens(text) for text in prompts.text or ()]
        if prompts.conversations is not None:
            rows = [self.template(c) for c in prompts.conversations]
        width = max(map(len, rows))
        padded = [[PAD] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        tokens = torch.tensor(padded, dtype=torch.long)
        return Prompts(prompts.ids, tokens, torch.tensor(mask), prompts.text, prompts.conversations)

    def tokens(self, text: str) -> list[int]:
        if "unspeakable" in text or not (text or self.bos):
            raise UserError("the chat template refuses a prompt")
        return [BOS] * self.bos + [token(word) + self.shift for word in text.split("_")[0].split()]

    def template(self, conversation: Sequence[Any]) -> list[int]:
        marks = {"system": 2, "user": 3, "assistant": 4}
        turns = [[marks[m["role"]], *self.tokens(m["content"])] for m in conversation]
        return [t for turn in turns for t in turn] + [marks["assistant"]]


class Deaf(nn.Module):
    """Stands in for a table: it has no tokens."""

    def encode(self, prompts: Prompts) -> Prompts:
        return prompts


def token(word: str) -> int:
    return 100 * len(word) + ord(word[0])


class Game(L.LightningModule):
    """Stands in for the game: it counts batches, and remembers which prompts they had."""

    def __init__(self, gradient_steps: int = 1, policy: nn.Module | None = None) -> None:
        super().__init__()
        self.policy = policy or Words()
        self.weight = nn.Parameter(torch.zeros(()))
        self.progress = SimpleNamespace(batches=0, stream=[])
        self.gradient_steps_per_round = gradient_steps
        self.reuse = None
        self.seen: list[list[int]] = []
        self.validated: list[Prompts] = []

    def training_step(self, prompts: Prompts, batch_idx: int) -> torch.Tensor:
        self.progress.batches += 1
        self.seen.append(prompts.ids.tolist())
        return self.weight**2

    def validation_step(self, prompts: Prompts, batch_idx: int) -> None:
        self.validated.append(prompts)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"] = self.progress.batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.progress.batches = checkpoint["batches"]


def write(folder: Path, *prompts: Any, name: str = "prompts.jsonl", column: str = "prompt") -> str:
    return write_rows(folder / name, *({column: prompt} for prompt in prompts))


def attach(
    data: TextPrompts, game: Game | None = None, rank: int = 0, size: int = 1
) -> TextPrompts:
    """Set the prompts up for one of several processes, without a Trainer."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=game or Game(), global_rank=rank, world_size=size,
        is_global_zero=rank == 0, accumulate_grad_batches=1, limit_val_batches=1.0, loggers=[],
        global_step=0,
    )  # fmt: skip
    data.setup("fit")
    return data


def batches(data: TextPrompts, num: int) -> list[Prompts]:
    return list(islice(data.train_dataloader(), num))


def ids(some: Sequence[Prompts]) -> list[list[int]]:
    return [prompts.ids.tolist() for prompts in some]


def unpadded(prompts: Prompts) -> list[list[int]]:
    return [row[m].tolist() for row, m in zip(prompts.tokens, prompts.mask, strict=True)]


# What is read ------------------------------------------------------------------------------------


def test_text_is_padded_on_the_left_to_the_longest_of_its_batch(tmp_path):
    path = write(tmp_path, "a bb", "c", "a b c d")
    first, second = batches(attach(TextPrompts(path, 1, shuffle=False)), 2)
    assert first.tokens.tolist() == [[token("a"), token("bb")]]
    assert second.tokens.tolist() == [[token("c")]]
    (prompts,) = batches(attach(TextPrompts(path, 3, shuffle=False)), 1)
    assert prompts.mask.tolist() == [[False, False, True, True], [False] * 3 + [True], [True] * 4]
    assert prompts.text == ["a bb", "c", "a b c d"]
    assert unpadded(prompts) == [[token(w) for w in text.split()] for text in prompts.text]
    assert prompts.conversations is None


TALK = [system("s"), user("a"), assistant("b"), user("c d")]
# Prompts, options, and the conversations that they become.
READ = {
    "conversations": ([TALK, [user("e")]], {}, [TALK, [user("e")]]),
    "text": (["a"], {"as_conversation": True}, [[user("a")]]),
    "a system message": (["a"], {"as_conversation": True, "system": "be brief"}, [[system("be brief"), user("a")]]),
    "an answer is left out when asked for": (
        [[user("a"), assistant("b")], [user("c")]],
        {"drop_last_assistant": True},
        [[user("a")], [user("c")]],
    ),
    "other keys are not read": ([[user("a") | {"model": "x"}]], {}, [[user("a")]]),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_conversations(case, tmp_path):
    written, options, expected = READ[case]
    path = write_rows(tmp_path / "p.json", *({"score": 3, "talk": one} for one in written))
    data = TextPrompts(path, len(written), column="talk", shuffle=False, **options)
    (prompts,) = batches(attach(data), 1)
    assert prompts.conversations == expected
    assert prompts.text == [talk[-1]["content"] for talk in expected]


def test_a_conversation_becomes_the_tokens_of_its_template(tmp_path):
    data = TextPrompts(write(tmp_path, TALK, [user("e")]), 2, shuffle=False)
    (prompts,) = batches(attach(data), 1)
    s, a, b, c, d, e = map(token, "sabcde")
    assert unpadded(prompts) == [[2, s, 3, a, 4, b, 3, c, d, 4], [3, e, 4]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n", ""])
def test_lines_end_with_a_newline_alone(end, tmp_path):
    """A line separator of Unicode may stand in a prompt, and JSON need not escape it."""
    rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in ("a\u2028b \x85", "c")]
    (tmp_path / "p.jsonl").write_bytes(("\r\n".join(rows) + end).encode())
    data = attach(TextPrompts(str(tmp_path / "p.jsonl"), 2, shuffle=False))
    assert batches(data, 1)[0].text == ["a\u2028b \x85", "c"]


def test_limit_reads_the_first_rows_only(tmp_path):
    path = Path(write(tmp_path, *"abc"))
    path.write_text(path.read_text() + "no JSON")
    assert ids(batches(attach(TextPrompts(str(path), 2, limit=2, shuffle=False)), 1)) == [[0, 1]]


# The stream --------------------------------------------------------------------------------------


def test_two_processes_see_each_prompt_once_a_pass(tmp_path):
    path = write(tmp_path, *(f"w{i}" for i in range(12)))
    both = [attach(TextPrompts(path, 3, seed=5), rank=rank, size=2) for rank in range(2)]
    seen = [ids(batches(data, 4)) for data in both]
    passes = [[i for rank in seen for batch in rank[a : a + 2] for i in batch] for a in (0, 2)]
    assert [sorted(one) for one in passes] == [list(range(12))] * 2
    assert passes[0] != passes[1]


def test_duplicates_are_prompts_of_their_own(tmp_path):
    data = attach(TextPrompts(write(tmp_path, "same", "same", "other"), 3, shuffle=False))
    assert ids(batches(data, 1)) == [[0, 1, 2]]


def test_gradient_steps_of_a_round_see_the_same_prompts(tmp_path):
    game = Game(gradient_steps=2)
    data = TextPrompts(write(tmp_path, *"abcdef"), 2, shuffle=False)
    trainer(max_steps=6).fit(game, data)
    assert game.seen == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]


def test_a_loader_leaves_the_global_random_state_alone(tmp_path):
    data = attach(TextPrompts(write(tmp_path, *"abcd"), 2))
    before = torch.get_rng_state()
    batches(data, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_run_sees_what_the_other_would_have_seen(tmp_path):
    path = write(tmp_path, *"abcdefg")
    whole, half, rest = Game(), Game(), Game()
    data = [TextPrompts(path, 3, longest_first=True) for _ in range(3)]
    trainer(max_steps=9).fit(whole, data[0])
    first = trainer(max_steps=4)
    first.fit(half, data[1])
    first.save_checkpoint(tmp_path / "c.ckpt")
    trainer(max_steps=9).fit(rest, data[2], ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert half.seen + rest.seen == whole.seen
    assert len(rest.seen) == 5


def test_other_prompts_are_not_resumed_with(tmp_path):
    path = write(tmp_path, *"abcd", "e_1")
    first = trainer(max_steps=1)
    first.fit(Game(), TextPrompts(path, 2))
    first.save_checkpoint(tmp_path / "c.ckpt")
    again = {"ckpt_path": tmp_path / "c.ckpt", "weights_only": True}
    for changed in (["e_2"], ["e_1", "f"], []):  # the tokens of "e_1" and "e_2" are equal
        write(tmp_path, *"abcd", *changed)
        with pytest.raises(UserError, match=r"the prompts of .*prompts\.jsonl, .* are not those"):
            trainer(max_steps=2).fit(Game(), TextPrompts(path, 2), **again)
    # Validation on other prompts is nobody's mistake.
    trainer().validate(Game(), TextPrompts(path, 2, num_validation=1), verbose=False, **again)
    write(tmp_path, *"abcd", "e_1")
    with pytest.raises(UserError, match="are not those"):  # another tokenizer
        trainer(max_steps=2).fit(Game(policy=Words(shift=1)), TextPrompts(path, 2), **again)
    trainer(max_steps=2).fit(Game(), TextPrompts(path, 2), **again)


def test_longest_first(tmp_path):
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    path = write(tmp_path, *(" ".join("w" * n) for n in lengths))
    data = attach(TextPrompts(path, 4, longest_first=True))
    stream = batches(data, 30)
    expected = sorted(range(12), key=lambda i: (-lengths[i], i))
    assert [i for batch in ids(stream[:3]) for i in batch] == expected
    assert [batch.tokens.shape[1] for batch in stream[:3]] == [9, 5, 3]
    assert max(batch.tokens.shape[1] for batch in stream[1:]) == 9  # later passes are shuffled
    later = [[i for batch in ids(stream[a : a + 3]) for i in batch] for a in range(3, 30, 3)]
    assert all(sorted(one) == list(range(12)) for one in later)
    assert len({tuple(one) for one in later}) == len(later)
    # The widest batch of all processes is in the first step, and they share the pass.
    both = [attach(TextPrompts(path, 3, longest_first=True), rank=r, size=2) for r in range(2)]
    steps = zip(*(ids(batches(data, 2)) for data in both), strict=True)
    assert [i for step in steps for batch in step for i in batch] == expected


# Too long ----------------------------------------------------------------------------------------

LONG = ("a", "b c d e f", "g h", "i j k l")


def test_longer_prompts_are_dropped_and_the_others_keep_their_numbers(tmp_path, capsys):
    path = write(tmp_path, *LONG)
    data = TextPrompts(path, 2, max_prompt_tokens=2, too_long="drop")
    (prompts,) = batches(attach(data), 1)
    assert sorted(prompts.ids.tolist()) == [0, 2]
    assert dict(zip(prompts.ids.tolist(), prompts.text, strict=True)) == {0: "a", 2: "g h"}
    data.setup("fit")  # says it once
    attach(TextPrompts(path, 2, max_prompt_tokens=5, too_long="drop"))  # which leaves out none
    left_out = f"{path}: 2 of 4 prompts have more than 2 tokens and were left out\n"
    assert capsys.readouterr().err == left_out


@pytest.mark.parametrize("bos", [False, True])
def test_longer_prompts_are_cut_at_the_front(bos, tmp_path, capsys):
    """Without its `<bos>` a model is off its distribution."""
    limit = 3 + bos
    path = write(tmp_path, *LONG)
    data = TextPrompts(path, 4, max_prompt_tokens=limit, too_long="truncate", shuffle=False)
    (prompts,) = batches(attach(data, Game(policy=Words(bos=bos))), 1)
    left = [text.split() for text in ("a", "d e f", "g h", "j k l")]
    assert unpadded(prompts) == [[BOS] * bos + [*map(token, words)] for words in left]
    assert prompts.text == [*LONG]  # oracles read the whole
    cut = f"{path}: 2 of 4 prompts were cut at the front, to {limit} tokens\n"
    assert capsys.readouterr().err == cut


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_figures_are_logged(too_long, tmp_path):
    path = write(tmp_path, *LONG, "m")
    data = TextPrompts(path, 2, max_prompt_tokens=2, too_long=too_long)
    log = CSVLogger(tmp_path)
    trainer(max_steps=1, logger=log, log_every_n_steps=1).fit(Game(), data)
    with open(Path(log.log_dir) / "metrics.csv", encoding="utf-8") as file:
        (figures,) = (row for row in csv.DictReader(file) if row["data/dropped"])
    assert int(figures["data/dropped"]) == (2 if too_long == "drop" else 0)
    assert int(figures["data/truncated"]) == (2 if too_long == "truncate" else 0)


# Validation --------------------------------------------------------------------------------------


def test_prompts_that_are_held_out_are_not_trained_on(tmp_path):
    game = Game()
    data = TextPrompts(write(tmp_path, *"abcde"), 2, num_validation=2)
    trainer(max_steps=12, val_check_interval=3, limit_train_batches=12, max_epochs=1).fit(
        game, data
    )
    assert {i for batch in game.seen for i in batch} == {0, 1, 2}
    assert ids(game.validated) == [[3, 4]] * 4


def test_validation_prompts_have_numbers_of_their_own(tmp_path):
    """What is remembered by prompt must not be mixed up."""
    path, other = write(tmp_path, *"abc"), write(tmp_path, *"xyz", name="other.jsonl")
    for num, expected in ((None, [[3, 4], [5]]), (2, [[3, 4]])):
        game = Game()
        data = TextPrompts(path, 2, validation_path=other, num_validation=num)
        trainer().validate(game, data, verbose=False)
        assert ids(game.validated) == expected
        assert [t for p in game.validated for t in p.text] == [*"xyz"][:num]


def test_processes_share_the_validation_prompts(tmp_path):
    path = write(tmp_path, *"abcdefghijkl")
    both = [attach(TextPrompts(path, 2, num_validation=6), rank=rank, size=2) for rank in range(2)]
    seen = [ids(data.val_dataloader()) for data in both]
    assert [[len(batch) for batch in rank] for rank in seen] == [[2, 1]] * 2
    assert sorted(i for rank in seen for batch in rank for i in batch) == [*range(6, 12)]


def test_no_validation_prompts(tmp_path):
    path, game = write(tmp_path, *"abc"), Game()
    trainer(max_steps=4, val_check_interval=2, limit_train_batches=4).fit(
        game, TextPrompts(path, 2)
    )
    assert len(game.seen) == 4
    assert game.validated == []
    with pytest.raises(UserError, match=r"no validation prompts: set data\.validation_path"):
        trainer().validate(Game(), TextPrompts(path, 2), verbose=False)
    # A trainer that was used without them validates all the same afterwards.
    same = trainer(max_steps=1)
    same.fit(game, TextPrompts(path, 2))
    same.validate(game, TextPrompts(path, 2, num_validation=1), verbose=False)
    assert ids(game.validated) == [[2]]


def test_prompts_are_encoded_once_for_each_policy(tmp_path):
    data, game = TextPrompts(write(tmp_path, *(["a"] * 600)), 2), Game()
    data.load(game.policy)  # as refusals do, before anything is written
    trainer(max_steps=1).fit(game, data)
    assert game.policy.encoded == 600
    other = Game(policy=Words(bos=True))
    assert batches(attach(data, other), 1)[0].tokens[0].tolist() == [BOS, token("a")]


# What is refused ---------------------------------------------------------------------------------


def lines(*rows: str) -> bytes:
    return "\n".join(rows).encode()


GOOD = '{"prompt": "a"}'

# Content of the file, options, and what is said.
FILES = {
    "no rows": (b"", {}, r"p\.jsonl has no rows"),
    "blank alone": (b"\n\n", {}, "has no rows"),
    "blank between": (lines(GOOD, "", " ", GOOD), {}, r"line 2 of .*p\.jsonl is blank"),
    "no JSON": (lines(GOOD, "hello"), {}, r"line 2 of .*p\.jsonl is not JSON: Expecting value at c"),
    "cut off": (lines(GOOD, '{"prompt": "a'), {}, "line 2 .* is not JSON: Unterminated string"),
    "two objects": (lines(GOOD + GOOD), {}, "line 1 .* is not JSON: Extra data at character 16"),
    "an array": (lines("[" + GOOD + "]"), {}, "line 1 .* holds a list.*one object a line"),
    "an array of lines": (lines("[", GOOD, "]"), {}, "line 1 .* is not JSON"),
    "a list": (lines(GOOD, "[1]"), {}, "line 2 .* holds a list"),
    "a text": (lines('"a"'), {}, "line 1 .* holds text, not an object such as .*prompt"),
    "nesting": (lines("[" * 100_000), {}, "line 1 .* cannot be read as JSON"),
    "UTF-16": (GOOD.encode("utf-16"), {}, "is not text in UTF-8: save it as UTF-8"),
    "Latin-1": (lines(GOOD) + b'\n{"prompt": "\xe9"}', {}, "line 2 .* is not text in UTF-8"),
    "duplicate key": (lines('{"prompt": "a", "prompt": "b"}'), {}, "line 1 .* key 'prompt' twice"),
    "duplicate role": (lines('{"prompt": [{"role": "user", "role": "user", "content": "a"}]}'), {}, "the key 'role' twice"),
    "missing column": (
        lines(GOOD, '{"question": "a", "id": 1}'), {},
        r"line 2 .* no column 'prompt': set data\.column to one of question, id",
    ),
    "missing everything": (lines("{}"), {}, r"no column 'prompt': .*\(it has none\)"),
    "empty": (lines(GOOD, '{"prompt": " \\n"}'), {}, "line 2 .* has an empty prompt"),
    "null": (lines('{"prompt": null}'), {}, "line 1 .* neither text nor a list .* but null"),
    "a number": (lines('{"prompt": 3}'), {}, "but a number"),
    "surrogate": (lines('{"prompt": "ab\\ud800"}'), {}, "is not Unicode: .* at character 2"),
    "mixed": (
        lines(GOOD, '{"prompt": [{"role": "user", "content": "a"}]}'), {},
        "line 2 .* is a list of messages, unlike the rows before it",
    ),
    "no tokens": (lines(GOOD, '{"prompt": "_b"}'), {}, r"line 2 of .*p\.jsonl becomes no tokens"),
    "the policy refuses one": (
        lines(GOOD, GOOD, '{"prompt": "unspeakable"}'), {},
        "line 3 .* cannot be encoded: the chat template refuses a prompt",
    ),
    "the policy refuses all": (lines(*['{"prompt": "unspeakable"}'] * 2), {}, "^the chat template refuses a prompt$"),
    "system for text": (lines(GOOD), {"system": "s"}, r"data\.system .* set data\.as_conversation"),
    "dropping for text": (lines(GOOD), {"drop_last_assistant": True}, "is for conversations"),
    "too many a batch": (lines(GOOD, GOOD), {"batch_size": 3}, "1 x 3 prompts .* are 2 prompts only"),
    "too long": (
        lines(GOOD, '{"prompt": "a b c"}', '{"prompt": "a b"}'), {"max_prompt_tokens": 1},
        r"2 of 3 prompts of .* more than data\.max_prompt_tokens = 1 tokens, the first of them "
        r"line 2 of .* with 3: raise it, or set data\.too_long to drop or truncate",
    ),
    "all too long": (lines('{"prompt": "a b"}'), {"max_prompt_tokens": 1, "too_long": "drop"}, "all 1 of 1 prompts"),
    "no room": (lines(GOOD, '{"prompt": "' + 1001 * "a " + '"}'), {}, "line 2 of .* cannot be answered: no room for a response"),
    "no room for the beginning": (
        lines('{"prompt": "a b"}'),
        {"max_prompt_tokens": 1, "too_long": "truncate", "policy": Words(bos=True)},
        "leaves no room beside the 1 tokens",
    ),
    "a policy that reads no text": (lines(GOOD, GOOD), {"policy": Deaf()}, r"and Deaf does not: choose another model\.policy"),
    "all held out": (lines(GOOD, GOOD), {"num_validation": 2}, "is 2, which leaves none of 2"),
}  # fmt: skip

# Messages of a row, options, and what is said.
TALKS = {
    "answer": ([user("a"), assistant("b")], {}, r"be the answer: set data\.drop_last_assistant"),
    "two answers": (
        [user("a"), assistant("b"), assistant("c")], {"drop_last_assistant": True},
        "does not end with a message of the user's",
    ),
    "answer alone": ([assistant("b")], {"drop_last_assistant": True}, "nothing to answer"),
    "no messages": ([], {}, "line 1 .* does not end with a message of the user's"),
    "system alone": ([system("a")], {}, "does not end with a message of the user's"),
    "system later": ([user("a"), system("b"), user("c")], {}, "system message that is not the first"),
    "role": ([{"role": "human", "content": "a"}], {}, "role 'human': choose one of system, user"),
    "ShareGPT": ([{"from": "human", "value": "a"}], {}, "without role and content: an object"),
    "texts": (["a", "b"], {}, "a message without role and content: text"),
    "no content": ([{"role": "user", "content": None}], {}, "content is null, not text"),
    "pictures": ([{"role": "user", "content": [{}]}], {}, "content is a list"),
    "empty message": ([user("a"), assistant(""), user("b")], {}, "line 1 .* has an empty message"),
    "two systems": ([system("a"), user("b")], {"system": "c"}, "a system message of their own"),
    "already": ([user("a")], {"as_conversation": True}, "holds conversations already"),
    "truncate": (
        [user("a")], {"max_prompt_tokens": 9, "too_long": "truncate"},
        r"one that is cut breaks its chat template: set data\.too_long to drop",
    ),
    "too long talk": ([user("a b c")], {"max_prompt_tokens": 2}, r"with 5: raise it, or set data\.too_long to drop$"),
}  # fmt: skip

# Arguments beside a good file, and what is said before it is read.
ARGUMENTS = {
    "batch_size": ({"batch_size": 0}, r"data\.batch_size must be at least 1, but it is 0"),
    "limit": ({"limit": 0}, r"data\.limit must be at least 1"),
    "max_prompt_tokens": ({"max_prompt_tokens": 0}, r"data\.max_prompt_tokens must be at least 1"),
    "num_validation": ({"num_validation": -1}, r"data\.num_validation must be at least 1"),
    "too_long alone": ({"too_long": "drop"}, r"too_long is drop: set data\.max_prompt_tokens"),
    "too_long": ({"too_long": "cut", "max_prompt_tokens": 3}, "too_long is one of .* not 'cut'"),
    "system": ({"system": " "}, r"data\.system is an empty message"),
    "no file": ({"path": "none.jsonl"}, r"there is no file none\.jsonl of prompts"),
    "other file": ({"path": __file__}, r"test_text_prompts.py is not known to hold .* \.jsonl file"),
    "no folder": ({"path": "/none/such"}, "is no file and no folder, and cannot be the name"),
    "three parts": ({"path": "a/b/c"}, "is no file and no folder, and cannot be the name"),
    "a space": ({"path": "a b"}, "'a b' is no file and no folder"),
    "empty path": ({"path": ""}, "is no file and no folder"),
    "split of a file": ({"split": "test"}, "neither configurations nor splits.* 'test'"),
    "configuration of a file": ({"name": "main"}, "configuration 'main'"),
    "no validation file": ({"validation_path": "none.json"}, r"no file none\.json of prompts"),
    "validation split of a file": ({"validation_split": "test"}, "split 'test'"),
    "validation on training": ({"validation_split": "train"}, "are those of training"),
}  # fmt: skip


def setup(path, batch_size=1, policy=None, **options):
    attach(TextPrompts(str(path), batch_size, **options), Game(policy=policy))


@pytest.mark.parametrize("case", FILES | TALKS)
def test_files_are_refused(case, tmp_path):
    content, options, message = (FILES | TALKS)[case]
    if isinstance(content, list):
        content = json.dumps({"prompt": content}).encode()
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        setup(tmp_path / "p.jsonl", **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_are_refused(case, tmp_path):
    options, message = ARGUMENTS[case]
    with pytest.raises(UserError, match=message) as refused:
        TextPrompts(**{"path": write(tmp_path, "a"), "batch_size": 1} | options)
    assert "\n" not in str(refused.value)


def test_what_processes_cannot_share_is_refused(tmp_path):
    path = write(tmp_path, *"abcde")
    with pytest.raises(UserError, match=r"2 x 3 prompts .* there are 5 prompts only"):
        attach(TextPrompts(path, 3), size=2)
    other = write(tmp_path, *"ab", name="other.jsonl")
    with pytest.raises(UserError, match="num_validation is 3, but there are 2 validation prompts"):
        attach(TextPrompts(path, 1, validation_path=other, num_validation=3))


def test_an_unreadable_file_is_refused(tmp_path):
    data = TextPrompts(write(tmp_path, "a"), 1)
    (tmp_path / "prompts.jsonl").unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        attach(data)


# The datasets library ----------------------------------------------------------------------------


def test_the_datasets_library_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    remedy = r"pip install 'nlhf_zoo\[datasets\]', or give a \.jsonl file"
    for path in (str(tmp_path), "owner/name"):
        with pytest.raises(UserError, match=remedy):
            setup(path)


@pytest.fixture(name="datasets")
def _datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


def test_saved_data_sets(datasets, tmp_path):
    train = datasets.Dataset.from_dict({"prompt": ["a", "b", "c"], "n": [1, 2, 3]})
    talk = datasets.Dataset.from_dict({"messages": [[user("d")], [system("s"), user("e")]]})
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": train, "test": train.select([2])}).save_to_disk(tmp_path / "two")
    talk.save_to_disk(tmp_path / "talk")
    data = TextPrompts(str(tmp_path / "one"), 2, limit=2, shuffle=False)
    assert batches(attach(data), 1)[0].text == ["a", "b"]
    data = TextPrompts(str(tmp_path / "two"), 3, validation_split="test", shuffle=False)
    assert batches(attach(data), 1)[0].text == ["a", "b", "c"]
    (validation,) = data.val_dataloader()
    assert (validation.text, validation.ids.tolist()) == (["c"], [3])
    data = TextPrompts(str(tmp_path / "talk"), 2, column="messages", shuffle=False)
    assert batches(attach(data), 1)[0].conversations == [[user("d")], [system("s"), user("e")]]


def test_a_folder_of_files_is_a_data_set(datasets, tmp_path):
    for split in ("train", "test"):
        write(tmp_path, split, name=f"{split}.jsonl")
    data = TextPrompts(str(tmp_path), 1, validation_split="test")
    assert batches(attach(data), 1)[0].text == ["train"]
    assert next(iter(data.val_dataloader())).text == ["test"]


def test_data_sets_are_refused(datasets, tmp_path):
    data = datasets.Dataset.from_dict({"prompt": ["a", "", None]})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "two")
    write(tmp_path, "a", name="folder.jsonl")
    (tmp_path / "empty").mkdir()
    for folder, options, message in [
        ("one", {}, r"row 1 of .*one \(train\) has an empty prompt"),
        ("one", {"column": "text"}, r"one \(train\) has no column 'text': .* one of prompt"),
        ("one", {"split": "test"}, "has no split 'test': choose one of train"),
        ("one", {"name": "main"}, r"without configurations: leave out data\.name"),
        ("two", {}, "has no split 'train': choose one of test"),
        ("empty", {}, r"cannot load .*empty \(train\): .*doesn't contain any data files"),
        (".", {"split": "dev"}, "cannot load .*Unknown split"),
        (".", {"name": "main"}, "cannot load .*BuilderConfig 'main' not found"),
    ]:
        with pytest.raises(UserError, match=message) as refused:
            setup(tmp_path / folder, **options)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"cannot load owner/name \(train\)"):
        setup("owner/name")  # without a network
