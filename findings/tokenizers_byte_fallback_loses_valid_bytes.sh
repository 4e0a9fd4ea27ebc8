#!/bin/sh
# tokenizers 0.23.3: one byte that is no UTF-8 makes the valid bytes beside it unreadable, too.
#
# Tokenizers of the Llama kind write what is not in their vocabulary as byte tokens. The decoder
# ByteFallback reads a run of them as a whole: <0x0A> alone is a line break, and <0x0A> <0xC3>, where
# the second is the first half of a letter that was cut, is two U+FFFD. So a text that was decoded is
# not the sum of what its tokens are, nor does it begin with the text of its first tokens: a line
# break that was there is gone after one more token, and comes back after the next. A token of text
# between the two keeps it.
#
# Ends with 0 while that is so, and with 1 where it has changed.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import tokenizers
from tokenizers import Tokenizer, decoders, models

A = 256
words = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"a": A}
tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], byte_fallback=True))
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])

wrong = False
for tokens, seen in (
    ([0x0A], "\n"),
    ([0x0A, 0xC3], "\ufffd\ufffd"),
    ([0x0A, 0xC3, 0xA9], "\né"),
    ([0x0A, A, 0xC3], "\na\ufffd"),
    ([0xC3, 0xA9, 0xC3], "\ufffd\ufffd\ufffd"),
):
    got = tokenizer.decode(tokens)
    wrong |= got != seen
    shown = " ".join(tokenizer.id_to_token(token) for token in tokens)
    print(f"{'as seen' if got == seen else 'CHANGED'}: {shown} -> {got!r}")
print("tokenizers", tokenizers.__version__)
sys.exit(wrong)
PYTHON
