"""What the fingerprint of a rule sees: two rules with different answers have different ones."""

import functools
import importlib
import operator
import re
import sys
import threading
from pathlib import Path

import pytest
import rules_on_record as recorded
from judges import prompts, responses

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import CachedOracle, RuleOracle
from nlhf_zoo.oracles.rules import LengthBetween, Mentions, shorter_wins


def fingerprint(function):
    return RuleOracle(function, check_symmetry=False).fingerprint


# What version 0.1 gave, in processes of their own; Python 3.12 compiles one of them otherwise.
MENTIONS = "13ed7cd5dea47b61" if sys.version_info < (3, 12) else "f907535cbbb8baa3"
RECORDED = {
    "nlhf_zoo.oracles.rules.shorter_wins a8030c0ee6fedaf4": shorter_wins,
    "nlhf_zoo.oracles.rules.LengthBetween 5306bdd88d25c56a": LengthBetween(2, 4),
    f"nlhf_zoo.oracles.rules.Mentions {MENTIONS}": Mentions("apple"),
    "rules_on_record.plain 380b87fab074e64a": recorded.plain,
    "rules_on_record.with_defaults ce08a530cd9fab4a": recorded.with_defaults,
    "rules_on_record.Longer c645e67a2cae6e14": recorded.Longer(),
    "rules_on_record.Longer 15a70b98b779e313": recorded.Longer(0.25, "a", "b"),
    "rules_on_record.Longest 5631f08c69e816c6": recorded.Longest(),
    "rules_on_record.Data 7150b389a2f635ea": recorded.Data(0.5),
    "rules_on_record.Data c6a8a79a57c2417c": recorded.Data(
        {"rules": [recorded.plain, recorded.Longer()], "set": {1, 2.0, "3"}}
    ),
}


@pytest.mark.parametrize("start", RECORDED)
def test_answers_cached_by_version_01_are_found(start: str):
    """Its name and the first 64 bits of the digest; the file of the ready-made rules counts."""
    assert fingerprint(RECORDED[start]).startswith(f"rule {start}")


# ---- rules that differ, by what they differ in ---------------------------------------------------


def made(default=0.5, keyword=0.5, attribute=0.5):
    def rule(prompt, first, second, share=default, *, other=keyword):
        return 0.5

    rule.attribute = attribute
    return rule


class Private:
    def __init__(self, option):
        self._option = option

    def __call__(self, prompt, first, second):
        return 0.5

    other = staticmethod(lambda prompt, first, second: 0.75)


def class_with(number):
    class Rule:
        share = number

        def __call__(self, prompt, first, second):
            return 0.5

    return Rule()


class Base:
    cached = functools.lru_cache(len)  # its file tells how it is made

    def __call__(self, prompt, first, second):
        return 0.5


class Derived(Base):
    pass


OPTIONS = [
    *("a", "b", "1", None, 1, 1.0, True, ("a",), ["a"]),
    *([{"a": {*"1234567"}}], [{"a": {1, 3}}], [{"a": {1, 2.0}}]),
    *(re.compile("a"), re.compile("a", re.IGNORECASE), re.compile("b")),
    *(Mentions("a"), Mentions("b"), shorter_wins, Base, Base()),
]
MADE = {
    "options": lambda: [*map(Private, OPTIONS), Private.other],
    "of a dataclass": lambda: [recorded.Data(0.5), recorded.Data(0.25)],
    "of a function": lambda: [made(), made(0.25), made(keyword=0.25), made(attribute=0.25)],
    "class's attribute": lambda: [class_with(0.5), class_with(0.25)],
    "hierarchy": lambda: [Base(), Derived()],
    "one line": lambda: [lambda p, a, b: 0.25, lambda p, a, b: 0.75],
    "of the zoo": lambda: [Mentions("a"), Mentions("b"), LengthBetween(1, 2), shorter_wins],
}


@pytest.mark.parametrize("name", MADE)
def test_rules_that_differ(name):
    prints = [fingerprint(rule) for rule in MADE[name]()]
    assert len(set(prints)) == len(prints)
    assert [fingerprint(rule) for rule in MADE[name]()] == prints


def test_it_shows_no_option():
    assert "key-of-somebody" not in fingerprint(Private("key-of-somebody"))


