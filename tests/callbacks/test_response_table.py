"""What the model said, as it was drawn and judged: in a file, and as text that is only text."""

import copy
import json
import warnings
from functools import partial
from html.parser import HTMLParser
from types import SimpleNamespace

import lightning as L
import pytest
import rows
import runs
import tiny_models
import torch
from game.test_language_game import make_game
from language_models import letters
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zoo import fit

from nlhf_zoo import ResponseTable, TextPrompts
from nlhf_zoo.algorithms import EGPO, NashMP, OnlineDPO
from nlhf_zoo.callbacks.response_rows import COLUMNS, ResponseFile, escaped, table
from nlhf_zoo.callbacks.response_table import show
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.oracles import OrderSwap, RuleOracle
from nlhf_zoo.policies import CausalLMPolicy, LoRA

pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but")


@pytest.fixture(autouse=True)
def _as_the_command_line():
    with quiet():
        yield


def written(folder):
    """The rows of a run's file."""
    (file,) = folder.rglob("responses.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


class Watch(L.Callback):
    """Keeps log pi/mu of all words as each step found it."""

    def __init__(self):
        self.ratios = {}

    def on_train_batch_start(self, trainer, game, *_):
        place = game.progress.round, game.progress.step
        self.ratios.setdefault(place, game.log_policy() - game.log_policy("reference"))


PLAYED = {
    "two steps": (EGPO, Sample(3, 2), {}),
    "another player": (NashMP, Sample(3, 2), {}),
    "among themselves": (OnlineDPO, Sample(4, 1), {"micro_batches": 2}),
    "a design": (OnlineDPO, Sample(4, 1, pairs="circle"), {}),
    "reused": (EGPO, Sample(3, 2, epochs=2), {"micro_batches": 2, "overlap_judging": True}),
}


@pytest.mark.parametrize("kind", PLAYED)
def test_rows_say_what_was_drawn_judged_and_scored(kind, tmp_path):
    """Against the whole table of preferences and of log-probabilities."""
    algorithm, rollout, options = PLAYED[kind]
    game = make_game(algorithm(), 4, rollout=rollout)
    for name, value in options.items():
        if name == "micro_batches":
            parts = value, options.get("overlap_judging", False)
            game.micro_batches = type(game.micro_batches)(*parts)
    watch, steps = Watch(), len(game.plan)
    logger = TensorBoardLogger(tmp_path, "run")
    fit(game, 3, callbacks=[watch, ResponseTable(every=2, num=2)], logger=logger)
    found = written(tmp_path)
    places = [(row["round"], row["step"]) for row in found]
    assert places == [(r, s) for r in (0, 2) for s in range(steps) for _ in range(2)]
    prompts, names = [*game.oracle.prompts.text], game.oracle.action_names
    for row in found:
        prompt = prompts.index(row["prompt"])
        first, second = (names[prompt].index(row[which]) for which in ("response", "opponent"))
        expected = float(game.oracle.table[prompt, first, second])
        assert row["preference"] == pytest.approx(expected, abs=1e-6)
        ratio = watch.ratios[row["round"], row["step"]][prompt, first]
        assert row["log_ratio"] == pytest.approx(float(ratio), abs=1e-4)
        assert (row["valid"], row["length"], row["opponent_length"]) == (True, 2, 2)
        plan = algorithm().steps(0.3, 0)[row["step"]]
        alone = plan.among_themselves
        assert row["player"] == dict(plan.sampler)
        assert row["opponent_player"] == dict(plan.sampler if alone else plan.payoff[0][1])
    assert any(row["response"] != row["opponent"] for row in found)
    assert len({row["log_ratio"] for row in found}) > 1
    events = EventAccumulator(logger.log_dir).Reload()
    shown = events.Tensors("responses/rollout/text_summary")
    assert {event.step for event in shown} == {0, 2}


class Keeps(RuleOracle):
    """Remembers each question that it is asked."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.asked = []

    def answers(self, questions):
        self.asked += [(q.prompt, q.first, q.second) for q in questions]
        return super().answers(questions)


def first_letter(prompt, first, second):
    """More letters are better, with a bias for the first place; silent about some prompts."""
    if prompt == "b":
        return None
    return 0.9 if len(first) >= len(second) else 0.3


def text_game(tmp_path, **options):
    """A game of a tiny model on six prompts, two of which are held out."""
    policy = CausalLMPolicy(letters("llama"), LoRA(r=4, alpha=8), max_new_tokens=5)
    oracle = Keeps(first_letter, check_symmetry=False)
    game = OnlineGame(
        policy, OrderSwap(oracle), OnlineDPO(), 0.1, rollout=Sample(2, 2),
        realisation=GradientSteps(), max_invalid=1.0,
    )  # fmt: skip
    tiny_models.scatter_adapters(policy)
    tmp_path.mkdir(exist_ok=True)
    path = rows.write(tmp_path / "prompts.jsonl", *({"prompt": text} for text in "abcdef"))
    data = TextPrompts(path, 4, num_validation=2, shuffle=False, as_conversation=True, **options)
    return game, data, oracle


def play(tmp_path, *callbacks, steps=4, **options):
    game, data, oracle = text_game(tmp_path)
    logger = TensorBoardLogger(tmp_path, "run")
    given = {"max_steps": steps, "val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer = rows.trainer(**given | options | {"logger": logger, "callbacks": [*callbacks]})
    torch.manual_seed(0)
    trainer.fit(game, datamodule=data)
    return game, oracle


def test_nothing_is_drawn_or_asked_for_it_but_fixed_prompts(tmp_path):
    """The oracle is asked the same, and the policy learns the same, as without it."""
    plain, questions = play(tmp_path / "plain")
    shown, same = play(tmp_path / "shown", ResponseTable(every=1, num=2))
    assert questions.asked == same.asked
    assert plain.progress == shown.progress
    for one, other in zip(plain.policy.parameters(), shown.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    found = written(tmp_path / "shown")
    kinds = [row["kind"] for row in found]
    assert kinds == (["rollout"] * 2 + ["fixed"] * 2) * 2 + (
        ["validation"] * 2 + (["rollout"] * 2 + ["fixed"] * 2) * 2 + ["validation"] * 2
    )
    fixed = [row for row in found if row["kind"] == "fixed"]
    assert {row["prompt"][-1]["content"] for row in fixed} == {"e", "f"}
    assert all(row["valid"] is row["preference"] is row["opponent"] is None for row in fixed)
    judged = [row for row in found if row["kind"] == "validation"]
    assert {row["prompt"][-1]["content"] for row in judged} == {"e", "f"}
    assert all(row["opponent_player"] == {"reference": 1.0} for row in judged)
    assert all(type(row["log_ratio"]) is float for row in found)


def test_both_orders_and_invalid_answers(tmp_path):
    play(tmp_path, ResponseTable(every=1, num=4), steps=2)
    found = [row for row in written(tmp_path) if row["kind"] == "rollout"]
    assert {row["prompt"][-1]["content"] for row in found} == {*"abcd"}
    for row in found:
        ours, theirs = row["response"], row["opponent"]
        if ours == theirs:
            assert (row["preference"], row["orders"]) == (0.5, None)
        elif row["prompt"][-1]["content"] == "b":
            assert (row["valid"], row["preference"], row["orders"]) == (False, None, None)
        else:
            talk = row["prompt"][-1]["content"]
            forward = first_letter(talk, ours, theirs)
            backward = 1 - first_letter(talk, theirs, ours)
            assert row["orders"] == pytest.approx([forward, backward])
            assert row["preference"] == pytest.approx((forward + backward) / 2)
            assert forward != backward
    assert any(row["orders"] for row in found)


def test_prompts_of_ones_own_are_judged_in_validation_only(tmp_path):
    """They count as validation's, by the ledger and by `val/queries`, and not as training's."""
    texts = ["go on.", "why?"]
    plain, _ = play(tmp_path / "plain")
    game, oracle = play(tmp_path / "own", ResponseTable(every=1, num=1, prompts=texts))
    assert game.progress == plain.progress
    asked = [question for question in oracle.asked if question[0] in texts]
    assert 0 < len(asked) <= 2 * 2 * 2  # two validations, two prompts, two orders
    rows_of = {kind: [] for kind in ("rollout", "fixed", "validation")}
    for row in written(tmp_path / "own"):
        rows_of[row["kind"]].append(row)
    assert [row["prompt"][-1]["content"] for row in rows_of["fixed"]] == texts * 4
    assert [row["prompt"][-1]["content"] for row in rows_of["validation"]] == texts * 2
    questions = float(game.trainer.callback_metrics["val/queries"])
    assert questions == float(plain.trainer.callback_metrics["val/queries"]) + 2
    assert len(rows_of["rollout"]) == 4


HOSTILE = (
    "<script>alert(1)</script>", "| a | b |\n|---|---|", "![x](http://e.vil/x.png)", "&lt;b&gt;",
    "[click](javascript:alert(1))", "# not a heading\n- nor a list\n    nor code", "```\nfence",
    "<img src=x onerror=y>", "a\\*b* _c_ `d` ~e~ http://e.vil <http://e.vil>", "&#60;b&#62;",
    "日本語 ünï ∑ 🙂",
)  # fmt: skip


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *attrs))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "br":
            self.cells[-1] += "\n"

    def handle_data(self, data):
        if self.cells and data.strip("\n"):
            self.cells[-1] += data


def shown_by_tensorboard(text):
    with warnings.catch_warnings():  # its copy of bleach warns when it is imported
        warnings.simplefilter("ignore")
        from tensorboard.plugin_util import markdown_to_safe_html
    return markdown_to_safe_html(text)


def row_of(**values):
    names = "prompt response opponent preference orders log_ratio length truncated opponent_length"
    row = dict.fromkeys([*names.split(), "opponent_truncated", "valid"])
    return row | {"prompt": "p", "response": "r", "length": 3} | values


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_nothing_but_text(text):
    """As TensorBoard itself makes a page of it."""
    page = Page()
    talk = [{"role": "user", "content": text}]
    page.feed(shown_by_tensorboard(table([row_of(prompt=talk, response=text, opponent=text)])))
    assert {tag for tag, *_ in page.tags} <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    assert all(len(tag) == 1 for tag in page.tags)  # no attributes
    width = len(COLUMNS)
    assert page.cells[:width] == [*COLUMNS]
    assert len(page.cells) == 2 * width
    prompt, response, opponent, *_ = page.cells[width:]
    assert [response, opponent] == [text, text]
    assert prompt == f"user: {text}"


def test_control_characters_and_long_texts_are_shown_as_such():
    assert escaped("a\x00b\x1b") == "a\ufffdb\ufffd"
    assert escaped("é" * 2100).endswith("é (and 100 more characters)")


def test_a_logger_with_log_text_gets_cells():
    """As wandb's has it: nothing of it is imported."""
    seen = []
    logger = SimpleNamespace(log_text=lambda **given: seen.append(given))
    show(logger, "responses/rollout", [row_of(response="<b>", valid=False)], 7)
    (given,) = seen
    assert given["key"] == "responses/rollout"
    assert given["step"] == 7
    assert given["columns"] == [*COLUMNS]
    assert given["data"] == [["p", "<b>", "", "invalid", "", "", "3"]]
    show(SimpleNamespace(), "responses/rollout", [row_of()], 7)  # takes no text


def test_the_file_is_cut_to_what_the_checkpoint_counts(tmp_path):
    path = tmp_path / "responses.jsonl"
    file = ResponseFile(path, 0)
    said = ["a", "b\nc", "lone \ud800 surrogate", "d"]
    file.append([{"response": text} for text in said])
    file.close()
    with path.open("ab") as half:
        half.write(b'{"response": "ha')
    file = ResponseFile(path, 2)
    assert file.cut == [{"response": text} for text in said[2:]]
    file.append([{"response": "new"}])
    file.close()
    read = [json.loads(line)["response"] for line in path.read_bytes().splitlines()]
    assert read == ["a", "b\nc", "new"]
    with pytest.raises(UserError, match="fewer responses than the checkpoint"):
        ResponseFile(path, 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ResponseTable(every=0), "ResponseTable.every must be at least 1, but it is 0"),
        (lambda: ResponseTable(num=0), "ResponseTable.num must be at least 1"),
        (lambda: ResponseTable(prompts=["a", " "]), "ResponseTable.prompts has an empty prompt"),
        (
            lambda: ResponseTable().check(make_game(EGPO(), 4, rollout=Enumerate())),
            "and Enumerate has none: leave it out",
        ),
        (
            lambda: ResponseTable(prompts=["a"]).check(make_game(EGPO(), 4, rollout=Sample())),
            "cannot be judged by SmallLanguage, which has prompts of its own",
        ),
    ],
)
def test_refusals(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch"),  # the first checkpoint is there before the kill
    [
        (name, first + n)
        for name, first in [("language-nash_mp", 3), ("reused-egpo", 4)]
        for n in range(3)
    ],
)
def test_a_run_that_is_killed_and_resumed_has_the_file_of_one_that_was_not(name, batch, tmp_path):
    """Also where a rollout is read from the disk that was drawn and judged before the kill."""
    from game.test_other_processes import kill

    config = copy.deepcopy(runs.CASES[name])
    config["trainer"]["callbacks"].insert(2, runs.part("ResponseTable", every=1, num=2))
    config["trainer"]["callbacks"][-1] = runs.part("GameCheckpoint", every_n_train_steps=2)
    assert runs.whole_run(tmp_path / "whole", config) > batch
    runs.write(tmp_path / "killed", config)
    killed = runs.fit(tmp_path / "killed", before=partial(kill, 0, batch, "optimizer_step"))
    assert killed.code != 0
    assert runs.fit(tmp_path / "killed", *runs.LAST).code == 0
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    assert len(written(tmp_path / "whole")) > 6
