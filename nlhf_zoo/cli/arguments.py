"""The words of a command line before a parser reads them: files among options, and their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nlhf_zoo.cli.files import read_config
from nlhf_zoo.cli.signatures import classes
from nlhf_zoo.cli.yaml_rules import dump
from nlhf_zoo.errors import UserError


def flags(args: Sequence[str]) -> Iterator[tuple[int, str, str | None]]:
    """Options in order: where each stands among the words, its name, and its value."""
    number = 0
    while number < len(args):
        place, word = number, args[number]
        number += 1
        if not word.startswith("-") or word == "-" or word[1:2].isdigit():
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if equals:
            yield place, name, value
        elif number < len(args) and not args[number].startswith("--"):
            yield place, name, args[number]
            number += 1
        else:
            yield place, name, None


def refuse_overridden(args: Sequence[str]) -> None:
    """Refuse an option that a file behind it would replace, in silence.

    Raises:
        UserError: which option, and which file.
    """
    before: list[str] = []
    for _, flag, value in flags(args):
        if flag not in ("c", "config"):
            before.append(flag)
            continue
        content = read_config(value or "") if before else {}
        for earlier in before:
            if _is_set(content, earlier):
                raise UserError(
                    f"--{earlier} stands before --config {value}, which sets it, too, and would "
                    "replace it: give it behind"
                )


def _is_set(content: object, flag: str) -> bool:
    """Whether a file sets an option."""
    for part in flag.rstrip("+").split("."):
        if part in ("init_args", "class_path"):
            continue
        if isinstance(content, Mapping) and isinstance(content.get("init_args"), Mapping):
            content = content["init_args"]
        if not isinstance(content, Mapping) or part not in content:
            return False
        content = content[part]
    return True


def with_model(args: Sequence[str]) -> list[str]:
    """Arguments in which a file names the class that `--model` names behind it.

    It is a class of the user's own, made from the file's, and takes the options of that one:
    jsonargparse 4.53 hands those that are records, such as a `LoRA`, on to no other class.
    """
    given = [(place, value) for place, flag, value in flags(args) if flag == "model"]
    if not given or not (model := given[-1][1]) or not _is_foreign(model):
        return list(args)
    end = given[-1][0]
    words = list(args)
    for place, flag, value in flags(args[:end]):
        block = read_config(value or "").get("model") if flag in ("c", "config") else None
        if isinstance(block, Mapping) and isinstance(block.get("init_args"), Mapping):
            content = read_config(value or "")
            content["model"] = {**block, "class_path": model}
            written = dump(content)
            words[place : place + 2 - ("=" in words[place])] = (
                [f"--config={written}"] if "=" in words[place] else ["--config", written]
            )
    return words


def _is_foreign(name: str) -> bool:
    """Whether this is the path of a class that is not of this package."""
    parts = name.split(".")
    named = len(parts) > 1 and all(part.isidentifier() for part in parts)
    return named and parts[0] != "nlhf_zoo" and parts[-1] not in classes()
