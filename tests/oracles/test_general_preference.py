"""The oracle of general preferences: embeddings, each made once, and their skew-symmetric form."""

from __future__ import annotations

import itertools
import math
import shutil

import numpy as np
import pytest
import torch
from language_models import refused
from scipy.special import expit
from text_models import CHAT, prompts, responses, save, user
from text_models import CONFIGS as MODELS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.oracles import GeneralPreferenceModelOracle, RewardModelOracle
from nlhf_zoo.oracles.text_oracle import Question
from nlhf_zoo.text_models.heads import preference_score
from nlhf_zoo.text_models.settings import ModelSettings, write_settings

TEMPLATE = "{prompt} {response}"


def folder(path, kind="llama", template=TEMPLATE, outputs=6, temperature=2.0, **settings):
    """A model whose embeddings are far apart."""
    config = MODELS[kind]()
    config.num_labels = outputs
    save(path, config, chat=CHAT if template is None else None)
    write_settings(
        path, ModelSettings("general", template, settings.get("max_tokens"), temperature)
    )
    return str(path)


@torch.no_grad()
def by_hand(path, prompt, texts, template=TEMPLATE):
    """P of one text at a time, without padding: v^T R^T v' by the matrix."""
    network = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    embeddings = []
    for text in texts:
        if template is None:
            talk = [*user(prompt), {"role": "assistant", "content": text}]
            tokens = tokenizer.apply_chat_template(talk, return_dict=False)
        else:
            tokens = tokenizer(template.format(prompt=prompt, response=text))["input_ids"]
        embeddings.append(network(torch.tensor([tokens])).logits[0].double().numpy())
    v = np.stack(embeddings)
    rotation = np.kron(np.eye(v.shape[1] // 2), [[0, -1], [1, 0]])
    return expit((v @ rotation.T) @ v.T / 2.0)


@pytest.mark.parametrize("kind", ["llama", "llama_pad_is_end", "gpt2", "bert"])
@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_preferences_are_those_of_the_embeddings(kind, template, tmp_path):
    path = folder(tmp_path / "model", kind, template)
    texts = ["w1", "w2 w3 w4 w5", "w6 w7", "w8 w9 w1 w2 w3 w4"]
    oracle = GeneralPreferenceModelOracle(path)
    one = responses(texts, dtype=torch.float64)
    found = oracle(prompts("w9 w8"), one, one)
    np.testing.assert_allclose(
        found.preference[0], by_hand(path, "w9 w8", texts, template), atol=1e-5
    )
    assert found.valid.all()
    assert (found.preference - 0.5).abs().max() > 0.02
    assert torch.equal(
        found.preference + found.preference.mT, torch.ones(1, 4, 4, dtype=torch.float64)
    )


def test_the_form_is_antisymmetric_to_the_last_bit_and_holds_every_cycle():
    for shape in ((2, 7, 4), (2, 3, 1, 5, 8)):
        first, second = torch.randn(*shape)
        assert torch.equal(preference_score(first, second), -preference_score(second, first))
    # three directions of the plane, 120 degrees apart: each beats the next
    angle = torch.arange(3) * 2 * math.pi / 3
    v = torch.stack([angle.cos(), angle.sin()], -1)
    score = preference_score(v[:, None], v[None])
    sine = math.sin(2 * math.pi / 3)
    torch.testing.assert_close(
        score, sine * torch.tensor([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]]), atol=1e-6, rtol=0
    )


def test_each_text_is_read_once_for_all_preferences(tmp_path):
    oracle = GeneralPreferenceModelOracle(folder(tmp_path / "model"), batch_size=4)
    read = []
    hook = lambda _module, _args, kwargs: read.append(kwargs["input_ids"].shape)  # noqa: E731
    oracle.model.network.register_forward_pre_hook(hook, with_kwargs=True)
    texts = [f"w{i} " * (1 + i % 5) for i in range(10)]
    one = responses(texts, texts[::-1])
    answer = oracle(prompts("w9", "w8"), one, one)
    assert answer.valid.all()
    assert sum(rows for rows, _ in read) == 2 * 10  # and not 2 * 45 pairs
    assert len(read) == 2 * 10 / 4
    assert [width for _, width in read] == sorted((width for _, width in read), reverse=True)
    assert oracle.ledger["queries"] == 2 * 45


def test_what_cannot_be_read_is_invalid(tmp_path):
    oracle = GeneralPreferenceModelOracle(folder(tmp_path / "model", max_tokens=5))
    one = responses(["w1", "w2", "w1 w2 w3 w4"])  # with <s>, prompt and </s>: 4, 4 and 7 tokens
    answer = oracle(prompts("w9"), one, one)
    assert answer.valid[0].tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]
    # An infinite embedding would say P = 1 or 0 of everything.
    oracle.model.forward = lambda texts: torch.tensor([[1.0, 2.0], [math.inf, 1.0], [3.0, 4.0]])
    answer = oracle(prompts("w9"), one, one)
    assert answer.valid[0].tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


