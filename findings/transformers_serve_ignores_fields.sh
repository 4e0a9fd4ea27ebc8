#!/bin/sh
# Shows that `transformers serve` 5.23.0 answers 200 to logprobs, n and response_format, and ignores them.
#
# Its source names them as fields that it does not support, and that "raise an error to avoid silent misbehaviour". A
# field that it does not know is refused with 422, so a client takes the 200 for a yes.
#
# Also: temperature 2 is greedy unless the model's own generation_config samples (two requests give one text), and
# GET /v1/models is 500 "Internal Server Error" where no model was ever downloaded.
#
# What works: /v1/systemone gives the probabilities of two options in one forward pass, as the softmax of the logits of
# A and B behind its prompt. Letters are given by place: an option named B that is listed first is shown to the model as
# "A. B: ...".
#
# Output with transformers 5.23.0, torch 2.13.0, openai 3.57.0, Python 3.11:
#   logprobs            200, log-probabilities: None
#   n = 3               200, choices: 1
#   response_format     200, JSON: False
#   a field foo         422 {"detail":"Unexpected fields in the request: {'foo'}"}
#   temperature 2       200, two requests, one text: True, that of temperature 0: True
#   temperature 2       200, of a model that samples, ten requests, one text: False
#   /v1/models          500 Internal Server Error
#   /v1/systemone       options A, B: 200, the softmax of the logits of A and B within 1e-5: True
#   /v1/systemone       options B, A: 200, the softmax of the logits of A and B within 1e-5: True
#   as described
# It ends with 1 where one of these is otherwise, and takes minutes, most of them for the installation.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/python -m pip install --quiet --disable-pip-version-check"
$pip torch==2.13.0
$pip "transformers[serving]==5.23.0" openai==3.57.0
cat >"$folder/serve.py" <<'PYTHON'
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(sys.argv[1])
STATE = "Ask me."
OPTIONS = {"A": "Response A is better.", "B": "Response B is better."}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def save(folder, samples):
    """A tiny model of random weights, whose tokens are bytes."""
    torch.manual_seed(0)
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = TEMPLATE
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024, **ends)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    model.generation_config.do_sample = samples
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model


def ask(path, fields=None):
    data = None if fields is None else json.dumps(fields).encode()
    request = urllib.request.Request(URL + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def chat(model=FOLDER / "greedy", **fields):
    message = {"role": "user", "content": "A or B?"}
    return ask("/chat/completions", {"model": str(model), "messages": [message], "max_tokens": 12} | fields)


def text(reply):
    return reply[1]["choices"][0]["message"]["content"]


def is_json(one):
    try:
        json.loads(one)
    except ValueError:
        return False
    return True


model = save(FOLDER / "greedy", False)
save(FOLDER / "samples", True)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
URL = f"http://127.0.0.1:{port}/v1"
command = [Path(sys.executable).with_name("transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(FOLDER / "hub")}
server = subprocess.Popen([*command, "--device", "cpu"], env={**os.environ, **offline}, **quiet)
try:
    for _ in range(600):
        try:
            urllib.request.urlopen(URL.removesuffix("/v1") + "/health", timeout=5).close()
            break
        except OSError:
            time.sleep(0.5)
    found = []
    status, reply = chat(logprobs=True, top_logprobs=5)
    listed = reply["choices"][0].get("logprobs")
    print(f"logprobs            {status}, log-probabilities: {listed}")
    found.append((status, listed) == (200, None))
    status, reply = chat(n=3)
    print(f"n = 3               {status}, choices: {len(reply['choices'])}")
    found.append((status, len(reply["choices"])) == (200, 1))
    reply = chat(response_format={"type": "json_object"})
    print(f"response_format     {reply[0]}, JSON: {is_json(text(reply))}")
    found.append(reply[0] == 200 and not is_json(text(reply)))
    status, reply = chat(foo=1)
    print(f"a field foo         {status} {reply}")
    found.append(status == 422)
    greedy = text(chat(temperature=0))
    one, other = chat(temperature=2), chat(temperature=2)
    same, is_greedy = text(one) == text(other), text(one) == greedy
    print(f"temperature 2       {one[0]}, two requests, one text: {same}, that of temperature 0: {is_greedy}")
    found.append(same and is_greedy)
    ten = [chat(FOLDER / "samples", temperature=2) for _ in range(10)]
    same = len({text(reply) for reply in ten}) == 1
    print(f"temperature 2       {ten[0][0]}, of a model that samples, ten requests, one text: {same}")
    found.append(not same)
    status, reply = ask("/models")
    print(f"/v1/models          {status} {reply}")
    found.append(status == 500)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "greedy")
    for names in ("A, B", "B, A"):
        options = dict(zip(names.split(", "), OPTIONS.values()))
        question = {"type": "choice", "criteria": options}
        fields = {"model": str(FOLDER / "greedy"), "state": STATE, "questions": {"better": question}}
        status, reply = ask("/systemone", fields)
        lines = [f"{letter}. {name}: {said}" for letter, (name, said) in zip("AB", options.items())]
        last = "Answer with the letter of the option that fits best (A to B) only."
        conversation = [{"role": "user", "content": "\n".join([f"{STATE}\n", *lines, last])}]
        inputs = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        wanted = logits[[tokenizer.encode(letter)[0] for letter in "AB"]].softmax(0)
        given = reply["answers"]["better"]["probabilities"]
        close = bool((wanted - torch.tensor([given[name] for name in options])).abs().max() < 1e-5)
        print(f"/v1/systemone       options {names}: {status}, the softmax of the logits of A and B within 1e-5: {close}")
        found.append(close)
finally:
    server.kill()
    server.wait()
print("as described" if all(found) else "OTHERWISE THAN DESCRIBED")
sys.exit(not all(found))
PYTHON
"$folder/venv/bin/python" "$folder/serve.py" "$folder" 2>/dev/null
