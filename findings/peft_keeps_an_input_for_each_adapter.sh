#!/bin/sh
# Shows that each adapted layer of a bfloat16 model keeps a float32 copy of its own of its input (peft 0.21.2).
#
# Adapters are float32 by default (autocast_adapter_dtype), so each casts what comes in, and the backward keeps the
# result: q, k and v of one hidden state keep it three times, at twice the size that the model itself keeps it in.
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
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.arange(16)[None]


def copies(targets, autocast):
    """How many float32 copies of one bfloat16 hidden state the backward is kept for."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=targets), autocast_adapter_dtype=autocast)
    hidden, kept = [], {}
    attention = next(m for m in model.modules() if type(m).__name__ == "LlamaAttention")
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: hidden.append(kwargs["hidden_states"]), with_kwargs=True
    )

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids).logits
    wanted = hidden[0].detach().float().flatten()
    return sum(
        t.dtype == torch.float32 and t.numel() == wanted.numel() and torch.equal(t.detach().flatten(), wanted)
        for t in kept.values()
    )


seen = {}
for targets in (["q_proj"], ["q_proj", "k_proj"], ["q_proj", "k_proj", "v_proj"]):
    for autocast in (True, False):
        seen[len(targets), autocast] = copies(targets, autocast)
        print(f"{', '.join(targets)}; autocast_adapter_dtype={autocast}: {seen[len(targets), autocast]} float32 copies")
assert [seen[n, True] for n in (1, 2, 3)] == [1, 2, 3]
assert [seen[n, False] for n in (1, 2, 3)] == [0, 0, 0]
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