def test_a_budget_ends_the_questions_after_those_it_allows(tmp_path):
    oracle = GeneralPreferenceModelOracle(folder(tmp_path / "model"))
    asked = [Question(user("w9"), f"w{i}", "w5 w6") for i in range(4)]

    def gate(counts):
        if oracle.ledger["queries"] + counts.get("queries", 0) > 2:
            raise OracleStoppedError("spent")

    whole = dict(oracle.answers(asked))
    oracle.ledger.here["queries"] = 0
    oracle.ledger.gates.append(gate)
    found = []
    with pytest.raises(OracleStoppedError):
        found.extend(oracle.answers(asked))
    assert [number for number, _ in found] == [0, 1]
    for number, answer in found:
        assert answer == pytest.approx(whole[number], abs=1e-6)


def test_the_fingerprint_is_that_of_the_answers(tmp_path):
    path = folder(tmp_path / "model")
    shutil.copytree(path, tmp_path / "moved")
    oracle = GeneralPreferenceModelOracle(path)
    assert oracle.fingerprint == GeneralPreferenceModelOracle(str(tmp_path / "moved")).fingerprint
    others = [
        GeneralPreferenceModelOracle(path, temperature=1.0),
        GeneralPreferenceModelOracle(path, max_tokens=9),
    ]
    (tmp_path / "moved" / "preference_model.json").unlink()
    write_settings(tmp_path / "moved", ModelSettings("general", "{prompt}  {response}", None, 2.0))
    others.append(GeneralPreferenceModelOracle(str(tmp_path / "moved")))
    changed = GeneralPreferenceModelOracle(path)
    with torch.no_grad():
        changed.model.network.score.weight[0, 0] += 1e-3
    others.append(changed)
    assert len({oracle.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_the_settings_beside_the_model_are_used_and_can_be_overruled(tmp_path):
    path = folder(tmp_path / "model", temperature=4.0, max_tokens=30)
    question = [Question(user("w9"), "w1", "w2 w3")]

    def logit(**options):
        ((_, p),) = GeneralPreferenceModelOracle(path, **options).answers(question)
        return math.log(p / (1 - p))

    assert logit() == pytest.approx(logit(temperature=1.0) / 4)
    assert GeneralPreferenceModelOracle(path).model.max_tokens == 30


def test_what_is_refused(tmp_path):
    path = folder(tmp_path / "model")
    make = GeneralPreferenceModelOracle
    refused(r"temperature must be a finite number above 0, not -1", make, path, temperature=-1)
    refused(r"batch_size must be at least 1, not 0", make, path, batch_size=0)
    refused(r"reads 64 tokens at most, but max_tokens is 65", make, path, max_tokens=65)
    refused(r"is no folder here, nor had from the hub", make, "/no/such/folder")
    odd = folder(tmp_path / "odd", outputs=5)
    refused(r"has 5 outputs: an embedding has an even number", make, odd)
    plain = save(tmp_path / "plain", MODELS["llama"]())
    refused(
        r"has no preference_model\.json: .* reads a folder that `nlhf fit` of a PreferenceModel",
        make,
        plain,
    )
    refused(
        r"'general', which RewardModelOracle does not read: take GeneralPreferenceModelOracle",
        RewardModelOracle,
        path,
    )
    write_settings(tmp_path / "plain", ModelSettings("reward"))
    refused(
        r"'reward', which GeneralPreferenceModelOracle does not read: take RewardModelOracle",
        make,
        plain,
    )
    (tmp_path / "model/model.safetensors").unlink()
    refused(r"cannot be loaded as a sequence classifier", make, path)


def test_of_a_conversation_all_is_read(tmp_path):
    path = folder(tmp_path / "model", template=None)
    oracle = GeneralPreferenceModelOracle(path)
    talk = [*user("w1"), {"role": "assistant", "content": "w2"}, *user("w3")]
    others = [talk, [*user("w4"), *talk[1:]], user("w3")]
    chances = [dict(oracle.answers([Question(one, "w5", "w6 w7")]))[0] for one in others]
    assert all(abs(a - b) > 1e-4 for a, b in itertools.combinations(chances, 2))
    refused(
        r"template holds one message, but a prompt has 3",
        lambda: list(
            GeneralPreferenceModelOracle(folder(tmp_path / "other")).answers(
                [Question(talk, "a", "b")]
            )
        ),
    )
