"""The files of configs/hardware go with every experiment; the arithmetic of their page is right."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from paths import CONFIGS, ROOT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from nlhf_zoo.cli.main import main
from project.test_configs import leaves, read

HARDWARE = sorted((CONFIGS / "hardware").glob("*.yaml"))
LM = sorted((CONFIGS / "lm").rglob("*.yaml"))
BY_DEFAULT = CONFIGS / "lm/gemma2_2b/egpo.yaml"
PAIRS = [
    pytest.param(lm, hardware, id=f"{lm.parent.name}-{lm.stem}-{hardware.stem}",
                 marks=[] if lm == BY_DEFAULT else [pytest.mark.slow])
    for lm in LM for hardware in HARDWARE
]  # fmt: skip


@pytest.mark.parametrize(("lm", "hardware"), PAIRS)
def test_hardware_is_stacked_on_an_experiment(lm: Path, hardware: Path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(lm), "--config", str(hardware), "--print_config"])
    assert not end.value.code
    printed = dict(leaves(yaml.safe_load(capsys.readouterr().out)))
    wanted = dict(leaves(read(lm))) | dict(leaves(read(hardware)))
    for at, value in wanted.items():
        if not at.endswith("/class_path"):
            assert printed[at] == value, at


@pytest.mark.parametrize("hardware", HARDWARE, ids=lambda path: path.stem)
def test_a_file_says_how_it_is_run_and_keeps_the_batch(hardware: Path):
    assert f"--config configs/hardware/{hardware.name}" in hardware.read_text().split("trainer:")[0]
    options = read(hardware)["trainer"]
    assert f"`{hardware.name}`" in (ROOT / "docs/devices.md").read_text()
    if (accumulated := options.get("accumulate_grad_batches")) is not None:
        assert 4 * accumulated * options["devices"] * options.get("num_nodes", 1) == 64


# The arithmetic ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "docs" / "devices.py"
    spec = importlib.util.spec_from_file_location("devices_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_of_its_script(script):
    assert script.page() == (ROOT / "docs/devices.md").read_text()


def config(shape: Any, **options: Any) -> PretrainedConfig:
    make = Qwen2Config if shape.biases else LlamaConfig
    return make(
        hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        vocab_size=shape.vocabulary, tie_word_embeddings=shape.tied, **options,
    )  # fmt: skip


# As their makers state them: 0.494, 7.616 and 70.554 billion.
NUMBERS = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Llama-3.1-70B": 70_553_706_496,
}


def test_parameters_are_those_of_the_models(script):
    assert {shape.name: shape.parameters for shape in script.SHAPES} == NUMBERS
    shape = script.SHAPES[0]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(shape))
        adapted = get_peft_model(model, LoraConfig(r=script.RANK, target_modules="all-linear"))
    counts = [sum(p.numel() for n, p in adapted.named_parameters() if ("lora_" in n) is is_adapter)
              for is_adapter in (False, True)]  # fmt: skip
    assert counts == [shape.parameters, shape.adapter(script.RANK)]


@pytest.mark.parametrize("rank", [4, None], ids=["lora", "all weights"])
@pytest.mark.parametrize("sizes", [(64, 176, 4, 2), (96, 112, 6, 6)], ids=["grouped", "each"])
def test_activations_are_what_a_layer_keeps(script, rank: int | None, sizes: tuple[int, ...]):
    """The growth of what autograd keeps by a layer and by a token; norms keep no more of these."""
    hidden, inner, heads, key_heads = sizes
    held = {}
    for layers in (1, 2):
        shape = script.Shape("", hidden, inner, layers, heads, key_heads, 32, False, False)
        model = AutoModelForCausalLM.from_config(config(shape, attn_implementation="sdpa"))
        body = model.model
        if rank is not None:
            model = model.to(torch.bfloat16)
            adapted = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
            body = adapted.base_model.model.model
        for tokens in (32, 64):
            held[layers, tokens] = kept(body, tokens)
    growth = (held[2, 64] - held[1, 64]) - (held[2, 32] - held[1, 32])
    assert growth == 32 * shape.activations_of_token(rank)


def kept(body: torch.nn.Module, tokens: int) -> int:
    """Bytes that a pass keeps for its backward, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in body.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prompt = body.embed_tokens(torch.zeros(1, tokens, dtype=torch.long))
        output = body(inputs_embeds=prompt.detach().requires_grad_(), use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in storages.values())
