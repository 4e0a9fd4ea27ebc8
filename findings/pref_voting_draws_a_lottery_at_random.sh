#!/bin/sh
# Shows what pref_voting 0.5.4 says of maximal lotteries where there are several: one corner of the set, another one at
# each call; and a TypeError where all candidates tie. Without numba, which it does not ask for, it cannot be imported.
#
# pref_voting 1.18.2 asks for a nashpy below 0.0.41, so that it cannot stand beside nashpy 0.0.43, as this release does;
# by its source it averages the corners.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv-pref-voting"
"$folder/venv-pref-voting/bin/pip" install --quiet pref_voting==0.5.4 nashpy==0.0.43 numba==0.68.1
cat > "$folder/finding.py" <<'END'
import sys
from importlib.metadata import requires

sys.modules["numba"] = None  # as where it is not installed
try:
    import pref_voting.profiles

    without = "imported"
except ModuleNotFoundError as error:
    without = str(error)
del sys.modules["numba"]

from pref_voting.probabilistic_methods import maximal_lottery
from pref_voting.profiles import Profile

two_tie = Profile([[0, 1, 2], [1, 0, 2]])  # both beat the third
found = {tuple(float(p) for p in maximal_lottery(two_tie).values()) for _ in range(40)}
try:
    all_tie = maximal_lottery(Profile([[0, 1, 2, 3], [3, 2, 1, 0]]))
except TypeError as error:
    all_tie = f"TypeError: {error}"
asked = [line.split()[0] for line in requires("pref_voting")]
print("it asks for", asked, "and without numba:", without)
print("two candidates tie, 40 calls:", sorted(found))
print("all tie:", all_tie)
changed = found != {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)} or not isinstance(all_tie, str)
raise SystemExit(int(changed or "numba" in asked or without == "imported"))
END
"$folder/venv-pref-voting/bin/python" "$folder/finding.py"
