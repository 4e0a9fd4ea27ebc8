"""The demonstration on a model that nobody can enumerate, from end to end at tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from forked import nlhf
from paths import CONFIGS, ROOT

ALGORITHMS = ("nash_mp", "nash_md", "sppo", "online_dpo", "online_ipo", "egpo")
PLAYERS = ("untrained", "Nash-MP", "Nash-MD", "SPPO", "online DPO", "online IPO", "EGPO")


def demonstration(folder: Path) -> str:
    """What it prints last, from the table on."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "docs/ten_million/run.py"), "--tiny"]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout[ended.stdout.index("| policy |") :]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_six_are_trained_certified_and_played_off_once(tmp_path: Path):
    table = demonstration(tmp_path)
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:9]]
    assert sorted(rows) == sorted(PLAYERS)
    place = tmp_path / "runs/ten_million"
    assert (place / "ten_million.png").read_bytes().startswith(b"\x89PNG")
    judged = (place / "tournament/judgements.jsonl").read_text().splitlines()
    assert len(judged) == 3 * 21  # prompts and pairs
    for name in ("untrained", *ALGORITHMS):
        found = json.loads((place / "certificates" / name / "certificate.json").read_text())
        assert (found["beta"], len(found["each"])) == (0.1, 2)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.ckpt")}
    assert len(before) >= 8  # the two oracles', and the six
    assert demonstration(tmp_path) == table
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.ckpt")} == before


@pytest.mark.slow
def test_each_algorithm_has_one_budget(tmp_path: Path):
    """What is stacked on the shared file changes neither budget, nor game, nor rollout."""
    folder, kept = CONFIGS / "ten_million", []
    for name in ALGORITHMS:
        files = [f"--config={folder / f'{one}.yaml'}" for one in ("base", name)]
        run = nlhf("fit", *files, "--print_config", folder=tmp_path)
        assert run.code == 0, run.err
        found = yaml.safe_load(run.out)
        model = found["model"]["init_args"]
        same = {part: model[part] for part in ("beta", "policy", "oracle", "rollout")}
        kept.append((same, found["trainer"]["callbacks"], found["data"], found["seed_everything"]))
    assert all(each == kept[0] for each in kept)
