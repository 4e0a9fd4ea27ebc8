"""Models of texts, their tokenizers and how they are to be read, from a folder or the hub.

No code of theirs is run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.files import written
from nlhf_zoo.records.finite import not_finite
from nlhf_zoo.text_models import peft_folder
from nlhf_zoo.text_models.peft_folder import PeftFolder

Dtype = Literal["auto", "float32", "bfloat16"]
Head = Literal["sequence classifier", "causal language model"]
# Ends of the names of classes that write the next token.
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_AUTO: Mapping[Head, str] = {
    "sequence classifier": "AutoModelForSequenceClassification",
    "causal language model": "AutoModelForCausalLM",
}
# Beside a preference model that was trained here.
SETTINGS_FILE = "preference_model.json"
# Models of format 1 were trained on texts with all that the tokenizer puts around them, whether the
# template has it or not, and without types of tokens.
FORMAT = 2
_GENERAL_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
_HUB_SECONDS = 10.0  # that an answer of the hub is waited for, once
# pair: reads both responses; reward: one, to a reward; general: one, to an embedding.
Kind = Literal["pair", "reward", "general"]
ORACLES: Mapping[Kind, str] = {
    "pair": "PairModelOracle",
    "reward": "RewardModelOracle",
    "general": "GeneralPreferenceModelOracle",
}


def weights_dtype(dtype: Dtype) -> torch.dtype:
    """The type of weights; "auto" is bfloat16 on a GPU that has it, else float32."""
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if dtype == "bfloat16" or (dtype == "auto" and has_bfloat16):
        return torch.bfloat16
    return torch.float32


@dataclass(frozen=True, slots=True)
class Source:
    """A model with its tokenizer, in a folder or on the hub.

    What cannot be had is refused with a UserError. A model that was saved as an adapter of peft is
    one on the base that it names.
    """

    name: str  # of a folder, or on the hub
    where: str  # which model it is, in messages, as "the reward model FOLDER"
    revision: str | None = None  # of the hub's repository

    def adapter(self) -> PeftFolder | None:
        """The adapter that the model was saved as; None where it is a whole model."""
        config = _file(self.name, self.revision, peft_folder.CONFIG)
        if config is None or _is_whole(self.name, self.revision):
            return None
        _file(self.name, self.revision, peft_folder.WEIGHTS)  # beside it, of the hub's
        return PeftFolder(config.parent, self.where)

    def refuse_adapter(self, remedy: str) -> None:
        """Refuse an adapter where a whole model is needed; ``remedy`` follows its base's name."""
        if (adapter := self.adapter()) is not None:
            raise UserError(
                f"{self.where} is an adapter of peft: give its base {adapter.base} in its place"
                f"{remedy}"
            )

    def _base(self, adapter: PeftFolder) -> Source:
        name = adapter.base
        return Source(name, f"the base {name} of {self.where}", adapter.base_revision)

    def config(self) -> Any:
        """The configuration of the model."""
        from transformers import AutoConfig

        if (adapter := self.adapter()) is not None:
            found = self._base(adapter).config()
            if adapter.is_classifier:
                found.architectures = None  # those of the base, often a language model
                found.num_labels = adapter.num_labels() or found.num_labels
            return found
        is_folder = Path(self.name).is_dir()
        if is_folder and not (Path(self.name) / "config.json").is_file():
            raise UserError(
                f"{self.where} is a folder without config.json: give that of a whole model"
            )
        what = "cannot be loaded" if is_folder else "is no folder here, nor had from the hub"
        return self._load(AutoConfig, f"{self.where} {what}", {})

    def tokenizer(self, refusal: str = "") -> Any:
        """The tokenizer; ``refusal`` is said, before the cause, where it cannot be loaded.

        One that was saved as the general class of transformers is read as that. AutoTokenizer
        goes by the kind of the model, and of a Qwen2 makes another tokenizer of the same words
        (transformers 5.23.0, ``findings/transformers_reads_a_saved_tokenizer_as_qwen2.sh``).
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        adapter = self.adapter()
        if adapter is not None and not (adapter.folder / "tokenizer_config.json").is_file():
            return self._base(adapter).tokenizer(refusal)
        refusal = refusal or f"{self.where} has no tokenizer that can be loaded"
        saved_as = self._tokenizer_class()
        kind = PreTrainedTokenizerFast if saved_as in _GENERAL_TOKENIZERS else AutoTokenizer
        tokenizer = self._load(kind, refusal, {})
        # Where there are no files of a tokenizer, transformers makes one without words.
        if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):
            raise UserError(f"{self.where} has no tokenizer: save one beside it")
        return tokenizer

    def _tokenizer_class(self) -> str | None:
        """The class that the tokenizer was saved as, where its files say it."""
        path = _file(self.name, self.revision, "tokenizer_config.json")
        try:
            said = None if path is None else json.loads(path.read_bytes()).get("tokenizer_class")
        except (ValueError, AttributeError):  # whoever loads it says what is wrong
            return None
        return said if isinstance(said, str) else None

    def network(
        self, head: Head, refusal: str, options: Mapping[str, Any]
    ) -> tuple[Any, list[str]]:
        """A network of a kind, from safetensors alone, by ``options`` of ``from_pretrained``.

        With it come the names of weights that its files lack, or hold in another size: transformers
        fills these with random numbers, and says so in a log only. ``refusal`` is what is said,
        before the cause, where it cannot be loaded.
        """
        import transformers

        safe = {"use_safetensors": True, "output_loading_info": True}
        kind = getattr(transformers, _AUTO[head])
        network, report = self._load(kind, refusal, {**options, **safe})
        refuse_not_finite(self.where, dict(network.named_parameters()))
        other_sizes = [name for name, *_ in report["mismatched_keys"]]
        return network, sorted([*map(str, report["missing_keys"]), *other_sizes])

    def whole_network(self, head: Head, config: Any, dtype: Dtype) -> Any:
        """A network none of whose weights its files lack."""
        options = {"config": config, "dtype": weights_dtype(dtype)}
        adapter = self.adapter()
        source = self if adapter is None else self._base(adapter)
        refusal = f"{source.where} cannot be loaded as a {head}"
        with _no_report():  # of what is missing: that is refused here
            network, lacking = source.network(head, refusal, options)
        if adapter is not None:
            provided = adapter.provides()
            lacking = [name for name in lacking if name not in provided]
            network = network if lacking else adapter.put_on(network)
        if lacking:
            raise UserError(f"{self.where} is no trained {head}: its file lacks {lacking[0]}")
        return network

    def _load(self, kind: Any, refusal: str, options: Mapping[str, Any]) -> Any:
        here = is_from_here(self.name)
        try:
            with _no_questions():
                return kind.from_pretrained(
                    self.name,
                    revision=self.revision,
                    trust_remote_code=False,
                    local_files_only=here,
                    **options,
                )
        except Exception as error:  # of files, the network, the hub: too many kinds to name
            if "trust_remote_code" in str(error):
                raise UserError(
                    f"{refusal}: it needs code of its own, which is never run, so take one that "
                    "transformers knows"
                ) from error
            if here and not Path(self.name).is_dir():
                raise UserError(
                    f"{refusal}: the hub cannot be reached, and its cache here does not have it"
                ) from error
            raise UserError(f"{refusal}: {cause(error)}") from error


def refuse_not_finite(where: str, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights of files that are not finite, before anything that is computed says worse.

    Raises:
        UserError: which model it is, and which of its weights.
    """
    if name := not_finite(weights):
        raise UserError(
            f"{where} has weights that are not finite, {name} among them: its files are damaged, "
            "or the run that wrote them had diverged"
        )


