"""Scripts that train with TRL: what their calls say literally, read off the source."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from nlhf_zoo.cli.from_trl.found import Found, Function, Made
from nlhf_zoo.cli.from_trl.versions import TRAINERS, arguments_of
from nlhf_zoo.errors import UserError

_CONFIGS = {f"{name}Config": name for name in TRAINERS}
_TRAINERS = {f"{name}Trainer": name for name in TRAINERS}
_REWARDS = ("reward_funcs", "reward_model")
# Of a trainer's arguments, those that are read elsewhere or that a run does without.
_READ = {"args", "model", "ref_model", "judge", "peft_config", "train_dataset", *_REWARDS}
_OF_LOADING = ("num_labels", "device_map", "use_cache", "low_cpu_mem_usage")
_LEFT = {"processing_class", "tokenizer", "eval_dataset", "reward_processing_classes"}


class _NotLiteralError(Exception):
    """A value that is known only once the script runs."""


def read_script(text: str, path: Path) -> Found:
    """What a script says literally; nothing of it is run.

    Raises:
        UserError: it is no Python, or calls none of the three configurations, or several.
    """
    try:
        tree = ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no Python that can be read: {error}") from error
    return _Script(tree, path).found()


class _Script:
    """The names of a script that are bound once, and its calls."""

    def __init__(self, tree: ast.Module, path: Path) -> None:
        self.path = path
        self.nodes = [*ast.walk(tree)]
        self.imports = dict(_imports(self.nodes))
        self.functions = {one.name for one in self.nodes if isinstance(one, ast.FunctionDef)}
        self.bound = dict(_bound_once(self.nodes))

    def found(self) -> Found:
        """The configuration's arguments, and what the trainer is given."""
        config = self._one_call(_CONFIGS)
        trainers = [node for node in self._calls() if _called(node) in _TRAINERS]
        if config is None:
            raise UserError(
                f"{self.path} has no call of NashMDConfig, OnlineDPOConfig or XPOConfig: where a "
                "parser makes the configuration, give the YAML file of its options, or a dump, "
                "written by training_args.to_json_string()"
            )
        name = _called(config)
        found = Found(trainer=_CONFIGS[name], module=self.imports.get(name, ""))
        self._keywords(config, found)
        self._assigned_later(config, found)
        if len(trainers) == 1:
            self._trainer(trainers[0], found)
        elif trainers:
            found.open.append(f"parts of the trainer: there are {len(trainers)} calls of one")
        return found

    # ---- the configuration ----

    def _calls(self) -> Iterator[ast.Call]:
        return (node for node in self.nodes if isinstance(node, ast.Call))

    def _one_call(self, names: dict[str, str]) -> ast.Call | None:
        calls = [node for node in self._calls() if _called(node) in names]
        if len(calls) > 1:
            lines = ", ".join(str(node.lineno) for node in calls)
            raise UserError(
                f"{self.path} makes {len(calls)} configurations, in lines {lines}: give a file "
                "with one of them"
            )
        return calls[0] if calls else None

    def _keywords(self, call: ast.Call, found: Found) -> None:
        """Arguments of the configuration's call."""
        for number, node in enumerate(call.args):
            if number:
                found.open.append(f"an argument without a name: {_source(node)}")
        for keyword in call.keywords:
            if keyword.arg is None:
                found.open.append(f"further arguments: **{_source(keyword.value)}")
                continue
            self._give(keyword.arg, keyword.value, found)

    def _give(self, name: str, node: ast.expr, found: Found) -> None:
        try:
            found.given[name] = self._value(node)
        except _NotLiteralError:
            found.given.pop(name, None)
            found.open.append(f"{name}: {_source(node)}")
            return
        if name == "reward_model_path" and isinstance(found.given[name], str):
            found.rewards = [found.given[name]]

    def _assigned_later(self, config: ast.Call, found: Found) -> None:
        """Arguments that are set on the configuration, or changed in ways that cannot be seen.

        What follows the call in its own block is run behind it, in that order; nobody knows
        whether, or when, what stands in another block is, such as that of an `if`.
        """
        names = self._names_of(config)
        seen = [*_settings(_behind(self.nodes, config), names)]
        for target, value in seen:
            self._give(target.attr, value, found)
        read = [target for target, _ in seen]
        arguments = arguments_of(_CONFIGS[_called(config)])
        for node in self.nodes:
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                is_one = node not in read and self._may_be_set(node, names, arguments)
            else:
                is_one = _is_change(node, names)
            if is_one:
                found.open.append(_change(node))

    def _names_of(self, config: ast.Call) -> set[str | None]:
        """The names that may stand for the configuration."""
        names: set[str | None] = set()
        makers = {
            one.name
            for one in self.nodes
            if isinstance(one, ast.FunctionDef) and any(part is config for part in ast.walk(one))
        }
        bindings = [
            (target.id, node.value)
            for node in self.nodes
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        ]
        for _ in bindings:
            names |= {
                name
                for name, value in bindings
                if value is config
                or (isinstance(value, ast.Name) and value.id in names)
                or (isinstance(value, ast.Call) and _called(value) in makers)
            }
        return names

    def _may_be_set(
        self, target: ast.Attribute, names: Container[str | None], arguments: Container[str]
    ) -> bool:
        """Whether an argument of the configuration may be set so."""
        if (owner := _owner(target)) in names:
            return True
        if target.attr not in arguments:
            return False
        if owner is None:  # trainer.args.beta
            return isinstance(target.value, ast.Attribute) and target.value.attr == "args"
        made = self.bound.get(owner)  # by whom, where it is known
        return not isinstance(made, ast.Call) or _called(made) in self.functions

    # ---- the trainer ----

    def _trainer(self, call: ast.Call, found: Found) -> None:
        """What the trainer's call is given."""
        found.open += [f"an argument of the trainer: {_source(one)}" for one in call.args]
        found.open += [
            f"further arguments of the trainer: **{_source(one.value)}"
            for one in call.keywords
            if one.arg is None
        ]
        given = {one.arg: self._follow(one.value) for one in call.keywords if one.arg is not None}
        found.says_adapter = True
        found.model = self._pretrained(given.get("model"), "model", found, found.model_options)
        found.reference = self._pretrained(given.get("ref_model"), "ref_model", found, {})
        self._judge(given.get("judge"), found)
        for name in _REWARDS:
            self._rewards(given.get(name), found)
        self._adapter(given.get("peft_config"), found)
        self._data(given.get("train_dataset"), found)
        for name in given.keys() - _READ - _LEFT:
            if not _is_none(given[name]):
                found.open.append(f"{name} of the trainer: {_source(given[name])}")

    def _pretrained(
        self, node: ast.expr | None, what: str, found: Found, options: dict[str, Any]
    ) -> str | None:
        """The name of a model that is a text, or made by `from_pretrained`."""
        if node is None or _is_none(node):
            return None
        if isinstance(node, ast.Call) and _called(node) == "create_reference_model":
            return None
        if isinstance(node, ast.Call) and _called(node) == "from_pretrained" and node.args:
            for keyword in node.keywords:
                if keyword.arg not in _OF_LOADING:
                    self._option(str(keyword.arg), keyword.value, what, options, found)
            node = self._follow(node.args[0])
        try:
            value = self._value(node)
        except _NotLiteralError:
            value = None
        if isinstance(value, str):
            return value
        found.open.append(f"{what}: {_source(node)}")
        return None

    def _judge(self, node: ast.expr | None, found: Found) -> None:
        if node is None or _is_none(node):
            return
        if not isinstance(node, ast.Call):
            found.open.append(f"judge: {_source(node)}")
            return
        given: dict[str, Any] = {}
        for keyword in node.keywords:
            self._option(str(keyword.arg), keyword.value, "the judge", given, found)
        found.judge = Made(_called(node), given)

    def _rewards(self, node: ast.expr | None, found: Found) -> None:
        """Reward models and functions: one, or a list of them."""
        if node is None or _is_none(node):
            return
        each = node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
        for one in each:
            name = one.id if isinstance(one, ast.Name) else None
            if name in self.functions:
                found.rewards.append(Function(str(name), None))
            elif name in self.imports:
                found.rewards.append(Function(str(name), self.imports[str(name)]))
            elif model := self._pretrained(self._follow(one), "reward model", found, {}):
                found.rewards.append(model)

    def _adapter(self, node: ast.expr | None, found: Found) -> None:
        if node is None or _is_none(node):
            return
        if not (isinstance(node, ast.Call) and _called(node) == "LoraConfig"):
            found.says_adapter = False
            found.open.append(f"peft_config: {_source(node)}")
            return
        found.lora = {}
        for keyword in node.keywords:
            self._option(str(keyword.arg), keyword.value, "peft_config", found.lora, found)
        names = {name for name, value in self.bound.items() if value is node}
        for one in self.nodes:
            if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store):
                found.open += [_change(one)] if _owner(one) in names else []

    def _data(self, node: ast.expr | None, found: Found) -> None:
        """The data set: a call of `load_dataset`, or a split of one."""
        split = None
        if isinstance(node, ast.Subscript):
            split, node = node.slice, self._follow(node.value)
        if not (isinstance(node, ast.Call) and _called(node) == "load_dataset"):
            if node is not None:
                found.open.append(f"train_dataset: {_source(node)}")
            return
        places = dict(zip(("path", "name"), node.args, strict=False))
        places |= {one.arg: one.value for one in node.keywords if one.arg is not None}
        places |= {} if split is None else {"split": split}
        said: dict[str, Any] = {}
        for name, value in places.items():
            self._option(name, value, "the data set", said, found)
        found.data = {name: str(value) for name, value in said.items() if value is not None}

    def _option(
        self, name: str, node: ast.expr, what: str, given: dict[str, Any], found: Found
    ) -> None:
        """An argument of a part, where it is a literal."""
        try:
            given[name] = self._value(node)
        except _NotLiteralError:
            found.open.append(f"{name} of {what}: {_source(node)}")

    # ---- values ----

    def _follow(self, node: ast.expr) -> ast.expr:
        """What a name stands for, where it is bound once."""
        seen: set[str] = set()
        while isinstance(node, ast.Name) and node.id in self.bound and node.id not in seen:
            seen.add(node.id)
            node = self.bound[node.id]
        return node

    def _value(self, node: ast.expr) -> Any:
        """A literal, in which names may stand for literals."""
        node = self._follow(node)
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return [self._value(one) for one in node.elts]
        if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
            pairs = zip(node.keys, node.values, strict=True)
            return {self._value(key): self._value(value) for key, value in pairs if key is not None}
        if isinstance(node, ast.Attribute) and _owner(node) == "torch":
            return node.attr  # torch.bfloat16
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise _NotLiteralError from error


