"""A base that is loaded in the type of its files is mapped from them, and not copied."""

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch

from nlhf_zoo.policies import LoRA
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy

MIB = 2**20


def own_memory() -> int:
    """Bytes of this process that no file holds."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (kib,) = [row.split()[1] for row in rows if row.startswith("Anonymous:")]
    return int(kib) * 1024


def save(folder: Path) -> int:
    """A model of one large layer of words, and what its weights take in bytes."""
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    words = {str(number): number for number in range(2**17)}
    sizes = {"hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 1}
    config = AutoConfig.for_model("llama", vocab_size=len(words), num_attention_heads=4, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="1", pad_token="2")
    fast.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def grown(folder: Path, lora: LoRA | None) -> int:
    """What a process of its own takes for itself when it loads a policy, behind a first one."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_grown, (folder, lora))


def _grown(folder: Path, lora: LoRA | None) -> int:
    kept = []
    for _ in range(2):  # the first one has the libraries imported
        before = own_memory()
        policy = CausalLMPolicy(str(folder), lora)
        policy.bind((), None)
        kept.append(policy)
        found = own_memory() - before
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_base_in_the_type_of_its_files_is_not_copied(tmp_path):
    size = save(tmp_path)
    assert size > 250 * MIB
    assert grown(tmp_path, LoRA(r=4)) < 0.5 * size
