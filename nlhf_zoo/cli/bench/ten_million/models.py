"""The models of the demonstration, made here: a language model of 10.7 M parameters and backbones.

All share one tokenizer of the language's words.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nlhf_zoo.cli.bench.ten_million import world

END, PAD = "<end>", "<pad>"
LONGEST = 64  # tokens


@dataclass(frozen=True)
class Size:
    """How large the models are, and how long they train.

    Attributes:
        hidden_size: width of the language model.
        layers: its blocks.
        steps: gradient steps of its training, of 32 sentences.
        pairs: that each preference model is trained on.
    """

    hidden_size: int = 384
    layers: int = 6
    steps: int = 160
    pairs: int = 8000


def say_less() -> None:
    """Let transformers draw no bars over ours, and tell of no new heads."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


SENTENCES = 32  # of a gradient step


def tokenizer() -> Any:
    """Words, and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [PAD, END, *world.words()]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=END,
        pad_token=PAD,
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )


def language_model(folder: Path, size: Size, seed: int = 0) -> int:
    """Train a Llama to write as the author does, and save it; the number of its parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(reader),
            hidden_size=size.hidden_size,
            intermediate_size=size.hidden_size * 8 // 3,
            num_hidden_layers=size.layers,
            num_attention_heads=max(2, size.hidden_size // 64),
            num_key_value_heads=max(2, size.hidden_size // 64),
            max_position_embeddings=LONGEST,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=reader.eos_token_id,
            pad_token_id=reader.pad_token_id,
        )
    )
    rng, some = random.Random(seed), world.prompts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=size.steps)
    bar = tqdm(range(size.steps), desc="language model", leave=False, file=sys.stderr)
    for _ in bar:
        asked = rng.choices(some, k=SENTENCES)
        texts = [f"{prompt} {world.answer(rng)} {END}" for prompt in asked]
        batch = reader(texts, padding=True, return_tensors="pt")
        read = batch.attention_mask.bool()
        read[:, : len(asked[0].split())] = False  # all prompts have as many words
        labels = batch.input_ids.masked_fill(~read, -100)
        loss = model(batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def backbone(folder: Path, kind: str, seed: int) -> None:
    """Save a small random model of another architecture for a preference model to start from."""
    from transformers import AutoConfig, AutoModelForCausalLM

    reader = tokenizer()
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(reader),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LONGEST,
        bos_token_id=None,
        eos_token_id=reader.eos_token_id,
        pad_token_id=reader.pad_token_id,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    reader.save_pretrained(folder)