def _bound_once(nodes: list[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Names that one assignment binds, and that nothing else in the script binds or changes."""
    values: dict[str, ast.expr] = {}
    counts: Counter[str] = Counter()
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            counts[node.id] += 1
        elif isinstance(node, ast.arg):
            counts[node.arg] += 1
        elif isinstance(node, ast.alias):  # try: from settings import BETA; except: BETA = 0.1
            counts[node.asname or node.name] += 1
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        is_bound = isinstance(node, ast.Assign | ast.AnnAssign)
        value: ast.expr | None = getattr(node, "value", None) if is_bound else None
        if value is not None and len(targets) == 1 and isinstance(targets[0], ast.Name):
            values[targets[0].id] = value
    changed = {_changed(node) for node in nodes}
    for name, value in values.items():
        is_whole = not isinstance(value, ast.List | ast.Dict | ast.Set) or name not in changed
        if counts[name] == 1 and is_whole:
            yield name, value


def _changed(node: ast.AST) -> str | None:
    """The name whose entries are set, or a method of which is called: a list may have grown."""
    if isinstance(node, ast.Call):
        return _owner(node.func)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        return None if isinstance(node.ctx, ast.Load) else node.value.id
    return None


def _behind(nodes: list[ast.AST], call: ast.Call) -> list[ast.stmt]:
    """The statements that follow the one of a call in its block."""
    for node in nodes:
        for _, block in ast.iter_fields(node):
            if not (isinstance(block, list) and all(isinstance(one, ast.stmt) for one in block)):
                continue
            for number, one in enumerate(block):
                if isinstance(one, ast.Assign | ast.AnnAssign) and one.value is call:
                    return block[number + 1 :]
    return []


def _settings(
    block: list[ast.stmt], names: Container[str | None]
) -> Iterator[tuple[ast.Attribute, ast.expr]]:
    """Arguments that are set on a configuration of one of the names, one in a statement."""
    for node in block:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            (target,) = node.targets
            if isinstance(target, ast.Attribute) and _owner(target) in names:
                yield target, node.value


def _is_change(node: ast.AST, names: Container[str | None]) -> bool:
    """Whether a configuration of one of the names may be another one behind this."""
    if not isinstance(node, ast.Call):
        return False
    given = any(isinstance(one, ast.Name) and one.id in names for one in node.args)
    return _owner(node.func) in names or (given and _called(node) in ("setattr", "replace"))


def _imports(nodes: list[ast.AST]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for one in node.names:
                if one.asname in (None, one.name):
                    yield one.name, node.module


def _called(node: ast.Call) -> str:
    """The last part of what is called."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _owner(node: ast.AST) -> str | None:
    """The name whose attribute something is."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id
    return None


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _change(node: ast.AST) -> str:
    return f"a change: {_source(node)}, line {getattr(node, 'lineno', 0)}"


def _source(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else text[:57] + "..."
