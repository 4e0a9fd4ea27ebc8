"""Small random causal language models of many architectures of transformers.

Each recipe names what the architecture's configuration has beside `COMMON`; `name@variant` is
another variant of an architecture. They have every kind of layer that the architecture has.
"""

from pathlib import Path
from typing import Any

import torch
from tiny_models import BOS, EOS_ID, PAD_ID, VOCABULARY, tiny_tokenizer

NUM_TOKENS = 64  # of the models; the tokenizer has fewer
# fmt: off
# By whatever name an architecture has for them.
COMMON = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "n_positions": 128, "max_seq_len": 128, "n_ctx": 128,
    "initializer_range": 0.2, "init_std": 0.2, "num_experts_per_tok": 2, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "sliding_window": 6, "rotary_dim": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "qk_nope_head_dim": 8, "chunk_size": 8, "mamba_chunk_size": 8,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "index_topk": 4,
    "index_head_dim": 8, "index_n_heads": 2, "query_pre_attn_scalar": 8,
}
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
LINEAR_FULL = ["linear_attention", "full_attention"]
SLIDING_FULL = ["sliding_attention", "full_attention"]


def partial(share: float) -> dict[str, Any]:
    """Rotary embeddings of a part of each head."""
    return {**ROPE, "partial_rotary_factor": share}


