#!/bin/sh
# Shows that a mixed call that raises leaves peft 0.21.2's hooks behind, so that later plain calls raise too.
#
# `adapter_names` is handed to the layers by forward hooks, which are removed behind the call but not in a `finally`.
# Any exception in the call keeps them, such as that of an adapter on experts (`target_parameters`).
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
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

torch.manual_seed(0)
model = Qwen3MoeForCausalLM(
    Qwen3MoeConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    )
)
config = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["experts.down_proj"])
model = get_peft_model(model, config, adapter_name="first").eval()
rows = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def call(rows, **kwargs):
    try:
        model(input_ids=rows, **kwargs)
    except ValueError as error:
        return f"ValueError: {error}"
    return "fine"


before = call(rows[:1])
mixed = call(rows, adapter_names=["first", "first"])
after = call(rows[:1])
print("a plain call:          ", before)
print("a mixed call:          ", mixed)
print("the plain call again:  ", after)
assert before == "fine"
assert mixed.startswith("ValueError"), "mixed calls of adapters on experts work now: raise another way"
assert "adapter_names" in after, "peft takes its hooks back after an exception now"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
