"""Where the network of a preference model, its tokenizer and its adapters come from."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from typing_extensions import override

from nlhf_zoo.data.tables.small_language import LETTERS
from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.policies.language_model.players import LoRA
from nlhf_zoo.policies.language_model.sources import letters_config, letters_tokenizer
from nlhf_zoo.text_models.heads import PreferenceHead
from nlhf_zoo.text_models.loading import Source, weights_dtype


@dataclass(frozen=True, slots=True)
class Classifier:
    """A sequence classifier to be trained."""

    network: Any  # with as many outputs as the head wants
    tokenizer: Any
    where: str  # which one it is, in messages


class Backbone(ABC):
    """Makes a sequence classifier and its tokenizer."""

    @abstractmethod
    def load(self, head: PreferenceHead) -> Classifier:
        """Make both, or refuse with a UserError.

        Args:
            head: how many outputs there are to be, and what they are called.
        """


@final
@dataclass(frozen=True)  # no slots: jsonargparse reads the defaults by vars()
class PretrainedBackbone(Backbone):
    """A model of the Hugging Face hub or a local folder, with the tokenizer beside it.

    Any model that transformers has a sequence classifier of: a language model, an encoder, or a
    reward model, whose output layer is kept where it has the right size. Weights are safetensors,
    and no code of the repository is run.

    Args:
        name: hub name or folder.
        dtype: of the weights; bfloat16 is for a base model that LoRA leaves as it is.
        attention: implementation, such as "sdpa" or "eager"; None takes the fastest that the
            architecture supports without further packages.
        revision: of the hub's repository.
    """

    name: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: str | None = None
    revision: str | None = None

    def load(self, head: PreferenceHead) -> Classifier:
        """Load both; an output layer that the file does not hold is drawn."""
        source = Source(self.name, f"the backbone {self.name}", self.revision)
        source.refuse_adapter(", or a folder into which it is merged")
        config, tokenizer = source.config(), source.tokenizer()
        _name_outputs(config, head)
        network, drawn = source.network(
            "sequence classifier",
            f"{source.where} cannot be loaded as a sequence classifier, which a "
            f"{type(head).__name__} is the output layer of",
            {
                "config": config,
                "dtype": weights_dtype(self.dtype),
                "attn_implementation": self.attention,
                "ignore_mismatched_sizes": True,
            },
        )
        # What was trained before; the rest is a classifier's.
        body = f"{network.base_model_prefix}."
        for name in drawn:
            if name.startswith(body) and not re.search(r"\bpooler\b", name):
                raise UserError(
                    f"{source.where} is no whole model: its file lacks {name}, or holds it in "
                    "another size"
                )
        return Classifier(network, tokenizer, source.where)


@final
@dataclass(frozen=True)  # likewise
class LettersBackbone(Backbone):
    """A random Llama over the letters a to h, for the small language and for tests.

    Args:
        hidden_size: width.
        layers: transformer blocks.
        num_letters: letters of the language.
        seed: of its weights.
    """

    hidden_size: int = 32
    layers: int = 1
    num_letters: int = len(LETTERS)
    seed: int = 0

    @override
    def load(self, head: PreferenceHead) -> Classifier:
        from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

        vocabulary = [*LETTERS[: self.num_letters], ">", "<pad>"]
        pad = vocabulary.index("<pad>")
        config = letters_config(len(vocabulary), self.hidden_size, self.layers, pad)
        _name_outputs(config, head)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = LlamaForSequenceClassification(config)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=letters_tokenizer(vocabulary), pad_token="<pad>", model_max_length=64
        )
        return Classifier(network, tokenizer, "the backbone of letters")


def with_adapters(network: Any, lora: LoRA, where: str) -> Any:
    """Freeze a classifier, all but its output layer, and put adapters on it that fit.

    What trains is float32, whatever the classifier is. What is returned is a model of peft around
    the classifier, which has become another.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = lora.target_modules
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # it takes fractions, too
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.rslora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
        task_type="SEQ_CLS",  # so that the output layer trains, without an adapter
    )
    try:
        adapted: Any = get_peft_model(network, config)
    except (ValueError, TypeError) as error:
        if "target" in str(error):
            raise UserError(
                f"model.lora.target_modules {targets!r} names no layer of {where} that can have an "
                "adapter"
            ) from error
        raise UserError(f"model.lora does not fit {where}: {cause(error)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _name_outputs(config: Any, head: PreferenceHead) -> None:
    """Write the head's outputs into a model's configuration."""
    config.num_labels = head.outputs
    if head.labels is not None:
        config.id2label = dict(head.labels)
        config.label2id = {name: number for number, name in head.labels.items()}
