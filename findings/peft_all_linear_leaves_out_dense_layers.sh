#!/bin/sh
# Shows that "all-linear" of peft 0.21.2 gives dense layers and shared experts of DeepSeek-V3 no adapter.
#
# In the models that transformers 5.23.0 converts as Qwen2-MoE (DeepSeek, GLM-4-MoE, Qwen3-MoE ...) peft turns the names
# gate_proj, up_proj and down_proj into the experts' parameters, wherever they stand. The linear layers of that name, of
# the dense first layers and of the shared experts, are then targeted by nothing, and nothing is said.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 peft==0.21.2
cat > "$folder/finding.py" <<'END'
import torch
from peft import LoraConfig, get_peft_model
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

torch.manual_seed(0)
model = DeepseekV3ForCausalLM(
    DeepseekV3Config(
        vocab_size=32, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, v_head_dim=8,
        qk_nope_head_dim=8,
    )
)
linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
adapted = {n.partition(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}
adapted = {n.removeprefix("base_model.model.") for n in adapted}
left_out = sorted(linear - adapted)
print("linear layers without an adapter under all-linear:")
print(*left_out, sep="\n")
assert left_out == sorted(
    f"model.layers.{where}.{name}_proj"
    for where in ("0.mlp", "1.mlp.shared_experts")
    for name in ("gate", "up", "down")
), "other layers are left out than before"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
