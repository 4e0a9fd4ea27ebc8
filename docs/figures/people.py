"""A language model trained by three simulated people, who vote through the page's own interface.

    python docs/figures/people.py

Runs `nlhf fit --config configs/people/small_language.yaml` with one and with three votes a pair,
kills it twice without a warning, and lets it go on. People ask the page's server for pairs and vote
by the small language's preference, which has cycles: each says at random, by its probability, which
of two words is the better one. Then it looks into the file of votes, whether all of them are there
and none twice, and draws the exploitability of each checkpoint against the votes by then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nlhf_zoo.cli.policies import load_policy
from nlhf_zoo.game.log_probs import log_prob_of_all
from nlhf_zoo.oracles import SmallLanguage
from nlhf_zoo.people import VoteStore
from nlhf_zoo.people.server import PeopleServer
from nlhf_zoo.solvers import exploitability, regularised_nash

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
CONFIG = "configs/people/small_language.yaml"
RUN = Path("runs/people/small_language/version_0")
PEOPLE = ("Ada", "Bo", "Cy")
LANGUAGE = SmallLanguage(num_letters=4, length=2)
BETA = 0.1
STEP = 24  # votes between two checkpoints that are looked at
Choose = Callable[[str, str, str, str], bool]  # a person, a prompt and two words: the first one?


def chooses_first(person: str, prompt: str, first: str, second: str) -> bool:
    """A vote with the language's preference as its mean; the same for both orders of the words."""
    assert LANGUAGE.prompts is not None
    assert LANGUAGE.prompts.text is not None
    assert LANGUAGE.table is not None
    assert LANGUAGE.action_names is not None
    if first > second:
        return not chooses_first(person, prompt, second, first)
    number = LANGUAGE.prompts.text.index(prompt)
    words = LANGUAGE.action_names[number]
    coin = hashlib.blake2b(f"{person} {prompt} {first} {second}".encode(), digest_size=6).digest()
    preference = LANGUAGE.table[number, words.index(first), words.index(second)]
    return bool(int.from_bytes(coin, "big") / 2**48 < preference)


