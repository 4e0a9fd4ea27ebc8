"""What commands that look at policies are given: prompts, an oracle, and where models lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlhf_zoo.cli.files import refuse_device
from nlhf_zoo.cli.parser import SentenceParser, as_user_errors, find_own_code, with_values
from nlhf_zoo.cli.policies import run_options
from nlhf_zoo.data.text_prompts import in_conversation, read_prompts
from nlhf_zoo.data.texts.row_source import RowSource
from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.records import Prompts


def arguments_of(
    function: Callable[..., Any],
    args: Sequence[str],
    prog: str,
    flags: Sequence[str] = ("--allow_code",),
    oracle: bool = True,
    skip: Sequence[str] = (),
) -> dict[str, Any]:
    """The arguments of a command's function that a command line gives; its oracle is made.

    Args:
        function: has an option for each of its arguments; ``oracle`` is one that is made, by class
            and options or from a file of them.
        args: the command line.
        prog: the command, as its messages name it.
        flags: options that may stand without a value.
        oracle: whether the command has one.
        skip: arguments that have no option.

    Raises:
        UserError: an option is none of the command's, or its value cannot be.
    """
    find_own_code()
    parser = SentenceParser(prog=prog)
    if oracle:
        parser.add_argument("--oracle", type=PreferenceOracle, enable_path=True, required=True)
    parser.add_function_arguments(function, skip={"oracle", *skip})
    parsed = parser.parse_args(with_values(args, flags))
    with as_user_errors():
        made: dict[str, Any] = parser.instantiate(parsed).as_dict()
    return made


def with_source(args: Sequence[str], option: str) -> list[str]:
    """Arguments in which the policy that stands first has the name of its option.

    Raises:
        UserError: none stands there.
    """
    if not args or args[0].startswith("-"):
        raise UserError(
            "name the policy first: a run's folder or checkpoint, an adapter of peft, or a model"
        )
    return [f"--{option}", *args]


def prompts_from(
    path: str,
    num: int | None = None,
    column: str = "prompt",
    as_conversation: bool | None = None,
    policy: str | None = None,
) -> Prompts:
    """The first ``num`` prompts of a file, or all: texts or conversations, without tokens.

    Args:
        path: a .jsonl or .json file, as `TextPrompts` reads them.
        num: how many; None for all.
        column: what the rows call the prompt.
        as_conversation: make each text a conversation of one message of the user's; None is what
            the run did, whose system message is put before conversations.
        policy: of the run; None for none.

    Raises:
        UserError: there is no such file, a row is no prompt, or there are fewer.
    """
    if not Path(path).is_file():
        refuse_device(path, "--prompts ")
        raise UserError(f"--prompts {path} is no file: give a .jsonl file of prompts")
    if num is not None and num < 1:
        raise UserError(f"--num_prompts must be at least 1, but it is {num}")
    source = RowSource(path, "train", None, None, "prompts", f'{{"{column}": "..."}}')
    prompts = as_the_run(read_prompts(source, column), path, as_conversation, policy)
    if num is not None and num > len(prompts):
        raise UserError(f"--num_prompts is {num}, but {path} has {len(prompts)} prompts only")
    return prompts if num is None else prompts.take(range(num))


def as_the_run(
    prompts: Prompts, where: str, as_conversation: bool | None, policy: str | None
) -> Prompts:
    """Prompts in the form that a run's own had; ``as_conversation`` replaces what it did.

    Raises:
        UserError: they cannot have it.
    """
    data = ({} if policy is None else run_options(policy)).get("data") or {}
    own = data.get("init_args", data) if isinstance(data, dict) else {}
    wanted = bool(own.get("as_conversation")) if as_conversation is None else as_conversation
    makes = wanted and prompts.conversations is None
    are_talks = makes or prompts.conversations is not None
    return in_conversation(prompts, where, makes, own.get("system") if are_talks else None)


def prompts_digest(prompts: Prompts) -> str:
    """By what prompts are known again: their texts, in the form that they have."""
    content = json.dumps([prompts.ids.tolist(), prompts.text, prompts.conversations])
    return hashlib.sha256(content.encode()).hexdigest()


def move(module: nn.Module, device: str) -> torch.device:
    """Move a policy's or an oracle's weights to a device; "auto" is a GPU where there is one.

    Raises:
        UserError: there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        module.to(found)
    except (RuntimeError, AssertionError) as error:  # of a name that is none, or not there
        raise UserError(f"--device {device} cannot be used: {cause(error)}") from error
    return found
