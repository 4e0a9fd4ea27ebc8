"""Votes on the page of `nlhf ask`, beside a handler that returns a fixed page.

    python -m benchmarks.ask [--pairs 100000] [--judges 8] [--votes 2000] [--rounds 5]

One process serves, of the file of questions or of the bare handler, in turn; in others the judges
vote as fast as they are answered, each on a connection that stays open. A vote's time is from the
first byte of the request to the last of the answer, which holds the next pair.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import statistics
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from nlhf_zoo.people import Pair, VoteStore
from nlhf_zoo.people.server import PeopleServer

TEXT = "A sentence of an answer, as long as these are. " * 12


def fill(path: Path, pairs: int) -> None:
    """Put questions that all judges are asked."""
    store = VoteStore(path)
    prompt = [{"role": "user", "content": "What is a question to which there are two answers?"}]
    asked = [Pair(prompt, f"{i} {TEXT}", f"{TEXT} {i}") for i in range(pairs)]
    store.put(asked, votes=1000)
    store.end()


class Bare(BaseHTTPRequestHandler):
    """Reads a request and returns a fixed page, of the size of an answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    page = json.dumps({"pair": TEXT * 2, "progress": " " * 150}).encode()

    def do_POST(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.page)))
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def serve(path: Path | None, pipe: multiprocessing.connection.Connection) -> None:
    """Serve the file, or the bare handler, until the pipe says so."""
    if path is None:
        bare = ThreadingHTTPServer(("127.0.0.1", 0), Bare)
        bare.daemon_threads = True
        import threading

        threading.Thread(target=bare.serve_forever, daemon=True).start()
        pipe.send((bare.server_address[1], ""))
    else:
        store = VoteStore(path)
        server = PeopleServer(store)
        pipe.send((server.port, store.token))
    begun = time.process_time()
    pipe.recv()
    pipe.send(time.process_time() - begun)


def judge(port: int, token: str, name: str, votes: int, times: multiprocessing.Queue) -> None:
    """Vote, and tell the seconds of each vote."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    taken, number = [], None

    def ask(path: str, body: dict) -> dict:
        connection.request("POST", path, json.dumps(body), headers)
        return json.loads(connection.getresponse().read())

    if token:
        number = ask("/api/next", {"person": name})["pair"]["number"]
    for _ in range(votes):
        body = {"person": name, "number": number, "choice": "first", "seconds": 4.2, "besides": []}
        start = time.perf_counter()
        answer = ask("/api/vote", body)
        taken.append(time.perf_counter() - start)
        number = answer["pair"]["number"] if token else 1
    times.put(taken)


def measured(path: Path | None, judges: int, votes: int, run: int) -> tuple[list[float], float]:
    """Seconds of each vote, and processor seconds of the server for one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(path, theirs))
    server.start()
    port, token = ours.recv()
    times = context.Queue()
    people = [
        context.Process(target=judge, args=(port, token, f"{run} {i}", votes // judges, times))
        for i in range(judges)
    ]
    for person in people:
        person.start()
    taken = [one for _ in people for one in times.get()]
    for person in people:
        person.join()
    ours.send(None)
    spent = ours.recv()
    server.join()
    return taken, spent / len(taken)


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--judges", type=int, default=8)
    parser.add_argument("--votes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "people.sqlite"
        fill(path, given.pairs)
        found: dict[str, list[tuple[list[float], float]]] = {"votes": [], "bare": []}
        for run in range(given.rounds):
            found["votes"].append(measured(path, given.judges, given.votes, run))
            found["bare"].append(measured(None, given.judges, given.votes, run))
    for name, runs in found.items():
        cuts = [statistics.quantiles(taken, n=20) for taken, _ in runs]
        median, p95 = (1e3 * statistics.median(cut[at] for cut in cuts) for at in (9, 18))
        spent = 1e3 * statistics.median(spent for _, spent in runs)
        print(f"{name}: median {median:.2f} ms, p95 {p95:.2f} ms, processor {spent:.3f} ms")
    ratios = sorted(
        statistics.mean(votes) / statistics.mean(bare)
        for (votes, _), (bare, _) in zip(found["votes"], found["bare"], strict=True)
    )
    shown = " ".join(f"{one:.2f}" for one in ratios)
    print(f"mean time of a vote to that of the bare handler, of each round: {shown}")


if __name__ == "__main__":
    main()
