#!/bin/sh
# datasets 5.2.0: a JSON Lines column whose texts all look like dates comes back as datetimes.
#
# {"a": "2024-01-01"} in every row gives datetime.datetime(2024, 1, 1, 0, 0) and the feature
# timestamp[s]; one other text anywhere in the column, and all of them stay texts. So the type of a
# row's value depends on other rows, and how the text was written ("2024-01-01", "2024-01-01 00:00")
# is lost.
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
from datetime import datetime
from pathlib import Path

import datasets

folder = Path(sys.argv[1])


def read(name, *cells):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"a": cell}) + "\n" for cell in cells))
    rows = datasets.load_dataset("json", data_files=str(path), split="train")
    return [row["a"] for row in rows], rows.features


day = datetime(2024, 1, 1)
wrong = False
for name, written, seen in (
    ("dates", ["2024-01-01", "2024-01-01"], [day, day]),
    ("two_ways", ["2024-01-01", "2024-01-01T00:00:00"], [day, day]),
    ("one_word", ["2024-01-01", "x"], ["2024-01-01", "x"]),
):
    got, features = read(name, *written)
    wrong |= got != seen
    print(f"{'as seen' if got == seen else 'CHANGED'}: {written} -> {got}  {features}")
print("datasets", datasets.__version__)
sys.exit(wrong)
PYTHON
