"""A training script as people have it; it is read by a test, and would leave a file if it ran."""

import os
from pathlib import Path

from datasets import load_dataset
from my_rewards import brevity
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import NashMDConfig, NashMDTrainer

Path("it-was-run").touch()

NAME = "MODEL_FOLDER"
BETA = 0.2
RATE = float(os.environ["RATE"])
targets = ["q_proj"]
targets.append("v_proj")


def politeness(completions, **columns):
    return [float("please" in text) for text in completions]


if __name__ == "__main__":
    model = AutoModelForCausalLM.from_pretrained(NAME, torch_dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(NAME)
    training_args = NashMDConfig(
        output_dir="runs",
        per_device_train_batch_size=3,
        max_steps=1,
        beta=BETA,
        learning_rate=RATE,
        mixture_coef=[0.125],
        max_new_tokens=4,
        temperature=1.0,
        top_k=0,
        bf16=False,
        gradient_checkpointing=False,
        hub_token="hf_secret",
        **{"seed": 3},
    )
    training_args.lr_scheduler_type = "constant"
    trainer = NashMDTrainer(
        model=model,
        args=training_args,
        reward_funcs=[brevity, politeness],
        train_dataset=load_dataset("prompts.jsonl", split="train"),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"),
    )
    trainer.train()
