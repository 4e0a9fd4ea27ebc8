"""Reward and pair models that were saved as adapters are read on the base that they name."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from language_models import new_folder, refused
from peft import LoraConfig, PeftModel, get_peft_model
from text_models import folder, prompts, responses, tokenizer
from tiny_models import make_policy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nlhf_zoo.oracles import GenerativePairModelOracle, PairModelOracle, RewardModelOracle
from nlhf_zoo.preference_models import BradleyTerryHead, PretrainedBackbone
from oracles.zoo import PAIR, SINGLE

AUTO = {"SEQ_CLS": AutoModelForSequenceClassification, "CAUSAL_LM": AutoModelForCausalLM}


@cache
def adapter(name, task="SEQ_CLS", labels=1):
    """Folder of an adapter with random weights, as peft saves it; its base is a language model."""
    path = new_folder() / f"{name}-{task}-{labels}"
    model = AUTO[task].from_pretrained(folder(name, auto=AutoModelForCausalLM), num_labels=labels)
    targets = ["c_attn"] if name == "gpt2" else "all-linear"
    shape = {"target_modules": targets, "fan_in_fan_out": name == "gpt2"}
    config = LoraConfig(r=3, lora_alpha=6, task_type=task, **shape)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(3)
        for key, parameter in adapted.named_parameters():
            if "lora_" in key or ".modules_to_save." in key:
                parameter.normal_(std=0.3, generator=rng)
    adapted.save_pretrained(path)
    return str(path)


@torch.no_grad()
def outputs(path, *texts, labels=1):
    """Of texts as plain peft reads them, one at a time."""
    config = json.loads((Path(path) / "adapter_config.json").read_text())
    name = config["base_model_name_or_path"]
    base = AUTO[config["task_type"]].from_pretrained(name, num_labels=labels)
    model = PeftModel.from_pretrained(base, path).eval()
    words = AutoTokenizer.from_pretrained(name)
    found = [model(**words(text, return_tensors="pt")).logits[0] for text in texts]
    return found, words


def preference(oracle):
    answer = oracle(prompts("w1"), responses(["w2 w3"]), responses(["w4"]))
    assert answer.valid.all()
    return answer.preference[0, 0, 0]


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_reward_model(name):
    path = adapter(name)
    (first, second), _ = outputs(
        path, *(SINGLE.format(prompt="w1", response=r) for r in ("w2 w3", "w4"))
    )
    close(preference(RewardModelOracle(path, template=SINGLE)), (first - second)[0].sigmoid())


def test_a_pair_model_of_two_labels():
    path = adapter("llama", labels=2)
    (logits,), _ = outputs(path, PAIR.format(prompt="w1", first="w2 w3", second="w4"), labels=2)
    made = PairModelOracle(path, PAIR, first_label="LABEL_1", order="none")
    close(preference(made), logits.softmax(-1)[1])


def test_a_language_model_that_answers():
    path = adapter("llama", "CAUSAL_LM")
    text = PAIR.format(prompt="w1", first="w2 w3", second="w4")
    (logits,), words = outputs(path, text)
    law = logits[-2].softmax(-1)  # the tokenizer of words puts an end behind a text
    a, b = (law[words.convert_tokens_to_ids(label)] for label in ("w38", "w39"))
    given = {"labels": ("w38", "w39"), "chat_template": False, "order": "none", "min_label_mass": 0}
    close(preference(GenerativePairModelOracle(path, PAIR, **given)), a / (a + b))


def test_its_own_tokenizer_is_taken_where_it_has_one(tmp_path):
    path = shutil.copytree(adapter("llama"), tmp_path / "adapter")
    own = tokenizer(chat="{{ messages[0].content }} w5 {{ messages[-1].content }}")
    own.save_pretrained(path)
    plain, chat = RewardModelOracle(adapter("llama")), RewardModelOracle(str(path))
    assert plain.models[0].encoder.tokenizer.chat_template != own.chat_template
    assert chat.models[0].encoder.tokenizer.chat_template == own.chat_template
    assert plain.fingerprint != chat.fingerprint


def changed(tmp_path, **changes):
    path = Path(shutil.copytree(adapter("llama"), tmp_path / "adapter"))
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | changes))
    return path


def test_what_does_not_fit_is_one_sentence(tmp_path):
    def said(match, name, **changes):
        path = changed(tmp_path / name, **changes)
        refused(match, RewardModelOracle, str(path), template=SINGLE)

    nowhere = {"base_model_name_or_path": "/nowhere"}
    said("base /nowhere of the reward model .* is no folder here", "a", **nowhere)
    said("names no base model: write it there", "b", base_model_name_or_path=None)
    said("does not fit its base .*: its file holds .*lora_A", "c", target_modules=["q_proj"])
    path = changed(tmp_path / "d")
    (path / "adapter_model.safetensors").unlink()
    refused("is an adapter of peft without adapter_model.saf", RewardModelOracle, str(path))
    # One that brings no output layer, on a base that has none.
    refused("lacks score.weight", RewardModelOracle, adapter("llama", "CAUSAL_LM", labels=1))


def test_who_needs_a_whole_model_says_what_to_give():
    path, base = adapter("llama"), folder("llama", auto=AutoModelForCausalLM)
    sentence = f"an adapter of peft: give its base {base} .* and it as model.policy.adapter"
    refused(sentence, make_policy, Path(path))
    backbone = PretrainedBackbone(path)
    refused("or a folder into which it is merged", backbone.load, BradleyTerryHead())
