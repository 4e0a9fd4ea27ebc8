"""Engines of adapters behind `Generator`: versions, seeds, ends and refusals.

vLLM itself is tested in `tests/vllm_engine`; here engines of ours speak as it does.
"""

import os
from functools import partial

import language_models as lm
import pytest
import tiny_models
import torch
from adapter_engines import FakeGenerator, fake_server
from language_models import refused, stream
from safetensors.torch import load_file

from nlhf_zoo.algorithms import NashMD, OnlineDPO, OnlineIPO
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.health import refuse_unhealthy
from nlhf_zoo.oracles import RuleOracle
from nlhf_zoo.policies import CausalLMPolicy, LoRA, Pretrained, VLLMGenerator, VLLMServerGenerator
from nlhf_zoo.policies.language_model.exporting import adapter_tensors
from nlhf_zoo.policies.language_model.generation import Request
from nlhf_zoo.policies.language_model.stops import find_stops
from nlhf_zoo.policies.language_model.vllm import limits
from nlhf_zoo.policies.language_model.vllm.engine import seeing_only
from nlhf_zoo.records import PLAIN, Decoding, Prompts

KEY = "sk-0123456789abcdef"


def made():
    folder = lm.tiny_folder("llama")
    return tiny_models.make_policy(folder, generator=FakeGenerator(folder))


@pytest.fixture(scope="module")
def policy():
    """Which tests may move, but not spoil."""
    policy = made()
    yield policy
    policy.generator.close()


