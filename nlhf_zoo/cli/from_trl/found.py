"""What is found in a file of TRL's: arguments, and the parts that its trainer was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Made:
    """Something that a script makes by a call: a class or a function, and literal arguments."""

    name: str  # the last part of what is called
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Function:
    """A reward function that a script names."""

    name: str
    module: str | None  # that it is imported from; None where the script itself defines it


@dataclass(slots=True)
class Found:
    """What a file says.

    Args:
        trainer: NashMD, OnlineDPO or XPO, where the file says it.
        given: arguments of the configuration, of literal values.
        module: that its configuration is imported from, where a script says it.
        whole: these are all arguments that the configuration has.
        open: what is no literal, as "name: source".
        model: name or folder of the model.
        model_options: revision and the like.
        reference: name or folder of a reference model of its own.
        judge: its class.
        rewards: names of reward models, and functions.
        lora: arguments of peft's LoraConfig; empty for its defaults, None for no adapter.
        says_adapter: whether the file says if there is an adapter.
        data: path, name, split and the like of the data set.
    """

    trainer: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    module: str = ""
    whole: bool = False
    open: list[str] = field(default_factory=list)
    model: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None
    judge: Made | None = None
    rewards: list[str | Function] = field(default_factory=list)
    lora: dict[str, Any] | None = None
    says_adapter: bool = False
    data: dict[str, str] = field(default_factory=dict)