# Architectures whose configuration needs nothing more.
PLAIN = [
    "gpt2", "opt", "bloom", "mpt", "codegen", "gptj", "starcoder2", "llama", "mistral", "mixtral",
    "qwen2_moe", "gemma", "olmo", "olmo2", "olmoe", "minimax_m2", "ernie4_5", "ernie4_5_moe",
    "hunyuan_v1_dense", "arcee", "apertus", "bitnet", "phimoe", "diffllama", "helium", "biogpt",
    "gpt_bigcode", "cwm", "seed_oss", "nemotron", "persimmon", "openai-gpt", "solar_open",
    "exaone_moe", "flex_olmo", "hy_v3", "hyperclovax", "jais2", "mimo_v2_flash",
    "hunyuan_v1_moe", "flint", "inkling2_text", "minimax_m3_vl_text", "aria_text",
]
# What others need; None drops what is common.
RECIPES: dict[str, dict[str, Any]] = {name: {} for name in PLAIN} | {
    "falcon": {"rope_parameters": ROPE, "num_kv_heads": 4, "ffn_hidden_size": 64},
    "falcon@alibi": {
        "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True,
        "num_kv_heads": 4, "ffn_hidden_size": 64,
    },
    "falcon@new": {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 64},
    "gpt_neo": {
        "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4,
        "window_size": 6, "intermediate_size": 48,
    },
    "gpt_neox": {"rope_parameters": partial(0.5)},
    "phi": {"rope_parameters": partial(0.5)},
    "phi3": {"original_max_position_embeddings": 128},
    "stablelm": {"rope_parameters": partial(0.5)},
    "ministral3": {
        "rope_parameters": {"type": "yarn", "rope_type": "yarn", "rope_theta": 10000.0,
            "factor": 2.0, "original_max_position_embeddings": 64, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    },
    "ministral": {"layer_types": SLIDING_FULL},
    "qwen2": {"sliding_window": None},
    "qwen2@swa": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 6},
    "qwen3": {"sliding_window": None},
    "qwen3_moe": {"sliding_window": None},
    "qwen3_next": {"layer_types": LINEAR_FULL, "rope_parameters": partial(0.5)},
    "qwen3_5_text": {"layer_types": LINEAR_FULL, "rope_parameters": partial(0.5)},
    "qwen3_5_moe_text": {"layer_types": LINEAR_FULL, "rope_parameters": partial(0.5)},
    "gemma2": {
        "layer_types": SLIDING_FULL, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0,
    },
    "gemma3_text": {"layer_types": SLIDING_FULL},
    "gemma3_text@27b": {"layer_types": SLIDING_FULL, "final_logit_softcapping": 5.0},
    "gemma3n_text": {
        "num_hidden_layers": 4, "intermediate_size": [48] * 4, "layer_types": SLIDING_FULL * 2,
        "num_kv_shared_layers": 2, "vocab_size_per_layer_input": NUM_TOKENS,
        "hidden_size_per_layer_input": 8, "laurel_rank": 4,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0], "final_logit_softcapping": 5.0,
    },
    "gemma4_text": {
        "num_hidden_layers": 4, "layer_types": SLIDING_FULL * 2, "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": NUM_TOKENS, "hidden_size_per_layer_input": 8,
        "use_double_wide_mlp": True,
    },
    "gemma4_text@moe": {
        "num_hidden_layers": 2, "layer_types": SLIDING_FULL,
        "vocab_size_per_layer_input": NUM_TOKENS, "hidden_size_per_layer_input": 0,
        "enable_moe_block": True, "top_k_experts": 2, "attention_k_eq_v": True,
        "final_logit_softcapping": 5.0,
    },
    "vaultgemma": {
        "layer_types": SLIDING_FULL, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0,
    },
    "olmo3": {"layer_types": SLIDING_FULL},
    "olmo_hybrid": {
        "layer_types": LINEAR_FULL, "num_key_value_heads": 4, "linear_num_key_heads": 4,
    },
    "granite": {
        "embedding_multiplier": 2.0, "logits_scaling": 4.0, "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"], "mamba_n_heads": 8,
        "mamba_d_head": 8, "mamba_d_state": 16, "shared_intermediate_size": 16,
        "logits_scaling": 4.0,
    },
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_dt_rank": 4, "mamba_d_state": 8,
    },
    "bamba": {
        "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16,
        "rope_parameters": partial(0.5),
    },
    "falcon_h1": {
        "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 16,
        "lm_head_multiplier": 0.5,
    },
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4, "intermediate_size": 64},
    "mamba": {"state_size": 8, "time_step_rank": 4, "intermediate_size": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 16},
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "num_key_value_heads": 4, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_d_state": 16,
        "attention_hidden_size": 64, "attention_head_dim": 16, "kv_channels": 8,
        "num_query_groups": 4, "hybrid_layer_ids": [1], "head_dim": None, "adapter_rank": 4,
    },
    "zamba": {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4,
        "n_mamba_heads": 2, "num_key_value_heads": 4, "head_dim": None, "attention_hidden_size": 64,
        "attention_head_dim": 16, "mamba_d_state": 8,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 16,
        "moe_shared_expert_intermediate_size": 16, "num_hidden_layers": None,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"],
        "lru_width": 32, "attention_window_size": 8, "num_key_value_heads": 1,
        "rope_parameters": partial(0.5),
    },
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
    "xlstm": {
        "embedding_dim": 32, "num_blocks": 2, "num_heads": 4, "ffn_round_up_to_multiple_of": 16,
        "chunk_size": 16,
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention"], "full_attn_idxs": [1], "block_multiple_of": 16,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "kimi_linear": {
        "layer_types": LINEAR_FULL, "mlp_layer_types": ["dense", "sparse"],
        "num_experts_per_token": 2, "num_key_value_heads": 4, "linear_head_dim": 8,
        "linear_num_heads": 4, "q_lora_rank": None,
    },
    "minimax": {
        "layer_types": ["linear_attention", "full_attention"], "block_size": 8,
        "sliding_window": None,
    },
    "minimax@256": {
        "layer_types": ["linear_attention", "full_attention"], "block_size": 256,
        "sliding_window": None,
    },
    "deepseek_v2": {
        "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": None, "topk_group": None,
        "head_dim": 8,
    },
    "deepseek_v3": {"num_key_value_heads": 4},
    "deepseek_v32": {"num_key_value_heads": 4},
    "glm": {"rope_parameters": partial(0.5)},
    "glm4": {"rope_parameters": partial(0.5)},
    "glm4_moe": {"rope_parameters": partial(0.5)},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "gpt_oss": {
        "layer_types": SLIDING_FULL,
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 64,
            "rope_theta": 10000.0},
    },
    "llama4_text": {
        "num_hidden_layers": 4, "intermediate_size_mlp": 48, "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2, "moe_layers": [1, 3], "attention_chunk_size": 8,
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"], "floor_scale": 8,
    },
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"layer_types": SLIDING_FULL, "logit_scale": 0.5},
    "exaone4": {"layer_types": SLIDING_FULL, "sliding_window_pattern": 2},
    "smollm3": {"no_rope_layers": [1, 0], "sliding_window": None},
    "jetmoe": {"kv_channels": 8},
    "nanochat": {"final_logit_softcapping": 5.0},
    "doge": {"keep_window_size": 128, "sliding_window": None},
    "doge@moe": {"keep_window_size": 128, "sliding_window": None, "is_moe": True, "num_experts": 4},
    "modernbert-decoder": {
        "layer_types": ["full_attention", "sliding_attention"], "local_attention": 8,
        "sliding_window": 4,
    },
    "xglm": {"num_layers": 2, "attention_heads": 4},
    "ctrl": {"dff": 48},
    "granitemoeshared": {"shared_intermediate_size": 16},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"], "hc_count": 2, "hc_lowrank": 4,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 2, "ple_embed_dim": 16, "ngram_vocab_size_base": 50,
        "heads_per_ngram": 2, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 2,
    },
    "deepseek_v4": {
        "num_hidden_layers": 3, "num_key_value_heads": 1,
        "layer_types": ["sliding_attention", "compressed_sparse_attention",
            "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "hc_mult": 2, "mlp_layer_types": ["hash_moe", "moe", "moe"], "o_groups": 2,
        "o_lora_rank": 8, "head_dim": 16, "qk_rope_head_dim": 8, "partial_rotary_factor": 0.5,
        "rope_parameters": {"main": partial(0.5), "compress": {**partial(0.5),
            "rope_theta": 20000.0}}, "num_nextn_predict_layers": 0,
    },
    "lfm3": {
        "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "sliding_attention"],
        "conv_L_cache": 3,
    },
    "hy_v4": {
        "num_hidden_layers": 3, "num_key_value_heads": 4, "layer_types": ["indexed_attention"] * 3,
        "indexer_types": ["full", "full", "shared"],
        "mlp_layer_types": ["dense", "sparse", "sparse"], "hc_mult": 2,
    },
    "inkling_text": {
        "num_hidden_layers": 2, "layer_types": ["hybrid_sliding", "hybrid"],
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
        "sliding_window_size": 6, "d_rel": 4, "rel_extent": 32,
        "mlp_layer_types": ["dense", "sparse"], "n_shared_experts": 1,
        "logits_mup_width_multiplier": 2.0, "local_layer_ids": [0],
    },
    "kolibri1": {"layer_types": SLIDING_FULL},
    "laguna": {
        "layer_types": ["full_attention", "sliding_attention"],
        "num_attention_heads_per_layer": [4, 4], "mlp_layer_types": ["dense", "sparse"],
        "rope_parameters": {"full_attention": partial(0.5), "sliding_attention": ROPE},
    },
    "zaya": {
        "layer_types": ["hybrid", "hybrid"], "num_hidden_layers": 2, "router_hidden_size": 8,
        "sliding_window": None, "num_experts_per_tok": 1,
    },
    "hrm_text": {
        "num_hidden_layers": None, "num_layers_per_stack": 1, "prefix_lm": False,
        "embedding_scale": 2.0, "H_cycles": 2, "L_cycles": 2, "L_bp_cycles": [2],
    },
    "hrm_text@prefix": {
        "num_hidden_layers": None, "num_layers_per_stack": 1, "embedding_scale": 2.0, "H_cycles": 2,
        "L_cycles": 2, "L_bp_cycles": [2],
    },
    "axk2": {
        "num_key_value_heads": 4, "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["indexed_attention"] * 2, "gated_norm_rank": 4,
    },
    "axk1": {"num_key_value_heads": 4},
    "granite_swa": {
        "layer_types": ["full_attention", "sliding_attention"],
        "layer_rope_theta": [10000.0, 20000.0], "logits_scaling": 4.0,
    },
    "granitemoe_swa": {
        "layer_types": ["full_attention", "sliding_attention"],
        "layer_rope_theta": [10000.0, 20000.0],
    },
    "glm_moe_dsa": {
        "num_hidden_layers": 3, "num_key_value_heads": 4,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "indexer_types": ["full", "full", "shared"], "layer_types": ["indexed_attention"] * 3,
    },
    "minicpm3": {"num_key_value_heads": 4, "scale_emb": 2, "dim_model_base": 16},
    "mellum": {
        "layer_types": ["full_attention", "sliding_attention"],
        "mlp_layer_types": ["sparse", "sparse"],
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
    },
    "afmoe": {"layer_types": SLIDING_FULL},
    "youtu": {"num_key_value_heads": 4},
    "cohere2_moe": {"layer_types": SLIDING_FULL, "logit_scale": 1.0},
}
# fmt: on


