"""Where a language model and its tokenizer come from."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from nlhf_zoo.data.tables.small_language import LETTERS
from nlhf_zoo.errors import UserError
from nlhf_zoo.text_models.loading import Source


@dataclass(frozen=True, slots=True)
class Loaded:
    """A causal language model and its tokenizer."""

    model: Any
    tokenizer: Any

    def ends(self) -> list[int]:
        """Tokens that end a response: the model's own, and the tokenizer's."""
        config, of_tokenizer = self.model.generation_config, self.tokenizer.eos_token_id
        of_model = config.eos_token_id if config else None
        found = [of_model] if isinstance(of_model, int) else list(of_model or [])
        if of_tokenizer is not None and of_tokenizer not in found:
            found.append(of_tokenizer)
        return found

    def positions(self) -> int | None:
        """Positions that the model has, where its configuration says so."""
        config = self.model.config.get_text_config()
        found = getattr(config, "max_position_embeddings", None)
        return found if isinstance(found, int) else None


class ModelSource(ABC):
    """Makes a causal language model and its tokenizer."""

    @abstractmethod
    def load(self) -> Loaded:
        """Make both.

        Raises:
            UserError: a file of the model or of its tokenizer is missing or broken.
        """


class Pretrained(ModelSource):
    """A model of the Hugging Face hub or a local folder, with the tokenizer beside it.

    Args:
        name: hub name or folder.
        dtype: of the base model's weights; "auto" is the file's.
        attention: implementation, such as "sdpa", "eager" or "flash_attention_2"; None takes the
            fastest that the architecture supports without further packages.
        four_bit: load the base model in 4-bit NF4 (QLoRA, arXiv 2305.14314); needs the extra
            `qlora` and a GPU.
        revision: of the hub's repository.
        tokenizer: hub name or folder of the tokenizer, where it is not beside the model.
    """

    def __init__(
        self,
        name: str,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        attention: str | None = None,
        four_bit: bool = False,
        revision: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.attention = attention
        self.four_bit = four_bit
        self.revision = revision
        self.tokenizer = tokenizer

    def load(self) -> Loaded:
        """Load both; no code of the repository is run, and weights are safetensors."""
        for name in filter(None, (self.name, self.tokenizer)):
            if Path(name).is_absolute() and not Path(name).is_dir():
                raise UserError(f"model.policy.model: there is no folder {name}")
        where, beside = f"model.policy.model {self.name}", self.tokenizer or self.name
        Source(self.name, where, self.revision).refuse_adapter(", and it as model.policy.adapter")
        refusal = f"{_place(beside)}: the tokenizer cannot be loaded"
        tokenizer = Source(beside, where, self.revision).tokenizer(refusal)
        model, lacking = Source(self.name, where, self.revision).network(
            "causal language model",
            f"{_place(self.name)} cannot be loaded as a causal language model",
            {"dtype": self.dtype, "attn_implementation": self.attention, **self._four_bit()},
        )
        if lacking:
            raise UserError(
                f"{where} is no whole causal language model: its files lack {lacking[0]}"
            )
        return Loaded(model, tokenizer)

    def _four_bit(self) -> dict[str, Any]:
        if not self.four_bit:
            return {}
        if not torch.cuda.is_available():
            raise UserError("model.policy.model.four_bit needs a GPU, and there is none here")
        try:
            import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401  # an extra
        except ImportError as error:
            raise UserError(
                "model.policy.model.four_bit needs bitsandbytes: pip install 'nlhf_zoo[qlora]'"
            ) from error
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        return {
            "quantization_config": config,
            "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))},
        }


def _place(name: str) -> str:
    """Where a model was looked for."""
    missing = "" if Path(name).is_dir() else " (no folder here, so looked for on the hub)"
    return f"model.policy.model {name}{missing}"


class SmallLanguageModel(ModelSource):
    """A random Llama over the letters of the small language; its tokens are exactly the letters.

    Nothing ends a response but its length, so all responses can be listed and their probabilities
    sum to 1: what is computed over them is exact.

    Args:
        hidden_size: width.
        layers: transformer blocks.
        seed: of its weights; not the run's, so that all runs have one reference.
        num_letters: letters of the language.
        output_scale: of the output layer. At 1 adapters cannot reach the equilibrium of a small
            beta: behind the norm, the frozen layer bounds how far apart log-probabilities are.

    Raises:
        ValueError: the scale is not a finite number above 0.
    """

    def __init__(
        self,
        hidden_size: int = 32,
        layers: int = 2,
        seed: int = 0,
        num_letters: int = len(LETTERS),
        output_scale: float = 1.0,
    ) -> None:
        if not 0 < output_scale < math.inf:
            raise ValueError(
                f"output_scale must be a finite number above 0, but it is {output_scale}"
            )
        self.output_scale = output_scale
        self.hidden_size = hidden_size
        self.layers = layers
        self.seed = seed
        self.num_letters = num_letters

    @override
    def load(self) -> Loaded:
        from tokenizers import decoders
        from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

        letters = LETTERS[: self.num_letters]
        words = letters_tokenizer(letters)
        words.decoder = decoders.Fuse()
        config = letters_config(len(letters), self.hidden_size, self.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.mul_(self.output_scale)
        return Loaded(model, PreTrainedTokenizerFast(tokenizer_object=words))


def letters_tokenizer(vocabulary: Sequence[str]) -> Any:
    """A `tokenizers.Tokenizer` of letters, and of names of special tokens, by their numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return words


def letters_config(num_tokens: int, hidden_size: int, layers: int, pad: int | None = None) -> Any:
    """A `LlamaConfig`, of a small Llama whose texts no special token begins or ends."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=num_tokens,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=pad,
    )


def refuse_misfit(tokenizer: Any, model: Any) -> None:
    """A tokenizer that has tokens which the model does not know is another model's."""
    rows = model.get_input_embeddings().weight.shape[0]
    if (largest := max(tokenizer.get_vocab().values())) >= rows:
        raise UserError(
            f"model.policy.model: the tokenizer has the token {largest}, but the model embeds "
            f"{rows} tokens only: give the tokenizer that belongs to the model"
        )


def refuse_low_precision(model: nn.Module) -> None:
    """Weights of 8 or fewer digits would swallow the steps of a usual learning rate."""
    for parameter in model.parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"model.policy.lora is null, so that all weights train, but they are "
                f"{str(parameter.dtype).removeprefix('torch.')}, which rounds small steps away: "
                "set the dtype of model.policy.model to float32"
            )
