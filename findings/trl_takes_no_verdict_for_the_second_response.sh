#!/bin/sh
# Shows that judges of trl 1.0.0 turn an answer that is no verdict into "the second response is better".
#
# HfPairwiseJudge says -1 where the model said neither 0 nor 1. It shuffles the two responses, and gives an answer back
# as 1 - rank where it did: a shuffled -1 is a 2. OnlineDPOTrainer then takes every rank but 0 for the second response.
# The judges have left with 1.1.0.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet trl==1.0.0 transformers==5.12.1 peft==0.21.2 requests
cat > "$folder/finding.py" <<'END'
import tempfile
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.judges import HfPairwiseJudge
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


class Refuses:
    """A client whose model never gives a verdict."""

    def chat_completion(self, messages, max_tokens):
        message = SimpleNamespace(content="I cannot say")
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])


np.random.seed(0)
judge = HfPairwiseJudge("nobody")
judge.client = Refuses()
ranks = judge.judge(["a prompt"] * 8, [["first", "second"]] * 8)
print("ranks of a judge without verdicts:", ranks)
assert -1 in ranks and 2 in ranks, "a shuffled -1 stays one now"


def loss(rank):
    class Says:
        def judge(self, prompts, completions):
            return [rank] * len(prompts)

    torch.manual_seed(1)
    trainer = OnlineDPOTrainer(
        model=LlamaForCausalLM(config), judge=Says(), processing_class=tokenizer, train_dataset=data,
        args=OnlineDPOConfig(max_steps=1, gradient_checkpointing=False, learning_rate=0.1, **common),
    )
    with torch.no_grad():
        for parameter in trainer.ref_model.parameters():
            parameter.mul_(0.5)  # so that policy and reference differ
    return trainer.train().training_loss


found = {rank: loss(rank) for rank in (0, 1, -1, 2)}
print("loss of a step by rank:", found)
assert found[-1] == found[2] == found[1] != found[0], "the trainer tells an answer that is none from a verdict now"
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
