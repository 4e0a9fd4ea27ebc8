"""What share of a perfect decoder's speed a language model draws at."""

import language_models as lm
import pytest
import torch
from language_models import stream
from tiny_models import ARCHITECTURES, make_policy, tiny_prompts
from zoo import fit

from nlhf_zoo.algorithms import NashMD
from nlhf_zoo.callbacks import TimeLog, logs
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import SmallLanguage
from nlhf_zoo.policies import CausalLMPolicy, LoRA, SmallLanguageModel
from nlhf_zoo.policies.language_model.decoding.floor import (
    WatchedDraws,
    moved_bytes,
    read_bytes,
    share_of_perfect,
)
from nlhf_zoo.records import PLAIN


def test_what_a_perfect_decoder_reads_by_hand():
    """Weights once a step; two rows, of which one ends after its first token."""
    # Steps read 100 + 3 x (5 + 7), then 100 + 3 x 6, then 100 + 3 x 7.
    assert moved_bytes(100, 3, [5, 7], [3, 1]) == 136 + 118 + 121
    assert moved_bytes(100, 3, [], []) == 0
    assert share_of_perfect(2e9, 4e12, 0.005) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_cache_of_a_token_is_as_large_as_is_said(kind):
    from transformers import DynamicCache

    model = lm.shared_policy(kind, None).language_model
    cache = DynamicCache()
    model(input_ids=torch.arange(5)[None], past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    weights, per_token = read_bytes(model)
    assert per_token == held // 5
    assert weights == sum(p.nbytes for p in model.parameters())


def test_draws_are_watched_until_that_is_enough():
    policy = make_policy(lm.tiny_folder("llama"))
    prompts = tiny_prompts(policy)
    assert policy.capabilities
    watched = WatchedDraws(policy.generator)
    responses = policy.sample(lm.HALF, prompts, 2, PLAIN, stream())
    watched.stop()
    policy.sample(lm.HALF, prompts, 2, PLAIN, stream())
    assert watched.tokens == int(responses.mask.sum())
    of_prompts = prompts.mask.sum(-1).repeat_interleave(2).tolist() * 2
    of_responses = responses.mask.sum(-1).flatten().tolist() * 2
    assert watched.moved(1000, 8) == moved_bytes(1000, 8, of_prompts, of_responses)
    assert "draw" not in vars(policy.generator)


@pytest.mark.filterwarnings("ignore:Found .* module")  # Lightning's, of models in evaluation mode
def test_the_share_is_said_once_on_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(logs, "is_gpu", lambda _device: True)
    monkeypatch.setattr(logs, "copy_bandwidth", lambda _device: 1e12)
    policy = CausalLMPolicy(
        SmallLanguageModel(16, layers=1, num_letters=3), LoRA(r=2), max_new_tokens=2
    )
    game = OnlineGame(
        policy,
        SmallLanguage(num_letters=3, length=2),
        NashMD(mixture=0.5),
        0.3,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        rollout=Sample(2, 2),
        realisation=GradientSteps(),
    )
    fit(game, rounds=5, callbacks=[TimeLog()])
    said = [line for line in capsys.readouterr().err.splitlines() if "perfect decoder" in line]
    assert len(said) == 1
    assert f"nlhf: {len(game.oracle.prompts) * 2 * 2 * 2:,} tokens were drawn in" in said[0]
    assert said[0].endswith("at 1.00 TB/s")
    assert "draw" not in vars(policy.generator)


def test_nothing_is_said_on_a_cpu(capsys):
    assert not logs.is_gpu(torch.device("cpu"))
    assert logs.is_gpu(torch.device("cuda"))
    sentence = logs.share_sentence(1000, 5e9, 2e12, 0.025)
    assert "10.0% of the speed of a perfect decoder: 5 GB" in sentence
