#!/bin/sh
# Shows that an adapter of peft 0.21.2 on Jamba's dt_proj does nothing until it is merged, and then changes the model.
#
# Jamba (and Mamba, FalconMamba) of transformers 5.23.0 reads the layer's weight without calling the layer, so that the
# adapter has no gradient and no effect; "all-linear" puts one there. `merge_and_unload` adds it to the weight.
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
from transformers import JambaConfig, JambaForCausalLM

torch.manual_seed(0)
model = JambaForCausalLM(
    JambaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, num_experts=1, mamba_dt_rank=4,
        mamba_d_state=8, use_mamba_kernels=False, initializer_range=0.3,
    )
)
tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])


@torch.no_grad()
def law(model):
    return model.eval()(input_ids=tokens).logits.log_softmax(-1)


base = law(model)
model = get_peft_model(model, LoraConfig(r=4, target_modules=["dt_proj"], init_lora_weights=False))
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_()
apart = law(model)
trained = [p for p in model.parameters() if p.requires_grad]
requires = model(input_ids=tokens).logits.requires_grad
merged = law(model.merge_and_unload())
print(f"{len(trained)} adapter tensors are to be trained; the logits require a gradient: {requires}")
print(f"the adapter moves log-probabilities by {float((apart - base).abs().max()):.4f}")
print(f"merged it moves them by {float((merged - base).abs().max()):.4f}")
assert trained and not requires, "the layer is called now"
assert torch.allclose(apart, base, atol=1e-5)
assert not torch.allclose(merged, base, atol=1e-3)
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
