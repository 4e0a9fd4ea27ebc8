"""Engines that speak as vLLM does, on plain transformers and peft: in process and behind HTTP.

They load an adapter from its folder when they are told to, and never look at the trainer's weights.
"""

import asyncio
import copy
import json
import shutil
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from aiohttp import web

from nlhf_zoo.policies.language_model.vllm.adapters import AdapterVersion
from nlhf_zoo.policies.language_model.vllm.generator import AdapterGenerator
from nlhf_zoo.policies.language_model.vllm.rows import Completion, Row

LARGEST_RANK = 8
A, ADAPTER = ".lora_A.weight", "adapter_model.safetensors"


@cache
def _model(base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@dataclass
class FakeEngine:
    """Adapters by name, and a log of what was asked."""

    base: str
    loaded: dict = field(default_factory=dict)  # name: model
    log: list = field(default_factory=list)
    most: int = 0  # adapters that were held at a time

    @torch.no_grad()
    def load(self, name, folder):
        """W + s B A, by hand."""
        from safetensors.torch import load_file

        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        if (rank := config["r"]) > LARGEST_RANK:
            raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank {LARGEST_RANK}.")
        scale = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
        model = copy.deepcopy(_model(self.base))
        weights, tensors = dict(model.named_parameters()), load_file(folder / ADAPTER)
        for place in [name.removesuffix(A) for name in tensors if name.endswith(A)]:
            weight = weights[place.removeprefix("base_model.model.") + ".weight"]
            weight += scale * tensors[f"{place}.lora_B.weight"] @ tensors[place + A]
        self.loaded[name] = model
        self.log.append(("load", name, str(folder)))
        self.most = max(self.most, len(self.loaded))

    def drop(self, name):
        self.log.append(("drop", name))
        self.loaded.pop(name, None)

    @torch.no_grad()
    def complete(self, name, row):
        """A response, its log-probabilities and those of the ends; one token at a time."""
        request, rng = row.request, torch.Generator().manual_seed(row.seed)
        self.log.append(("draw", name, row.seed))
        tokens, log_probs, at_ends = [], [], []
        ends = [*request.ends]
        while len(tokens) < request.max_new_tokens and not (tokens and tokens[-1] in ends):
            inputs = torch.tensor([row.prompt + tokens])
            law = self.loaded[name](input_ids=inputs).logits[0, -1].log_softmax(-1)
            tempered = law / request.decoding.temperature
            if len(tokens) < request.min_new_tokens:
                tempered[ends] = -torch.inf
            token = int(torch.multinomial(tempered.softmax(-1), 1, generator=rng))
            tokens.append(token)
            log_probs.append(float(law[token]))
            at_ends.append([float(law[end]) for end in ends])
        return Completion(tokens, log_probs, at_ends, tokens[-1] in ends)


class FakeGenerator(AdapterGenerator):
    """The part that stands for vLLM in this process."""

    def __init__(self, base, max_gap=None):
        super().__init__(max_gap)
        self.engine = FakeEngine(str(base))
        self.batches = []

    def start(self, source, players):
        return Path(tempfile.mkdtemp(prefix="fake-"))

    def load(self, version: AdapterVersion):
        self.engine.load(version.name, version.folder)

    def drop(self, version: AdapterVersion):
        self.engine.drop(version.name)

    def complete(self, rows: list[Row]):
        self.batches.append([row.adapter.name for row in rows])
        return [self.engine.complete(row.adapter.name, row) for row in rows]

    def close(self):
        super().close()
        if self._versions is not None:
            shutil.rmtree(self._versions._root)


@contextmanager
def fake_server(base, key=None, may_load=True, spoil=None):
    """A server as `vllm serve` is one; yields its address, engine and headers that it was sent.

    ``spoil`` changes the answer of a completion.
    """
    server = _Server(FakeEngine(str(base)), key, spoil)

    @web.middleware
    async def guard(request, handler):
        return await server.guard(request, handler)

    app = web.Application(middlewares=[guard])
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/completions", server.complete)
    if may_load:
        app.router.add_post("/v1/load_lora_adapter", server.load)
        app.router.add_post("/v1/unload_lora_adapter", server.unload)
    with _served(app) as port:
        yield f"http://127.0.0.1:{port}/v1", server.engine, server.seen


class _Server:
    def __init__(self, engine, key, spoil):
        self.engine, self.key, self.spoil, self.seen = engine, key, spoil, []

    async def guard(self, request, handler):
        self.seen.append(dict(request.headers))
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    async def models(self, _):
        adapters = [{"id": name, "parent": "base"} for name in self.engine.loaded]
        return web.json_response({"data": [{"id": "base", "parent": None}, *adapters]})

    async def load(self, request):
        body = await request.json()
        if "lora_name" not in body:
            return _error(400, "2 validation errors")
        if not Path(body["lora_path"]).is_dir():
            name = body["lora_name"]
            return _error(404, f"Loading lora {name} failed: No adapter found for <path>")
        try:
            self.engine.load(body["lora_name"], Path(body["lora_path"]))
        except ValueError as problem:
            return _error(500, str(problem))
        return web.Response(text="Success")

    async def unload(self, request):
        self.engine.drop((await request.json())["lora_name"])
        return web.Response(text="Success")

    async def complete(self, request):
        body = await request.json()
        if body["model"] not in self.engine.loaded:
            return _error(404, f"The model `{body['model']}` does not exist.")
        asked = SimpleNamespace(
            ends=body["stop_token_ids"],
            max_new_tokens=body["max_tokens"],
            min_new_tokens=body["min_tokens"],
            decoding=SimpleNamespace(temperature=body["temperature"]),
        )
        row = SimpleNamespace(prompt=body["prompt"], seed=body["seed"], request=asked)
        found = self.engine.complete(body["model"], row)
        shown = body.get("logprob_token_ids", [])
        top = []
        for place, token in enumerate(found.tokens):
            at = dict(zip(shown, found.end_log_probs[place][: len(shown)], strict=True))
            at[token] = found.log_probs[place]
            top.append({f"token_id:{number}": value for number, value in at.items()})
        choice = {
            "token_ids": found.tokens,
            "logprobs": {"token_logprobs": found.log_probs, "top_logprobs": top},
            "finish_reason": "stop" if found.ended else "length",
        }
        return self.spoil(choice) if self.spoil else web.json_response({"choices": [choice]})


def _error(status, message):
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


@contextmanager
def _served(app):
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), []

    async def live():
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.append(site._server.sockets[0].getsockname()[1])
        stop = asyncio.Event()
        port.append(stop)
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(port[1].set)
        thread.join(30)
        loop.close()
