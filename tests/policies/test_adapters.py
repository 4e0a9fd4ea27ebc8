"""Which weights have adapters: those that an adapter acts on, under the language model alone.

What a model computes is compared with plain peft and transformers, on architectures whose layers
are called in unusual ways.
"""

import architectures
import pytest
import torch
from language_models import POLICY, drawn, new_folder, refused
from tiny_models import make_policy, scatter_adapters

from nlhf_zoo.policies import LoRA

TOKENS = torch.tensor([[5, 6, 7, 4, 7, 6, 9, 12]])


def adapted(name, targets="all-linear", **kwargs):
    lora = LoRA(r=4, alpha=8, target_modules=targets)
    folder = architectures.save(name, new_folder() / "model")
    return make_policy(folder, lora=lora, softmax_chunk=0, **kwargs)


@torch.no_grad()
def law(model, **kwargs):
    return model(input_ids=TOKENS, **kwargs).logits.log_softmax(-1)


def played(policy, player):
    with policy._players.playing([player], 1):
        return law(policy._players.module(player))


def names_of_layers(policy):
    """Of the layers and parameters with adapters, read off the names of the adapters' weights."""
    found = policy._players.parameters_of("policy")
    return {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in found}


def without_gradient(policy):
    prompts, responses = drawn(policy, POLICY, num=1)
    policy.log_prob(POLICY, prompts, responses).sum().backward()
    return [n for n, p in policy._players.parameters_of("policy").items() if p.grad is None]


# ---- what has adapters ----


@pytest.mark.parametrize("name", ["jamba", "mamba"])
def test_a_layer_whose_weight_is_read_without_calling_it_has_none(name, tmp_path):
    """Such an adapter does nothing while it trains, and would be merged all the same."""
    policy = adapted(name)
    assert not [layer for layer in names_of_layers(policy) if layer.endswith("dt_proj")]
    assert any(layer.endswith("in_proj") for layer in names_of_layers(policy))
    assert without_gradient(policy) == []
    assert any("dt_proj" in kind for kind in policy._players.coverage().idle)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [("phimoe", "router"), ("llama4_text", "router"), ("deepseek_v4", "o_a_proj")],
)
def test_layers_that_give_no_one_product_have_none(name, left_out):
    """Routers that return several tensors, and layers in groups."""
    policy = adapted(name)
    layers = names_of_layers(policy)
    assert not [layer for layer in layers if layer.endswith(f".{left_out}")]
    assert [layer for layer in layers if layer.endswith(".q_proj") or "q_" in layer]
    assert any(kind.endswith(left_out) for kind in policy._players.coverage().idle)


@pytest.mark.parametrize("name", ["mamba", "falcon_h1"])
def test_a_layer_that_peft_refuses_is_left_out_of_all_linear(name):
    layers = names_of_layers(adapted(name))
    assert any(layer.endswith("in_proj") for layer in layers)
    assert not [layer for layer in layers if layer.endswith("out_proj")]
    said = refused("model.policy.lora: .*out_proj", adapted, name, ["out_proj"])
    assert "can have adapters: " in said
    assert "in_proj" in said


def test_names_that_no_layer_has_are_answered_with_those_that_there_are():
    said = refused("model.policy.lora", adapted, "llama", ["query"])
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in said


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "fc1"]])
def test_a_vision_tower_has_none(targets):
    from transformers import AutoModelForCausalLM, Gemma3Config, SiglipVisionConfig

    text = architectures.config_of("gemma3_text")
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=63
    )
    folder = new_folder() / "model"
    architectures.randomise(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    architectures.tiny_tokenizer().save_pretrained(folder)
    policy = make_policy(folder, lora=LoRA(r=4, alpha=8, target_modules=targets))
    layers = names_of_layers(policy)
    assert any("language_model" in layer for layer in layers)
    assert not [layer for layer in layers if "vision" in layer]
    assert without_gradient(policy) == []


# ---- experts ----


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_next", "gpt_oss", "mixtral"])
def test_all_linear_and_experts_is_all_of_them(name, tmp_path):
    """Attention, dense layers, shared experts and experts; peft alone leaves out some."""
    policy = adapted(name, "all-linear-and-experts")
    found = policy._players.coverage()
    assert found.without == ()
    assert found.share == 1
    layers = {layer.replace(".base_layer", "") for layer in names_of_layers(policy)}
    assert any("experts" in layer for layer in layers)
    scatter_adapters(policy)
    assert without_gradient(policy) == []
    assert (played(policy, "policy") - played(policy, "anchor")).abs().max() > 0.1


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss"])
def test_adapters_of_experts_are_loaded_by_peft_and_merged(name, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = adapted(name, "all-linear-and-experts")
    before = {player: played(policy, player) for player in policy.players}
    weights = {n: p.detach().clone() for n, p in policy.named_parameters()}
    policy.export(tmp_path / "whole", merged=True)
    policy.export(tmp_path / "adapter")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    base = AutoModelForCausalLM.from_pretrained(policy.source.name)
    adapter = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    for again in (whole, adapter):
        torch.testing.assert_close(law(again), before["policy"], atol=1e-4, rtol=0)
    # Not one bit of any player is another one: weights with two adapters are put back once.
    assert all(torch.equal(p, weights[n]) for n, p in policy.named_parameters())
    assert all(torch.equal(played(policy, player), law_) for player, law_ in before.items())


def test_what_all_linear_leaves_out_is_listed():
    found = adapted("deepseek_v3")._players.coverage()
    assert 0 < found.share < 1
    assert "model.layers.*.mlp.gate_proj" in found.without  # of the dense first layer


# ---- what cannot be exported ----


def test_layers_that_share_a_weight_are_not_merged(tmp_path):
    policy = adapted("zamba")
    before = {player: played(policy, player) for player in policy.players}
    match = "are one weight, so that no merged model .* leave --merged out"
    refused(match, policy.export, tmp_path / "out", merged=True)
    assert [*tmp_path.iterdir()] == []
    assert all(torch.equal(played(policy, player), law_) for player, law_ in before.items())
    policy.export(tmp_path / "out")


def test_embeddings_that_are_the_output_layer_are_not_merged(tmp_path):
    folder = architectures.save("gpt2", new_folder() / "model")
    policy = make_policy(folder, lora=LoRA(r=4, alpha=8, target_modules=["wte", "c_attn"]))
    refused("wte.weight and lm_head.weight are one", policy.export, tmp_path / "o", merged=True)
    policy.export(tmp_path / "out")


def test_what_is_not_the_player_is_not_exported(tmp_path, monkeypatch):
    """Whatever happens on the way: it is loaded again and compared."""
    from nlhf_zoo.policies.language_model import exporting

    policy = adapted("llama")

    def dropped(players, player, folder, base, revision):
        save(players, "anchor", folder, base, revision)

    save = exporting.save_adapter
    monkeypatch.setattr(exporting, "save_adapter", dropped)
    match = r"what was written is not the player 'policy'.* differ by .* a token.*: export it merg"
    refused(match, policy.export, tmp_path / "out")
    assert [*tmp_path.iterdir()] == []
    torch.nn.init.zeros_(policy._players.language_model("policy").lm_head.weight)
    refused("what was written is not", policy.export, tmp_path / "out", "policy")
