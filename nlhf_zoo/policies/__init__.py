"""Policies and the distributions that they start from."""

from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.finite import MLPPolicy, TabularPolicy
from nlhf_zoo.policies.language_model.decoding.generator import NativeGenerator
from nlhf_zoo.policies.language_model.generation import Generator, TransformersGenerator
from nlhf_zoo.policies.language_model.players import LoRA
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.policies.language_model.sources import ModelSource, Pretrained, SmallLanguageModel
from nlhf_zoo.policies.language_model.vllm.generator import VLLMGenerator
from nlhf_zoo.policies.language_model.vllm.server import VLLMServerGenerator
from nlhf_zoo.policies.reference import (
    FileReference,
    GivenReference,
    NormalReference,
    Reference,
    UniformReference,
)

__all__ = [
    "CausalLMPolicy",
    "FileReference",
    "Generator",
    "GivenReference",
    "LoRA",
    "MLPPolicy",
    "ModelSource",
    "NativeGenerator",
    "NormalReference",
    "Policy",
    "Pretrained",
    "Reference",
    "SmallLanguageModel",
    "TabularPolicy",
    "TransformersGenerator",
    "UniformReference",
    "VLLMGenerator",
    "VLLMServerGenerator",
]
