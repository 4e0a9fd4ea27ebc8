"""How a preference model that was trained here is to be read: a file beside the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written

SETTINGS_FILE = "preference_model.json"
FORMAT = 1
# pair: reads both responses; reward: one, to a reward; general: one, to an embedding.
Kind = Literal["pair", "reward", "general"]
ORACLES: Mapping[Kind, str] = {
    "pair": "PairModelOracle",
    "reward": "RewardModelOracle",
    "general": "GeneralPreferenceModelOracle",
}


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a model was trained with, and is to be read with."""

    kind: Kind
    template: str | None = None  # with the fields of the kind; None for the chat template
    max_tokens: int | None = None  # of the longest text; None for the model's own limit
    temperature: float = 1.0  # divides the logit of a preference

    def replaced(
        self, template: str | None, max_tokens: int | None, temperature: float | None
    ) -> ModelSettings:
        """The settings with what is given, each that is not None, in place of their own."""
        given: dict[str, Any] = {
            "template": template,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        return replace(self, **{name: it for name, it in given.items() if it is not None})


def write_settings(folder: Path, settings: ModelSettings) -> None:
    """Write the file into the folder of a model, all of it or nothing."""
    text = json.dumps({"format": FORMAT, **asdict(settings)}, indent=2, ensure_ascii=False)
    with written(folder / SETTINGS_FILE) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def read_settings(
    model: str, kind: Kind | None, oracle: str, revision: str | None = None
) -> ModelSettings | None:
    """The settings beside a model, in a folder or on the hub; None where there are none.

    Another kind than the oracle reads is refused; None is that of an oracle that reads no model
    that was trained here.
    """
    path = _file(model, revision)
    if path is None:
        return None
    settings = _parsed(path)
    if settings.kind != kind:
        raise UserError(
            f"{model} holds a preference model of the kind {settings.kind!r}, which {oracle} "
            f"does not read: take {ORACLES[settings.kind]}"
        )
    return settings


def _file(model: str, revision: str | None) -> Path | None:
    if Path(model).is_dir():
        path = Path(model) / SETTINGS_FILE
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(model, SETTINGS_FILE, revision=revision)
    except Exception:  # no such file or repository: whoever loads the model says what is missing
        return None
    return None if found is None else Path(found)


def _parsed(path: Path) -> ModelSettings:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    names = {"format", *ModelSettings.__slots__}
    if not isinstance(given, dict) or given.keys() != names:
        raise UserError(f"{path} must be an object of {', '.join(sorted(names))}")
    if given.pop("format") != FORMAT:
        raise UserError(f"{path} has another format than {FORMAT}: install a newer nlhf_zoo")
    for name, (fits, wanted) in _VALUES.items():
        if not fits(given[name]):
            raise UserError(f"{path}: {name} must be {wanted}, not {given[name]!r}")
    return ModelSettings(**given)


_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda value: value in get_args(Kind), f"one of {', '.join(get_args(Kind))}"),
    "template": (lambda value: value is None or isinstance(value, str), "a text or null"),
    "max_tokens": (
        lambda value: value is None or (type(value) is int and value > 0),
        "a number of at least 1, or null",
    ),
    "temperature": (
        lambda value: type(value) in (int, float) and math.isfinite(value) and value > 0,
        "a finite number above 0",
    ),
}
