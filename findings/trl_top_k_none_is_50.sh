#!/bin/sh
# Shows that top_k=None of OnlineDPOConfig, "all tokens" in its documentation, draws from the 50 likeliest in trl 1.16.0.
#
# The trainer leaves None out of its generation configuration, and `generate` of transformers fills in 50. It was the
# default from 0.23 to 0.26; 0 is all tokens. A reward of None likewise is no missing one, but 0.
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

SIZE = 200
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


def nothing(completions, **columns):
    return [None for _ in completions]


def trainer_of(top_k):
    return OnlineDPOTrainer(
        model=LlamaForCausalLM(config), reward_funcs=nothing, processing_class=tokenizer, train_dataset=data,
        args=OnlineDPOConfig(top_k=top_k, temperature=100.0, max_steps=1, gradient_checkpointing=False, **common),
    )


def different(top_k):
    """Different tokens in first place among 4000 responses to a prompt, at a temperature that is nearly uniform."""
    trainer = trainer_of(top_k)
    rows = torch.tensor([[1, 4, 5]]).expand(4000, -1)
    drawn = trainer.model.generate(rows, attention_mask=torch.ones_like(rows), generation_config=trainer.generation_config)
    return drawn[:, 3].unique().numel()


none, zero = different(None), different(0)
print("different tokens of 200 with top_k=None:", none)
print("different tokens of 200 with top_k=0:   ", zero)
given = {"prompts": ["w1"], "completions": ["w2"], "completion_ids_list": [[5]]}
rewards = trainer_of(0)._calculate_rewards_from_functions(**given).tolist()
print("rewards where the function has none:", rewards)
assert none == 50 and zero > 190, "None is all tokens now"
assert rewards == [0.0], "a missing reward is none now"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
