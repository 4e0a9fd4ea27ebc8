"""Mistakes that are seen before anything heavy is imported: names of files, options and classes.

What is certain is refused here, in the words of the parser that would refuse it seconds later;
whatever cannot be told from the source alone is left to that parser.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import nlhf_zoo
from nlhf_zoo.cli import signatures
from nlhf_zoo.cli.arguments import flags
from nlhf_zoo.errors import UserError, nearest

_OPTIONS = [
    "config",
    "print_config",
    "help",
    "h",
    "seed_everything",
    "trainer",
    "model",
    "data",
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
    "allow_code",
    "allow-code",
]
_Place = tuple[str, ...]
# Bases of what stands at the two places; a user's own LightningModule may stand there, too.
_BASES: dict[_Place, str] = {
    ("model",): "OnlineGame | PreferenceModel",
    ("data",): "LightningDataModule",
}
# Where the options of a command stand that is none of the Trainer's, and those that are not its.
_OWN = {
    "bench": ("bench/command.py", "bench", ("arguments",)),
    "certify": ("certify/command.py", "certify", ("policy", "oracle")),
    "cite": ("cite/command.py", "cite", ("configs",)),
    "compare": ("compare/configuration.py", "Configuration", ("games", "algorithms")),
    "evaluate": ("evaluate.py", "evaluate", ("policy", "oracle")),
    "export": ("export.py", "export", ()),
    "from-trl": ("from_trl/command.py", "from_trl", ("file",)),
    "init": ("init/command.py", "InitOptions", ()),
    "oracle": ("oracle/report.py", "ReportOptions", ()),
    "report": ("report/command.py", "report", ("runs",)),
    "sample": ("sample.py", "sample", ("policy",)),
    "serve-oracle": ("serve_oracle.py", "serve", ()),
    "solve": ("solve/command.py", "solve_files", ("arguments",)),
    "tournament": ("tournament/command.py", "tournament", ("entrants", "oracle")),
}
# By hand there.
_OWN_ORACLE = {
    name: {"oracle": "PreferenceOracle"} for name in ("certify", "evaluate", "oracle", "tournament")
}
_DOCTOR = ("num_prompts", "no_rehearsal", "no-rehearsal")


def refuse_early(args: Sequence[str], command: str = "fit") -> None:
    """Refuse what is certainly wrong with a command's options.

    A file is missing or no YAML, an option or a class of this package is misspelt.
    """
    given = list(flags(args))
    with_file = any(flag in ("config", "c") for _, flag, _ in given)
    own = _own(command)
    if command in _OWN and not (command == "oracle" and with_file):
        _refuse_of_its_own(command, given, own)
        return
    # Of both, an oracle and a file that has one, more is said later.
    more = _DOCTOR if command == "doctor" else (*own, *_OWN_ORACLE.get(command, ()))
    subcommand = "fit" if command in ("doctor", "oracle") else command  # as which these parse
    look = _Look((*_OPTIONS, *more), subcommand, _BASES)
    for _, flag, value in given:
        if flag in ("config", "c"):
            look.at_file(value or "")
        else:
            look.at_option(flag, value)


def _own(command: str) -> dict[str, str]:
    """Options of a command that is none of the Trainer's, with what each is to be."""
    if command not in _OWN:
        return {}
    file, name, others = _OWN[command]
    own = signatures.options_in(file, name)
    return {option: kind for option, kind in own.items() if option not in others}


def _refuse_of_its_own(
    command: str, given: Sequence[tuple[int, str, str | None]], own: dict[str, str]
) -> None:
    """Look at the options of a command that takes none of the Trainer's."""
    kinds = _OWN_ORACLE.get(command, own)
    bases: dict[_Place, str] = {
        (option,): kind for option, kind in kinds.items() if signatures.parts_in(kind)
    }
    hyphened = [option.replace("_", "-") for option in own]
    look = _Look(["config", "c", "help", "h", *kinds, *own, *hyphened], command, bases)
    file, *_ = _OWN[command]
    for _, flag, value in given:
        look.at_option(flag, value)
        head, _, rest = flag.partition(".")
        names = re.findall(r"\w+", own.get(head, ""))
        known = {option for name in names for option in signatures.options_in(file, name)}
        if rest and known and rest not in known:
            raise UserError(f"--{head}: Option {rest!r} is not accepted{nearest(rest, known)}")


def _places(place: _Place, block: object) -> Iterator[tuple[_Place, object]]:
    """What a part of a file gives, place by place; of each part its class comes first."""
    if not isinstance(block, Mapping) or not block:
        yield place, block
        return
    if "class_path" in block:
        yield place, block["class_path"]
    is_part = {"class_path", "init_args"} & block.keys()
    given = block.get("init_args") if is_part else block
    for name, value in given.items() if isinstance(given, Mapping) else ():
        yield from _places((*place, str(name)), value)


