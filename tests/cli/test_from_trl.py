"""Configurations of TRL's become files that run, and mean what they meant."""

import shutil
from pathlib import Path
from typing import ClassVar

import jsonargparse
import lightning as L
import pytest
import torch
from language_models import tiny_folder
from slow import slow_unless
from text_models import folder as classifier
from torch.nn.functional import logsigmoid
from transformers import get_scheduler
from trl_files import DUMPS, dumped, model_of, of, refusal, translated, write_prompts

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.algorithms.warmup import WarmupDecay
from nlhf_zoo.cli.trainer import run
from nlhf_zoo.errors import UserError
from nlhf_zoo.losses.logistic import pair_weight
from nlhf_zoo.records import Batch

RULE = "nlhf_zoo.oracles.rules.shorter_wins"


class Seen(L.Callback):
    """What each training step was: prompts, and the rate with which the next step is taken."""

    steps: ClassVar[list] = []

    def on_train_start(self, trainer, game):
        Seen.game = game
        Seen.steps = []

    def on_train_batch_start(self, trainer, game, batch, batch_idx):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        Seen.steps.append((trainer.global_step, len(batch), rate))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_prompts()


def fit(*options):
    """A run of the configuration in this process."""
    logger = "lightning.pytorch.loggers.CSVLogger"
    given = ("--trainer.logger", logger, "--trainer.logger.save_dir", "runs")
    quiet = ("--trainer.enable_progress_bar", "false")
    run(["fit", "--config", "config.yaml", *given, *quiet, *options])


# ---- files that run ------------------------------------------------------------------------------

REWARD = ("--model.oracle.model",)
# File, options of from-trl, what is set by hand, prompts of a batch, batches of an optimiser step,
# its number of steps, and the schedule as transformers names it.
RUNS = {
    "nash_md_0.16": ({}, REWARD, 2, 2, 4, ("linear", 0.01, 2)),
    "online_dpo_reward_1.0": ({"num_prompts": 8}, REWARD, 3, 1, 6, ("constant", 0.001, 0)),
    "online_dpo_judge_0.16": (
        {},
        ("--model.oracle.oracle", "RuleOracle", "--model.oracle.oracle.function", RULE),
        *(2, 1, 3, ("cosine", 0.1, 0)),
    ),
    "xpo_1.13": ({"num_prompts": 8, "epoch": 1}, REWARD, 2, 1, 12, ("linear", 5e-7, 0)),
}


