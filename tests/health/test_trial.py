"""`fit` refuses what the trial of a model shows; the doctor says it, and ends in no traceback."""

from dataclasses import replace
from functools import partial

import pytest
import tiny_models
import torch

from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.health import Check, players, refuse_unhealthy, run_checks
from nlhf_zoo.oracles import RuleOracle
from nlhf_zoo.policies import CausalLMPolicy, LoRA
from nlhf_zoo.policies.language_model.generation import Generator
from nlhf_zoo.records import Prompts

PROMPTS = Prompts(torch.arange(2), text=["go on.", "a"])
RWKV = {"attention_hidden_size": 32, "context_length": 64}


def never(prompt, first, second):
    raise AssertionError("the oracle was asked")


def game_of(folder, **policy):
    given = {"lora": LoRA(r=4, alpha=8), "max_new_tokens": 4} | policy
    return OnlineGame(
        CausalLMPolicy(str(folder), **given), RuleOracle(never, check_symmetry=False), NashMP(),
        optimizer=partial(torch.optim.Adam, lr=0.01), rollout=Sample(2, 2),
        realisation=GradientSteps(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


def test_a_model_that_reads_padding_is_refused_before_a_question(tmp_path):
    game = game_of(tiny_models.save_tiny(tmp_path / "rwkv", "rwkv", **RWKV))
    with pytest.raises(UserError, match=r"RwkvForCausalLM reads padding.*another architecture"):
        refuse_unhealthy(game, PROMPTS)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"drawing_gap": 0.3}, "generates from another distribution than its forward pass"),
        (
            {"drawing_gap": float("inf"), "failure": "no cache"},
            r"cannot generate here \(no cache\)",
        ),
        ({"padding_gap": 0.01}, "LlamaForCausalLM reads padding"),
    ],
)
def test_each_gap_of_the_trial_is_refused(folder, changes, match):
    game = game_of(folder)
    refuse_unhealthy(game, PROMPTS)
    game.policy._capabilities = replace(game.policy.capabilities, **changes)
    with pytest.raises(UserError, match=match):
        refuse_unhealthy(game, PROMPTS)


def test_another_engine_is_not_tried(folder):
    class Elsewhere(Generator):
        def draw(self, players, request):
            raise AssertionError("the engine was asked")

    game = game_of(folder, generator=Elsewhere())
    refuse_unhealthy(game, PROMPTS)
    assert game.policy.capabilities.drawing_gap is None


def findings_of(game):
    with quiet():
        return [one for _, found in run_checks(game, PROMPTS) for one in found]


def test_a_check_that_raises_hides_no_other(folder, monkeypatch):
    def stumbles(*_):
        raise AttributeError("of an\narchitecture")

    game = game_of(folder)
    monkeypatch.setattr(players, "mixture_of_one", stumbles)
    found = {one.name: one for one in findings_of(game) if isinstance(one, Check)}
    assert found["mixtures"].figure == "could not be checked"
    assert found["mixtures"].advice == "AttributeError: of an architecture"
    assert found["gradient reaches the policy alone"].passed


def test_a_model_that_cannot_draw_is_a_finding(folder, monkeypatch):
    def stumbles(*_):
        raise AttributeError("batch_repeat_interleave")

    game = game_of(folder)
    assert game.policy.capabilities
    monkeypatch.setattr(type(game.policy.generator), "draw", stumbles)
    found = {one.name: one for one in findings_of(game) if isinstance(one, Check)}
    assert found["responses"].passed is False
    assert "batch_repeat_interleave" in found["responses"].advice
    assert found["no adapter is merged into the base"].passed
