"""A judge behind the real `transformers serve`; it needs the extra `transformers[serving]`."""

import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from nlhf_zoo.oracles import JudgeOracle
from nlhf_zoo.oracles.judge.prompt import render
from nlhf_zoo.oracles.text_oracle import Question

SAID = [{"role": "user", "content": "Which?"}]
ASKED = [Question(SAID, "to be", "not to be"), Question(SAID, "Four.", "Seven.")]
# How transformers 5.23 puts the two options behind what it is given.
OPTIONS = """

A. A: Response A is the better answer.
B. B: Response B is the better answer.
Answer with the letter of the option that fits best (A to B) only."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A tiny model of random weights, and its address."""
    for library in ("fastapi", "uvicorn"):
        pytest.importorskip(library, reason="needs the extra transformers[serving]")
    folder = tmp_path_factory.mktemp("served")
    save_of_bytes(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    with subprocess.Popen(
        command, env={**os.environ, **offline}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            while server.poll() is None and not answers(url):
                time.sleep(0.5)
            yield f"{url}/v1", folder / "model"
        finally:
            server.kill()


def save_of_bytes(folder: Path) -> None:
    """A model whose tokens are bytes, capitals among them."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}assistant:"
    fast.save_pretrained(folder)
    sizes = {"vocab_size": len(tokens), "max_position_embeddings": 4096}
    tiny_model("llama", 0, **sizes).save_pretrained(folder)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=60).close()
    except OSError:
        return False
    return True


def oracle(served: tuple[str, Path], **options: object) -> JudgeOracle:
    url, model = served
    given = {"timeout": 600.0, "patience": 3600.0, "retries": 0, "concurrency": 2} | options
    return JudgeOracle(str(model), url, None, **given)  # type: ignore[arg-type]


def test_option_probabilities_are_those_of_one_forward_pass(served):
    judge = oracle(served, verdict="options")
    found = dict(judge.in_given_order(ASKED))
    model = AutoModelForCausalLM.from_pretrained(served[1]).eval()
    tokenizer = AutoTokenizer.from_pretrained(served[1])
    letters = [tokenizer.encode(letter)[0] for letter in "AB"]
    for number, one in enumerate(ASKED):
        text = render(judge.template, one.conversation, one.first, one.second) + OPTIONS
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True,
            return_tensors="pt", return_dict=True,
        )  # fmt: skip
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1, letters]
        assert found[number] == pytest.approx(logits.softmax(-1)[0].item(), abs=1e-5)
    assert judge.ledger["prompt_tokens"] > 0
    assert judge.ledger["requests"] == 2


def test_what_it_ignores_is_no_verdict(served):
    """It answers 200 to `logprobs` and `response_format`, and does neither."""
    for verdict in ("logprobs", "json"):
        body = {"response_format": {"type": "json_object"}}
        judge = oracle(served, verdict=verdict, max_tokens=4, extra_body=body)
        assert all(math.isnan(answer) for _, answer in judge.in_given_order(ASKED))
        assert judge.last_error.startswith("no verdict, for it was cut at the limit of tokens")
        assert judge.ledger["requests"] == 2
