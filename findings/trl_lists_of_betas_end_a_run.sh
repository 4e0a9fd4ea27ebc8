#!/bin/sh
# Shows that a list of betas, one for each epoch as documented, ends a run of trl 1.16.0 with a TypeError.
#
# The entry is taken by `self.state.epoch`, which is a float from the first step on. `alpha` of XPOConfig and
# `mixture_coef` of NashMDConfig were taken likewise, as long as they were there.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet trl==1.16.0 transformers==5.12.1 peft==0.21.2 requests
cat > "$folder/finding.py" <<'END'
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

SIZE = 32
vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n + 3 for n in range(SIZE - 3)}}
words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=SIZE, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5,
)
data = Dataset.from_dict({"prompt": ["w1 w2", "w3", "w4 w5", "w6"]})
common = {
    "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "report_to": "none", "max_new_tokens": 4,
    "per_device_train_batch_size": 2, "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
}


def rewards(completions, **columns):
    return [float(len(text)) for text in completions]


def run(beta):
    trainer = OnlineDPOTrainer(
        model=LlamaForCausalLM(config), reward_funcs=rewards, processing_class=tokenizer, train_dataset=data,
        args=OnlineDPOConfig(beta=beta, num_train_epochs=2, gradient_checkpointing=False, **common),
    )
    try:
        trainer.train()
    except TypeError as error:
        return f"TypeError after {trainer.state.global_step} steps: {error}"
    return f"{trainer.state.global_step} steps"


number, numbers = run([0.1]), run([0.1, 0.05])
print("beta=[0.1]:      ", number)
print("beta=[0.1, 0.05]:", numbers)
assert number == "4 steps"
assert numbers.startswith("TypeError"), "a list has its meaning now"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
