#!/bin/sh
# Shows that the opponent of Nash-MD in trl 1.13.0 is the policy itself where the policy is an adapter.
#
# `mixture_coef` is the weight of the reference in the opponent's logits. Without a reference model of its own the
# trainer takes `get_base_model()` of peft for it, which is the model with the adapter's layers in it, and they are on.
# The KL term, whose reference has `disable_adapter()` around it, is another one. The trainer has left with 1.14.0.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet trl==1.13.0 transformers==5.12.1 peft==0.21.2 requests
cat > "$folder/finding.py" <<'END'
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.nash_md import NashMDConfig, NashMDTrainer, nash_md_trainer

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
made = []


class Kept(nash_md_trainer.GeometricMixtureWrapper):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        made.append(self)


nash_md_trainer.GeometricMixtureWrapper = Kept
reward = LlamaForSequenceClassification(config)
reward.config.num_labels = 1
reward.score = torch.nn.Linear(16, 1, bias=False)
trainer = NashMDTrainer(
    model=LlamaForCausalLM(config), reward_funcs=reward, processing_class=tokenizer, train_dataset=data,
    args=NashMDConfig(mixture_coef=1.0, max_steps=1, gradient_checkpointing=False, learning_rate=0.0, **common),
    peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]),
)
with torch.no_grad():
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(generator=torch.Generator().manual_seed(1))
trainer.train()
rows = torch.tensor([[1, 4, 5]])
with torch.no_grad():
    opponent = made[0].forward(rows).logits
    policy = trainer.model(rows).logits.log_softmax(-1)
    with trainer.model.disable_adapter():
        reference = trainer.model(rows).logits.log_softmax(-1)
to_policy, to_reference = ((opponent - other).abs().max().item() for other in (policy, reference))
print("mixture_coef 1, so that the opponent is the reference")
print("its distance from the policy:   ", to_policy)
print("its distance from the reference:", to_reference)
assert to_policy < 1e-4, "the opponent is another than the policy now"
assert to_reference > 0.1
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