@slow_unless("name", lambda name: name == "nash_md_0.16", RUNS)
def test_a_dumped_configuration_runs(name, monkeypatch):
    options, by_hand, prompts, batches, steps, (kind, rate, warmup) = RUNS[name]
    translated(DUMPS / f"{name}.json", **options)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    given = [*by_hand, str(classifier("gpt2"))] if by_hand == REWARD else [*by_hand]
    fit(
        *("--model.policy.model", str(tiny_folder("llama")), "--data.path", "prompts.jsonl"),
        *("--trainer.callbacks+", f"{Seen.__module__}.Seen", *given),
    )
    found = __import__(Seen.__module__, fromlist=["Seen"]).Seen
    assert {size for _, size, _ in found.steps} == {prompts}
    assert [step for step, _, _ in found.steps] == [n // batches for n in range(steps * batches)]
    assert found.game.progress.round == steps
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    schedule = get_scheduler(kind, optimizer, warmup, steps)
    for number in range(steps):
        assert found.steps[number * batches][2] == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_a_script_is_read_and_not_run(monkeypatch, capsys):
    shutil.copy(DUMPS / "script.py", "train.py")
    Path("my_rewards.py").write_text("def brevity(completions, **columns): return [1.0] * 99\n")
    config = translated("train.py")
    assert not Path("it-was-run").exists()
    game, said = model_of(config), capsys.readouterr().out
    assert "hf_secret" not in said + Path("config.yaml").read_text()
    by_hand = [line for line in said.splitlines() if line.startswith("by hand")]
    for what in ("learning_rate: RATE", "target_modules of peft_config: targets", "**{'seed': 3}"):
        assert sum(what in line for line in by_hand) == 1
    assert game["oracle"]["init_args"] == {
        "functions": ["my_rewards.brevity", "MY_MODULE.politeness"],
        "preference": "sigmoid",
        "weights": [1.0, 1.0],
    }
    assert (game["beta"], game["algorithm"]["init_args"]["mixture"]) == (0.2, 0.125)
    assert game["policy"]["init_args"]["model"]["init_args"] == {
        "name": "MODEL_FOLDER",
        "dtype": "float32",
    }
    assert game["policy"]["init_args"]["lora"]["alpha"] == 8
    assert "lr_scheduler" not in game  # constant, as it is set on the configuration later
    assert config["data"]["init_args"]["path"] == "prompts.jsonl"
    Path("my_rewards.py").write_text(
        "def brevity(completions, **columns): return [-float(len(text)) for text in completions]\n"
        "politeness = brevity\n"
    )
    text = Path("config.yaml").read_text().replace("MY_MODULE", "my_rewards")
    Path("config.yaml").write_text(text)
    monkeypatch.syspath_prepend(".")
    # What was not read is TRL's default there, and no run begins until the user has seen to it.
    unread = config.pop("SET_BY_HAND")
    targets = "target_modules of peft_config: targets"
    assert sorted(unread) == ["further arguments: **{'seed': 3}", "learning_rate", targets]
    with pytest.raises(UserError, match="SET_BY_HAND"):
        fit("--model.policy.model.name", str(tiny_folder("llama")))
    Path("config.yaml").write_text(text.partition("SET_BY_HAND")[0])
    fit("--model.policy.model.name", str(tiny_folder("llama")), "--model.optimizer.lr", "0.1")
    assert list(Path("runs").rglob("last.ckpt"))


# ---- what they mean ------------------------------------------------------------------------------


def algorithm_of(config):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--algorithm", type=PolicyOptimizer)
    given = parser.parse_object({"algorithm": model_of(config)["algorithm"]})
    return parser.instantiate(given).algorithm


def losses(config, log_pi, log_mu, preference, **more):
    """The loss of K responses to a prompt, and its gradient; of two these are each other's."""
    algorithm, beta = algorithm_of(config), model_of(config)["beta"]
    (step,) = algorithm.steps(beta, 5)
    log_pi = torch.tensor([log_pi], dtype=torch.float64, requires_grad=True)
    log_mu = torch.tensor([log_mu], dtype=torch.float64)
    centre = step.centre.get("policy", 0) * log_pi.detach()
    centre = centre + step.centre.get("reference", 0) * log_mu
    weight = torch.full_like(log_mu, 1 / log_mu.shape[1])
    if log_mu.shape[1] == 2:
        table = torch.tensor([[[0.5, preference], [1 - preference, 0.5]]], dtype=torch.float64)
        more |= {"preference": table, "pair_weight": pair_weight(weight, False)}
        more |= {"self_play": True}
        payoff = table.mean(-1)
    else:
        payoff = torch.tensor([[preference]], dtype=torch.float64)
    loss = algorithm.loss(
        step, Batch(log_pi, centre, log_mu, payoff, weight, beta, False, **more)
    ).sum()
    return loss.item(), torch.autograd.grad(loss, log_pi)[0][0].tolist()


PI, MU = (-3.0, -2.5), (-2.0, -2.75)
APART = (PI[0] - PI[1]) - (MU[0] - MU[1])


def test_nash_md_is_the_gradient_of_trls_loss_but_for_the_tokens_of_the_kl():
    """(beta log(pi/mu) - (P - 1/2)) grad log pi, for a response of one token."""
    config = of(dumped("nash_md_0.16"))
    _, (gradient,) = losses(config, PI[:1], MU[:1], 0.8)
    assert gradient == pytest.approx(0.2 * (PI[0] - MU[0]) - (0.8 - 0.5), abs=1e-12)
    (step,) = algorithm_of(config).steps(0.2, 5)
    assert dict(step.payoff[0][1]) == {"policy": 0.75, "reference": 0.25}
    assert (step.opponent.temperature, step.opponent.top_k) == (0.9, 50)
    assert step.scored.is_plain


@pytest.mark.parametrize(("preference", "sign"), [(0.7, 1), (0.2, -1)])
def test_dpo_takes_the_label_of_the_larger_reward(preference, sign):
    config = of(dumped("online_dpo_reward_1.0"), num_prompts=8)
    loss, _ = losses(config, PI, MU, preference)
    expected = -logsigmoid(torch.tensor(sign * 0.1 * APART)).item()
    assert loss == pytest.approx(expected, abs=1e-7)
    oracle = model_of(config)["oracle"]
    assert oracle["init_args"] == {"model": "REWARDS", "penalty_without_end": 1.5}


@pytest.mark.parametrize(("label", "sign"), [(1.0, 1), (0.0, -1)])
def test_ipo_is_a_regression_on_labels(label, sign):
    config = of(dumped("online_dpo_judge_0.16"))
    loss, _ = losses(config, PI, MU, label)
    assert loss == pytest.approx((sign * APART - 1 / (2 * 0.3)) ** 2, abs=1e-12)
    oracle = model_of(config)["oracle"]
    assert (oracle["class_path"], oracle["init_args"]["payoff"]) == ("nlhf_zoo.Transformed", "sign")


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_a_list_gives_its_entry_of_an_epoch(epoch):
    """Behind the end of a list its last entry, as TRL has it."""
    config = of(dumped("xpo_1.13"), num_prompts=8, epoch=epoch)
    beta, alpha = (0.1, 0.001) if epoch == 0 else (0.05, 0.002)
    explored = torch.tensor([[-4.0, -5.0]], dtype=torch.float64, requires_grad=True)
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    loss, _ = losses(config, PI, MU, 0.9, explored_log_prob=explored, explored_weight=half)
    expected = -logsigmoid(torch.tensor(beta * APART)).item() - alpha * 4.5
    assert loss == pytest.approx(expected, abs=1e-7)


def test_a_list_is_refused_without_an_epoch():
    said = refusal(dumped("xpo_1.13"), num_prompts=8)
    assert "2 things have no counterpart, and nothing was written" in said
    assert "(1) beta has an entry for each epoch, [0.1, 0.05], and another beta is another" in said
    assert "(2) alpha has an entry for each epoch, [0.001, 0.002]" in said
    assert of(dumped("xpo_1.13") | {"beta": [0.1], "alpha": [0.0]}, num_prompts=8)


@pytest.mark.parametrize("kind", ["constant_with_warmup", "linear", "cosine"])
def test_schedules_are_transformers(kind):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(kind, optimizer, 3, 11)
    decay = kind.partition("_")[0]
    ours = WarmupDecay(11, 3, decay)
    for step in range(14):
        expected = optimizer.param_groups[0]["lr"] if step < 11 or decay == "constant" else 0.0
        assert ours(step) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        schedule.step()


def trainer_of(given, **options):
    return of({"max_steps": 100, "mixture_coef": 0.5, **given}, **options)["trainer"]


def test_defaults_are_those_of_the_version():
    old, new = trainer_of({}, trl_version="0.16"), trainer_of({}, trl_version="1.13")
    assert (old["precision"], new["precision"]) == ("32-true", "bf16-mixed")
    assert (old["log_every_n_steps"], new["log_every_n_steps"]) == (500, 10)

    def decoding(version, **given):
        config = of({"max_steps": 1, "mixture_coef": 0.5, **given}, trl_version=version)
        return model_of(config)["algorithm"]["init_args"]["opponent"]

    assert decoding("0.12") == decoding("0.27") == {"temperature": 0.9}
    assert decoding("0.16") == decoding("0.23") == {"temperature": 0.9, "top_k": 50}
    assert decoding("0.23", top_k=7)["top_k"] == 7


@pytest.mark.parametrize(
    ("module", "last"), [("trl", "0.28"), ("trl.experimental.nash_md", "1.13")]
)
def test_an_import_tells_the_version(module, last, capsys):
    text = f"from {module} import NashMDConfig\nNashMDConfig(max_steps=1)\n"
    Path("train.py").write_text(text)
    translated("train.py")
    assert f"The defaults are those of TRL {last}." in capsys.readouterr().out


def test_data_sets_of_files():
    def path(call):
        Path("train.py").write_text(
            "args = XPOConfig(num_train_epochs=1)\n"
            f"XPOTrainer(args=args, train_dataset=load_dataset({call}))\n"
        )
        return translated("train.py", num_prompts=8)["data"]["init_args"]["path"]

    assert path("'json', data_files='prompts.jsonl', split='train'") == "prompts.jsonl"
    assert path("'csv', data_files='prompts.csv'") == "PROMPTS.jsonl"
    assert path("'trl-lib/ultrafeedback-prompt', split='train'") == "trl-lib/ultrafeedback-prompt"


def test_numbers_of_steps():
    given = {"num_train_epochs": 2.5, "per_device_train_batch_size": 4}
    given |= {"gradient_accumulation_steps": 3, "warmup_ratio": 0.3}
    config = of(given | {"mixture_coef": 0.5}, num_prompts=50, processes=2)
    # 50 prompts in batches of 8 are 7, which are 3 optimiser steps; 2.5 passes of 3.
    assert config["trainer"]["callbacks"][1]["init_args"] == {"rounds": 8}
    assert config["trainer"]["devices"] == 2
    factor = model_of(config)["lr_scheduler"]["init_args"]["lr_lambda"]["init_args"]
    assert factor == {"steps": 8, "warmup_steps": 3, "decay": "linear"}
    assert trainer_of({"save_strategy": "no"})["callbacks"][0]["init_args"] == {
        "every_n_train_steps": 100
    }
    assert trainer_of({"logging_steps": 0.05})["log_every_n_steps"] == 5
    Path("rows.yaml").write_text(
        "model_name_or_path: m\ndataset_name: prompts.jsonl\nnum_train_epochs: 1\nalpha: 1e-5\n"
    )
    config = translated("rows.yaml")  # whose rows are counted, 8 of them
    assert config["trainer"]["callbacks"][1]["init_args"] == {"rounds": 1}
    assert model_of(config)["algorithm"]["class_path"] == "nlhf_zoo.XPO"
