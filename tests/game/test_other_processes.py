"""Runs of several processes that are killed, or go on with more or fewer of them."""

import copy
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import runs
import torch

COUNTED = "charges-{}.txt"


def several(config: dict[str, Any], processes: int) -> dict[str, Any]:
    config = copy.deepcopy(config)
    config["trainer"]["devices"] = processes
    config["trainer"]["strategy"] = "ddp_fork" if processes > 1 else "auto"
    return config


def play(folder: Path, config: dict[str, Any], processes: int, *args: str, **given: Any) -> Any:
    runs.write(folder, several(config, processes))
    return runs.fit(folder, *args, **given)


def kill(rank: int, batch: int, name: str) -> None:
    """Let a process kill itself, at a method of the game, behind so many batches."""
    from nlhf_zoo.game.online_game import OnlineGame

    original = getattr(OnlineGame, name)

    def method(self: OnlineGame, *args: Any, **kwargs: Any) -> Any:
        if self.global_rank == rank and self.progress.batches >= batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    setattr(OnlineGame, name, method)


# Labels are drawn for each product, which is remembered for three steps, or for the next round.
ANCHORED = runs.configuration(
    algorithm=runs.part("SPPO", inner_steps=3, self_play=False), **runs.ENUMERATED
)
KILLED = {
    "remembered": (
        runs.configuration(algorithm=ANCHORED, **runs.ENUMERATED),
        1,
        4,
        "training_step",
    ),
    "optimistic": (runs.CASES["enumerated-optimistic"], 0, 8, "improve"),
    "accumulated": (runs.CASES["sampled-egpo"], 1, 7, "judge"),
    "language": (runs.CASES["language-nash_mp"], 1, 5, "optimizer_step"),
    "reused": (runs.REUSED["reused-egpo"], 0, 5, "improve"),
}


def random_numbers() -> None:
    """A user's own code draws from the global random state, in each process another number."""
    from nlhf_zoo.game.online_game import OnlineGame

    original = OnlineGame.training_step

    def step(self: OnlineGame, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1 + self.global_rank)
        return original(self, *args, **kwargs)

    OnlineGame.training_step = step


def random_and_killed(*where: Any) -> None:
    random_numbers()
    kill(*where)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_two_processes_are_killed_and_go_on_to_the_bit(name: str, tmp_path: Path):
    config, *where = KILLED[name]
    assert play(tmp_path / "whole", config, 2, before=random_numbers).code == 0
    killed = tmp_path / "killed"
    assert play(killed, config, 2, before=partial(random_and_killed, *where)).code != 0
    run = play(killed, config, 2, *runs.LAST, before=random_numbers)
    assert run.code == 0, run.err
    runs.assert_same_game(tmp_path / "whole", killed, logs=False)
    one, other = (runs.load(tmp_path / place)["callbacks"] for place in ("whole", "killed"))
    assert runs.differences(one["ResumeState"], other["ResumeState"]) == []
    assert not torch.equal(*(state["torch"] for state in one["ResumeState"]["each"]))


def counting() -> None:
    """Keep on the disk what is charged, by process."""
    from nlhf_zoo.oracles.ledger import Ledger

    original = Ledger.charge

    def charge(self: Ledger, **counts: int) -> None:
        original(self, **counts)
        with Path(COUNTED.format(os.getpid())).open("a") as file:
            file.write(f"{counts.get('queries', 0)}\n")

    Ledger.charge = charge


def texts(folder: Path, **rollout: Any) -> dict[str, Any]:
    config = copy.deepcopy(runs.CASES["language-egpo"])
    model = config["model"]["init_args"]
    model["oracle"] = runs.part("RuleOracle", function="nlhf_zoo.oracles.rules.shorter_wins")
    model["rollout"] = runs.part("Sample", num_responses=4, num_opponents=2, **rollout)
    config["data"] = runs.part("TextPrompts", path=str(folder / "prompts.jsonl"), batch_size=1)
    del config["trainer"]["callbacks"][0]  # exact figures, for which there is no table
    lines = [f'{{"prompt": "{one}{other}"}}\n' for one in "abcd" for other in "abcd"]
    (folder / "prompts.jsonl").write_text("".join(lines))
    return config


@pytest.mark.slow
def test_two_four_and_one_go_on_and_count_each_query_once(tmp_path: Path):
    """EGPO has two steps a round: the first two end within one."""
    config, run = texts(tmp_path), tmp_path / "run"
    for processes, steps in ((2, 3), (4, 6), (1, 10)):
        resume = runs.LAST if processes != 2 else ()
        limit = ("--trainer.max_steps", str(steps))
        ended = play(run, config, processes, *resume, *limit, before=counting)
        assert ended.code == 0, ended.err
    state = runs.load(run)["online_game"]
    assert state["progress"]["queries"] == 4 * 2 * (2 * 3 + 4 * 3 + 1 * 4)
    assert state["progress"]["queries_per_prompt"] == 4 * 2 * 10
    assert state["progress"]["round"] == 5
    # Rounds of two, of four, where the second and third were under way, and of one.
    assert state["progress"]["stream"][1] == 2 + 4 + 4
    charged = [int(n) for file in run.glob(COUNTED.format("*")) for n in file.read_text().split()]
    (counts,) = state["ledgers"].values()
    assert counts["queries"] == sum(charged) > 0
    assert len([*run.rglob("asked-*.jsonl")]) == 1


@pytest.mark.slow
def test_a_held_rollout_is_drawn_anew_by_more_processes(tmp_path: Path):
    config, run = texts(tmp_path, epochs=3), tmp_path / "run"
    ended = play(run, config, 2, "--trainer.max_steps", "2", before=counting)
    assert ended.code == 0, ended.err
    ended = play(run, config, 4, *runs.LAST, "--trainer.max_steps", "6", before=counting)
    assert ended.code == 0, ended.err
    assert "drawn and judged anew" in ended.err
    state = runs.load(run)["online_game"]
    assert state["progress"]["queries"] == 4 * 2 * (2 + 4 + 4)
    charged = [int(n) for file in run.glob(COUNTED.format("*")) for n in file.read_text().split()]
    assert sum(charged) == next(iter(state["ledgers"].values()))["queries"]


@pytest.mark.slow
def test_held_out_prompts_need_not_divide_by_the_processes(tmp_path: Path):
    """One has a batch less, whose place a prompt takes that is not asked about."""
    config, asked = texts(tmp_path), []
    config["data"]["init_args"]["num_validation"] = 3
    every = ("--trainer.val_check_interval", "2", "--trainer.num_sanity_val_steps", "0")
    for validates in ("0", "1.0"):
        run, limit = tmp_path / validates, ("--trainer.limit_val_batches", validates)
        ended = play(run, config, 2, "--trainer.max_steps", "4", *every, *limit, before=counting)
        assert ended.code == 0, ended.err
        (ledger,) = runs.load(run)["online_game"]["ledgers"].values()
        asked.append(ledger["queries"] + ledger["cache_hits"])
    # Twice three prompts, of which no more pairs than 4 x 2 are different.
    assert 0 < asked[1] - asked[0] <= 2 * 3 * 4 * 2
