"""What the tests with vLLM itself share: one engine, and models whose heads its CPU kernels take.

`make test-vllm` runs them, in an environment of their own.
"""

import os

import language_models
import pytest
import tiny_models

from nlhf_zoo.oracles import SmallLanguage
from nlhf_zoo.policies import LoRA, SmallLanguageModel, VLLMGenerator

SHAPE = {"head_dim": 32, "max_position_embeddings": 512}  # vLLM's CPU attention takes no 8
ENGINE = {"enforce_eager": True, "max_num_seqs": 128, "max_model_len": 512}


@pytest.fixture(scope="session", autouse=True)
def vllm():
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    pytest.importorskip("vllm")


@pytest.fixture(scope="session")
def folder():
    return tiny_models.save_tiny(language_models.new_folder() / "llama", "llama", **SHAPE)


@pytest.fixture(scope="session")
def policy(folder):
    """Policy, anchor and reference of a tiny Llama, all different."""
    generator = VLLMGenerator(engine_args=ENGINE)
    policy = tiny_models.make_policy(folder, generator=generator, max_new_tokens=8)
    assert policy.capabilities.drawing_gap < 1e-4  # which starts the engine
    yield policy
    generator.close()


@pytest.fixture(scope="session")
def small():
    """The small language, whose 512 words can be listed."""
    generator = VLLMGenerator(engine_args={"enforce_eager": True, "max_num_seqs": 128})
    oracle = SmallLanguage()
    policy = tiny_models.make_policy(
        SmallLanguageModel(hidden_size=128), max_new_tokens=3, names=oracle.action_names,
        lora=LoRA(r=4, alpha=8, rslora=True), generator=generator,
    )  # fmt: skip
    tiny_models.scatter_adapters(policy, 0.2)
    yield policy
    generator.close()
