"""A language model is trained by people: what is asked of whom, and what a run that stops loses."""

from functools import partial

import pytest
import rows
import torch
from voters import Voters

from nlhf_zoo.algorithms import OnlineIPO
from nlhf_zoo.callbacks import Budget, GameCheckpoint
from nlhf_zoo.data.text_prompts import TextPrompts
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.health.suite import run_checks
from nlhf_zoo.oracles import CachedOracle, HumanOracle
from nlhf_zoo.oracles.ledger import spent
from nlhf_zoo.people import VoteStore
from nlhf_zoo.policies import CausalLMPolicy, LoRA, SmallLanguageModel
from nlhf_zoo.records import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:Found .* module")
ROUNDS = 3


def people_game(oracle, **rollout):
    torch.manual_seed(0)
    policy = CausalLMPolicy(
        SmallLanguageModel(hidden_size=16, layers=1, num_letters=4), LoRA(2), max_new_tokens=2
    )
    options = {"epochs": 2, "held_out": 0, "ahead": not oracle.wait} | rollout
    return OnlineGame(
        policy, oracle, OnlineIPO(eta=0.5), 0.1,
        optimizer=partial(torch.optim.AdamW, lr=0.02),
        rollout=Sample(4, **options), realisation=GradientSteps(),
    )  # fmt: skip


def fit(game, folder):
    """Train to the end, from the last checkpoint where there is one."""
    prompts, checkpoints = folder / "prompts.jsonl", folder / "checkpoints"
    prompts.write_text("".join(f'{{"prompt": "{letter}"}}\n' for letter in "abcd"))
    callbacks = [Budget(rounds=ROUNDS), GameCheckpoint(1, str(checkpoints))]
    trainer = rows.trainer(
        devices=1, limit_val_batches=0, callbacks=callbacks, enable_checkpointing=True
    )
    last = checkpoints / "last.ckpt"
    data = TextPrompts(str(prompts), batch_size=2)
    trainer.fit(game, data, ckpt_path=str(last) if last.exists() else None)
    return game


def lesser(person, pair):
    return "first" if pair.first < pair.second else "second"


class Striking:
    """Who chooses the lesser of two, but so many times only."""

    def __init__(self, votes):
        self.left = votes

    def __call__(self, person, pair):
        self.left -= 1
        return lesser(person, pair) if self.left >= 0 else None


def asked_of(folder):
    """How many votes each question has; nobody has given two."""
    store = VoteStore(folder / "checkpoints/people.sqlite")
    votes = [(vote.question, vote.person) for vote in store.votes()]
    found = [tally.votes for _, _, tally in store.questions()]
    store.end()
    assert len({*votes}) == len(votes) == sum(found)
    return found


def weights_of(game):
    return {name: one for name, one in game.policy.state_dict().items() if ".policy." in name}


@pytest.mark.slow
def test_a_run_that_nobody_answers_stops_and_goes_on_as_if_it_had_not(tmp_path):
    """To the bit, and with each question put once and answered once."""
    found = {}
    for name, strikes in (("whole", ()), ("twice", (3, 14))):
        folder = tmp_path / name
        folder.mkdir()
        votes = folder / "checkpoints/people.sqlite"
        for strike in strikes:
            game = people_game(HumanOracle(timeout=0.3))
            with Voters(votes, Striking(strike)), pytest.raises(OracleStoppedError, match="nobody"):
                fit(game, folder)
        with Voters(votes, lesser, ["ada", "bo"]):
            found[name] = fit(people_game(HumanOracle()), folder)
        asked = asked_of(folder)
        assert {*asked} == {1}
        assert spent(found[name].oracle)["queries"] == len(asked)
        assert found[name].progress.round == ROUNDS
    for name, one in weights_of(found["whole"]).items():
        assert torch.equal(one, weights_of(found["twice"])[name])


def test_it_trains_on_while_people_answer_and_nothing_is_asked_twice(tmp_path):
    votes = tmp_path / "checkpoints/people.sqlite"
    game = people_game(HumanOracle(wait=False, timeout=0.3), max_epochs=5)
    strike, checkpoint, there = Striking(14), tmp_path / "checkpoints/last.ckpt", set()

    def choose(person, pair):
        there.add(checkpoint.exists())  # what is asked can be gone on with
        return strike(person, pair)

    with Voters(votes, choose), pytest.raises(OracleStoppedError, match="nobody has voted"):
        fit(game, tmp_path)
    assert there == {True}
    stopped = game.progress
    assert stopped.round == 1
    assert stopped.extra_epochs >= 3  # of the last rollout alone, before it waited
    asked = len(asked_of(tmp_path))
    resumed = people_game(HumanOracle(wait=False, timeout=20.0), max_epochs=5)
    with Voters(votes, lesser, ["ada", "bo"]):
        fit(resumed, tmp_path)
    assert resumed.progress.round == ROUNDS
    assert resumed.progress.rollouts == ROUNDS
    answers = asked_of(tmp_path)
    assert {*answers} == {1}
    assert len(answers) > asked
    counts = spent(resumed.oracle)
    assert counts["queries"] == len(answers)


def test_what_remembers_answers_does_not_ask_ahead(tmp_path):
    people = HumanOracle(tmp_path / "people.sqlite", wait=False)
    oracle = CachedOracle(people, tmp_path / "answers.sqlite")
    oracle.wait = False
    with pytest.raises(UserError, match="and CachedOracle around it asks when it is asked itself"):
        people_game(oracle)


def test_the_doctor_asks_nobody_unless_it_is_told_where():
    prompts = Prompts(torch.arange(2), text=["a", "b"])
    found = run_checks(people_game(HumanOracle(wait=False)), prompts)
    checks = [check for _, each in found for check in each]
    assert [check for check in checks if getattr(check, "passed", True) is False] == []
    assert len([check for check in checks if "people are asked in a run" in check.figure]) == 1
