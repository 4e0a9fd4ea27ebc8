"""The fixed setting of the part: sizes, the game, and how a policy is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nlhf_zoo.cli.bench.methods import Block, Method
from nlhf_zoo.cli.bench.rates import OTHERS_TEN_MILLION, TEN_MILLION
from nlhf_zoo.cli.bench.ten_million import world
from nlhf_zoo.cli.bench.ten_million.making import HELD_OUT, TRAINING, World
from nlhf_zoo.cli.bench.ten_million.models import Size
from nlhf_zoo.game.certifying import SamplePlan
from nlhf_zoo.oracles import GeneralPreferenceModelOracle
from nlhf_zoo.records import Prompts

BETA = 0.1
CONDITION = f"β = {BETA:g}"
BATCH = 4  # prompts of a gradient step
_RESPONSES = 8  # that are scored to each, and as many opponents


@dataclass(frozen=True, slots=True)
class Setting:
    """How large the part is.

    Args:
        size: of the models.
        responses: of an estimate for each prompt, and as many opponents.
        prompts: held-out ones that a policy is measured on.
        met: responses of each entrant to each prompt that meet those of each other.
    """

    size: Size = field(default_factory=Size)
    responses: int = 128
    prompts: int = 8
    met: int = 32

    @property
    def plan(self) -> SamplePlan:
        """Of an estimate of exploitability."""
        return SamplePlan(BETA, self.responses, self.responses, "embeddings")

    def asked(self) -> Prompts:
        """The held-out prompts."""
        import torch

        texts = world.prompts()[: self.prompts]
        return Prompts(torch.arange(len(texts)), text=texts)


WHOLE = Setting()
SMALL = Setting(Size(hidden_size=32, layers=1, steps=3, pairs=64), responses=16, prompts=2, met=8)


def oracles(place: World) -> dict[str, GeneralPreferenceModelOracle]:
    """The oracle that trains, and the one that nobody trained against."""
    return {
        name: GeneralPreferenceModelOracle(str(place.oracle(name)), batch_size=64)
        for name in (TRAINING, HELD_OUT)
    }


def model(place: World, method: Method) -> Block:
    """The section `model` of a run's file."""
    rate = method.rate or TEN_MILLION.get(method.name, OTHERS_TEN_MILLION)
    policy = {
        "model": str(place.language_model.absolute()),
        "lora": {"r": 16, "alpha": 32},
        "max_new_tokens": 24,
        "generator": _part("nlhf_zoo.NativeGenerator"),
    }
    return _part(
        "nlhf_zoo.OnlineGame",
        beta=BETA,
        policy=_part("nlhf_zoo.CausalLMPolicy", **policy),
        oracle=_part(
            "nlhf_zoo.GeneralPreferenceModelOracle",
            model=str(place.oracle(TRAINING).absolute()),
            batch_size=64,
        ),
        algorithm=method.block,
        rollout=_part("nlhf_zoo.Sample", num_responses=_RESPONSES, num_opponents=_RESPONSES),
        realisation=_part("nlhf_zoo.GradientSteps"),
        optimizer=_part("torch.optim.AdamW", lr=rate, weight_decay=0.0),
        lr_scheduler=_part("nlhf_zoo.BudgetLR"),
    )


def _part(name: str, **arguments: Any) -> Block:
    return {"class_path": name, "init_args": arguments}
