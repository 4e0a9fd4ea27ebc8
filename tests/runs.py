"""Runs of games: configurations, the command line in processes of their own, what is left."""

import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from forked import nlhf
from torch import Tensor

RUN = Path("runs/game/version_0")
LAST = ("--ckpt_path", "last")

ROUNDS = 11  # the last training step in closed form is a short one


def part(name: str, /, **arguments: Any) -> dict[str, Any]:
    """A class and its arguments, as YAML has them."""
    return {"class_path": name, "init_args": arguments}


def configuration(**model: Any) -> dict[str, Any]:
    """A small game; in closed form unless the model says otherwise."""
    reference = part("NormalReference")
    return {
        "seed_everything": 3,
        "model": part(
            "OnlineGame",
            **{
                "beta": 0.1,
                "policy": part("TabularPolicy", reference=reference),
                "oracle": part("UniformRandom", num_games=2, num_actions=4),
                "rollout": part("Enumerate"),
                "realisation": part("ClosedForm", rounds_per_step=2),
                **model,
            },
        ),
        "data": part("TablePrompts"),
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "logger": part(
                "lightning.pytorch.loggers.TensorBoardLogger",
                save_dir="runs",
                name="game",
                default_hp_metric=False,
            ),
            "log_every_n_steps": 1,
            "callbacks": [
                part("ExactMetrics"),
                part("Budget", rounds=ROUNDS),
                part("GameCheckpoint", every_n_train_steps=1),
            ],
        },
    }


SAMPLED = {
    "rollout": part("Sample", num_responses=4, num_opponents=2),
    "realisation": part("GradientSteps"),
    "optimizer": part("torch.optim.Adam", lr=0.1),
    "lr_scheduler": part("torch.optim.lr_scheduler.ExponentialLR", gamma=0.98),
    "oracle": part("BernoulliLabels", oracle=part("UniformRandom", num_games=2, num_actions=4)),
}

ENUMERATED = {**SAMPLED, "rollout": part("Enumerate")}

MLP = part("MLPPolicy", reference=part("NormalReference"), width=3, dtype="float32")

CLOSED = {
    "egpo": part("EGPO", eta=0.3),
    "moving_magnet": part("MovingMagnet", inner=part("OptimisticMirrorDescent"), every=5),
    "nash_md": part("NashMD"),
    "nash_mp": part("NashMP", kappa=0.5),
    "online_ipo": part("OnlineIPO"),
    "optimistic_mirror_descent": part("OptimisticMirrorDescent"),
    "sppo": part("SPPO"),
}

GRADIENT = {
    **CLOSED,
    "moving_magnet": part("MovingMagnet", inner=part("EGPO"), every=3),
    "nash_mp": part("NashMP", kappa=0.5, inner_steps=2),
    "online_dpo": part("OnlineDPO"),
    "sppo": part("SPPO", inner_steps=3),
}

CASES = {
    **{f"closed-{name}": configuration(algorithm=a) for name, a in CLOSED.items()},
    **{f"sampled-{name}": configuration(algorithm=a, **SAMPLED) for name, a in GRADIENT.items()},
    "mlp-nash_mp": configuration(algorithm=GRADIENT["nash_mp"], **(SAMPLED | {"policy": MLP})),
    "enumerated-optimistic": configuration(
        algorithm=GRADIENT["optimistic_mirror_descent"], **ENUMERATED
    ),
}

# A LoRA language model with all its players, and one without LoRA, over words of two letters.
LANGUAGE = SAMPLED | {
    "oracle": part("SmallLanguage", num_letters=4, length=2),
    "optimizer": part("torch.optim.AdamW", lr=0.01),
    "policy": part(
        "CausalLMPolicy",
        model=part("SmallLanguageModel", hidden_size=16, layers=1, num_letters=4),
        lora={"r": 2},
        max_new_tokens=2,
    ),
}

CASES |= {
    "language-nash_mp": configuration(algorithm=GRADIENT["nash_mp"], **LANGUAGE),
    "language-egpo": configuration(algorithm=GRADIENT["egpo"], **LANGUAGE),
}

# Some of its rounds are rejected.
CASES["closed-adaptive"] = configuration(
    algorithm=part("NashMP", eta="adaptive"), oracle=part("Cyclic", strength=1.0), beta=0.001
)

CASES["language-nash_mp"] = copy.deepcopy(CASES["language-nash_mp"])

CASES["language-nash_mp"]["model"]["init_args"]["policy"]["init_args"]["max_tokens_per_chunk"] = 20

CASES["language-egpo"] = copy.deepcopy(CASES["language-egpo"])

CASES["language-egpo"]["model"]["init_args"]["policy"]["init_args"]["lora"] = None

for _name in ("language-nash_mp", "language-egpo"):  # whose rounds take the longest
    CASES[_name]["trainer"]["callbacks"][1] = part("Budget", rounds=5)

CASES["sampled-sppo"]["model"]["init_args"]["rollout"] = part(
    "Sample", num_responses=4, pairs="circle"
)

CASES["mlp-nash_mp"]["data"] = part("TablePrompts", batch_size=1, shuffle=True)

