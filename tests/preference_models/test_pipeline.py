"""From pairs to a policy in two commands: who can hold a cycle, and what that does to a policy.

The pairs are of three groups of words, each of which beats the next; a word's group is that of its
first letter. A general preference model learns the cycle, and the policy that is trained against it
mixes over the groups; a Bradley-Terry model must rank them, and the policy ends in a corner.
"""

import json
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from paths import ROOT
from preference_runs import CONFIGS, logged, run
from transformers import AutoModelForCausalLM

DATA = ROOT / "configs/data/cyclic_groups"
LETTERS = "abcdefgh"
GROUP = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])  # of each letter: rock, paper, scissors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder where the general and the Bradley-Terry model were trained, as the files have it."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("general", "reward"):
            run("fit", "--config", f"configs/preference_model/{name}.yaml")
    return folder


def held_out(folder, name):
    """The last figures on held-out pairs."""
    run_folder = folder / f"runs/preference_model/{name}/version_0"
    return {tag: values[-1][1] for tag, values in logged(run_folder).items()}


@torch.no_grad()
def shares(checkpoint, player):
    """Each group's share of a player's responses, mean over the prompts: by plain transformers."""
    folder = checkpoint.parent / player
    args = ["--ckpt", str(checkpoint), "--output", str(folder), "--player", player, "--merged"]
    run("export", *args)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [
        json.loads(line)["prompt"] for line in (DATA / "prompts.jsonl").read_text().splitlines()
    ]
    tokens = torch.tensor([[LETTERS.index(letter) for letter in prompt] for prompt in prompts])
    first = model(tokens).logits[:, -1].softmax(-1)
    return torch.stack([first[:, group == GROUP].sum(-1) for group in range(3)], -1).mean(0)


def gain(shares):
    """How much more than half of the time the best single group wins against these shares."""
    rock, paper, scissors = shares.tolist()
    return max(rock + paper / 2, paper + scissors / 2, scissors + rock / 2) - 0.5


def policy(folder, config, *args):
    """Train a policy; its shares, and those of the reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = f"configs/preference_model/{config}.yaml"
        out, _ = run("fit", "--config", path, *args)
    checkpoint = folder / out.split("checkpoint: ")[-1].strip() / "checkpoints/last.ckpt"
    return shares(checkpoint, "policy"), shares(checkpoint, "reference")


def rounds(number):
    callbacks = [
        {"class_path": "Budget", "init_args": {"rounds": number}},
        {"class_path": "GameCheckpoint"},
    ]
    return ["--trainer.callbacks", json.dumps(callbacks)]


def test_the_data_are_what_their_script_makes(tmp_path):
    script = runpy.run_path(str(DATA / "generate.py"))
    script["main"](tmp_path)
    files = {path.name: path.read_bytes() for path in DATA.glob("*.jsonl")}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    parts = [
        [json.loads(line) for line in files[f"{name}.jsonl"].splitlines()]
        for name in ("train", "held_out")
    ]
    for rows in parts:
        for row in rows:  # paper beats rock, scissors paper, rock scissors
            winner, loser = (GROUP[LETTERS.index(row[key][0])] for key in ("chosen", "rejected"))
            assert (winner - loser) % 3 == 1
    prompts, words = (
        [{row[key] for row in rows for key in keys} for rows in parts]
        for keys in (["prompt"], ["chosen", "rejected"])
    )
    assert not prompts[0] & prompts[1]
    assert not words[0] & words[1]
    assert len(words[1]) > 100


def test_a_general_head_learns_the_cycle_and_a_bradley_terry_head_does_not(models):
    general, reward = held_out(models, "general"), held_out(models, "reward")
    assert general["val/accuracy"] > 0.95
    assert general["val/log_loss"] < 0.2
    assert 0.4 < reward["val/accuracy"] < 0.66
    assert general["val/cyclic_triples"] > 0.2  # of random preferences a quarter
    assert reward["val/cyclic_triples"] == 0


@pytest.mark.slow
def test_against_the_first_a_policy_mixes_and_against_the_second_it_ends_in_a_corner(models):
    nash = ["--model.algorithm", "OnlineIPO", "--model.beta", "0.1", "--model.optimizer.lr", "0.01"]
    nash += ["--model.lr_scheduler.total_iters", "100", *rounds(100)]
    mixed, reference = policy(models, "nash_mp", *nash)
    # Of seeds 0 to 3 the shares are at least 0.12 and the gain at most 0.15.
    assert mixed.min() > 0.05
    assert gain(mixed) < 0.2
    assert gain(reference) > 0.22
    dpo = ["--model.optimizer.lr", "0.04", "--model.lr_scheduler.total_iters", "24", *rounds(24)]
    corner, _ = policy(models, "online_dpo", *dpo)
    # Of these seeds at least 0.94, and the gain at least 0.45.
    assert corner[1] > 0.9  # paper, of which the reference has a quarter
    assert reference[1] < 0.3
    assert gain(corner) > 0.4


@pytest.mark.slow
def test_the_files_of_the_documentation_end_as_it_says(models):
    mixed, _ = policy(models, "nash_mp")
    assert (mixed - 1 / 3).abs().max() < 0.1
    corner, _ = policy(models, "online_dpo")
    assert corner[1] > 0.95
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(models)
        run("fit", "--config", "configs/preference_model/pair.yaml")
    assert held_out(models, "pair")["val/accuracy"] > 0.95


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_says_how_it_is_run_and_is_what_the_parser_makes_of_it(path: Path, models):
    assert f"nlhf fit --config configs/preference_model/{path.name}\n" in path.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(models)
        printed, _ = run("fit", "--config", str(path), "--print_config")
        run("fit", "--config", str(path), "--trainer.fast_dev_run", "true")
    parsed, written = yaml.safe_load(printed), yaml.safe_load(path.read_text())
    for part in ("model", "data"):
        assert parsed[part]["class_path"].endswith(written[part]["class_path"])
        assert written[part]["init_args"].keys() <= parsed[part]["init_args"].keys()