@contextmanager
def _no_report() -> Iterator[None]:
    """What transformers finds missing in files is written to no log."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _no_questions() -> Iterator[None]:
    """Parts of a model that bring code are refused, where transformers 5.23 would ask.

    It hands `trust_remote_code` on to the model, and to none of the parts that it is made of.
    """
    from transformers import dynamic_module_utils

    waits = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = waits


def is_from_here(name: str) -> bool:
    """Whether a model comes from this machine: a folder, or what the hub's cache has of it.

    Where the hub cannot be reached its client would try for a minute before it looks there.
    """
    return Path(name).is_dir() or not _hub_is_reached()


@cache
def _hub_is_reached() -> bool:
    """Whether the hub answers at all, whatever it says."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # of names, proxies, certificates: too many kinds to name
        return False
    return True


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a model was trained with, and is to be read with."""

    kind: Kind
    template: str | None = None  # with the fields of the kind; None for the chat template
    max_tokens: int | None = None  # of the longest text; None for the model's own limit
    temperature: float = 1.0  # divides the logit of a preference
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    format: int = FORMAT

    def replaced(
        self,
        template: str | None,
        max_tokens: int | None,
        temperature: float | None,
        chat_template_kwargs: Mapping[str, Any] | None,
    ) -> ModelSettings:
        """The settings with what is given, each that is not None, in place of their own."""
        given: dict[str, Any] = {
            "template": template,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "chat_template_kwargs": chat_template_kwargs,
        }
        return replace(self, **{name: it for name, it in given.items() if it is not None})


def write_settings(folder: Path, settings: ModelSettings) -> None:
    """Write the file into the folder of a model, all of it or nothing."""
    given = {"format": settings.format, **asdict(settings)}
    text = json.dumps(given, indent=2, ensure_ascii=False)
    with written(folder / SETTINGS_FILE) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def read_settings(
    model: str, kind: Kind | None, oracle: str, revision: str | None = None
) -> ModelSettings | None:
    """The settings beside a model, in a folder or on the hub; None where there are none.

    Another kind than the oracle reads is refused; None is that of an oracle that reads no model
    that was trained here.
    """
    path = _file(model, revision, SETTINGS_FILE)
    if path is None:
        return None
    settings = _parsed(path)
    if settings.kind != kind:
        raise UserError(
            f"{model} holds a preference model of the kind {settings.kind!r}, which {oracle} "
            f"does not read: take {ORACLES[settings.kind]}"
        )
    return settings


def _is_whole(model: str, revision: str | None) -> bool:
    """Whether there is a whole model, be there an adapter beside it or not."""
    if Path(model).is_dir():
        return any(Path(model).glob("model*.safetensors"))
    return _file(model, revision, "config.json") is not None


def _file(model: str, revision: str | None, name: str) -> Path | None:
    """A file beside a model, in a folder or on the hub; None where there is none."""
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        here = is_from_here(model)
        found = cached_file(model, name, revision=revision, local_files_only=here)
    except Exception:  # no such file or repository: whoever loads the model says what is missing
        return None
    return None if found is None else Path(found)


def _parsed(path: Path) -> ModelSettings:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(given, dict) or given.get("format") not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} is no object with a format of at most {FORMAT}: install a newer nlhf_zoo"
        )
    if given["format"] == 1:
        given.setdefault("chat_template_kwargs", {})
    names = {*ModelSettings.__slots__}
    if given.keys() != names:
        raise UserError(f"{path} must be an object of {', '.join(sorted(names))}")
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
    "chat_template_kwargs": (lambda value: isinstance(value, dict), "an object"),
}