# Rollouts that serve several gradient steps: with a second half step of its own, and reweighted.
REUSED = {
    "reused-nash_mp": configuration(
        algorithm=part("NashMP", self_play=True, reweighted=True, kappa=0.5),
        **SAMPLED
        | {"rollout": part("Sample", num_responses=4, epochs=3, minibatch=1), "micro_batches": 2},
    ),
    "reused-egpo": configuration(
        algorithm=part("EGPO"),
        **LANGUAGE
        | {
            "rollout": part(
                "Sample", num_responses=4, num_opponents=2, epochs=2, pairs="regular(1)"
            ),
            "lr_scheduler": part("BudgetLR"),
        },
    ),
    "reused-ahead": configuration(
        algorithm=part("OnlineIPO"),
        **SAMPLED
        | {"rollout": part("Sample", num_responses=4, epochs=3, ahead=True), "micro_batches": 2},
    ),
}
for config in REUSED.values():
    config["trainer"]["callbacks"][1] = part("Budget", rounds=2)
REUSED["reused-egpo"]["trainer"]["accumulate_grad_batches"] = 2
REUSED["reused-ahead"]["trainer"]["callbacks"][1] = part("Budget", rounds=5)
REUSED["reused-ahead"]["data"] = part("TablePrompts", batch_size=1, shuffle=True)
CASES |= REUSED

CASES["sampled-egpo"]["trainer"] |= {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}


def write(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "game.yaml").write_text(yaml.safe_dump(config))


def fit(folder: Path, *args: str, **kwargs: Any) -> Any:
    return nlhf("fit", "--config", "game.yaml", *args, folder=folder, **kwargs)


def load(folder: Path) -> dict[str, Any]:
    """The checkpoint, with nothing in it but what may be loaded safely."""
    checkpoint = torch.load(folder / RUN / "checkpoints/last.ckpt", weights_only=True)
    for name, state in checkpoint["callbacks"].items():
        if name.startswith("GameCheckpoint"):  # where the run lies
            checkpoint["callbacks"][name] = {
                k: str(v).replace(str(folder.resolve()), "") for k, v in state.items()
            }
    return checkpoint


def scalars(folder: Path) -> dict[tuple[str, int], str]:
    """What TensorBoard shows: the last value of a tag at a step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(folder / RUN), size_guidance={"scalars": 0}, purge_orphaned_data=False
    )
    events.Reload()
    return {
        (tag, event.step): float(event.value).hex()  # hex: nan is nan
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
        # The share of a budget is another where a test raises the budget.
        if tag != "epoch" and not tag.startswith(("time/", "speed/", "budget/"))
    }


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two checkpoints differ, to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{at}: keys {one.keys() ^ other.keys()}"] if one.keys() != other.keys() else []
        for key in one.keys() & other.keys():
            found += differences(one[key], other[key], f"{at}/{key}")
        return found
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{at}/{i}")]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    else:
        same = type(one) is type(other) and one == other
    return [] if same else [f"{at}: {one} is not {other}"]


def assert_same_run(one: Path, other: Path) -> None:
    assert differences(load(one), load(other)) == []
    assert (one / RUN / "history.bin").read_bytes() == (other / RUN / "history.bin").read_bytes()
    curves = scalars(one)
    assert len(curves) > ROUNDS
    assert curves == scalars(other)


def assert_same_game(one: Path, other: Path, logs: bool = True) -> None:
    """To the bit, apart from what Lightning counts of attempts."""
    first, second = load(one), load(other)
    for key in ("state_dict", "online_game", "optimizer_states", "lr_schedulers", "global_step"):
        assert differences(first[key], second[key], key) == []
    assert (one / RUN / "history.bin").read_bytes() == (other / RUN / "history.bin").read_bytes()
    if logs:
        assert scalars(one) == scalars(other)


def whole_run(folder: Path, config: dict[str, Any]) -> int:
    """An uninterrupted run; how many training steps it took."""
    write(folder, config)
    run = fit(folder)
    assert run.code == 0, run.err
    progress = load(folder)["online_game"]["progress"]
    assert progress["round"] == config["trainer"]["callbacks"][1]["init_args"]["rounds"]
    return int(progress["batches"])


def judged_game(folder: Path, url: str) -> None:
    """A language model whose responses a judge compares; what it says is remembered."""
    config = copy.deepcopy(CASES["language-nash_mp"])
    judge = part(
        "JudgeOracle", model="small", base_url=url, api_key_env=None, concurrency=2, timeout=200.0,
        backoff=0.05,
    )  # fmt: skip
    oracle = part("CachedOracle", oracle=judge, path="answers.sqlite")
    config["model"]["init_args"]["oracle"] = oracle
    config["data"] = part("TextPrompts", path="prompts.jsonl", batch_size=2)
    checkpoint = part("GameCheckpoint", every_n_train_steps=1000)
    config["trainer"]["callbacks"] = [part("Budget", rounds=4), checkpoint]
    write(folder, config)
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "{c}"}}\n' for c in "abcd"))
