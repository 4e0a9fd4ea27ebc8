"""Every file in configs/lm: complete, says what it costs, and trains a small model of its kind."""

import json
import math
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from forked import nlhf
from language_models import letters
from paths import CONFIGS
from rows import user, write
from slow import slow_unless
from transformers import AutoModelForSequenceClassification

from nlhf_zoo.cli import rollouts
from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.trainer import GameCLI
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.rollout import Sample
from project.test_configs import assert_complete, assert_printed, named, read

ARCHITECTURES = {"gemma2_2b": "gemma2", "qwen2_5_1_5b": "qwen2", "llama3_8b": "llama"}
FILES = sorted(path for name in ARCHITECTURES for path in (CONFIGS / "lm" / name).glob("*.yaml"))

# Of one update and prompt: gradient steps, queries, generations.
COSTS = {
    "nash_mp": (2, 2, 4),
    "nash_md": (1, 1, 2),
    "online_dpo": (1, 1, 2),
    "online_ipo": (1, 1, 2),
    "egpo": (2, 4, 6),
    "sppo": (1, 10, 5),
}
# Methods that have a file for one model alone.
OF_ONE_MODEL = {
    ("qwen2_5_1_5b", "nash_prox"): (1, 1, 2),
    ("qwen2_5_1_5b", "xpo"): (1, 1, 4),
    ("qwen2_5_1_5b", "pairwise_grpo"): (1, 120, 16),
    ("qwen2_5_1_5b", "dno"): (1, 10, 5),
    ("qwen2_5_1_5b", "rebel"): (1, 2, 2),
    ("qwen2_5_1_5b", "ipomd"): (1, 1, 2),
    ("qwen2_5_1_5b", "nash_pg"): (1, 1, 2),
    ("qwen2_5_1_5b", "nash_ema"): (1, 1, 2),
    ("qwen2_5_1_5b", "rspo"): (1, 10, 5),
}
# Each algorithm once, and what draws and scores in the most ways not on the one architecture alone.
BY_DEFAULT = {("gemma2_2b", "nash_md"), ("qwen2_5_1_5b", "nash_mp"), ("llama3_8b", "online_dpo")}
BATCH = 3


OWN = CONFIGS / "lm/own_model.yaml"
ITERATIONS = sorted((CONFIGS / "lm/iterations").glob("*.yaml"))
OTHERS = [*ITERATIONS, OWN, CONFIGS / "lm/pair_model.yaml", CONFIGS / "lm/judge.yaml"]
every = pytest.mark.parametrize("path", [*FILES, *OTHERS], ids=named)
recipe = pytest.mark.parametrize("path", FILES, ids=named)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    texts = ("to be or not?", "a", "go on.", "who is it?", "why", "no more.", "one. two.")
    return write(tmp_path / "prompts.jsonl", *({"prompt": [user(text)]} for text in texts))


def test_each_model_has_a_file_for_each_algorithm():
    assert {(p.parent.name, p.stem) for p in FILES} == {
        *product(ARCHITECTURES, COSTS),
        *OF_ONE_MODEL,
    }


@every
def test_says_how_it_is_run_and_depends_on_no_other_file(path: Path):
    assert_complete(path)
    assert "optimizer" in read(path)["model"]["init_args"]


@recipe
def test_a_gradient_step_has_64_prompts_and_names_its_own_folder_of_runs(path: Path):
    trainer, data = read(path)["trainer"], read(path)["data"]["init_args"]
    assert data["batch_size"] * trainer["accumulate_grad_batches"] == 64
    assert trainer["logger"]["init_args"]["name"] == f"lm/{path.parent.name}/{path.stem}"


@slow_unless("path", lambda path: path.parent.name in ("gemma2_2b", "lm"), [*FILES, OWN], ids=named)
def test_print_config_is_the_file_and_prints_itself_again(path: Path, tmp_path: Path):
    run = nlhf("fit", "--config", str(path), "--print_config", folder=tmp_path)
    assert run.code == 0, run.err
    assert_printed(path, run.out)
    (tmp_path / "printed.yaml").write_text(run.out)
    again = nlhf("fit", "--config", "printed.yaml", "--print_config", folder=tmp_path)
    assert again.out == run.out, again.err


@slow_unless("path", lambda path: (path.parent.name, path.stem) in BY_DEFAULT, FILES, ids=named)
def test_trains_a_small_model_of_the_same_architecture(
    path: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Only paths and sizes differ: precision, LoRA, decoding and steps are the file's own."""
    steps, queries, generations = COSTS.get(path.stem) or OF_ONE_MODEL[path.parent.name, path.stem]
    inner = read(path)["model"]["init_args"]["algorithm"]["init_args"].get("inner_steps", 1)
    updates = 2 if inner == 1 else inner
    drawn, trained = [], []
    responses, after_fit = Sample.responses, GameCLI.after_fit
    monkeypatch.setattr(
        Sample,
        "responses",
        lambda self, policy, who, prompts, num, *rest: (
            drawn.append(num) or responses(self, policy, who, prompts, num, *rest)
        ),
    )
    monkeypatch.setattr(GameCLI, "after_fit", lambda cli: trained.append(cli) or after_fit(cli))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)
    base = letters(ARCHITECTURES[path.parent.name])
    changes = {
        "model.policy.model.name": base, "model.policy.max_new_tokens": 4,
        "model.oracle.model": letters("llama", AutoModelForSequenceClassification),
        "data.path": prompts, "data.batch_size": BATCH, "data.num_validation": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false", "trainer.accumulate_grad_batches": 1,
        "trainer.max_steps": steps * updates,
    }  # fmt: skip
    main(["fit", "--config", str(path), *(f"--{name}={value}" for name, value in changes.items())])
    (cli,) = trained
    game: OnlineGame = cli.model
    assert game.progress.batches == steps * updates
    assert game.between_rounds
    assert math.isfinite(cli.trainer.callback_metrics["train/loss"])
    assert game.progress.queries_per_prompt == queries * updates
    assert game.progress.queries == queries * updates * BATCH
    assert sum(drawn) == generations * updates
    assert game.progress.unjudged == game.progress.invalid == 0
    assert_the_policy_moved_and_the_base_did_not(game, base)
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in kept} == {"policy"}
    assert all(".lora_" in name for name in kept)
    players = {"policy", *game.algorithm.players}
    assert {name.split(".")[-2] for name in kept} == players