@pytest.fixture
def fresh():
    policy = made()
    yield policy
    policy.generator.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A policy whose responses a server draws."""
    folder = lm.tiny_folder("llama")
    with pytest.MonkeyPatch.context() as patch, fake_server(folder, KEY) as (url, engine, seen):
        patch.setenv("FAKE_KEY", KEY)
        place = tmp_path_factory.mktemp("adapters")
        generator = VLLMServerGenerator(url, str(place), api_key_env="FAKE_KEY")
        made = tiny_models.make_policy(folder, generator=generator)
        made.engine, made.seen, made.place = engine, seen, place
        yield made
        root = generator._versions._root
        generator.close()
        assert [*root.iterdir()] == []
        assert not engine.loaded


# ---- what is drawn ----


@pytest.mark.parametrize("player", ["policy", "anchor", "reference"])
def test_players_draw_what_is_scored(policy, player):
    prompts, responses = lm.drawn(policy, {player: 1.0}, num=2)
    lm.assert_generator_agrees(policy, {player: 1.0}, prompts, responses)
    ends = ((responses.tokens == tiny_models.EOS_ID) & responses.mask).any(-1)
    assert torch.equal(responses.truncated, ~ends)


def test_a_server_draws_what_is_scored(served):
    for player in served.players:
        prompts, responses = lm.drawn(served, {player: 1.0}, num=2)
        lm.assert_generator_agrees(served, {player: 1.0}, prompts, responses)
    assert {headers["Authorization"] for headers in served.seen} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("of", ["process", "server"])
def test_min_new_tokens_are_in_the_law(policy, served, of):
    generator = policy.generator if of == "process" else served.generator
    late = tiny_models.make_policy(lm.tiny_folder("llama"), generator=generator, min_new_tokens=4)
    prompts, responses = lm.drawn(late, lm.POLICY, num=2)
    lm.assert_generator_agrees(late, lm.POLICY, prompts, responses)
    assert responses.mask.sum(-1).min() >= 4


def test_a_stop_string_ends_a_response_where_it_is_complete(policy):
    how = {"generator": policy.generator, "stop_strings": ["a", "q", "t", "e"]}
    stopped = tiny_models.make_policy(lm.tiny_folder("llama"), **how)
    prompts, responses = lm.drawn(stopped, lm.POLICY, num=4)
    lm.assert_generator_agrees(stopped, lm.POLICY, prompts, responses)
    stops = find_stops(stopped.tokenizer, stopped.stop_strings, len(tiny_models.VOCABULARY))
    found = stops.ended(responses.tokens.flatten(0, 1)).view_as(responses.mask) & responses.mask
    assert found.any()
    assert found.sum(-1).max() == 1
    assert not responses.truncated[found.any(-1)].any()


def test_rows_have_seeds_of_the_stream_of_the_game(policy):
    assert policy.capabilities.drawing_gap < 1e-4

    def seeds(seed):
        policy.generator.engine.log.clear()
        _, responses = lm.drawn(policy, lm.POLICY, num=3, seed=seed)
        return [entry[2] for entry in policy.generator.engine.log if entry[0] == "draw"], responses

    (first, drawn), (again, once_more), (other, _) = seeds(1), seeds(1), seeds(2)
    assert first == again
    assert len({*first, *other}) == 2 * 9
    assert all(0 <= seed < 2**63 for seed in first)
    assert torch.equal(drawn.tokens, once_more.tokens)


def test_requests_of_several_players_are_one_batch(policy):
    prompts = tiny_models.tiny_prompts(policy)
    requests = [
        Request({who: 1.0}, prompts.tokens, prompts.mask, 2, PLAIN, 6, policy.ends, policy.pad,
                stream(seed))
        for seed, who in enumerate(policy.players)
    ]  # fmt: skip
    together = policy.generator.draw_each(policy._players, requests)
    assert len(policy.generator.batches[-1]) == 3 * 3 * 2
    assert len({*policy.generator.batches[-1]}) == 3
    for request, drawn in zip(requests, together, strict=True):
        request.rng.manual_seed(requests.index(request))
        alone = policy.generator.draw(policy._players, request)
        torch.testing.assert_close(alone.tokens, drawn.tokens, rtol=0, atol=0)


def test_a_step_with_opponents_is_one_batch(policy):
    (step,) = OnlineIPO(self_play=False).steps(0.1, 0)
    prompts, batches = tiny_models.tiny_prompts(policy), policy.generator.batches
    assert policy.capabilities.drawing_gap < 1e-4  # which draws, too
    before = len(batches)
    scored, (opponent,) = Sample(2, 3).play(step, policy, prompts, stream(0))
    assert len(batches) == before + 1
    assert len(batches[-1]) == len(prompts) * (2 + 3)
    assert (scored.num, opponent.num) == (2, 3)


@pytest.mark.parametrize(("seen", "own"), [(None, "1"), ("4,6", "6"), ("GPU-a,GPU-b", "GPU-b")])
def test_each_rank_has_an_engine_on_its_own_gpu(seen, own, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    with seeing_only(torch.device("cuda", 1)):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen
    with seeing_only(torch.device("cpu")):
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen


# ---- versions ----


def test_each_version_has_a_folder_a_name_and_a_number_of_its_own(policy):
    generator, seen = policy.generator, []
    for number in range(20):
        with torch.no_grad():
            for parameter in policy.trained_parameters().values():
                parameter.mul_(0.97)
        lm.drawn(policy, lm.POLICY, num=1, seed=number, texts=["a"])
        version = generator._versions.of(policy._players, "policy")
        seen.append((version.name, version.number, version.folder))
        held = {each.folder for each in generator._versions.held}
        assert {*version.folder.parent.iterdir()} == held
        assert {*generator.engine.loaded} == {each.name for each in generator._versions.held}
    assert all(len({each[part] for each in seen}) == 20 for part in range(3))
    assert generator.engine.most <= len(policy.players)


def test_equal_weights_are_one_version(fresh):
    policy = fresh
    lm.drawn(policy, lm.POLICY, num=1)
    policy.copy_("policy", "anchor")
    lm.drawn(policy, lm.ANCHOR, num=1)
    loads = [entry for entry in policy.generator.engine.log if entry[0] == "load"]
    assert len(loads) - 2 == 1  # those of the trial are of a policy that was moved, and the base


def test_the_base_model_is_an_adapter_of_zeros(policy):
    """Rows without an adapter beside rows with one are computed with that by vLLM on a CPU."""
    lm.drawn(policy, lm.REFERENCE, num=1)
    version = policy.generator._versions.of(policy._players, "reference")
    weights = load_file(version.folder / "adapter_model.safetensors")
    assert {*weights} == {*adapter_tensors(policy._players, "policy")}
    assert not any(bool(weight.any()) for weight in weights.values())


def test_weights_that_are_no_numbers_draw_nothing(fresh):
    policy = fresh
    lm.drawn(policy, lm.POLICY, num=1)
    next(iter(policy.trained_parameters().values())).data.fill_(torch.nan)
    policy.generator.engine.log.clear()
    _, responses = lm.drawn(policy, lm.POLICY, num=2)
    assert responses.log_prob.isnan().all()
    assert policy.generator.engine.log == []


# ---- what is refused ----


def never(prompt, first, second):
    raise AssertionError("something was asked")


def load(*_):
    raise AssertionError("something was loaded")


def game_of(policy, algorithm, **rollout):
    return OnlineGame(
        policy, RuleOracle(never, check_symmetry=False), algorithm,
        optimizer=partial(torch.optim.Adam, lr=0.01), rollout=Sample(2, 2, **rollout),
        realisation=GradientSteps(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"lora": None},
            "with model.policy.lora null all weights train: set model.policy.lora, or",
        ),
        ({"lora": LoRA(r=600)}, "r is 600, and vLLM takes ranks of at most 512"),
        ({"lora": LoRA(target_modules="all-linear-and-experts")}, "experts that lie in one tensor"),
        ({"model": Pretrained("m", four_bit=True)}, "other weights than those in 4 bits"),
    ],
)
def test_policies_are_refused_before_anything_is_loaded(monkeypatch, arguments, match):
    monkeypatch.setattr(Pretrained, "load", load)
    refused(
        match, lambda: CausalLMPolicy(**{"model": "m", "generator": VLLMGenerator()} | arguments)
    )


def test_an_adapter_to_start_from_is_looked_at_before(monkeypatch, tmp_path):
    monkeypatch.setattr(Pretrained, "load", load)
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "rank_pattern": {"q_proj": 600}}')
    refused("r is 600", CausalLMPolicy, "m", adapter=str(tmp_path), generator=VLLMGenerator())


@pytest.mark.parametrize(
    ("who", "decoding", "match"),
    [
        (lm.HALF, PLAIN, "one player at a time, and here a mixture of policy and reference draws"),
        (lm.POLICY, Decoding(3.0), "temperatures from 0.01 to 2, not 3"),
        (lm.POLICY, Decoding(float("inf")), "temperatures from 0.01 to 2, not inf"),
        (lm.POLICY, Decoding(0.001), "which"),
        (lm.POLICY, Decoding(top_p=0.5, min_p=0.1), "applies min_p before top_p"),
    ],
)
def test_laws_that_the_engine_has_not_are_refused(policy, who, decoding, match):
    match = match.replace("which", "not 0.001")
    refused(match, lm.drawn, policy, who, decoding=decoding)
    refused(match, VLLMGenerator().refuse_drawing, who, decoding)


def test_a_mixture_is_refused_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(Pretrained, "load", load)
    policy = CausalLMPolicy("m", generator=VLLMGenerator())
    refused("a mixture of", game_of, policy, NashMD())


def test_ranks_have_room():
    assert [limits.room_for(rank) for rank in (1, 2, 8, 9, 64, 300, 512)] == [
        1, 8, 8, 16, 64, 320, 512,
    ]  # fmt: skip


def test_another_law_is_refused_before_training(fresh):
    """By the engine's own log-probabilities, of a policy whose adapters are not zero."""
    policy = fresh
    policy.generator.engine.base = str(tiny_models.save_tiny(lm.new_folder() / "o", "llama", 1))
    game = game_of(policy, OnlineDPO())
    prompts = Prompts(torch.arange(2), text=["go on.", "a"])
    match = "the engine draws from another distribution than the one that is trained"
    refused(match, refuse_unhealthy, game, prompts)
    policy.generator.max_gap = 1e3
    refuse_unhealthy(game, prompts)


def test_adapters_that_are_not_loaded_again_are_found_by_the_trial():
    """Whose weights stay as they were first: the trial moves the policy away from the base."""
    folder = lm.tiny_folder("llama")

    class Stale(FakeGenerator):
        def complete(self, rows):
            (first, *_) = self.engine.loaded
            return [self.engine.complete(first, row) for row in rows]

    policy = tiny_models.make_policy(folder, generator=Stale(folder), scatter=False)
    assert policy.capabilities.drawing_gap > 0.01


def test_without_vllm_there_is_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "vllm", None)
    policy = tiny_models.make_policy(lm.tiny_folder("llama"), generator=VLLMGenerator())
    refused(r"needs vLLM .*pip install 'nlhf_zoo\[vllm\]'", lambda: policy.capabilities)


def test_what_the_policy_sets_is_no_argument_of_the_engine():
    how = {"engine_args": {"max_lora_rank": 8}}
    policy = tiny_models.make_policy(lm.tiny_folder("llama"), generator=VLLMGenerator(**how))
    refused("engine_args sets max_lora_rank", lambda: policy.capabilities)
