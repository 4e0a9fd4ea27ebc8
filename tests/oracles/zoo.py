"""The one table of oracles of texts, and the small models, the rule and the server behind them.

A new oracle is one row here: every contract of ``oracles/test_contracts_of_oracles.py`` then runs
over it.
"""

import atexit
import math
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from judge_server import JudgeServer
from judge_server_oracles import oracle as judge_oracle
from language_models import new_folder
from serving import forever
from text_models import CONFIGS, folder
from transformers import AutoModelForCausalLM
from voters import Voters

from nlhf_zoo import oracles
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.oracles.rules import shorter_wins
from nlhf_zoo.oracles.text_oracle import TextOracle
from nlhf_zoo.people import Choice, Pair, VoteStore
from nlhf_zoo.text_models.loading import ModelSettings
from nlhf_zoo.text_models.network import TextModel

SINGLE, PAIR = "w10 {prompt} w11 {response} w12", "w20 {prompt} w21 {first} w22 {second} w23"
LONG = f"w13 {'w1 ' * 40}w14"  # what no oracle of the table can read
NOWHERE = {"model_": "/no/such/folder"}
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One oracle with one choice of arguments.

    Args:
        oracle: the class.
        make: a new one, with some of its options; a model is named by its architecture.
        reads: how many texts pass when ``calls`` are made about pairs of ``texts`` different ones.
        orders: in which each pair is shown: a call for each.
        members: who are asked about every pair.
        last_message: whether of a prompt it reads the last message alone.
        unreadable: options with which `LONG` cannot be read, and ...
        readable: ... whether other texts then can.
        others: options, each of which may give other answers than the rest.
        same: options that cannot.
        templates: options with a template of one's own, for a prompt of one message.
        refuses: options that are refused without a look at a model, and what is said.
    """

    oracle: type[PreferenceOracle]
    make: Callable[..., PreferenceOracle]
    reads: Callable[[int, int], int]
    orders: int = 1
    members: int = 1
    last_message: bool = False
    unreadable: Options = field(default_factory=lambda: {"max_tokens": 36})
    readable: bool = True
    others: tuple[Options, ...] = ()
    same: Options = field(default_factory=lambda: {"batch_size": 2})
    templates: Options | None = None
    refuses: tuple[tuple[Options, str], ...] = ()

    @property
    def is_of_texts(self) -> bool:
        """Whether it can be asked question by question."""
        return issubclass(self.oracle, TextOracle)

    @property
    def is_of_models(self) -> bool:
        """Whether it reads with models of its own."""
        return "max_tokens" in self.unreadable

    def __str__(self) -> str:
        return self.oracle.__name__


# ---- what stands behind them ----


class Sums:
    """A rule that compares sums of characters, notes what it reads, and has no answer to `LONG`.

    Args:
        scale: of the differences.
    """

    def __init__(self, scale: float = 50.0) -> None:
        self.scale = scale
        self.read: list[str] = []

    def __call__(self, prompt: str, first: str, second: str) -> float | None:
        self.read.append(f"{prompt} | {first} | {second}")
        if LONG in (first, second):
            return None if first == LONG else math.nan
        return 1 / (1 + math.exp((sum(map(ord, second)) - sum(map(ord, first))) / self.scale))


class SumsJudge:
    """Likewise, as a judge of batches who prefers what stands first."""

    def __init__(self, scale: float = 50.0) -> None:
        self.rule = Sums(scale)
        self.read = self.rule.read

    def judge(self, prompts, completions, shuffle_order=True, return_scores=False):
        assert not shuffle_order
        said = [self.rule(prompt, *pair) for prompt, pair in zip(prompts, completions, strict=True)]
        return [-1 if one is None or math.isnan(one) else 0.1 + 0.9 * one for one in said]


class SumsRewards:
    """Likewise, as rewards of batches."""

    def __init__(self, scale: float = 50.0) -> None:
        self.scale = scale
        self.read: list[str] = []

    def __call__(self, prompts, completions, **columns):
        said = []
        for prompt, completion in zip(prompts, completions, strict=True):
            written = " ".join(one["content"] for one in prompt)
            text = completion[0]["content"]
            self.read.append(f"{written} | {text}")
            said.append(None if text == LONG else sum(map(ord, text)) / self.scale)
        return said


@cache
def server(**options: Any) -> JudgeServer:
    """A judge that serves until the tests end; it has an opinion of any two texts."""
    started = JudgeServer(keep=1, **options).__enter__()
    atexit.register(started.__exit__)
    return started


def model(name: str | list[str], *args: Any, copied: bool = False, **options: Any) -> Any:
    """Folders of models by their architecture; other names are taken as they are."""
    if isinstance(name, list):
        return [model(one, *args, **options) for one in name]
    made = folder(name, *args, **options) if name in CONFIGS else name
    return str(shutil.copytree(made, new_folder() / "copy")) if copied else made


def reward(model_: Any = "gpt2", copied: bool = False, **options: Any) -> oracles.RewardModelOracle:
    return oracles.RewardModelOracle(model(model_, copied=copied), **options)


def pair(model_: str = "gpt2", copied: bool = False, **options: Any) -> oracles.PairModelOracle:
    return oracles.PairModelOracle(model(model_, 2, copied=copied), **options)


def generative(model_: str = "gpt2", **options: Any) -> oracles.GenerativePairModelOracle:
    """Of a model of words."""
    given = {"template": PAIR, "labels": ("w38", "w39"), "min_label_mass": 0.0, **options}
    return oracles.GenerativePairModelOracle(model(model_, auto=AutoModelForCausalLM), **given)


def general(
    model_: str = "gpt2", copied: bool = False, template: str | None = None, **options: Any
) -> oracles.GeneralPreferenceModelOracle:
    settings = ModelSettings("general", template, temperature=2.0)
    made = model(model_, 6, settings=settings, copied=copied)
    return oracles.GeneralPreferenceModelOracle(made, **options)


def rule(scale: float = 50.0, **options: Any) -> oracles.RuleOracle:
    return oracles.RuleOracle(**{"function": Sums(scale), **options})


def pairwise_judge(scale: float = 50.0, **options: Any) -> oracles.PairwiseJudgeOracle:
    given = {"judge": SumsJudge(scale), "scores": True, "version": f"sums {scale}", **options}
    return oracles.PairwiseJudgeOracle(**given)


def reward_function(scale: float = 50.0, **options: Any) -> oracles.RewardFunctionOracle:
    given = {"preference": "sigmoid", "conversational": True, **options}
    return oracles.RewardFunctionOracle(**{"functions": SumsRewards(scale), **given})


def judge(is_silent: bool = False, **options: Any) -> oracles.JudgeOracle:
    return judge_oracle(server(always="refusal") if is_silent else server(), **options)


def served(**options: Any) -> oracles.ServedOracle:
    inner = rule(**options)
    oracle = oracles.ServedOracle(forever(inner))
    BEHIND[oracle.client.url] = inner
    return oracle


def human(**options: Any) -> oracles.HumanOracle:
    """Of somebody who is like `Sums`, and passes over `LONG`; all files are copies of one."""
    path = Path(shutil.copy(votes_file(), new_folder() / "people.sqlite"))
    oracle = oracles.HumanOracle(path, **options)
    somebody = Voters(path, lambda person, pair: by_sums(pair)).__enter__()
    weakref.finalize(oracle, somebody.leave)  # by whichever thread
    VOTERS[path] = somebody
    return oracle


def by_sums(pair: Pair) -> Choice:
    if LONG in (pair.first, pair.second):
        return "skip"
    first, second = (sum(map(ord, text)) for text in (pair.first, pair.second))
    return "neither" if first == second else "first" if first > second else "second"


@cache
def votes_file() -> Path:
    """A file without questions."""
    path = new_folder() / "people.sqlite"
    VoteStore(path).end()
    return path


def cached(**options: Any) -> oracles.CachedOracle:
    return oracles.CachedOracle(reward(**options), new_folder() / "answers.sqlite")


def swapped(swap: str = "both", **options: Any) -> oracles.OrderSwap:
    return oracles.OrderSwap(pair(order="none", **options), swap)


def fitted(**options: Any) -> oracles.FittedOracle:
    """One that still asks about everything."""
    return oracles.FittedOracle(reward(**options), min_answers=1000, remembered=1000)


def budgeted(**options: Any) -> oracles.BudgetedOracle:
    return oracles.BudgetedOracle(reward(**options), max_queries=10**6)


def ensemble(**options: Any) -> oracles.EnsembleOracle:
    return oracles.EnsembleOracle([general(**options), pair(order="random", **options)])


# ---- the table ----

BEHIND: dict[str, oracles.RuleOracle] = {}  # oracles behind servers, by their addresses
VOTERS: dict[Path, Voters] = {}  # people, by the files in which they vote

MODELS = ({"temperature": 3.0}, {"max_tokens": 60}, {"dtype": "bfloat16"})
COPIED = {"batch_size": 2, "copied": True}
NUMBERS = (
    *(
        ({"temperature": number}, f"temperature must be a finite number above 0, not {number}")
        for number in (0.0, -1.0, math.inf, math.nan)
    ),
    ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
)
RULES = (
    ({"function": 0.5}, "must be a function"),
    ({"function": lambda a, b: 0.5}, r"must take \(prompt, first, second\), but it takes \(a, b\)"),
    ({"function": Sums}, "must take"),
)
REWARDS = (
    ({"template": "{prompt}"}, r"has no field \{response\}"),
    ({"template": "{response}"}, r"has no field \{prompt\}"),
    ({"template": "{prompt} {response} {answer}"}, "has the field 'answer'"),
    ({"template": "{prompt} {response} {}"}, "has the field ''"),
    ({"template": "{prompt} {response} {prompt.text}"}, "has the field 'prompt.text'"),
    ({"template": "{prompt} {response!r}"}, r"has no field \{response\}"),
    ({"template": "{prompt} {response:>3} {response}"}, "has the field 'response'"),
    ({"template": "{prompt} {response} {response!r}"}, "has the field 'response'"),
    ({"template": "{prompt} {response} {"}, "cannot be read"),
    ({"penalty_without_end": -1.0}, "penalty_without_end must be"),
    ({"penalty_without_end": math.nan}, "penalty_without_end must be"),
    ({"model_": []}, "names no model"),
    ({"model_": ["a", "b"], "weights": [1.0]}, "has 1 numbers for 2 models"),
    ({"weights": [1.0, 2.0]}, "has 2 numbers for 1 models"),
    ({"model_": ["a", "b"], "weights": [1.0, 0.0]}, "other than 0"),
    ({"model_": ["a", "b"], "weights": [1.0, math.nan]}, "must be finite numbers"),
    ({"model_": ["a", "b"], "revision": "main"}, "is that of one model, but 2 are given"),
)
PAIRS = (
    ({"template": "{prompt} {first}"}, r"PairModelOracle\.template .*has no field \{second\}"),
    ({"template": PAIR + "{third}"}, r"'third': only \{prompt\}, \{first\} and \{second\}"),
    ({"template": PAIR + "{"}, "cannot be read"),
)
LABELS = (
    ({"template": "{prompt} {second}:"}, r"has no field \{first\}"),
    ({"template": "{prompt} {first} {second}", "chat_template": False}, "ends with a response"),
    ({"labels": ("A", "A")}, r"labels must be two different words.*'A', 'A'"),
    ({"labels": (" A", "B")}, "labels must be two different words without space"),
    ({"labels": ("", "B")}, "labels must be two different words"),
    ({"min_label_mass": 1.5}, r"min_label_mass must lie between 0 and 1, but it is 1\.5"),
    ({"min_label_mass": math.nan}, "min_label_mass must lie"),
)
OF_TWO = {"model_": ["gpt2", "llama"]}
ROWS = [
    Row(
        oracles.RuleOracle, rule, lambda calls, texts: 2 * calls,  # at first in both orders
        last_message=True, unreadable={}, same={"check_symmetry": False},
        others=({"scale": 20.0}, {"function": shorter_wins}), refuses=RULES,
    ),
    Row(
        oracles.RewardFunctionOracle, reward_function, lambda calls, texts: texts, unreadable={},
        others=({"scale": 20.0}, {"temperature": 2.0}, {"preference": "comparison"}),
        refuses=(
            *NUMBERS[:-1], ({"preference": "maybe"}, "preference is one of"),
            ({"functions": []}, "names no function"), ({"functions": 0.5}, "must be functions"),
            ({"weights": [1.0, 2.0]}, "has 2 numbers for 1 functions"),
            ({"weights": [0.0]}, "other than 0"),
            ({"functions": lambda prompts, answer: []}, "gets prompts, completions by name"),
        ),
    ),
    Row(
        oracles.PairwiseJudgeOracle, pairwise_judge, lambda calls, texts: calls, orders=2,
        unreadable={}, others=({"scale": 20.0}, {"order": "none"}),
        refuses=(
            ({"order": "twice"}, "order must be one of none, random, both, not 'twice'"),
            ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
            ({"judge": Sums()}, "an object with a method `judge`, but Sums has none"),
        ),
    ),
    Row(
        oracles.RewardModelOracle, reward, lambda calls, texts: texts,
        same=COPIED, templates={"template": SINGLE}, refuses=(*NUMBERS, *REWARDS),
        others=(
            *MODELS, {"penalty_without_end": 1.0}, {"template": SINGLE}, {"model_": "llama"},
            OF_TWO, {"model_": ["llama", "gpt2"]}, {**OF_TWO, "weights": [1.0, 2.0]},
        ),
    ),
    Row(
        oracles.PairModelOracle, pair, lambda calls, texts: calls, orders=2,
        same=COPIED, templates={"template": PAIR}, refuses=(*NUMBERS, *PAIRS),
        others=(
            *MODELS, {"first_label": "second"}, {"template": PAIR}, {"model_": "llama"},
            {"order": "none"}, {"order": "random"},
        ),
    ),
    Row(
        oracles.GenerativePairModelOracle, generative, lambda calls, texts: calls, orders=2,
        templates={"chat_template": False}, refuses=(*NUMBERS, *LABELS),
        others=(
            *MODELS, {"labels": ("w38", "w37")}, {"min_label_mass": 0.5}, {"chat_template": False},
            {"model_": "llama"}, {"order": "none"},
        ),
    ),
    Row(
        oracles.GeneralPreferenceModelOracle, general, lambda calls, texts: texts,
        same=COPIED, templates={"template": SINGLE}, refuses=NUMBERS,
        others=(*MODELS, {"template": SINGLE}, {"model_": "llama"}),
    ),
    Row(
        oracles.JudgeOracle, judge, lambda calls, texts: calls, orders=2,
        unreadable={"is_silent": True}, readable=False, same={"concurrency": 2, "retries": 0},
        others=(
            {"order": "none"}, {"system": "x"}, {"max_tokens": 9}, {"model": "another"},
            {"base_url": "http://localhost:1"}, {"verdict": "logprobs"}, {"temperature": 0.5},
            {"extra_body": {"seed": 1}},
        ),
        refuses=(({"order": "twice"}, "order must be one of none, random, both, not 'twice'"),),
    ),
    Row(
        oracles.ServedOracle, served, lambda calls, texts: 2 * calls,  # as RuleOracle
        last_message=True, unreadable={}, same={"check_symmetry": False},
        others=({"scale": 20.0}, {"function": shorter_wins}), refuses=RULES,
    ),
    Row(
        oracles.HumanOracle, human, lambda calls, texts: calls, unreadable={},
        others=({"votes": 2}, {"votes": 3}), same={"timeout": 100.0},
        refuses=(
            ({"votes": 0}, "HumanOracle.votes must be at least 1, but it is 0"),
            ({"timeout": 0.0}, r"timeout must be some seconds, above 0, or null, but it is 0\.0"),
        ),
    ),
    Row(oracles.CachedOracle, cached, lambda calls, texts: texts, others=MODELS),
    Row(
        oracles.OrderSwap, swapped, lambda calls, texts: calls, orders=2,
        others=(*MODELS, {"swap": "random"}),
    ),
    Row(oracles.FittedOracle, fitted, lambda calls, texts: texts, others=MODELS),
    Row(oracles.BudgetedOracle, budgeted, lambda calls, texts: texts),
    Row(oracles.EnsembleOracle, ensemble, lambda calls, texts: calls + texts, members=2),
]  # fmt: skip


def text_models(oracle: PreferenceOracle) -> list[TextModel]:
    """The frozen models within an oracle."""
    return [part for part in oracle.modules() if isinstance(part, TextModel)]


def listen(oracle: PreferenceOracle) -> Callable[[], list[str]]:
    """What is read from now on within an oracle: by its models, its rule or its judge."""
    read: list[str] = []
    for model in text_models(oracle):

        def hook(
            _module: Any, _args: Any, given: dict[str, Any], words: Any = model.encoder.tokenizer
        ) -> None:
            rows = zip(given["input_ids"], given["attention_mask"].bool(), strict=True)
            read.extend(words.decode(tokens[mask]) for tokens, mask in rows)

        model.network.register_forward_pre_hook(hook, with_kwargs=True)
    for part in oracle.modules():
        if isinstance(part, oracles.HumanOracle):
            return VOTERS[part.file].told
        if isinstance(part, oracles.ServedOracle):
            part = BEHIND[part.client.url]
        if isinstance(part, oracles.RuleOracle):
            read = part.function.read
        if isinstance(part, oracles.PairwiseJudgeOracle):
            read = part.judge.read
        if isinstance(part, oracles.RewardFunctionOracle):
            read = part.functions[0].read
    if not any(isinstance(part, oracles.JudgeOracle) for part in oracle.modules()):
        return lambda: read
    before = len(server().entries())
    return lambda: [one["messages"][-1]["content"] for one in server().entries()[before:]]