class _Look:
    """Walks through files and options in order, and knows which class stands where."""

    def __init__(self, options: Sequence[str], command: str, bases: Mapping[_Place, str]) -> None:
        self.options = options
        self.command = command
        self.bases = bases
        self.classes: dict[_Place, str] = {("model",): "OnlineGame", ("data",): "TablePrompts"}
        self.foreign = False  # whether a module was named that may define more classes

    def at_file(self, name: str) -> None:
        """Look at a configuration file."""
        from nlhf_zoo.cli.files import read_config

        content = read_config(name)
        for key in ("model", "data"):
            if isinstance(content.get(key), Mapping):
                for place, value in _places((key,), content[key]):
                    self._at_place(place, value)
            else:
                self._at_class((key,), _BASES[(key,)], content.get(key))
        trainer = content.get("trainer")
        if not isinstance(trainer, Mapping):
            return
        known = signatures.trainer_options()
        for option in trainer if known else ():
            if str(option).rstrip("+") not in known:
                raise UserError(
                    f"Subcommand {self.command!r} does not accept option 'trainer.{option}'"
                    + nearest(str(option), known)
                )
        entries = trainer.get("callbacks")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, Mapping):
                self._at_callback(entry.get("class_path"))

    def at_option(self, flag: str, value: str | None) -> None:
        """Look at an option of the command line."""
        head, _, rest = flag.partition(".")
        if not self._is_known(head, rest):
            shown = f"--{flag}" + ("" if value is None else f" {value}")
            of_trainer = head == "trainer" and bool(rest)
            known, option = (
                (signatures.trainer_options(), rest) if of_trainer else (self.options, head)
            )
            raise UserError(f"unrecognized arguments: {shown}" + nearest(option, known))
        if flag.rstrip("+") == "trainer.callbacks":
            self._at_callback(value)
        place = tuple(part for part in flag.split(".") if part not in ("init_args", "class_path"))
        if (head,) in self.bases and place[-1] not in ("help", "dict_kwargs"):
            self._at_place(place, value)

    def _is_known(self, head: str, rest: str) -> bool:
        """Whether an option exists."""
        known = signatures.trainer_options()
        if head == "trainer" and rest and known:
            option = rest.partition(".")[0].rstrip("+")
            return option in {*known, "help"}
        return head.rstrip("+") in self.options

    def _at_place(self, place: _Place, value: object) -> None:
        """Look at a part or an option of it, and at each part on the way to it."""
        if len(place) == 1:
            self._at_class(place, self.bases[place], value)
        for end in range(1, len(place)):
            if place[end].isdigit() or place[end].endswith("+"):
                return  # an entry of a list
            annotation = self._annotation(place[:end], place[end])
            if annotation is None:
                return
            inside = place[: end + 1]
            if inside == place:
                self._at_class(place, annotation, value)
            elif len(signatures.parts_in(annotation)) == 1 and inside not in self.classes:
                self.classes[inside] = signatures.parts_in(annotation)[0]

    def _annotation(self, place: _Place, option: str) -> str | None:
        """What an option is to be, which a class must have; None where no class is known."""
        known = signatures.options_of(self.classes.get(place, ""))
        if known is None:
            return None
        if option not in known:
            where = ".".join(place)
            raise UserError(f"--{where}: Option '{option}' is not accepted{nearest(option, known)}")
        return known[option]

    def _at_class(self, place: _Place, annotation: str, value: object) -> None:
        """Look at the name of a class."""
        bases = signatures.parts_in(annotation)
        if not isinstance(value, str) or "${" in value or not (bases or place in self.bases):
            return
        self.classes.pop(place, None)
        name = value.rpartition(".")[2]
        if _is_file(value):
            return  # which names the class
        if "." in value and all(part.isidentifier() for part in value.split(".")):
            self._at_path(place, annotation, value)
        elif name not in signatures.classes() and not self.foreign and value.isidentifier():
            self._at_no_class(place, bases, annotation, value)
        if value in (name, f"nlhf_zoo.{name}") or value.startswith("nlhf_zoo."):
            self.classes[place] = name

    def _at_callback(self, name: object) -> None:
        """Look at the name of a callback."""
        if isinstance(name, str) and "." in name and not name.startswith("nlhf_zoo."):
            self.foreign = True
        if not isinstance(name, str) or not name.isidentifier() or self.foreign:
            return
        known = signatures.callbacks()
        if known and name not in {*known, *signatures.classes(), "null"}:
            near = nearest(name, {*known, *signatures.classes()})
            raise UserError(f"--trainer.callbacks: there is no class {name!r}{near}")

    def _at_no_class(self, place: _Place, bases: list[str], annotation: str, name: str) -> None:
        if name in ("null", "None") or _takes_text(annotation) or "Callable" in annotation:
            return
        known = [] if self.bases is _BASES and place in _BASES else signatures.choices(bases[0])
        choose = (
            f": choose one of {', '.join(known)}" if known else nearest(name, signatures.classes())
        )
        raise UserError(f"--{'.'.join(place)}: there is no class {name!r}{choose}")

    def _at_path(self, place: _Place, annotation: str, path: str) -> None:
        """Look at a dotted path, which may be the name of a model where one is asked for."""
        module, _, name = path.rpartition(".")
        top = module.partition(".")[0]
        problem = ""
        names = nlhf_zoo.public_names() if module == "nlhf_zoo" else signatures.names_in(module)
        if top == "nlhf_zoo" and names is not None and name not in names:
            problem = f"module {module!r} has no attribute {name!r}"
        elif top != "nlhf_zoo":
            self.foreign = True
            here = PathFinder.find_spec(top, [os.getcwd()])
            if top not in sys.modules and not here and find_spec(top) is None:
                problem = f"No module named {top!r}"
        if problem and not _takes_text(annotation):
            where = f"--{'.'.join(place)}"
            raise UserError(f"{where}: Problem with given class_path {path!r}: {problem}")


def _takes_text(annotation: str) -> bool:
    return re.search(r"\bstr\b", annotation) is not None


def _is_file(value: str) -> bool:
    """Whether a value is a file with a class and its options, in the folder of another or here."""
    return Path(value).suffix in (".yaml", ".yml", ".json") or Path(value).is_file()
