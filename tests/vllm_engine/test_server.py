"""vLLM's own server behind the interface, with a key, and with leave to load adapters."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import language_models as lm
import pytest
import tiny_models
import torch

from nlhf_zoo.policies import LoRA, VLLMServerGenerator

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

KEY = "sk-0123456789abcdef"
RANK = 8


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """Its address and the file of its messages."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = tmp_path_factory.mktemp("server") / "messages.txt"
    environment = os.environ | {"VLLM_API_KEY": KEY, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "512", "--max-num-seqs", "64", "--enable-lora",
        "--max-lora-rank", str(RANK), "--max-loras", "3", "--generation-config", "vllm",
    ]  # fmt: skip
    with place.open("w") as messages:
        process = subprocess.Popen(command, env=environment, stdout=messages, stderr=messages)
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", place)
            yield f"http://127.0.0.1:{port}/v1", place
        finally:
            process.terminate()
            process.wait(60)


def _wait(process, url, place):
    for _ in range(600):
        assert process.poll() is None, place.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(place.read_text()[-2000:])


@pytest.fixture(scope="module")
def served(server, folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_KEY", KEY)
        place = tmp_path_factory.mktemp("adapters")
        generator = VLLMServerGenerator(server[0], str(place), api_key_env="TINY_KEY")
        yield tiny_models.make_policy(folder, generator=generator, max_new_tokens=8)
        generator.close()


def test_a_server_draws_what_is_scored(served):
    assert served.capabilities.drawing_gap < 1e-4
    for player in served.players:
        prompts, responses = lm.drawn(served, {player: 1.0}, num=4)
        lm.assert_generator_agrees(served, {player: 1.0}, prompts, responses)


def test_min_new_tokens_are_in_the_law(served, folder):
    late = tiny_models.make_policy(
        folder, generator=served.generator, max_new_tokens=8, min_new_tokens=5
    )
    prompts, responses = lm.drawn(late, lm.POLICY, num=4)
    lm.assert_generator_agrees(late, lm.POLICY, prompts, responses)
    assert responses.mask.sum(-1).min() >= 5


def test_versions_are_loaded_and_dropped(served, server):
    generator = served.generator
    with torch.no_grad():
        for number in range(20):
            for parameter in served.trained_parameters().values():
                parameter.mul_(0.97)
            prompts, responses = lm.drawn(served, lm.POLICY, num=2, seed=number)
            lm.assert_generator_agrees(served, lm.POLICY, prompts, responses)
    names = {one["id"] for one in generator._ask("models", None).content["data"]}
    held = {version.name for version in generator._versions.held}
    assert {name for name in names if name.startswith("nlhf-")} == held
    assert len(held) <= len(served.players)
    assert {path.name for path in generator._versions._root.iterdir()} == held


def test_a_rank_that_the_server_does_not_take_is_refused(server, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_KEY", KEY)
    generator = VLLMServerGenerator(server[0], str(tmp_path), api_key_env="TINY_KEY")
    large = tiny_models.make_policy(folder, generator=generator, lora=LoRA(r=RANK + 1))
    lm.refused("LoRA rank 9 is greater than max_lora_rank 8", lambda: large.capabilities)


def test_the_key_is_in_no_message(served, server):
    lm.drawn(served, lm.POLICY, num=1)
    assert KEY not in server[1].read_text()
    assert KEY not in repr(vars(served.generator))
