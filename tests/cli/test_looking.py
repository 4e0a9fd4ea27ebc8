"""Commands that look at a run's checkpoint: its oracle, its health, its responses."""

import json

import pytest
import runs
import torch
from paths import ROOT
from preference_runs import run
from rows import write
from tiny_models import save_tiny

from nlhf_zoo.algorithms import EGPO
from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.oracle.command import OracleCLI
from nlhf_zoo.oracles.rules import shorter_wins

PROMPTS = ("name a fruit.", "a", "go on.", "why?")


def longer_wins(prompt, first, second):
    return 1 - shorter_wins(prompt, first, second)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps of a language model, and the options that it was made with."""
    folder = tmp_path_factory.mktemp("trained")
    model = save_tiny(folder / "llama", "llama", chat=True, max_position_embeddings=128)
    prompts = write(folder / "prompts.jsonl", *({"prompt": text} for text in PROMPTS))
    options = [
        "--config", str(ROOT / "configs/lm/own_model.yaml"), "--model.policy.model", str(model),
        "--data.path", prompts, "--data.batch_size", "2", "--data.num_validation", "null",
        "--model.policy.max_new_tokens", "4",
        "--trainer.accelerator", "cpu", "--trainer.logger.save_dir", str(folder / "runs"),
        "--model.optimizer.lr", "0.01",
    ]  # fmt: skip
    run("fit", *options, "--trainer.max_steps", "2")
    (checkpoint,) = folder.rglob("last.ckpt")
    return [*options, "--ckpt_path", str(checkpoint)], checkpoint


def test_an_oracle_is_asked_about_the_responses_of_a_checkpoint(trained, monkeypatch, tmp_path):
    """Of any oracle, for nothing is trained; the policy is the checkpoint's."""
    options, path = trained
    games = []
    first_prompts = OracleCLI.first_prompts

    def kept(self, game, *args):
        games.append(game)
        return first_prompts(self, game, *args)

    monkeypatch.setattr(OracleCLI, "first_prompts", kept)
    for oracle in ([], ["--model.oracle.function", f"{__name__}.longer_wins"]):
        output = tmp_path / f"{len(games)}.json"
        run("oracle", *options, *oracle, "--num_prompts", "2", "--output", str(output))
        answers = json.loads(output.read_text())["answers"]
        assert len({row["prompt"][-1]["content"] for row in answers}) == 2
        sign = 1 if oracle else -1
        for row in answers:
            longer = sign * (len(row["first"]) - len(row["second"]))
            assert (row["probability"] - 0.5) * longer >= 0
    saved = torch.load(path, weights_only=True)["state_dict"]
    trained_names = [name for name in saved if ".policy." in name]
    assert trained_names
    for game in games:
        state = game.state_dict()
        assert all(torch.equal(state[name], saved[name]) for name in trained_names)


def test_the_doctor_examines_a_checkpoint(trained):
    options, _ = trained
    out, _ = run("doctor", *options, "--num_prompts", "2")
    assert "0 failed" in out


def test_responses_that_are_not_listed_are_not_predicted(trained, refused):
    _, line = refused("predict", *trained[0])
    assert "prints the probability of each listed response, and RuleOracle lists none" in line
    assert "such as ListedResponses, or draw responses from what `nlhf export` writes" in line


def test_of_two_processes_the_first_examines_alone(tmp_path, monkeypatch, capsys):
    """One report, and its exit code; under torchrun another process said the same once more."""
    monkeypatch.chdir(tmp_path)
    config = runs.configuration(algorithm=runs.CLOSED["egpo"], **runs.SAMPLED)
    config["data"] = runs.part("TablePrompts", batch_size=1)
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    runs.write(tmp_path, config)
    monkeypatch.setattr(EGPO, "queries", lambda *_, **__: 1)
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--config", "game.yaml"])
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if " passed, 1 failed" in line]
    assert out.count("queries of a round are as declared") == 2  # where it fails, and at the end
    for name, value in {"LOCAL_RANK": "1", "NODE_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--config", "game.yaml"])
    assert end.value.code == 0
    assert capsys.readouterr().out == ""
