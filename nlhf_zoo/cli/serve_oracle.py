"""``nlhf serve-oracle``: an oracle behind HTTP, for the processes of a run and for other machines.

What client and server say to each other is in ``nlhf_zoo.oracles.served.protocol``.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nlhf_zoo.cli.files import read_config
from nlhf_zoo.cli.inputs import move
from nlhf_zoo.cli.parser import SentenceParser, as_user_errors, find_own_code
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.cli.yaml_rules import dump
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.oracles.ledger import ledgers, spent, summary
from nlhf_zoo.oracles.served.address import TokenSource, is_loopback, refuse_host
from nlhf_zoo.oracles.served.counts import counted_in
from nlhf_zoo.oracles.served.server import OracleServer
from nlhf_zoo.signals import SignalWatch, StoppedBySignal, end_at_once

_HELP = """usage: nlhf serve-oracle CONFIG [options]
       nlhf serve-oracle --oracle CLASS [--oracle.option ...] [options]

Serve an oracle by HTTP: one judge, one model or one cache for all processes of a run, and for
several machines. A run asks it by --model.oracle ServedOracle (of texts) or ServedTable, with
--model.oracle.url http://HOST:PORT.

CONFIG is a file with the options below, such as configs/judge/served.yaml, or a configuration of
nlhf fit, whose model.oracle is served. Options behind it replace what it says.

  --oracle CLASS       who is served
  --host HOST          an address of this machine (default: 127.0.0.1, for this machine alone);
                       any other needs a token; 0.0.0.0 is all of its addresses
  --port PORT          (default: 8765; 0 takes a free one)
  --token_env NAME     environment variable with the token that each request must have
  --token_file FILE    file with the token, in the place of a variable
  --folder DIR         folder of the counts, with which the next server goes on
                       (default: served_oracle)
  --device DEVICE      where its models and tables lie: cpu, cuda, cuda:1 (default: auto, a GPU
                       where there is one)
  --seed_everything N  seed of an oracle that is generated (default: 0)

SIGINT and SIGTERM end it: nothing more is asked, what is on its way is answered and kept. A second
one ends it at once. `nlhf serve-oracle --oracle.help CLASS` tells an oracle's options.
"""
_REPORT = 60.0  # seconds between lines with counts, where these have changed


def main(args: list[str]) -> None:
    """Run ``nlhf serve-oracle`` with what stands behind it on the command line."""
    if not args or {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    with quiet():
        serve(**read(args))


def read(args: Sequence[str]) -> dict[str, Any]:
    """The arguments of `serve` that a command line gives; the oracle is made."""
    find_own_code()
    parser = SentenceParser(prog="nlhf serve-oracle")
    parser.add_argument("--config", action="config")
    # By hand: it may be a file with a class and its options.
    parser.add_argument("--oracle", type=PreferenceOracle, required=True, enable_path=True)
    parser.add_function_arguments(serve, skip={"oracle"})
    parsed = parser.parse_args(_with_content(args))
    _seed(parsed["seed_everything"])
    with as_user_errors():
        options: dict[str, Any] = parser.instantiate(parsed).as_dict()
    return {name: value for name, value in options.items() if name != "config"}


def serve(
    oracle: PreferenceOracle,
    host: str = "127.0.0.1",
    port: int = 8765,
    token_env: str | None = None,
    token_file: str | None = None,
    folder: str = "served_oracle",
    device: str = "auto",
    seed_everything: int = 0,
) -> None:
    """Serve an oracle until a signal ends it.

    Args:
        oracle: who is served.
        host: an address of this machine.
        port: of it; 0 takes a free one.
        token_env: environment variable with the token that each request must have.
        token_file: file with the token, in the place of a variable.
        folder: of the counts.
        device: where its models and tables lie; auto is a GPU where there is one.
        seed_everything: seed that oracles were made with.

    Raises:
        UserError: the oracle cannot be served, or not there.
        StoppedBySignal: a signal has come; what was asked is in the folder.
    """
    token = TokenSource(token_env or None, token_file or None)
    secret = token.read()
    refuse_host(host, secret is not None)
    if not 0 <= port < 2**16:
        raise UserError(f"--port must be from 0 to {2**16 - 1}, but it is {port}")
    move(oracle, device)
    with counted_in(Path(folder), oracle) as path:
        server = OracleServer(oracle, secret)
        who = f"whoever has the token in {token.place}" if token else "this machine alone"
        print(f"{server.description.oracle} is served to {who}", flush=True)
        print(f"Counts: {path or 'none, for it keeps none'}", flush=True)
        end = asyncio.run(_serve(server, oracle, host, port))
        if path is not None:
            print(f"The oracle was asked: {summary(spent(oracle))}", flush=True)
    raise StoppedBySignal(end)


async def _serve(
    server: OracleServer, oracle: PreferenceOracle, host: str, port: int
) -> signal.Signals:
    """Serve; the signal that has ended it."""
    loop, ends, watch = asyncio.get_running_loop(), asyncio.Event(), SignalWatch()
    before = watch.install(first=lambda _: loop.call_soon_threadsafe(ends.set), again=end_at_once)
    try:
        try:
            await server.start(host, port)
        except OSError as error:
            raise UserError(
                f"nothing can be served at --host {host} --port {port}: {error.strerror}"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        print(f"Address: http://{shown}:{server.port}", flush=True)
        if not is_loopback(host):
            print("Nothing is encrypted: it belongs on a private network", file=sys.stderr)
        await _until(ends, oracle)
        print("Ending: questions under way are answered, no other is asked", file=sys.stderr)
        await server.close()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert watch.received is not None
    return watch.received


async def _until(ends: asyncio.Event, oracle: PreferenceOracle) -> None:
    """Wait for the end, and say now and then what was asked."""
    said = spent(oracle)
    while not ends.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(_REPORT):
                await ends.wait()
        if ledgers(oracle) and (now := spent(oracle)) != said and not ends.is_set():
            said = now
            print(f"Asked so far: {summary(said)}", flush=True)


def _with_content(args: Sequence[str]) -> list[str]:
    """Arguments in which the file's options stand in the place of its name."""
    first = args[0]
    if first in ("-c", "--config") and len(args) > 1:
        name, rest = args[1], args[2:]
    elif first.startswith("--config="):
        name, rest = first.partition("=")[2], args[1:]
    elif not first.startswith("-"):
        name, rest = first, args[1:]
    else:
        return list(args)
    content = read_config(name)
    if not content:
        raise UserError(f"CONFIG {name!r} is no file: give one with the options of this command")
    written = dump(_own_options(content, name))
    if "${" in written:  # which may name what this command has not
        raise UserError(
            f"{name} puts an option of its oracle together by an interpolation, ${{...}}: write "
            "the value itself, or give it on the command line"
        )
    return [f"--config={written}", *rest]


def _own_options(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Options of this command, from its own file or a run's."""
    if "model" not in content:
        return content
    model = content["model"]
    parts = model.get("init_args", model) if isinstance(model, dict) else {}
    if not isinstance(parts, dict) or "oracle" not in parts:
        raise UserError(f"{name} has no model.oracle that could be served")
    seed = {"seed_everything": content["seed_everything"]} if "seed_everything" in content else {}
    return {"oracle": parts["oracle"], **seed}


def _seed(seed: int) -> None:
    from lightning import seed_everything

    with as_user_errors("--seed_everything: "):
        seed_everything(seed, verbose=False)
