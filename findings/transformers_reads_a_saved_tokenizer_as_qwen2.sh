#!/bin/sh
# transformers 5.23.0: AutoTokenizer reads a saved tokenizer as another one where the model beside it is a Qwen2.
#
# A tokenizer of whole words is saved as PreTrainedTokenizerFast beside the configuration of a model, and read again.
# Beside eight kinds of models it writes the same tokens as before. Beside Qwen2 AutoTokenizer makes a Qwen2Tokenizer of
# the vocabulary, with its own byte-level splitting: the same text becomes no token at all, and decoded words stand
# without spaces, in silence. tokenizer_config.json names the general class, which is not looked at for this kind; Qwen3,
# which has the same tokenizer, keeps what was saved. PreTrainedTokenizerFast.from_pretrained reads it right.
#
# Ends with 0 while that is so, and with 1 where it has changed.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv-tokens"
"$folder/venv-tokens/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$folder/venv-tokens/bin/python" - 2>/dev/null <<'PYTHON'
import json
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

TEXT = "one two three"
words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", *TEXT.split()])}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
saved = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
same, other = [], {}
for kind in ("llama", "mistral", "gemma2", "gpt2", "gpt_neox", "phi3", "olmo2", "qwen3", "qwen2"):
    with tempfile.TemporaryDirectory() as folder:
        saved.save_pretrained(folder)
        AutoConfig.for_model(kind).save_pretrained(folder)
        named = json.loads((Path(folder) / "tokenizer_config.json").read_text())["tokenizer_class"]
        read = AutoTokenizer.from_pretrained(folder)
        right = PreTrainedTokenizerFast.from_pretrained(folder)
        assert right(TEXT)["input_ids"] == [1, 2, 3] == saved(TEXT)["input_ids"]
        if read(TEXT)["input_ids"] == [1, 2, 3] and read.decode([1, 2, 3]) == TEXT:
            same.append(kind)
        else:
            other[kind] = named, type(read).__name__, read(TEXT)["input_ids"], read.decode([1, 2, 3])
print(f"{TEXT!r} is [1, 2, 3] beside", ", ".join(same))
for kind, (named, found, ids, text) in other.items():
    print(f"beside {kind}, saved as {named}, it is read as {found}: {ids}, and [1, 2, 3] is {text!r}")
sys.exit(other.get("qwen2", ())[1:] != ("Qwen2Tokenizer", [], "onetwothree") or len(same) != 8)
PYTHON