@slow_unless("path", lambda path: path.stem == "inpo", ITERATIONS, ids=named)
def test_an_iteration_draws_once_and_trains_on_that(
    path: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Of 20,000 prompts, so says its forecast; then of fewer, on a small model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    trained, after_fit = [], GameCLI.after_fit
    monkeypatch.setattr(GameCLI, "after_fit", lambda cli: trained.append(cli) or after_fit(cli))
    base = letters("llama")
    changes = {
        "model.policy.model.name": base, "model.policy.max_new_tokens": 4,
        "model.oracle.model": letters("llama", AutoModelForSequenceClassification),
        "data.path": prompts, "data.batch_size": 6, "data.num_validation": 1,
        "model.rollout.minibatch": 1,
        "model.rollout.held_out": 0.2, "model.micro_batches": 2, "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }  # fmt: skip
    main(["fit", "--config", str(path), *(f"--{name}={value}" for name, value in changes.items())])
    (cli,) = trained
    game: OnlineGame = cli.model
    num = game.rollout.num_responses
    assert game.progress.round == game.progress.rollouts == 3
    assert game.progress.batches == 3 * 5  # a sixth prompt is held out
    assert game.progress.queries == 3 * 6 * game.queries_per_round()
    assert math.isfinite(cli.trainer.callback_metrics["rollout/held_out_loss"])
    assert_the_policy_moved_and_the_base_did_not(game, base)
    capsys.readouterr()
    game.rollout = Sample(num, epochs=1, minibatch=50)
    game.rollout_prompts, game.policy.max_new_tokens = 20_000, 256
    rollouts.forecast(cli.trainer, game)
    assert re.search(
        rf"20,000 prompts x {num} responses .* 2 parts, then 360 optimiser steps on it; about "
        r"[12]\d\d MiB of memory, and up to 3 times that on disk",
        capsys.readouterr().err,
    )


def assert_the_policy_moved_and_the_base_did_not(game: OnlineGame, base: str) -> None:
    from transformers import AutoModelForCausalLM

    players = game.policy._players
    second = [p for name, p in players.parameters_of("policy").items() if "lora_B" in name]
    assert second
    assert all(p.dtype == torch.float32 for p in second)
    assert all(bool(p.any()) for p in second)  # zero at the start
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    now = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in players.language_model("policy").named_parameters()
        if ".lora_" not in name
    }
    assert now.keys() == dict(loaded.named_parameters()).keys()
    for name, parameter in loaded.named_parameters():
        assert now[name].dtype == torch.bfloat16
        assert torch.equal(now[name], parameter), name
        assert not now[name].requires_grad


def test_a_users_own_model_prompts_and_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "prompts.jsonl", *[{"prompt": "go on."}] * 5)
    (tmp_path / "my_own_rules.py").write_text(
        "def shorter_wins(prompt, first, second):\n"
        "    assert prompt == 'go on.'\n"
        "    return 0.5 + 0.5 * ((len(first) < len(second)) - (len(first) > len(second)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").symlink_to(letters("qwen2"))
    own = "--model.policy.model my_model --data.path prompts.jsonl --data.num_validation 1"
    own += " --model.oracle.function my_own_rules.shorter_wins"
    less = "--model.policy.max_new_tokens 8 --trainer.callbacks.rounds 2 --trainer.accelerator cpu"
    main(["fit", "--config", str(OWN), *own.split(), *less.split()])
    run = tmp_path / "runs/lm/own_model/version_0"
    assert (run / "checkpoints/last.ckpt").is_file()
    first = json.loads((run / "responses.jsonl").read_text().splitlines()[0])
    assert first["prompt"] == [user("go on.")]


@pytest.mark.parametrize("own", [False, True], ids=["prompts of the hub", "own prompts"])
def test_without_network_it_fails_in_a_sentence_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: str, own: bool
):
    """The first thing that is looked at and not there is named."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    path = CONFIGS / "lm/gemma2_2b/nash_mp.yaml"
    data = ["--data.path", prompts] if own else []
    run = nlhf("fit", "--config", str(path), *data, folder=tmp_path / "here")
    assert run.code == 2
    assert run.err.strip().count("\n") == 0
    missing = "the reward model Skywork/" if own else "the datasets library cannot load trl-lib/"
    assert run.sentence.startswith(f"nlhf: error: {missing}")
    assert list((tmp_path / "here").iterdir()) == []
