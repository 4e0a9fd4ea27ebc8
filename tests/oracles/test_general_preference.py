"""The oracle of general preferences: embeddings, and their skew-symmetric form."""

import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from language_models import refused
from scipy.special import expit
from text_models import CHAT, folder, one_by_one, prompts, responses, user

from nlhf_zoo.oracles import GeneralPreferenceModelOracle
from nlhf_zoo.oracles.text_oracle import Question
from nlhf_zoo.text_models.heads import preference_score
from nlhf_zoo.text_models.loading import ModelSettings

TEMPLATE = "{prompt} {response}"


def general(kind="llama", template=TEMPLATE, outputs=6, max_tokens=None, temperature=2.0):
    """Folder of a model whose embeddings are far apart."""
    settings = ModelSettings("general", template, max_tokens, temperature)
    return folder(kind, outputs, settings=settings, chat=CHAT if template is None else None)


def by_hand(path, prompt, texts, template=TEMPLATE):
    """P of one text at a time, without padding: v^T R^T v' by the matrix."""
    v = one_by_one(path, [user(prompt)], [texts], template)[0].double().numpy()
    rotation = np.kron(np.eye(v.shape[1] // 2), [[0, -1], [1, 0]])
    return expit((v @ rotation.T) @ v.T / 2.0)


@pytest.mark.parametrize("kind", ["llama", "llama_pad_is_end", "gpt2", "bert"])
@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_preferences_are_those_of_the_embeddings(kind, template):
    path = general(kind, template)
    texts = ["w1", "w2 w3 w4 w5", "w6 w7", "w8 w9 w1 w2 w3 w4"]
    one = responses(texts, dtype=torch.float64)
    found = GeneralPreferenceModelOracle(path)(prompts("w9 w8"), one, one).preference
    np.testing.assert_allclose(found[0], by_hand(path, "w9 w8", texts, template), atol=1e-5)
    assert (found - 0.5).abs().max() > 0.02
    assert torch.equal(found + found.mT, torch.ones(1, 4, 4, dtype=torch.float64))


def test_the_form_is_antisymmetric_to_the_last_bit_and_holds_every_cycle():
    for shape in ((2, 7, 4), (2, 3, 1, 5, 8)):
        first, second = torch.randn(*shape)
        assert torch.equal(preference_score(first, second), -preference_score(second, first))
    # three directions of the plane, 120 degrees apart: each beats the next
    angle = torch.arange(3) * 2 * math.pi / 3
    v = torch.stack([angle.cos(), angle.sin()], -1)
    score = preference_score(v[:, None], v[None])
    cycle = torch.tensor([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]])
    torch.testing.assert_close(score, math.sin(2 * math.pi / 3) * cycle, atol=1e-6, rtol=0)


def test_the_settings_beside_the_model_are_used_and_can_be_overruled():
    make = partial(GeneralPreferenceModelOracle, general(temperature=4.0, max_tokens=30))

    def logit(**options):
        ((_, p),) = make(**options).answers([Question(user("w9"), "w1", "w2 w3")])
        return math.log(p / (1 - p))

    assert logit() == pytest.approx(logit(temperature=1.0) / 4)
    assert make().model.max_tokens == 30
    assert make(max_tokens=9).model.max_tokens == 9


def test_what_is_refused(tmp_path):
    make = GeneralPreferenceModelOracle
    refused(r"reads 64 tokens at most, but max_tokens is 65", make, general(), max_tokens=65)
    refused(r"has 5 outputs: an embedding has an even number", make, general(outputs=5))
    plain = r"has no preference_model\.json: .* reads a folder that `nlhf fit` of a PreferenceModel"
    refused(plain, make, folder("llama"))
    path = shutil.copytree(general(), tmp_path / "model")
    (path / "model.safetensors").unlink()
    refused(r"cannot be loaded as a sequence classifier", make, str(path))
