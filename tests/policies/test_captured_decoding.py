"""The token step that a CUDA graph repeats, repeated without one: its tensors stay in place."""

import language_models as lm
import pytest
import torch
from language_models import stream
from tiny_models import ARCHITECTURES, make_policy

from nlhf_zoo.policies import NativeGenerator
from nlhf_zoo.policies.language_model.decoding import graphs

TOKENS = 24


@pytest.fixture
def captured(monkeypatch):
    """Steps are captured twice over, as a graph's are, and repeated as they stand."""
    made = []

    def capture(work):
        for _ in range(3):
            work()
        made.append(work)
        return work

    monkeypatch.setattr(graphs, "may_capture", lambda *_: True)
    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "_FEWEST", 2)
    return made


def policy_of(kind, lora=lm.LORA, **options):
    options = {"max_new_tokens": TOKENS} | options
    return make_policy(
        lm.tiny_folder(kind), lora=lora, generator=NativeGenerator(check_every=3), **options
    )


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "gemma2")) for kind in ARCHITECTURES],
)
def test_captured_steps_draw_the_same(captured, monkeypatch, kind):
    """Through all sizes of the batch, and beyond the first window; weights have moved meanwhile."""
    monkeypatch.setattr(graphs, "_WINDOW", 16)
    policy = policy_of(kind)
    plain = policy_of(kind)
    plain.generator.cuda_graph = False
    assert policy.capabilities.drawing.native
    policy._players.kept = None  # what the trial has left
    captured.clear()
    for number, who in enumerate((lm.POLICY, lm.HALF, lm.HALF)):
        with torch.no_grad():
            for one in (policy, plain):
                noise = stream(number)
                for parameter in one.trained_parameters().values():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
        _, found = lm.drawn(policy, who, num=6, seed=number)
        _, expected = lm.drawn(plain, who, num=6, seed=number)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.mask, expected.mask)
        assert torch.equal(found.truncated, expected.truncated)
        torch.testing.assert_close(found.log_prob, expected.log_prob, atol=lm.TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("options", [{"stop_strings": ["h"], "min_new_tokens": 3}])
def test_copies_of_the_module_and_stop_strings_are_captured_too(captured, options):
    policy = policy_of("llama", None, **options)
    found = lm.drawn(policy, lm.HALF, num=5)[1]
    assert captured
    policy.generator.cuda_graph = False
    expected = lm.drawn(policy, lm.HALF, num=5)[1]
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.mask, expected.mask)


def test_what_cannot_be_captured_is_drawn_without_and_said_once(captured, monkeypatch, capsys):
    def capture(_work):
        raise RuntimeError("operation not permitted when stream is capturing")

    policy = policy_of("llama")
    expected = lm.drawn(policy, lm.HALF, num=4)[1]
    policy.generator.cuda_graph = True
    policy._players.kept = None
    monkeypatch.setattr(graphs, "capture", capture)
    capsys.readouterr()
    for _ in range(2):
        found = lm.drawn(policy, lm.HALF, num=4)[1]
        assert torch.equal(found.tokens, expected.tokens)
    said = capsys.readouterr().err
    assert said.count("is not captured in a CUDA graph: ") == 1
    lm.train(policy, steps=1)


def test_sizes_of_batches_are_few():
    assert graphs.sizes(100) == [100, 50, 25, 13, 7]
    assert graphs.sizes(3) == [3]
    assert len(graphs.sizes(4096)) == 10


@pytest.mark.gpu
def test_a_graph_on_a_gpu_draws_what_is_scored():
    """Unmeasured so far: no figure is published of it."""
    policy = policy_of("llama").to("cuda")
    assert policy.capabilities.drawing.native
    for who in (lm.POLICY, lm.HALF):
        prompts, responses = lm.drawn(policy, who, num=6)
        prompts = policy.encode(prompts)
        again = policy.log_prob(who, prompts, responses).detach()
        torch.testing.assert_close(again, responses.log_prob, atol=1e-3, rtol=1e-4)
    assert policy._players.kept.batches
    assert not policy._players.kept.refused
