#!/bin/sh
# Shows that Gemma 3 with images of transformers 5.23.0 leaves out the final soft cap of its text configuration.
#
# `Gemma3ForCausalLM` caps its logits by `final_logit_softcapping`; `Gemma3ForConditionalGeneration`, with the same text
# configuration, does not. Gemma 3n and Gemma 4 with images do.
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
from transformers import (
    Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig,
)

CAP = 0.5
text = Gemma3TextConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, initializer_range=0.5, final_logit_softcapping=CAP,
)
vision = SiglipVisionConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
)
torch.manual_seed(0)
alone = Gemma3ForCausalLM(text).eval()
images = Gemma3ForConditionalGeneration(
    Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=63)
).eval()
tokens = torch.tensor([[5, 6, 7, 8]])
with torch.no_grad():
    largest = [float(model(input_ids=tokens).logits.abs().max()) for model in (alone, images)]
print(f"largest logit under a cap of {CAP}: Gemma3ForCausalLM {largest[0]:.3f}, with images {largest[1]:.3f}")
assert largest[0] <= CAP
assert largest[1] > CAP, "the cap is applied with images too now"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
