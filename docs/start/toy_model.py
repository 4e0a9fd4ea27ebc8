"""A toy language model of random weights, to see every command run: python toy_model.py FOLDER.

It reads and writes small letters, and what it says has no meaning. Nothing is downloaded.
"""

import string
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, TURN = "<end>", "<turn>"
LETTERS = [*string.ascii_lowercase, "\u0120", ".", "?"]  # the third last is a space, as BPE has it
CHAT = (
    "{% for message in messages %}<turn>{{ message['role'][0] }}:{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<turn>a:{% endif %}"
)


def main(folder: Path) -> None:
    """Write model and tokenizer as ``save_pretrained`` does."""
    vocabulary = {word: number for number, word in enumerate([END, TURN, ":", *LETTERS])}
    letters = Tokenizer(models.BPE(vocabulary, merges=[]))
    letters.normalizer = normalizers.Lowercase()
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, eos_token=END, additional_special_tokens=[TURN]
    )
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=vocabulary[END],
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"A toy model: {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
