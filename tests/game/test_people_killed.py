"""A run that people judge is killed again and again: no vote is lost, none is asked for twice."""

import hashlib
import time
from collections import Counter

import pytest
from forked import KILLED, ended, nlhf, nlhf_ranks, started
from paths import CONFIGS
from voters import AtThePage, Voters

from nlhf_zoo.cli.policies import load_policy
from nlhf_zoo.game.log_probs import log_prob_of_all
from nlhf_zoo.oracles import SmallLanguage
from nlhf_zoo.people import VoteStore
from nlhf_zoo.solvers import exploitability

RUN = "runs/people/small_language/version_0"
PEOPLE = ("ada", "bo", "cy")
FIT = ("fit", "--config", "configs/people/small_language.yaml")
BUDGET = ("--trainer.callbacks.rounds", "50")
LANGUAGE = SmallLanguage(num_letters=4, length=2)


def choose(person, pair):
    """By the known preference, which has cycles, each person for themselves."""
    prompt = LANGUAGE.prompts.text.index(pair.conversation[-1]["content"])
    words = LANGUAGE.action_names[prompt]
    first, second = (words.index(text) for text in (pair.first, pair.second))
    coin = hashlib.blake2b(f"{person} {pair.prompt} {pair.first} {pair.second}".encode()).digest()
    wins = int.from_bytes(coin[:6], "big") / 2**48 < LANGUAGE.table[prompt, first, second]
    return "first" if wins else "second"


def given(path):
    """Votes in the file; 0 where there is none."""
    if not path.exists():
        return 0
    store = VoteStore(path)
    votes = sum(store.progress().votes.values())
    store.end()
    return votes


def law_of(policy, player):
    """Log-probability of every word [C, N]."""
    return log_prob_of_all(policy, player, policy.encode(LANGUAGE.prompts)).detach().double()


@pytest.mark.slow
def test_votes_outlive_every_kill_and_the_policy_is_less_exploitable(tmp_path):
    (tmp_path / "configs").symlink_to(CONFIGS)
    path = tmp_path / RUN / "checkpoints/people.sqlite"
    with AtThePage(path, choose, PEOPLE, pause=0.002):
        for number, votes in enumerate((40, 300)):
            run = started(*FIT, *BUDGET, *(["--ckpt_path", "last"] * bool(number)), folder=tmp_path)
            while given(path) < votes:
                assert run.is_alive(), (tmp_path / ".stderr").read_text()
                time.sleep(0.05)
            run.kill()  # whatever it is doing
            assert ended(run, tmp_path).code == KILLED
        run = started(*FIT, *BUDGET, "--ckpt_path", "last", folder=tmp_path)
        while given(path) < 500:
            assert run.is_alive(), (tmp_path / ".stderr").read_text()
            time.sleep(0.05)
        run.terminate()
        stopped = ended(run, tmp_path)
        assert (stopped.code, stopped.sentence) == (143, "nlhf: stopped by SIGTERM")
        assert "Checkpoint: " in stopped.err
        last = nlhf(*FIT, *BUDGET, "--ckpt_path", "last", folder=tmp_path)
    assert last.code == 0, last.err
    store = VoteStore(path)
    found = [(vote.question, vote.person) for vote in store.votes()]
    questions = [tally for _, _, tally in store.questions()]
    store.end()
    assert len({*found}) == len(found)
    assert Counter(tally.votes for tally in questions) == {3: len(questions)}
    assert f"{len(questions)} queries" in last.out
    policy = load_policy(str(tmp_path / RUN), oracle=LANGUAGE).policy
    start, end = (
        exploitability(LANGUAGE.table, laws, log_mu, beta=0.1).mean()
        for log_mu in [law_of(policy, "reference")]
        for laws in (log_mu, law_of(policy, "policy"))
    )
    assert end < 0.7 * start


@pytest.mark.slow
def test_two_processes_put_their_questions_into_one_file(tmp_path):
    """And go on with further passes, or do not, together."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    path = tmp_path / RUN / "checkpoints/people.sqlite"
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1")
    with Voters(path, choose, PEOPLE, pause=0.01):
        runs = nlhf_ranks(2, *FIT, *two, "--trainer.callbacks.rounds", "3", folder=tmp_path)
    assert [run.code for run in runs] == [0, 0], runs[0].err + runs[1].err
    store = VoteStore(path)
    prompts = Counter(pair.conversation[-1]["content"] for _, pair, _ in store.questions())
    assert {tally.votes for _, _, tally in store.questions()} == {3}
    store.end()
    assert prompts.keys() == {"ab", "cd"}
    assert f"{prompts.total()} queries" in runs[0].out
    assert "People are asked" in runs[0].err
    assert "People are asked" not in runs[1].err
