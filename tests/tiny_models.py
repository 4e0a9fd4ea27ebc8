"""Tiny language models for tests: four architectures with random weights, saved and loaded again.

They are built from a configuration, never downloaded, and written to a folder, so that a test goes
the way that a user's model goes. Their weights are large, for next-token laws far from the uniform
one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo.policies import CausalLMPolicy, LoRA
from nlhf_zoo.records import Prompts

ARCHITECTURES = ("llama", "qwen2", "gemma2", "gpt2")
WINDOW = 4  # of Gemma-2's sliding attention: shorter than a prompt

# By the name that transformers' own tokenizer of Qwen2 would add otherwise.
BOS, EOS, PAD, TURN = "<bos>", "<|endoftext|>", "<pad>", "<turn>"
LETTERS = "abcdefghijklmnopqrstuvwxyz .:?!"  # others are not written: keep prompts to these
# "ab" and "cd" are tokens that the tokenizer writes and never reads: a response that holds one of
# them is lost when it is decoded and encoded again.
VOCABULARY = [BOS, EOS, PAD, TURN, *LETTERS.replace(" ", "Ġ"), "ab", "cd"]
EOS_ID = VOCABULARY.index(EOS)
PAD_ID = VOCABULARY.index(PAD)

# Like Gemma's: it starts with the first token itself, and refuses a system message.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<turn>{{ message['role'][0] }}:{{ message['content'] }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}<turn>a:{% endif %}"
)


def tiny_tokenizer(bos: bool = False, pad: str | None = None, chat: bool = False) -> Any:
    """A tokenizer of letters with an end-of-sequence token, which may be its padding token too.

    With ``bos`` it puts a first token before each text; ``chat`` gives it a chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE({word: i for i, word in enumerate(VOCABULARY)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    given = {"eos_token": EOS, "additional_special_tokens": [TURN]}
    if bos:
        first = (BOS, VOCABULARY.index(BOS))
        words.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[first]
        )
        given["bos_token"] = BOS
    if pad is not None:
        given["pad_token"] = pad
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **given)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of one of the architectures, with ``changes`` of its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "initializer_range": 0.2,
        "bos_token_id": VOCABULARY.index(BOS), "eos_token_id": EOS_ID, "pad_token_id": None,
    }  # fmt: skip
    if kind == "gemma2":
        shape |= {"sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8}
        shape |= {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0}
    if kind == "gpt2":
        del shape["intermediate_size"], shape["num_key_value_heads"]
    config = AutoConfig.for_model(kind, **(shape | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def save_tiny(folder: Path, kind: str, seed: int = 0, chat: bool = False, **changes: Any) -> Path:
    """Write a model and its tokenizer: each architecture pads in another way.

    Llama's has a first token and no padding token, Qwen2's pads with the end-of-sequence token,
    Gemma-2's has a first and a padding token and a chat template, GPT-2's has neither. ``chat``
    gives the others a chat template too.
    """
    pad = {"qwen2": EOS, "gemma2": PAD}.get(kind)
    tokenizer = tiny_tokenizer(kind in ("llama", "gemma2"), pad, chat or kind == "gemma2")
    tokenizer.save_pretrained(folder)
    tiny_model(kind, seed, **changes).save_pretrained(folder)
    return folder


def make_policy(
    folder: Path,
    players: Sequence[str] = ("anchor",),
    names: Sequence[Sequence[str]] | None = None,
    scatter: bool = True,
    **kwargs: Any,
) -> CausalLMPolicy:
    """A bound policy, whose players all differ unless ``scatter`` is False.

    Its model is that of a folder or a source; ``players`` are those beside policy and reference,
    ``names`` those of responses that can be listed.
    """
    source = str(folder) if isinstance(folder, Path) else folder
    kwargs = {"lora": LoRA(r=4, alpha=8), "max_new_tokens": 6} | kwargs
    policy = CausalLMPolicy(source, **kwargs)
    policy.bind(tuple(players), None, names)
    if scatter:
        scatter_adapters(policy)
    return policy


@torch.no_grad()
def scatter_adapters(policy: CausalLMPolicy, scale: float = 0.2, seed: int = 1) -> None:
    """Give every player but the reference random weights of its own: no adapter is zero.

    Those of adapters have a standard deviation of ``scale``; copies of the whole model get noise.
    """
    stream = torch.Generator().manual_seed(seed)
    for player in policy.players:
        if player == "reference":
            continue
        for parameter in policy._players.parameters_of(player).values():
            noise = torch.randn(parameter.shape, generator=stream).to(parameter)
            if policy.lora is None:
                parameter += scale / 4 * noise
            else:
                parameter.copy_(scale * noise)


def tiny_prompts(
    policy: CausalLMPolicy, texts: Sequence[str] = ("go on.", "a", "to be or not?")
) -> Prompts:
    """Prompts of different lengths, as the policy reads them."""
    return policy.encode(Prompts(torch.arange(len(texts)), text=list(texts)))
