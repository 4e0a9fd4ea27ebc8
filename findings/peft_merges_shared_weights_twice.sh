#!/bin/sh
# Shows that peft 0.21.2 merges the adapters of two layers of Zamba into the one weight that both share.
#
# Two layers of Zamba (transformers 5.23.0) have their own adapters on one shared weight. `merge_and_unload` adds both
# adapters to it, without a word, and the merged model is another one.
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
from transformers import ZambaConfig, ZambaForCausalLM

torch.manual_seed(0)
model = ZambaForCausalLM(
    ZambaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, attention_hidden_size=64, attention_head_dim=16, mamba_d_state=8, mamba_dt_rank=4,
        n_mamba_heads=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
    )
)
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(std=0.3)
        elif parameter.ndim == 2:
            parameter.normal_(std=0.2)
tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])


@torch.no_grad()
def law(model):
    return model.eval()(input_ids=tokens).logits.log_softmax(-1)


layers = [m for n, m in model.named_modules() if n.endswith("q_proj")]
apart = law(model)
gap = float((law(model.merge_and_unload()) - apart).abs().max())
print(f"{len(layers)} layers with adapters, {len({id(m.base_layer.weight) for m in layers})} weight")
print(f"merging them moves log-probabilities by {gap:.4f}")
assert len(layers) == 2
assert gap > 1e-3, "peft keeps the layers apart, or refuses, now"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