class Person(threading.Thread):
    """Somebody with the page open: asks for a pair, chooses, and is given the next one.

    Args:
        name: by which the page knows them.
        port: of the page's server on this machine.
        token: of its address.
        choose: what they think.
        seconds: that they look at a pair.
    """

    def __init__(
        self, name: str, port: int, token: str, choose: Choose, seconds: float = 0.0
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._choose, self._seconds = choose, seconds
        self.leaves = threading.Event()

    def run(self) -> None:
        """Vote until it is time to leave."""
        given = self.post("next", wait=0.2)
        while not self.leaves.wait(self._seconds):
            if (pair := given["pair"]) is None:
                given = self.post("next", wait=0.2)
                continue
            prompt, words = pair["conversation"][-1]["content"], pair["responses"]
            choice = "first" if self._choose(self.name, prompt, *words) else "second"
            given = self.post("vote", number=pair["number"], choice=choice, seconds=self._seconds)
        self._connection.close()

    def post(self, what: str, **given: Any) -> dict[str, Any]:
        """A request of the page's."""
        body = json.dumps({"person": self.name, **given})
        self._connection.request("POST", f"/api/{what}", body, self._headers)
        answer = self._connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{what}: {found}")
        return found


class Page:
    """The page's server, with people before it, as soon as there is a file to serve."""

    def __init__(self, path: Path, choose: Choose = chooses_first, seconds: float = 0.0) -> None:
        self.path, self._choose, self._seconds = path, choose, seconds
        self._people: list[Person] = []
        self._server: PeopleServer | None = None

    @property
    def votes(self) -> int:
        """Votes that are in the file."""
        if self._server is None:
            if not self.path.exists():
                return 0
            self._open()
        assert self._server is not None
        return sum(self._server.store.progress().votes.values())

    def _open(self) -> None:
        self._server = PeopleServer(VoteStore(self.path))
        token = self._server.store.token
        self._people = [
            Person(name, self._server.port, token, self._choose, self._seconds) for name in PEOPLE
        ]
        for person in self._people:
            person.start()

    def close(self) -> None:
        """Let all leave."""
        for person in self._people:
            person.leaves.set()
        for person in self._people:
            person.join(20)
        if self._server is not None:
            self._server.close()
            self._server.store.end()


def look_into(path: Path, wanted: int) -> int:
    """How many questions a file holds; all have their votes, each of another person.

    Raises:
        AssertionError: a vote is missing, or was given twice.
    """
    store = VoteStore(path, must_exist=True)
    votes = [(vote.question, vote.person) for vote in store.votes()]
    questions = [tally for _, _, tally in store.questions()]
    store.end()
    assert len({*votes}) == len(votes), "somebody was asked twice"
    assert len(votes) == wanted * len(questions), "a vote is missing"
    assert all(tally.votes == wanted for tally in questions)
    return len(questions)


def law(policy: Any, player: str) -> torch.Tensor:
    """Log-probability of every word [C, N]."""
    prompts = policy.encode(LANGUAGE.prompts)
    return log_prob_of_all(policy, player, prompts).detach().double()


def exploited(checkpoint: Path) -> tuple[float, torch.Tensor]:
    """The mean exploitability of a checkpoint's policy, and its reference."""
    policy = load_policy(str(checkpoint), oracle=LANGUAGE).policy
    reference = law(policy, "reference")
    assert LANGUAGE.table is not None
    found = exploitability(LANGUAGE.table, law(policy, "policy"), reference, BETA)
    return float(found.mean()), reference


def play(
    folder: Path, wanted: int, rounds: int, kills: Sequence[int], seconds: float
) -> tuple[list[tuple[int, float]], float]:
    """Votes by some checkpoints and the exploitability of each, and that of the votes themselves.

    The run is killed on the way.

    Args:
        folder: where it runs.
        wanted: votes a pair.
        rounds: of the whole run.
        kills: numbers of votes at which it is killed.
        seconds: that people look at a pair.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "configs").symlink_to(ROOT / "configs")
    command = [sys.executable, "-m", "nlhf_zoo", "fit", "--config", CONFIG]
    command += ["--model.oracle.votes", str(wanted), "--trainer.callbacks.rounds", str(rounds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    checkpoints = folder / RUN / "checkpoints"
    page, kept = Page(checkpoints / "people.sqlite", seconds=seconds), folder / "kept"
    kept.mkdir()
    try:
        for turn, end in enumerate([*kills, None]):
            resumed = ["--ckpt_path", "last"] if turn else []
            run = subprocess.Popen([*command, *resumed], cwd=folder, env=environment)
            while run.poll() is None:
                votes = page.votes
                keep(checkpoints / "last.ckpt", kept, votes)
                if end is not None and votes >= end:
                    run.kill()
                time.sleep(0.1)
            if run.returncode != (0 if end is None else -9):
                raise RuntimeError(f"the run ended with exit code {run.returncode}")
    finally:
        page.close()
    questions = look_into(page.path, wanted)
    print(f"{questions} questions, each with {wanted} votes; killed at {kills} votes")
    shutil.copy(checkpoints / "last.ckpt", kept / f"999999-{questions * wanted}.ckpt")
    found = []
    for checkpoint in sorted(kept.iterdir()):
        there = checkpoints / "looked_at.ckpt"  # beside the run's configuration
        shutil.copy(checkpoint, there)
        value, reference = exploited(there)
        found.append((int(checkpoint.stem.split("-")[1]), value))
        there.unlink()
    return found, floor(page.path, reference)


def keep(last: Path, kept: Path, votes: int) -> None:
    """Keep a checkpoint by the number of votes before it, where some more have come."""
    if last.exists() and not any(kept.glob(f"{votes // STEP:06d}-*.ckpt")):
        shutil.copy(last, kept / f"{votes // STEP:06d}-{votes}.ckpt")


def floor(path: Path, reference: torch.Tensor) -> float:
    """The exploitability of the equilibrium of the votes: what no policy can know better."""
    table = torch.full_like(LANGUAGE.table, 0.5)
    store = VoteStore(path, must_exist=True)
    for _, pair, tally in store.questions():
        number = LANGUAGE.prompts.text.index(pair.conversation[-1]["content"])
        first, second = (LANGUAGE.action_names[number].index(t) for t in (pair.first, pair.second))
        table[number, first, second] = (tally.first + tally.neither / 2) / tally.votes
        table[number, second, first] = 1 - table[number, first, second]
    store.end()
    nash = regularised_nash(table, reference, BETA).log_policy
    return float(exploitability(LANGUAGE.table, nash, reference, BETA).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, look into the files, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/figures/people")
    parser.add_argument("--output", type=Path, default=FOLDER / "people.png")
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=0.01, help="that people look at a pair")
    given = parser.parse_args(arguments)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for colour, wanted in zip(("C0", "C1"), (1, 3), strict=True):
        folder = given.runs / str(wanted)
        kills = [40 * wanted, 120 * wanted]
        points, least = play(folder.absolute(), wanted, given.rounds, kills, given.seconds)
        for votes, found in points:
            print(f"{wanted} votes a pair, {votes:4d} votes: exploitability {found:.4f}")
        print(f"{wanted} votes a pair, equilibrium of all votes: exploitability {least:.4f}")
        label = f"{wanted} vote{'s' * (wanted > 1)} a pair"
        axes.plot(*zip(*points, strict=True), color=colour, marker=".", label=label)
        axes.axhline(least, color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel="votes", ylabel="exploitability", ylim=(0, None))
    axes.legend()
    with mpl.rc_context({"savefig.dpi": 120}):
        figure.savefig(given.output)


if __name__ == "__main__":
    main()