def config_of(name: str) -> Any:
    """The configuration of a small model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name.partition("@")[0]]
    known = kind().to_dict()
    given = {key: value for key, value in COMMON.items() if key in known} | RECIPES[name]
    for key, value in RECIPES[name].items():
        if value is None and key in ("head_dim", "num_hidden_layers"):
            given.pop(key)  # follows from the others
    given |= {"vocab_size": NUM_TOKENS, "bos_token_id": VOCABULARY.index(BOS)}
    given |= {"eos_token_id": EOS_ID}
    given["pad_token_id"] = PAD_ID if isinstance(known.get("pad_token_id"), int) else None
    if "eod_token_id" in known:
        given["eod_token_id"] = EOS_ID
    return kind(**given)


@torch.no_grad()
def randomise(model: Any, seed: int = 0) -> Any:
    """Give each weight, also what an architecture starts at 0, a size that is felt."""
    stream = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter += 0.1 * torch.randn(parameter.shape, generator=stream)
        elif float(parameter.std()) < 0.15 and parameter.shape[-1] > 1:
            scale = 0.2 if parameter.shape[-1] <= 64 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=stream))
    return model


def build(name: str, seed: int = 0) -> Any:
    """A random model in float32."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_of(name)).float()
    return randomise(model, seed).eval()


def save(name: str, folder: Path) -> Path:
    """Write a model and a tokenizer of letters."""
    build(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
