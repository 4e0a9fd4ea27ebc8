"""What a model is capable of is found by trying it, and what was found is right."""

import language_models as lm
import pytest
import tiny_models
import torch
from language_models import stream
from tiny_models import make_policy

from nlhf_zoo.policies import LoRA, TransformersGenerator
from nlhf_zoo.policies.language_model import generation
from nlhf_zoo.policies.language_model.generation import Drawing
from nlhf_zoo.records import PLAIN

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
# What a configuration needs beside the small shape of all.
SHAPES = {
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 16, "head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4,
        "expert_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 4, "mamba_d_state": 8,
    },
    "zamba": {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_dt_rank": 4, "n_mamba_heads": 2, "num_key_value_heads": 4, "mamba_d_state": 8,
        "attention_hidden_size": 64, "attention_head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "openai-gpt": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "deepseek_v32": {
        "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "qk_nope_head_dim": 8, "index_topk": 4, "index_head_dim": 8,
        "index_n_heads": 2, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    },
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "mamba": {"state_size": 8, "time_step_rank": 4, "intermediate_size": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4, "intermediate_size": [48] * 4, "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": len(tiny_models.VOCABULARY), "laurel_rank": 4,
        "hidden_size_per_layer_input": 8, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of models, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            path = tmp_path_factory.mktemp("models") / kind
            made[kind] = tiny_models.save_tiny(path, kind, **SHAPES.get(kind, {}))
        return made[kind]

    return of


@torch.no_grad()
def laws_apart(policy, who, prompts, responses):
    """Log-probabilities [B, K] of a mixture from calls of one player with one row, unpadded."""
    total = torch.zeros(responses.weight.shape)
    for b in range(total.shape[0]):
        for k in range(total.shape[1]):
            prompt, response = lm.row_of(prompts, responses, b, k)
            law = 0
            for player, weight in who.items():
                with policy._players.playing([player], 1):
                    logits = policy._players.module(player)(
                        input_ids=torch.tensor([prompt + response]), use_cache=False
                    ).logits
                law = law + weight * logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            law = law.log_softmax(-1)
            total[b, k] = law.gather(-1, torch.tensor(response)[:, None]).sum()
    return total


@pytest.mark.parametrize(
    ("kind", "lora", "drawing"),
    [
        ("llama", LoRA(r=4), Drawing()),
        ("mpt", LoRA(r=4), Drawing(one_call=False)),  # peft does not switch rows there
        ("opt", LoRA(r=4), Drawing(one_call=False)),  # whose layers flatten their rows
        ("qwen3_moe", LoRA(r=4), Drawing(one_call=False)),  # whose experts are parameters
        ("lfm2", LoRA(r=4), Drawing(shared_prompt="reordered")),  # whose cache repeats no state
        ("jamba", LoRA(r=4), Drawing(shared_prompt="reordered")),
        ("mamba", None, Drawing(False, None, cached=False)),  # whose cache is another argument
    ],
)
def test_draws_follow_what_is_scored_whatever_the_model_can(folder, kind, lora, drawing):
    policy = make_policy(folder(kind), lora=lora)
    assert policy.capabilities.drawing == drawing
    for who in (lm.POLICY, lm.HALF, {"policy": 0.5, "reference": 0.3, "anchor": 0.2}):
        prompts, responses = lm.drawn(policy, who, num=3)
        expected = laws_apart(policy, who, prompts, responses)
        torch.testing.assert_close(responses.log_prob, expected, atol=2e-4, rtol=1e-5)
        with torch.no_grad():
            scored = policy.log_prob(who, prompts, responses)
        torch.testing.assert_close(scored, expected, atol=2e-4, rtol=1e-5)


def test_a_model_that_reads_padding_is_known(folder):
    assert make_policy(folder("llama")).capabilities.padding_gap < 1e-5
    found = make_policy(folder("rwkv")).capabilities
    assert found.padding_gap > 100 * found.rounding


@pytest.mark.parametrize("kind", ["llama", "jamba"])
def test_trying_leaves_everything_as_it_was(folder, kind):
    policy = make_policy(folder(kind), gradient_checkpointing=True)
    policy.train()
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    tensors = {name: value.clone() for name, value in policy.state_dict().items()}
    modes = [module.training for module in policy.modules()]
    hooks = [len(module._forward_pre_hooks) for module in policy.modules()]
    drawn_next = torch.get_rng_state()
    with torch.inference_mode():  # as in a validation before the first step
        assert policy.capabilities
    assert torch.equal(torch.get_rng_state(), drawn_next)
    assert [module.training for module in policy.modules()] == modes
    assert [len(module._forward_pre_hooks) for module in policy.modules()] == hooks
    assert all(torch.equal(value, tensors[n]) for n, value in policy.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in policy.parameters() if p.requires_grad)


def test_a_failed_call_of_several_players_leaves_no_hook_behind(folder):
    """peft 0.21 would leave those of the rows' adapters in the layers."""
    policy = make_policy(folder("qwen3_moe"))
    prompts = tiny_models.tiny_prompts(policy)
    players = policy._players
    rows = {"input_ids": prompts.tokens, "attention_mask": prompts.mask.long()}
    with torch.no_grad():
        before = players.module("policy")(**rows).logits
        names = ["policy", "reference", "anchor"]
        with (
            pytest.raises(ValueError, match="mixed adapter batches"),
            players.playing(names, 1) as arguments,
        ):
            players.module("policy")(**rows, **arguments)
        after = players.module("policy")(**rows).logits
    assert torch.equal(before, after)


# ---- adapters that nothing trains ----


def test_layers_that_no_gradient_reaches_get_no_adapter(folder):
    """The index of sparse attention chooses tokens, and a choice has no gradient."""
    policy = make_policy(folder("deepseek_v32"))
    kinds = {name.rpartition(".")[2] for name in policy.left_out}
    assert kinds == {"wk", "wq_b", "weights_proj"}
    adapted = {n.partition(".lora_")[0].rpartition(".")[2] for n in lm.trained_names(policy)}
    assert not kinds & adapted
    assert "kv_b_proj" in adapted


def test_experts_that_no_token_came_to_keep_their_adapters(folder):
    policy = make_policy(folder("qwen3_moe"))
    assert policy.left_out == []


def test_a_model_that_cannot_be_checkpointed_is_refused_in_one_sentence(folder):
    match = "does not support activation checkpointing.*gradient_checkpointing to false"
    lm.refused(match, make_policy, folder("openai-gpt"), gradient_checkpointing=True)


def test_a_model_that_does_not_run_with_adapters_is_refused_in_one_sentence(folder, monkeypatch):
    from peft.tuners.lora import Linear

    def of_another_shape(layer, *args, **given):
        return layer.base_layer(*args, **given)[..., 1:]

    monkeypatch.setattr(Linear, "forward", of_another_shape)
    match = "LlamaForCausalLM does not run with adapters.*lora.target_modules"
    lm.refused(match, make_policy, folder("llama"))


# ---- training mode ----


def gradients(policy, prompts, responses):
    loss = policy.log_prob(lm.POLICY, prompts, responses).sum()
    loss.backward()
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return found


def test_what_is_computed_again_is_computed_in_the_same_mode(folder):
    """Zamba's layers look at their mode: in evaluation, the backward would be another's."""
    found = {}
    for checkpointing in (True, False):
        policy = make_policy(folder("zamba"), gradient_checkpointing=checkpointing)
        prompts = tiny_models.tiny_prompts(policy)
        rng = stream(1)
        responses = policy.sample(lm.POLICY, prompts, 2, PLAIN, rng)
        found[checkpointing] = gradients(policy, prompts, responses)
        assert not any(module.training for module in policy._players.modules())
    for name, expected in found[False].items():
        torch.testing.assert_close(found[True][name], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("trained", [{"gradient_checkpointing": True}, {"dropout": True}])
def test_another_function_in_training_mode_is_refused(folder, trained):
    """Gemma 3n's sparse activation differs by 2 % of the gradient, in this small model."""
    policy = make_policy(folder("gemma3n_text"), **trained)
    match = "Gemma3nForCausalLM is another function in training mode.*gradient_checkpointing"
    lm.refused(match, lm.drawn, policy)
    assert make_policy(folder("gemma3n_text")).capabilities.padding_gap < 1e-4


def test_a_model_that_draws_in_training_mode_is_refused(folder):
    """PhiMoE draws its experts there, which few tokens of a trial may not show in the figures."""
    policy = make_policy(folder("phimoe"), gradient_checkpointing=True)
    match = "PhimoeForCausalLM draws random numbers in training mode.*gradient_checkpointing"
    lm.refused(match, lm.drawn, policy)


def test_the_engine_that_plays_is_the_one_that_is_tried(folder, monkeypatch):
    """A static cache, too; an engine of one's own is not tried in another's name."""

    class Own(TransformersGenerator):
        """Could draw from anything."""

    assert make_policy(folder("llama"), generator=Own()).capabilities.drawing_gap is None
    policy = make_policy(folder("llama"), generator=TransformersGenerator("static"))
    assert policy.capabilities.drawing == Drawing(shared_prompt=None)
    assert policy.capabilities.drawing_gap < 1e-4
    monkeypatch.setattr(generation, "mix", lambda logits, _: logits[0].log_softmax(-1))
    policy = make_policy(folder("llama"), generator=TransformersGenerator("static"))
    assert policy.capabilities.drawing_gap > 0.01
