"""What the fingerprint of a rule sees: two rules with different answers have different ones."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from judges import prompts, responses
from paths import ROOT

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import CachedOracle, RuleOracle
from nlhf_zoo.oracles.rules import LengthBetween, Mentions, shorter_wins


def fingerprint(function):
    return RuleOracle(function, check_symmetry=False).fingerprint


# ---- rules that differ, by what they differ in ---------------------------------------------------


def factory(words):
    def rule(prompt, first, second):
        return 0.5 + 0.5 * (words in first) - 0.5 * (words in second)

    return rule


def decorated(function):
    @functools.wraps(function)
    def rule(*texts):
        return 1 - function(*texts)

    return rule


def with_default(share):
    def rule(prompt, first, second, share=share):
        return share

    return rule


def with_keyword(share):
    def rule(prompt, first, second, *, share=share):
        return share

    return rule


def with_attribute(share):
    def rule(prompt, first, second):
        return rule.share

    rule.share = share
    return rule


def by_name(prompt, first, second, share=0.5):
    return share


def by_place(share, prompt, first, second):
    return share


class Private:
    def __init__(self, option):
        self._option = option

    def __call__(self, prompt, first, second):
        return 0.5

    def bound(self, prompt, first, second):
        return 0.25

    other = staticmethod(lambda prompt, first, second: 0.75)


class Silent:  # its instances cannot be called
    def __init__(self, share):
        self.__share = share

    def judge(self, prompt, first, second):
        return self.__share

    @classmethod
    def of_all(cls, prompt, first, second):
        return 0.5


class Slotted:
    __slots__ = ("_share",)

    def __init__(self, share):
        self._share = share

    def __call__(self, prompt, first, second):
        return self._share


@dataclasses.dataclass
class Data:
    share: float

    def __call__(self, prompt, first, second):
        return self.share


def class_of(share):
    class Rule:
        def __call__(self, prompt, first, second):
            return share

    return Rule()


def class_with(number):
    class Rule:
        share = number

        def __call__(self, prompt, first, second):
            return self.share

    return Rule()


class Base:
    def __call__(self, prompt, first, second):
        return 0.5


class Derived(Base):
    pass


ONE, OTHER = (lambda p, a, b: 0.25), (lambda p, a, b: 0.25)
MADE = {
    "closure": [
        lambda: factory("a"),
        lambda: factory("b"),
        lambda: factory(("a",)),
        lambda: factory(["a"]),
    ],
    "nested": [
        lambda: factory([{"a": {"1", "2", "3", "4", "5", "6", "7"}}]),
        lambda: factory([{"a": {1, 3}}]),
        lambda: factory([{"a": {1, 2.0}}]),
    ],
    "numbers": [
        lambda: factory(1),
        lambda: factory(1.0),
        lambda: factory(True),
        lambda: factory("1"),
    ],
    "pattern": [
        lambda: factory(re.compile("a")),
        lambda: factory(re.compile("a", re.IGNORECASE)),
        lambda: factory(re.compile("b")),
    ],
    "wrapped": [
        lambda: decorated(factory("a")),
        lambda: decorated(factory("b")),
        lambda: decorated(shorter_wins),
    ],
    "defaults": [lambda: with_default(0.5), lambda: with_default(0.25)],
    "keywords": [lambda: with_keyword(0.5), lambda: with_keyword(0.25)],
    "attributes": [lambda: with_attribute(0.5), lambda: with_attribute(0.25)],
    "partial": [
        lambda: functools.partial(by_name, share=0.5),
        lambda: functools.partial(by_name, share=0.25),
        lambda: functools.partial(by_place, 0.5),
        lambda: functools.partial(by_place, 0.25),
    ],
    "private": [
        lambda: Private("a"),
        lambda: Private("b"),
        lambda: Private(None),
        lambda: Private(Mentions("a")),
        lambda: Private(Mentions("b")),
    ],
    "bound": [
        lambda: Private("a").bound,
        lambda: Private("b").bound,
        lambda: Private("a"),
        lambda: Private.other,
        lambda: Private("a").other,
    ],
    "not callable": [lambda: Silent(0.5).judge, lambda: Silent(0.25).judge, lambda: Silent.of_all],
    "slots": [lambda: Slotted(0.5), lambda: Slotted(0.25)],
    "dataclass": [lambda: Data(0.5), lambda: Data(0.25)],
    "class's closure": [lambda: class_of(0.5), lambda: class_of(0.25)],
    "class's attribute": [lambda: class_with(0.5), lambda: class_with(0.25)],
    "hierarchy": [lambda: Base(), lambda: Derived()],
    "one line": [lambda: ONE, lambda: OTHER],
    "of the zoo": [
        lambda: Mentions("a"),
        lambda: Mentions("b"),
        lambda: LengthBetween(1, 2),
        lambda: shorter_wins,
    ],
}


@pytest.mark.parametrize("name", MADE)
def test_rules_that_differ(name):
    prints = [fingerprint(make()) for make in MADE[name]]
    same = 1 if name == "bound" else 0  # a static method has no instance
    assert len(set(prints)) == len(prints) - same
    assert [fingerprint(make()) for make in MADE[name]] == prints


def test_another_process_has_the_same():
    """Addresses and the order of sets are those of one process."""
    code = (
        "import json, test_rule_fingerprint as t; "
        "print(json.dumps([t.fingerprint(make()) for made in t.MADE.values() for make in made]))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    here = [fingerprint(make()) for made in MADE.values() for make in made]
    assert json.loads(found[0]) == json.loads(found[1]) == here


def test_it_shows_no_option():
    assert "key-of-somebody" not in fingerprint(Private("key-of-somebody"))


def test_a_rule_that_holds_itself():
    def rule(prompt, first, second):
        return 0.5 if first < second else 1 - rule(prompt, second, first)

    assert fingerprint(rule) == fingerprint(rule)


# ---- its file ------------------------------------------------------------------------------------

RULES = """
import helper_of_rules as helper
{constant}

