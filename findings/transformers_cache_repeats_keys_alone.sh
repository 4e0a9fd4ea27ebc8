#!/bin/sh
# Shows that `batch_repeat_interleave` of transformers 5.23.0 repeats keys and values, and no recurrent state.
#
# The layers of Falcon-H1 hold both, in one cache layer. After `cache.batch_repeat_interleave(3)` the keys have three
# rows for each, the recurrent and the convolution's state one; layers of linear attention alone lack the method.
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
from transformers import DynamicCache, FalconH1Config, FalconH1ForCausalLM

torch.manual_seed(0)
model = FalconH1ForCausalLM(
    FalconH1Config(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=16,
        mamba_chunk_size=8,
    )
).eval()
cache = DynamicCache(config=model.config)
with torch.no_grad():
    model(input_ids=torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), past_key_values=cache, use_cache=True)


def rows():
    layer = cache.layers[0]
    tensors = {n: value for n, value in vars(layer).items() if torch.is_tensor(value) and value.ndim > 1}
    for name in ("conv_states", "recurrent_states"):
        value = getattr(layer, name, None)
        tensors |= {f"{name}[{k}]": v for k, v in value.items()} if isinstance(value, dict) else {}
    return {name: len(value) for name, value in tensors.items()}


before = rows()
cache.batch_repeat_interleave(3)
after = rows()
print("rows before:", before)
print("rows after: ", after)
assert set(before.values()) == {2}
assert after["keys"] == after["values"] == 6
assert any(count == 2 for count in after.values()), "the recurrent state is repeated too now"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
