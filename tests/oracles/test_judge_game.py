"""Games that a language model judges, through the command line; the judge is on loopback."""

import itertools
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from judge_server import JudgeServer, cycle, rule
from judge_server_oracles import RETRIES, oracle
from paths import ROOT
from runs import RUN, fit, judged_game, load, part, write
from slow import slow_unless

from nlhf_zoo.callbacks import read_history
from nlhf_zoo.oracles.text_oracle import Question
from nlhf_zoo.solvers import solve

CONFIG = ROOT / "configs/judge/listed.yaml"
LISTED = [
    json.loads(line)["responses"]
    for line in (ROOT / "configs/data/listed_responses.jsonl").read_text().splitlines()
]


def listed(folder: Path, url: str, *args: str):
    from forked import nlhf

    folder.mkdir(exist_ok=True)
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
    url = f"--model.oracle.oracle.oracle.base_url={url}"
    return nlhf(args[0], "--config", str(CONFIG), url, *args[1:], folder=folder)


def test_the_equilibrium_of_a_judge_over_listed_responses(tmp_path: Path):
    with JudgeServer(taste="cycle") as server:
        run = listed(tmp_path, server.url, "fit")
        assert run.code == 0, run.err
        pairs = sum(len(row) * (len(row) - 1) // 2 for row in LISTED)
        assert len(server.entries()) == 2 * pairs  # each once, in both orders
        assert f"{pairs} queries, {pairs} swapped, {2 * pairs} requests" in run.out
        # Elsewhere, and with all answers in the file.
        run = listed(tmp_path, server.url, "predict", "--ckpt_path", "last")
        assert run.code == 0, run.err
        assert len(server.entries()) == 2 * pairs
    history = read_history(tmp_path / "runs/judge/listed/version_0")
    assert history["exploitability"][-1].max() < 1e-12
    rows = [line.split(",") for line in run.out.splitlines() if re.match(r"\d,", line)]
    for prompt, responses in enumerate(LISTED):
        P = torch.full((len(responses),) * 2, 0.5, dtype=torch.float64)
        for one, other in itertools.permutations(range(len(responses)), 2):
            first, second = responses[one], responses[other]
            P[one, other] = (cycle(first, second) + 1 - cycle(second, first)) / 2
        mu = torch.full((len(responses),), 1 / len(responses), dtype=torch.float64)
        nash = solve(P, mu, beta=0.05).log_policy.exp()
        printed = [float(row[2]) for row in rows if row[0] == str(prompt)]
        np.testing.assert_allclose(printed, nash, rtol=0, atol=1e-6)


def test_a_judge_that_says_nothing_of_use_ends_the_run_with_its_last_words(tmp_path: Path):
    with JudgeServer(always="refusal") as server:
        judged_game(tmp_path, server.url)
        config = read(tmp_path)
        config["trainer"]["callbacks"][0] = part("Budget", rounds=8)
        write(tmp_path, config)
        run = fit(tmp_path)
    assert run.code == 2
    assert re.search(
        r"CachedOracle had no valid answer to 100% of what it was asked in the last 20 training "
        r"steps.*model.max_invalid.*its last words: no verdict, for it is not one JSON object, but "
        r"I'm sorry, but I can't compare",
        run.sentence,
    )
    progress = load(tmp_path)["online_game"]["progress"]  # there is a checkpoint
    assert progress["batches"] == 19


def test_a_short_run_without_answers_does_not_end_well(tmp_path: Path):
    with JudgeServer(always="refusal") as server:
        judged_game(tmp_path, server.url)
        run = fit(tmp_path)
    assert run.code == 2
    assert "had no valid answer to 100% of what it was asked in the last 16 " in run.sentence
    assert load(tmp_path)["online_game"]["progress"]["round"] == 4
    assert "222 queries, 222 swapped, 222 invalid" in run.out


def test_a_judge_may_move_and_wait_longer_but_not_be_another(tmp_path: Path):
    with JudgeServer() as server:
        judged_game(tmp_path, server.url)
        config = read(tmp_path)
        callbacks = config["trainer"]["callbacks"]
        config["trainer"]["callbacks"] = [part("Budget", rounds=1), *callbacks[1:]]
        write(tmp_path, config)
        assert fit(tmp_path).code == 0
    with JudgeServer() as server:
        judge = config["model"]["init_args"]["oracle"]["init_args"]["oracle"]["init_args"]
        judge |= {"base_url": server.url, "patience": 400.0}
        config["trainer"]["callbacks"] = [part("Budget", rounds=2), *callbacks[1:]]
        # As of a version that had no such option: only its default is what the run had.
        saved = tmp_path / RUN / "config.yaml"
        text, number = re.subn(r"\n +top_logprobs: 20", "", saved.read_text())
        assert number == 1
        saved.write_text(text)
        write(tmp_path, config)
        other = "--model.oracle.init_args.oracle.init_args.top_logprobs=5"
        run = fit(tmp_path, other, "--ckpt_path", "last")
        assert run.code == 2
        assert re.search(r"had \S+top_logprobs = nothing, the configuration has 5", run.sentence)
        run = fit(tmp_path, "--ckpt_path", "last")
        assert run.code == 0, run.err
        judge |= {"model": "smaller"}
        write(tmp_path, config)
        run = fit(tmp_path, "--ckpt_path", "last")
        assert run.code == 2
        assert re.search(r"the checkpoint's run had \S+model = small, .* has smaller", run.sentence)
    assert load(tmp_path)["online_game"]["progress"]["round"] == 2
    assert (tmp_path / RUN / "config.yaml").is_file()


MANNERS = {
    "thinks": {}, "thinks where nobody sees it": {"verdict": "logprobs"}, "parts": {},
    "five": {"verdict": "logprobs", "top_logprobs": 5}, "moderates": {},
}  # fmt: skip


@slow_unless("kind", lambda kind: kind in ("thinks", "five"), MANNERS)
def test_a_run_against_a_judge_of_a_manner_of_its_own_ends_well(kind: str, tmp_path: Path):
    """Thinks, answers in parts, lists five log-probabilities, moderates one question in fifty."""
    manner = kind.split()[0]
    with JudgeServer(manner=manner, keep=1) as server:
        judged_game(tmp_path, server.url)
        config = read(tmp_path)
        config["model"]["init_args"]["oracle"]["init_args"]["oracle"]["init_args"] |= MANNERS[kind]
        if manner != "moderates":  # which takes some questions to be seen
            config["trainer"]["callbacks"][0] = part("Budget", rounds=1)
        write(tmp_path, config)
        run = fit(tmp_path)
        assert run.code == 0, run.err
        log = server.entries()
    counts: Counter[str] = Counter()
    for of_part in load(tmp_path)["online_game"]["ledgers"].values():
        counts.update(of_part)
    refused = Counter(order_of(entry) for entry in log if entry["fault"])
    completions = len(log) - refused.total()
    assert counts["requests"] == counts["queries"] + counts["swapped"] == len(log)
    assert counts["queries"] == counts["swapped"]
    assert (counts["retries"], counts["prompt_tokens"]) == (0, 100 * completions)
    # A pair has no answer where one of its orders was refused, each time that it is asked about.
    pairs = {(prompt, *sorted(two)) for prompt, *two in refused}
    invalid = sum(max(refused[p, a, b], refused[p, b, a]) for p, a, b in pairs)
    assert counts["invalid"] == invalid
    assert (invalid > 0) == (manner == "moderates")
    with sqlite3.connect(tmp_path / "answers.sqlite") as store:
        kept = store.execute("SELECT probability FROM answers").fetchall()
    assert len(kept) == counts["queries"] - invalid
    wanted = {(rule(e["first"], e["second"]) + 1 - rule(e["second"], e["first"])) / 2 for e in log}
    assert all(min(min(abs(p - w), abs(1 - p - w)) for w in wanted) < 1e-6 for (p,) in kept)


def order_of(entry: dict) -> tuple[str, str, str]:
    """A prompt and two responses in the order in which they were shown."""
    quoted = re.search("<message>\n(.*?)</message>", entry["messages"][-1]["content"], re.S)
    assert quoted is not None
    return quoted[1], entry["first"], entry["second"]


def read(folder: Path) -> dict:
    import yaml

    return dict(yaml.safe_load((folder / "game.yaml").read_text()))


@pytest.mark.slow
def test_a_budget_within_an_ensemble_can_be_raised(tmp_path: Path):
    judged_game(tmp_path, "http://127.0.0.1:9/v1")
    config = read(tmp_path)
    rule = part("RuleOracle", function="nlhf_zoo.oracles.rules.shorter_wins")
    other = part("RuleOracle", function=part("nlhf_zoo.oracles.rules.Mentions", word="a"))
    budget = part("BudgetedOracle", oracle=rule, max_queries=20)
    config["model"]["init_args"]["oracle"] = part("EnsembleOracle", oracles=[budget, other])
    write(tmp_path, config)
    run = fit(tmp_path)
    assert run.code == 2
    assert "raise BudgetedOracle.max_queries" in run.sentence
    other["init_args"]["function"]["init_args"]["word"] = "b"
    budget["init_args"]["max_queries"] = 20000
    write(tmp_path, config)
    run = fit(tmp_path, "--ckpt_path", "last")
    assert run.code == 2  # the one thing that differs beside the budget is named
    assert re.search(
        r"oracles\.1\.init_args\.function\S*\.word = a, .* has b: resume", run.sentence
    )
    other["init_args"]["function"]["init_args"]["word"] = "a"
    write(tmp_path, config)
    run = fit(tmp_path, "--ckpt_path", "last")
    assert run.code == 0, run.err


def test_an_outage_is_waited_for_and_makes_no_answer_invalid():
    """The server is away for longer than its one retry would take, and for less than patience."""
    said = [{"role": "user", "content": "Which?"}]
    asked = [Question(said, f"one {number}", f"other {number}") for number in range(40)]
    with JudgeServer(away_after=20) as server:
        judge = oracle(server, concurrency=4)

        def come_back(counts: Mapping[str, int]) -> None:
            # What was on its way was tried again more often than all its retries together.
            if counts.get("retries") and judge.ledger["retries"] == 4 * RETRIES + 4:
                server.stop()
                server.start(port=server.port, away_after=0)

        judge.ledger.gates.append(come_back)
        answers = dict(judge.answers(asked))
    for number, question in enumerate(asked):
        first, second = question.first, question.second
        expected = (rule(first, second) + 1 - rule(second, first)) / 2
        assert answers[number] == pytest.approx(expected, abs=1e-9)
    assert judge.ledger["requests"] == 80 + judge.ledger["retries"]
    assert judge.ledger["retries"] > 4 * RETRIES + 4
