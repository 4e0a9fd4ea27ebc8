#!/bin/sh
# Shows that peft 0.21.2 gives all rows of a mixed call the active adapter where the model is transformers' MPT.
#
# `model(input_ids, adapter_names=[...])` is documented to play another adapter in each row. `PeftModelForCausalLM` has
# a path of its own for MPT (transformers 5.23.0), on which the argument has no effect, and nothing is said.
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
from transformers import LlamaConfig, LlamaForCausalLM, MptConfig, MptForCausalLM

torch.manual_seed(0)
ROWS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@torch.no_grad()
def gap(model):
    """Largest difference between a mixed call and one call for each adapter."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config, adapter_name="first").eval()
    model.add_adapter("second", config)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    mixed = model(input_ids=ROWS, adapter_names=["first", "second"]).logits
    alone = []
    for row, name in zip(ROWS, ["first", "second"]):
        model.set_adapter(name)
        alone.append(model(input_ids=row[None]).logits[0])
    return [float((a - b).abs().max()) for a, b in zip(mixed, alone)]


size = dict(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
llama = gap(LlamaForCausalLM(LlamaConfig(**size)))
mpt = gap(MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=32, max_seq_len=64)))
print(f"Llama, mixed call against calls alone, row by row: {llama[0]:.6f} {llama[1]:.6f}")
print(f"MPT,   mixed call against calls alone, row by row: {mpt[0]:.6f} {mpt[1]:.6f}")
assert max(llama) < 1e-4, "a mixed call on Llama is not what it was"
assert max(mpt) > 1e-2, "peft plays each row's own adapter on MPT now"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