def inner(text):
    return {inner}

def outer(prompt, first, second):
    return float(inner(first) < inner(second))

class Rule(helper.Parent):
    def __call__(self, prompt, first, second):
        return float(self.key(first) < self.key(second))
"""
PARENT = """
class Parent:
    def key(self, text):
        return {key}
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes rules to a file, and imports them anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(constant="LIMIT = 3", inner="len(text)", key="len(text)", load=True):
        text = RULES.format(constant=constant, inner=inner)
        (tmp_path / "rules_in_a_file.py").write_text(text)
        (tmp_path / "helper_of_rules.py").write_text(PARENT.format(key=key))
        if load:
            sys.modules.pop("rules_in_a_file", None)
            sys.modules.pop("helper_of_rules", None)
            importlib.invalidate_caches()
            return importlib.import_module("rules_in_a_file")
        return None

    yield write
    sys.modules.pop("rules_in_a_file", None)
    sys.modules.pop("helper_of_rules", None)


@pytest.mark.parametrize("of", [lambda rules: rules.outer, lambda rules: rules.Rule()])
def test_what_stands_beside_it_in_its_file_counts(of, written):
    versions = [{}, {"inner": "len(text) % 7"}, {"constant": "LIMIT = 40"}]
    prints = [fingerprint(of(written(**version))) for version in versions]
    assert len(set(prints)) == 3
    assert fingerprint(of(written())) == prints[0]


def test_the_file_of_a_class_that_it_is_made_from_counts(written):
    prints = [fingerprint(written(key=key).Rule()) for key in ("len(text)", "-len(text)")]
    assert prints[0] != prints[1]
    # Another module that is only used is not seen.
    functions = [fingerprint(written(key=key).outer) for key in ("len(text)", "-len(text)")]
    assert functions[0] == functions[1]


def test_an_edit_during_a_run_is_no_other_rule(written, tmp_path):
    """What the old function says must not be remembered as the new one's."""
    path = tmp_path / "answers.sqlite"
    rule = CachedOracle(RuleOracle(written().outer), path)
    before = rule.fingerprint
    written(inner="-len(text)", load=False)  # the longer one wins
    assert rule.oracle.fingerprint == rule.fingerprint == before
    assert rule(prompts("x"), responses(["a"]), responses(["bb"])).preference == 1
    other = CachedOracle(RuleOracle(written(inner="-len(text)").outer), path)
    assert other.fingerprint != before
    assert other(prompts("x"), responses(["a"]), responses(["bb"])).preference == 0


# ---- what cannot be seen -------------------------------------------------------------------------


class Table(dict):
    def __call__(self, prompt, first, second):
        return self.get(first, 0.5)


def local_attribute(value):
    class Rule:
        held = value

        def __call__(self, prompt, first, second):
            return 0.5

    return Rule()


def deep():
    found = []
    for _ in itertools.repeat(None, 10**4):
        found = [found]
    return factory(found)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: eval("lambda p, a, b: 0.5"), "its source cannot be read"),
        (lambda: factory(object()), "its free variable words is no plain data but .* class object"),
        (lambda: Private(threading.Lock()), "its option _option is no plain data but .* lock"),
        (lambda: Private([Path()]), "its option _option is no plain data but .* class PosixPath"),
        (lambda: Silent(object()).judge, "its option _Silent__share is no plain data"),
        (lambda: Slotted(object()), "its option _share is no plain data"),
        (lambda: with_default(object()), "a default of rule is no plain data"),
        (lambda: functools.partial(by_name, share=object()), "its argument share is no plain data"),
        (lambda: Table(a=1), "it is a dict of its own kind"),
        (lambda: local_attribute(object()), "its class's attribute held is no plain data"),
        (deep, "what it holds is nested too deeply"),
    ],
)
def test_what_cannot_be_seen_is_refused_by_a_cache_alone(make, reason, tmp_path):
    oracle = RuleOracle(make(), check_symmetry=False)
    oracle(prompts("x"), responses(["b"]), responses(["b"]))
    with pytest.raises(UserError, match=f"cannot be remembered, for {reason}.*leave out C") as e:
        CachedOracle(oracle, tmp_path / "answers.sqlite")
    assert len(str(e.value).splitlines()) == 1
    assert not (tmp_path / "answers.sqlite").exists()


def test_a_constant_of_a_class_is_told_by_its_file(monkeypatch):
    monkeypatch.setattr(Base, "lock", threading.Lock(), raising=False)
    assert fingerprint(Base())
