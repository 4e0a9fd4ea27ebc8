"""What the doctor and a run say of how prompts reach the model, and of responses that are cut."""

from dataclasses import replace
from functools import partial

import torch
from language_models import letters, tiny_folder
from rows import trainer
from tiny_models import BOS
from torch.utils.data import DataLoader

from nlhf_zoo.algorithms import OnlineDPO
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.health import HealthCheck
from nlhf_zoo.health.prompts import how_written
from nlhf_zoo.health.scoring import speed
from nlhf_zoo.oracles import RuleOracle
from nlhf_zoo.oracles.rules import shorter_wins
from nlhf_zoo.policies import CausalLMPolicy, LoRA
from nlhf_zoo.records import Prompts


def game_of(folder, **policy):
    return OnlineGame(
        CausalLMPolicy(str(folder), lora=LoRA(r=2), **{"max_new_tokens": 3} | policy),
        RuleOracle(shorter_wins), OnlineDPO(), optimizer=partial(torch.optim.Adam, lr=0.01),
        rollout=Sample(2), realisation=GradientSteps(),
    )  # fmt: skip


def texts(*given):
    return Prompts(torch.arange(len(given)), text=list(given))


def said(game, prompts):
    return [str(finding) for finding in how_written(game, prompts)]


def test_how_prompts_begin_and_end_and_in_which_form():
    chat = game_of(tiny_folder("gemma2"))
    lines = said(chat, texts("go on."))
    assert "prompts are " in lines[0]
    assert "plain text, though the policy's tokenizer has a chat template" in lines[0]
    assert repr(f"{BOS}go on.") in lines[1]
    assert repr(f"{BOS}go on.") in lines[2]
    assert lines[3].startswith("ok ")
    talk = [{"role": "user", "content": "to be or not to be?"}]
    lines = said(chat, replace(texts("x"), conversations=[talk]))
    assert "conversations, in the chat template of the policy's tokenizer" in lines[0]
    assert f"'{BOS}<turn>u:to be" in lines[1]
    assert lines[2].endswith("be?<turn><turn>a:'")
    for given in (texts("<turn>u:x"), texts(f"{BOS}x")):  # in the template already
        assert said(chat, given)[0].endswith(" plain text")
    twice = said(chat, texts(BOS + BOS + "x"))[3]
    assert twice.startswith("FAIL")
    assert "1 of 1 have their first token twice" in twice
    bare = game_of(tiny_folder("llama"))
    assert said(bare, texts("x"))[0].endswith(" plain text")


def play(game, prompts, steps):
    loader = DataLoader([0] * steps, batch_size=1, collate_fn=lambda _: prompts)
    with quiet():
        run = trainer(max_steps=steps, limit_val_batches=0, callbacks=[HealthCheck()])
        run.fit(game, loader, val_dataloaders=[])


def never_ends(game, monkeypatch):
    sample = game.policy.sample

    def cut(*args):
        drawn = sample(*args)
        return replace(drawn, truncated=torch.ones_like(drawn.truncated))

    monkeypatch.setattr(game.policy, "sample", cut)


def test_a_run_says_what_may_not_be_meant(capsys, monkeypatch):
    game = game_of(letters("gpt2"))
    never_ends(game, monkeypatch)
    play(game, texts("go on."), 12)
    lines = capsys.readouterr().err.splitlines()
    form, cut = (line for line in lines if line.startswith(("Prompts", "100%")))
    assert form.startswith("Prompts are plain text, though")
    assert cut.startswith("100% of the responses are cut: raise model.policy.max_new_tokens; of a")
    assert "{enable_thinking: false}" in cut


def test_a_run_as_it_should_be_says_nothing(capsys):
    game = game_of(tiny_folder("llama"))
    capsys.readouterr()
    play(game, texts("go on."), 1)
    assert capsys.readouterr().err == ""


def test_the_doctor_fails_where_nearly_all_responses_are_cut(monkeypatch):
    game = game_of(tiny_folder("llama"))
    (before,) = (check for check in speed(game, texts("a", "b")) if "themselves" in str(check))
    assert "of 16 are cut at max_new_tokens = 3" in before.figure
    never_ends(game, monkeypatch)
    (check,) = (check for check in speed(game, texts("a", "b")) if "themselves" in str(check))
    assert check.passed is False
    assert check.figure.startswith("100% of 16")
