"""`VLLMServerGenerator`: `vllm serve` elsewhere, which loads each version of an adapter."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.players import AdapterPlayers
from nlhf_zoo.policies.language_model.sources import ModelSource
from nlhf_zoo.policies.language_model.vllm.adapters import AdapterVersion, folder_of
from nlhf_zoo.policies.language_model.vllm.generator import AdapterGenerator
from nlhf_zoo.policies.language_model.vllm.http import Client, Reply
from nlhf_zoo.policies.language_model.vllm.rows import Completion, Row

_ALLOW = (
    "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment and with --enable-lora"
)


class VLLMServerGenerator(AdapterGenerator):
    """A server of vLLM, which all processes of a run may share.

    Players are LoRA adapters, which are written to a folder that the server sees too whenever they
    have moved: each version has a folder and a name of its own, and those before are dropped. The
    server must be allowed to load adapters: `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL
    --enable-lora --generation-config vllm`. Rows have seeds from the game's stream.

    Args:
        base_url: its address, such as http://localhost:8000/v1.
        folder: for adapters; one that the server sees too.
        folder_at_server: the name that the same folder has there; null is the same.
        model: the base model's name there; null is the one that the server has.
        api_key_env: environment variable that holds the server's key; null for one without.
        concurrency: requests that wait for an answer at a time, one for each response.
        timeout: seconds that an answer may take.
        max_gap: largest distance, for each token, between the server's log-probabilities and the
            trainer's at which a run starts; null is that of rounding in the base model's type.
    """

    draws_apart = True
    # Where the server is and how fast it is asked; what is drawn is the same.
    may_change_on_resume: ClassVar[frozenset[str]] = frozenset(
        {
            "base_url",
            "folder",
            "folder_at_server",
            "api_key_env",
            "concurrency",
            "timeout",
            "max_gap",
        }
    )

    def __init__(
        self,
        base_url: str,
        folder: str,
        folder_at_server: str | None = None,
        model: str | None = None,
        api_key_env: str | None = None,
        concurrency: int = 128,
        timeout: float = 600.0,
        max_gap: float | None = None,
    ) -> None:
        super().__init__(max_gap)
        _refuse_address(base_url)
        api_key_env = api_key_env or None  # on a command line null would be a text
        if api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env):
            raise UserError(  # it may be the key itself
                "the api_key_env of VLLMServerGenerator must be the name of an environment "
                "variable in capitals, such as VLLM_API_KEY, and not the key itself"
            )
        if concurrency < 1 or not timeout > 0:
            raise ValueError(
                "concurrency must be at least 1 and timeout above 0, "
                f"but they are {concurrency} and {timeout}"
            )
        self.base_url = base_url.rstrip("/")
        self.folder = folder
        self.folder_at_server = folder_at_server
        self.model = model
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.timeout = timeout
        self._client: Client

    @override
    def start(self, source: ModelSource, players: AdapterPlayers) -> Path:
        self._client = Client(self.base_url, self._key(), self.concurrency, self.timeout)
        if self.api_key_env is not None:  # it may be a file of somebody else that names both
            print(
                f"The server at {self._client.where} is sent the key in {self.api_key_env}",
                file=sys.stderr,
            )
        self._check()
        place = Path(self.folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
            root = folder_of(self, "nlhf-", place.absolute())
            root.chmod(0o755)  # the server may be another user's
        except OSError as error:
            raise UserError(
                f"the folder of VLLMServerGenerator, {self.folder}, cannot be written to "
                f"({error.strerror})"
            ) from error
        return root

    @override
    def load(self, version: AdapterVersion) -> None:
        path = self._at_server(version.folder)
        reply = self._ask("load_lora_adapter", {"lora_name": version.name, "lora_path": path})
        if reply.status != 200:
            remedy = ""
            if "No adapter found" in reply.said:
                remedy = (
                    f": it does not see {path}, so give model.policy.generator.folder, or "
                    "folder_at_server, the name of one that both see"
                )
            raise UserError(
                f"the server at {self._client.where} does not take an adapter of this policy "
                f"({reply.said}){remedy}"
            )

    @override
    def drop(self, version: AdapterVersion) -> None:
        self._ask("unload_lora_adapter", {"lora_name": version.name})  # gone already is as well

    @override
    def complete(self, rows: Sequence[Row]) -> list[Completion]:
        bodies = [{"model": row.adapter.name, **body_of(row)} for row in rows]
        replies: list[Reply] = _run(self._client.ask_all("completions", bodies))
        return [self._read(reply, row) for reply, row in zip(replies, rows, strict=True)]

    @override
    def close(self) -> None:
        if self._versions is not None:
            with suppress(UserError):  # a server that is down holds nothing
                super().close()
        self._versions = None

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "")
        if not key or not (key.isascii() and key.isprintable()) or " " in key:
            raise UserError(
                f"the key of the server of vLLM is not in the environment: set the variable "
                f"{self.api_key_env}, or set model.policy.generator.api_key_env to null for a "
                "server without one"
            )
        return key

    def _check(self) -> None:
        """Find the base model, and whether adapters may be loaded."""
        where = self._client.where
        reply = self._ask("models", None)
        if reply.status in (401, 403):
            raise UserError(
                f"the server at {where} refuses the key (HTTP {reply.status}): give "
                "model.policy.generator.api_key_env the environment variable that holds its own"
            )
        names = _base_models(reply.content) if reply.status == 200 else []
        if not names or (self.model is not None and self.model not in names):
            wanted = "no model" if self.model is None else f"no model {self.model!r}"
            raise UserError(
                f"the server at {where} has {wanted} (HTTP {reply.status}; it has "
                f"{', '.join(names) or 'none'}): set model.policy.generator.base_url, with its "
                "/v1, and model"
            )
        if self._ask("load_lora_adapter", {}).status in (404, 405):
            raise UserError(f"the server at {where} may not load adapters: {_ALLOW}")

    def _ask(self, path: str, body: dict[str, Any] | None) -> Reply:
        reply: Reply = _run(self._client.ask_all(path, [body]))[0]
        return reply

    def _at_server(self, folder: Path) -> str:
        if self.folder_at_server is None:
            return str(folder)
        inside = folder.relative_to(Path(self.folder).absolute())
        return f"{self.folder_at_server.rstrip('/')}/{inside}"

    def _read(self, reply: Reply, row: Row) -> Completion:
        if reply.status != 200:
            raise UserError(
                f"the server at {self._client.where} could not draw (HTTP {reply.status}: "
                f"{reply.said}): look at its own messages"
            )
        try:
            return read_completion(reply.content, row)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"the server at {self._client.where} answers without the tokens that it drew and "
                "their log-probabilities: it must be `vllm serve` of version 0.32 or newer"
            ) from error


def body_of(row: Row) -> dict[str, Any]:
    """A request for one response; everything is said, for servers have defaults of their own."""
    request = row.request
    how, ends = request.decoding, [*request.ends]
    body = {
        "prompt": row.prompt,
        "seed": row.seed,
        "n": 1,
        "temperature": how.temperature,
        "top_k": how.top_k,
        "top_p": how.top_p,
        "min_p": how.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": request.max_new_tokens,
        "min_tokens": request.min_new_tokens,
        "ignore_eos": True,  # the ends are those of the request, and no others
        "stop_token_ids": ends,
        "logprobs": 0,  # of the token that was drawn
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
    }
    if request.min_new_tokens and ends:
        body["logprob_token_ids"] = ends
    return body


def read_completion(content: Any, row: Row) -> Completion:
    """What a server answers to `body_of`.

    Raises:
        KeyError, IndexError, TypeError, ValueError: it is something else.
    """
    (choice,) = content["choices"]
    tokens = [int(token) for token in choice["token_ids"]]
    found, ends = choice["logprobs"], row.request.ends
    log_probs = [float(value) for value in found["token_logprobs"]]
    if len(log_probs) != len(tokens):
        raise ValueError("as many log-probabilities as tokens")
    early = row.request.min_new_tokens if ends else 0
    at_ends = [
        [float(at[f"token_id:{end}"]) for end in ends] for at in found["top_logprobs"][:early]
    ]
    return Completion(tokens, log_probs, at_ends, choice["finish_reason"] == "stop")


def _base_models(content: Any) -> list[str]:
    """Names of models that are no adapters."""
    try:
        return [one["id"] for one in content["data"] if one.get("parent") is None]
    except (KeyError, TypeError, AttributeError):
        return []


def _refuse_address(url: str) -> None:
    """Refuse what is no address, or what holds a secret, which is not repeated."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or "@" in url or "?" in url or "#" in url or not url.isprintable():
        raise UserError(
            "the base_url of VLLMServerGenerator must be http:// or https:// with a host and no "
            "user, password, ? or #, such as http://localhost:8000/v1: a key is given by the "
            "environment variable that api_key_env names"
        )


def _run(asking: Coroutine[Any, Any, Any]) -> Any:
    """In a thread of its own: an event loop may run in this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="nlhf vllm") as pool:
        return pool.submit(asyncio.run, asking).result()
