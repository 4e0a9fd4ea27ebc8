#!/bin/sh
# Shows that peft 0.21.2 warns that a `rank_pattern` of experts' parameters was ignored, though it is used.
#
# "all-linear" on Qwen3-MoE doubles the rank of the experts' `gate_up_proj` by a pattern of peft's own. The warning
# looks for patterns among modules alone, and says that this one matched nothing.
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
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

torch.manual_seed(0)
model = Qwen3MoeForCausalLM(
    Qwen3MoeConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    )
)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
said = [str(w.message) for w in said if "rank_pattern" in str(w.message)]
ranks = {m.parameter_name: m.r["default"] for m in model.modules() if type(m).__name__ == "ParamWrapper"}
print(*said, sep="\n")
print("ranks in use:", ranks)
assert ranks["gate_up_proj"] == 8
assert said and "were ignored" in said[0], "peft does not warn of it any more"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