def test_python_may_have_kept_no_columns():
    """As with `python -X no_debug_ranges`."""
    rule = made()
    before = fingerprint(rule)
    rule.__code__ = rule.__code__.replace(co_linetable=b"")
    assert fingerprint(rule) != before


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

    def forget():
        sys.modules.pop("rules_in_a_file", None)
        sys.modules.pop("helper_of_rules", None)

    def write(constant="LIMIT = 3", inner="len(text)", key="len(text)"):
        text = RULES.format(constant=constant, inner=inner)
        (tmp_path / "rules_in_a_file.py").write_text(text)
        (tmp_path / "helper_of_rules.py").write_text(PARENT.format(key=key))
        forget()
        importlib.invalidate_caches()
        return importlib.import_module("rules_in_a_file")

    yield write
    forget()


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
    edited = written(inner="-len(text)").outer  # the longer one wins
    assert rule.oracle.fingerprint == rule.fingerprint == before
    assert rule(prompts("x"), responses(["a"]), responses(["bb"])).preference == 1
    other = CachedOracle(RuleOracle(edited), path)
    assert other.fingerprint != before
    assert other(prompts("x"), responses(["a"]), responses(["bb"])).preference == 0


# ---- what cannot be seen -------------------------------------------------------------------------


def captured(word):
    def rule(prompt, first, second):
        return 0.5 + 0.5 * (word in first) - 0.5 * (word in second)

    return rule


class Table(dict):
    def __call__(self, prompt, first, second):
        return self.get(first, 0.5)


class Slotted:
    __slots__ = ("share",)

    def __init__(self):
        self.share = 0.5

    def __call__(self, prompt, first, second):
        return self.share


class Holding(Base):
    parts = (functools.partial(max, 0.5),)


class Capturing(Base):
    key = captured("a")


def deep():
    found = []
    for _ in range(10**4):
        found = [found]
    return Private(found)


NO_DATA = "is no plain data but of the class"
UNSEEN = {
    "no file": (lambda: eval("lambda p, a, b: 0.5"), "its source cannot be read"),
    "closure": (lambda: captured("a"), "rule has captured the variable word"),
    "closure of a class": (Capturing, "rule has captured the variable word"),
    "partial": (lambda: functools.partial(made(), share=0), "it is a partial"),
    "partial of a class": (Holding, "its class's attribute parts is a partial"),
    "method": (lambda: Private("a").__call__, "it is a method"),
    "function in C": (lambda: Private(len), "its option _option is a builtin_function_or_method"),
    "getter": (lambda: Private(operator.methodcaller("a")), "its option _option is a methodcaller"),
    "module": (lambda: Private(re), "its option _option is a module"),
    "slots": (Slotted, "it has slots"),
    "lock": (lambda: Private(threading.Lock()), f"its option _option {NO_DATA} lock"),
    "path": (lambda: Private([Path()]), f"its option _option {NO_DATA} PosixPath"),
    "default": (lambda: made(object()), f"a default of rule {NO_DATA} object"),
    "keyword": (lambda: made(keyword=object()), f"a default of rule {NO_DATA} object"),
    "attribute": (lambda: made(attribute=object()), f"its attribute attribute {NO_DATA} object"),
    "local class": (lambda: class_with(object()), f"its class's attribute share {NO_DATA} object"),
    "dict": (lambda: Table(a=1), "it is a dict of its own kind"),
    "depth": (deep, "what it holds is nested too deeply"),
}


@pytest.mark.parametrize("kind", UNSEEN)
def test_what_cannot_be_seen_is_refused_by_a_cache_alone(kind, tmp_path):
    make, reason = UNSEEN[kind]
    oracle = RuleOracle(make(), check_symmetry=False)
    oracle(prompts("x"), responses(["b"]), responses(["b"]))
    with pytest.raises(UserError) as error:
        CachedOracle(oracle, tmp_path / "answers.sqlite")
    assert str(error.value) == (
        f"answers of the rule {oracle.name} cannot be remembered, for {reason}: give the rule a "
        "name in a module, or leave out CachedOracle"
    )
    assert not (tmp_path / "answers.sqlite").exists()


def test_a_constant_of_a_class_is_told_by_its_file(monkeypatch):
    monkeypatch.setattr(Base, "lock", threading.Lock(), raising=False)
    assert fingerprint(Base())
