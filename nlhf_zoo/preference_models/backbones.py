"""Where the network of a preference model and its tokenizer come from."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, final

import torch

from nlhf_zoo.data.tables.small_language import LETTERS
from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.policies.language_model.sources import letters_config, letters_tokenizer
from nlhf_zoo.text_models.heads import PreferenceHead
from nlhf_zoo.text_models.loading import load_config, load_tokenizer, weights_dtype


@dataclass(frozen=True, slots=True)
class Classifier:
    """A sequence classifier to be trained.

    Args:
        network: the classifier, with as many outputs as the head wants.
        tokenizer: of the network.
        where: which one it is, in messages.
    """

    network: Any
    tokenizer: Any
    where: str


class Backbone(ABC):
    """Makes a sequence classifier and its tokenizer."""

    @abstractmethod
    def load(self, head: PreferenceHead) -> Classifier:
        """Make both.

        Args:
            head: how many outputs there are to be, and what they are called.

        Raises:
            UserError: they cannot be had.
        """


@final
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

    def __init__(
        self,
        name: str,
        dtype: Literal["float32", "bfloat16"] = "float32",
        attention: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.name = name
        self.dtype: Literal["float32", "bfloat16"] = dtype
        self.attention = attention
        self.revision = revision

    def load(self, head: PreferenceHead) -> Classifier:
        """Load both; an output layer that the file does not hold is drawn."""
        from transformers import AutoModelForSequenceClassification

        where = f"the backbone {self.name}"
        config = load_config(self.name, self.revision, where)
        tokenizer = load_tokenizer(self.name, self.revision, where)
        _name_outputs(config, head)
        try:
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                self.name,
                config=config,
                dtype=weights_dtype(self.dtype),
                attn_implementation=self.attention,
                revision=self.revision,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except Exception as error:  # of files, the network, the hub: too many kinds to name
            raise UserError(
                f"{where} cannot be loaded as a sequence classifier, which a "
                f"{type(head).__name__} is the output layer of: {cause(error)}"
            ) from error
        network, report = loaded
        drawn = [*map(str, report["missing_keys"]), *(k[0] for k in report["mismatched_keys"])]
        for name in sorted(drawn):
            if _is_of_body(name, network.base_model_prefix):
                raise UserError(
                    f"{where} is no whole model: its file lacks {name}, or holds it in another size"
                )
        return Classifier(network, tokenizer, where)


@final
class LettersBackbone(Backbone):
    """A random Llama over the letters a to h, for the small language and for tests.

    Args:
        hidden_size: width.
        layers: transformer blocks.
        num_letters: letters of the language.
        seed: of its weights.
    """

    def __init__(
        self, hidden_size: int = 32, layers: int = 1, num_letters: int = len(LETTERS), seed: int = 0
    ) -> None:
        self.hidden_size = hidden_size
        self.layers = layers
        self.num_letters = num_letters
        self.seed = seed

    def load(self, head: PreferenceHead) -> Classifier:
        """Build both."""
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


def _name_outputs(config: Any, head: PreferenceHead) -> None:
    """Write the head's outputs into a model's configuration."""
    config.num_labels = head.outputs
    if head.labels is not None:
        config.id2label = dict(head.labels)
        config.label2id = {name: number for number, name in head.labels.items()}


def _is_of_body(name: str, prefix: str) -> bool:
    """Whether a weight is part of what was trained before, not of a classifier's own layers."""
    return name.startswith(f"{prefix}.") and not re.search(r"\bpooler\b", name)
