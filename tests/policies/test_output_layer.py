"""Logits of the output layer alone are those of the whole model, scaled and capped as it does."""

import architectures
import pytest
import torch
from architectures import build

from nlhf_zoo.policies.language_model.output_layer import output_layer

TOKENS = torch.tensor([[5, 6, 7, 4, 7, 6]])
# Each has a scale or a soft cap by another name, all far from 1.
NAMES = [
    "granite", "cohere2", "falcon_h1", "gemma2", "minicpm3", "hyperclovax", "recurrent_gemma",
    "inkling_text", "nanochat",
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_models(name, monkeypatch):
    more = {
        "hyperclovax": {"logits_scaling": 0.5},
        "minicpm3": {"dim_model_base": 8},
        "recurrent_gemma": {"logits_soft_cap": 3.0},
    }
    recipe = architectures.RECIPES[name] | more.get(name, {})
    monkeypatch.setitem(architectures.RECIPES, name, recipe)
    model = build(name)
    hidden = model.base_model(input_ids=TOKENS, use_cache=False).last_hidden_state
    theirs = model(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(output_layer(model)(hidden), theirs, atol=1e-5, rtol=1e-5)
    bare = model.get_output_embeddings()(hidden)
    assert (bare - theirs).abs().max() > 0.1


@torch.no_grad()
def test_a_soft_cap_of_the_text_model_is_found():
    """The configuration of an image-text model holds it in a part of its own."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = architectures.config_of("gemma4_text@moe")
    config = Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    model = architectures.randomise(Gemma4ForConditionalGeneration(config)).eval()
    hidden = model.base_model(input_ids=TOKENS, use_cache=False).last_hidden_state
    theirs = model(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(output_layer(model)(hidden), theirs, atol=1e-5, rtol=1e-5)
    assert (model.get_output_embeddings()(hidden) - theirs).abs().max() > 0.1
