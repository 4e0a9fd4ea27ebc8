#!/bin/sh
# datasets 5.2.0: in a JSON Lines column of mixed types, texts that are JSON themselves change type.
#
# Of the rows {"a": "007"} and {"a": [1]} the first comes back as the integer 7; "true" becomes True,
# and the text "[1]" a list. A column of texts alone stays as it is. The column gets the feature type
# Json, whose texts are parsed once more when a row is read: valid JSON in, other values out, and
# nothing is said.
#
# Ends with 0 while that is so, and with 1 where it has changed.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
mkdir -p "$folder/rows"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 \
    "$folder/venv/bin/python" - "$folder/rows" <<'PYTHON'
import json
import sys
from pathlib import Path

import datasets

folder = Path(sys.argv[1])


def read(name, *cells):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"a": cell}) + "\n" for cell in cells))
    rows = datasets.load_dataset("json", data_files=str(path), split="train")
    return [row["a"] for row in rows], rows.features


wrong = False
for name, written, seen in (
    ("texts", ["007", "x"], ["007", "x"]),
    ("number", ["007", 7], [7, 7]),
    ("list", ["007", [1]], [7, [1]]),
    ("truth", ["true", 1], [True, 1]),
    ("text_of_a_list", ["[1]", {"b": 2}], [[1], {"b": 2}]),
):
    got, features = read(name, *written)
    same = json.dumps(got) == json.dumps(seen)
    wrong |= not same
    print(f"{'as seen' if same else 'CHANGED'}: {written} -> {got}  {features}")
print("datasets", datasets.__version__)
sys.exit(wrong)
PYTHON
