"""Every check of a game's health passes on a healthy game, and fails on the fault it is there for.

Adapters are random and not zero where that matters: the checks see to it themselves, and that is
tested, by faults that zero adapters would hide.
"""

import copy
import random
from contextlib import closing
from dataclasses import replace
from functools import partial, wraps

import lightning as L
import numpy as np
import pytest
import torch
from paths import ROOT
from preference_runs import refused
from rows import trainer, write
from runs import differences
from tiny_models import EOS_ID, save_tiny, scatter_adapters
from torch.utils.data import DataLoader
from zoo import small_games

from nlhf_zoo.algorithms import EGPO, NashMD, NashMP, OnlineDPO, OptimisticMirrorDescent
from nlhf_zoo.callbacks import Budget
from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.data.stream import EndlessBatches
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.payoffs import PayoffEstimator
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.health import (
    Check,
    ReferenceFingerprint,
    refuse_unhealthy,
    restored_after,
    run_checks,
    scatter,
)
from nlhf_zoo.health.dry_run import dry_run
from nlhf_zoo.oracles import BernoulliLabels, MatrixOracle, RuleOracle
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.policies import CausalLMPolicy, LoRA, TabularPolicy
from nlhf_zoo.policies.language_model import generation, scoring
from nlhf_zoo.policies.language_model.players import AdapterPlayers
from nlhf_zoo.policies.language_model.scoring import Scorer
from nlhf_zoo.records import Comparison, Prompts

PROMPTS = Prompts(torch.arange(3), text=["go on.", "a", "to be or not?"])
MANY = Prompts(torch.arange(40), text=["go on."] * 40)  # some response ends, whatever is drawn

STAYS = "the reference stays when the policy moves"
LOADED = "the reference is the model as it is loaded"
MERGED = "no adapter is merged into the base"
APART = "players have weights of their own"
MIXTURE = "a mixture of weight 1 is that player"
TRAINED = "the policy, and it alone, is trained"
GRADIENT = "gradient reaches the policy alone"
PADDING = "padding and batch do not matter"
DROPOUT = "dropout is off"
END = "the end of a sequence is scored once"
STOP = "responses stop at their end"
DRAWN = "the generator draws what is scored"
SYMMETRY = "P(a > b) + P(b > a) = 1"
PROBABILITY = "preferences are probabilities"
ANSWERS = "the oracle answers"
RESUMED = "a resumed run is the same run"
COUNTED = "queries are counted as they are asked"
DECLARED = "queries of a round are as declared"
CHECKPOINT = "checkpoints hold all that trains"


def longer(prompt: str, first: str, second: str) -> float:
    return 0.5 + 0.4 * np.tanh(len(first) - len(second))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_tiny(folder / kind, kind) for kind in ("gpt2", "llama")}


def game_of(folder, algorithm=None, oracle=None, **policy):
    torch.manual_seed(0)
    policy = {"lora": LoRA(r=4, alpha=8), "max_new_tokens": 5} | policy
    return OnlineGame(
        CausalLMPolicy(str(folder), **policy), oracle or RuleOracle(longer),
        algorithm or NashMD(mixture=0.25), optimizer=partial(torch.optim.Adam, lr=0.01),
        rollout=Sample(2, 2), realisation=GradientSteps(),
    )  # fmt: skip


def table_game(algorithm, num_games, oracle=MatrixOracle, **options):
    P, _ = small_games(num_games)
    return OnlineGame(TabularPolicy(), oracle(P), algorithm, **options)


def make_trainer(steps, callbacks):
    return trainer(max_steps=steps, limit_val_batches=0, callbacks=[*callbacks])


def checks_of(game, prompts=PROMPTS, rehearsed=False, until=None):
    """What is found, by name; no more than is asked for."""
    checks = {}
    with (
        quiet(),
        closing(run_checks(game, prompts, make_trainer if rehearsed else None)) as findings,
    ):
        for _, found in findings:
            checks |= {check.name: check for check in found if isinstance(check, Check)}
            if until is not None and until <= checks.keys():
                break
    return checks


def failing(checks):
    return {name for name, check in checks.items() if check.passed is False}


def everything(game):
    """All that a check could leave behind, comparable bit for bit."""
    checkpoint = {"state_dict": game.state_dict()}
    game.on_save_checkpoint(checkpoint)
    optimizer = checkpoint["online_game"]["snapshot"]
    return {
        "weights": {name: value.clone() for name, value in game.state_dict().items()},
        "position": copy.deepcopy(checkpoint["online_game"] | {"snapshot": repr(optimizer)}),
        "modes": [module.training for module in game.modules()],
        "trained": [p.requires_grad for p in game.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in game.parameters()],
        "budget": (game.max_rounds, game.max_queries),
        "oracle": {k: v for k, v in vars(game.oracle).items() if isinstance(v, int | float)},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "listeners": (len(game.oracle._forward_pre_hooks), "expected" in vars(game.oracle)),
        "trainer": game._trainer,
    }


# Healthy games ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "algorithm", "policy"),
    [
        ("gpt2", NashMD(mixture=0.25), {}),
        ("llama", NashMP(inner_steps=2), {}),
        ("llama", EGPO(), {"lora": None}),
        ("llama", OnlineDPO(), {"softmax_chunk": 0, "length_normalised": True}),
        ("llama", NashMP(), {"dropout": True}),
    ],
    ids=["mixture", "inner steps", "copies", "normalised", "dropout"],
)
def test_a_healthy_language_model_passes_and_stays_as_it_was(folders, kind, algorithm, policy):
    game = game_of(folders[kind], algorithm, **policy)
    for parameter in game.policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = everything(game)
    checks = checks_of(game, rehearsed=True)
    assert failing(checks) == set(), [str(c) for c in checks.values() if c.passed is False]
    skipped = {name for name, check in checks.items() if check.passed is None}
    expected = {DROPOUT} if policy.get("dropout") else set()
    assert skipped == (expected if game.policy.lora else {"all adapters have gradient"})
    assert len(checks) == 24
    assert differences(everything(game), before) == []


@pytest.mark.parametrize("algorithm", [NashMP(), EGPO(), OptimisticMirrorDescent()])
@pytest.mark.parametrize("realisation", [None, GradientSteps()])
def test_a_healthy_table_passes_and_stays_as_it_was(algorithm, realisation):
    game = table_game(algorithm, 3, realisation=realisation)
    before = everything(game)
    checks = checks_of(game, game.oracle.prompts, rehearsed=True)
    assert failing(checks) == set()
    assert {STAYS, APART, PADDING, SYMMETRY, RESUMED, DECLARED} <= {
        name for name, check in checks.items() if check.passed
    }
    assert differences(everything(game), before) == []


def test_a_check_that_raises_leaves_the_game_as_it_was(folders):
    game = game_of(folders["llama"])
    before = everything(game)

    def fails():
        scatter_adapters(game.policy)
        game.progress.queries += 3
        torch.rand(3), np.random.rand(3), random.random()
        game.train().requires_grad_(True)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), restored_after(game):
        fails()
    assert differences(everything(game), before) == []


# Planted faults ---------------------------------------------------------------------------------


def in_place_of(owner, name):
    """A fault that stands in the place of a function, which it is given before the arguments."""

    def fault(wrong):
        @wraps(wrong)
        def plant(game, monkeypatch):
            right = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *args, **given: wrong(right, *args, **given))

        return plant

    return fault


@in_place_of(AdapterPlayers, "_switch")
def the_adapted_model_as_reference(switch, players, name):
    """As peft's get_base_model() gives it: the base with the adapters' layers in it."""
    switch(players, "policy" if name == "__base__" else name)


@in_place_of(AdapterPlayers, "_switch")
def the_anchor_is_the_policy(switch, players, name):
    switch(players, "policy" if name == "anchor" else name)


def adapters_are_merged(game, monkeypatch):
    game.policy._players.module("policy").merge_adapter(["policy"])


def the_base_has_moved(game, monkeypatch):
    embedding = game.policy._players.language_model("policy").get_input_embeddings()
    with torch.no_grad():
        embedding.weight += 0.01


@in_place_of(CausalLMPolicy, "log_prob")
def players_of_no_weight_enter(log_prob, policy, who, *rest):
    return log_prob(policy, {player: weight or 1e-3 for player, weight in who.items()}, *rest)


def half_of_the_policy_is_frozen(game, monkeypatch):
    next(p for p in game.policy.parameters() if p.requires_grad).requires_grad_(False)


def the_anchor_is_trained(game, monkeypatch):
    for parameter in game.policy._players.parameters_of("anchor").values():
        parameter.requires_grad_(True)


@in_place_of(Scorer, "_hidden")
def the_policy_is_switched_away_in_the_backward(hidden, scorer, player, *rest):
    trained = player == "policy" and torch.is_grad_enabled()
    return hidden(scorer, "anchor" if trained else player, *rest)


@in_place_of(scoring, "position_ids")
def positions_count_padding(position_ids, mask):
    return torch.arange(mask.shape[1]).expand(mask.shape)


def padding_is_attended_to(game, monkeypatch):
    model = game.policy._players.language_model("policy")
    forward = model.base_model.forward

    def unmasked(*args, attention_mask=None, **kwargs):
        if attention_mask is not None:
            attention_mask = torch.ones_like(attention_mask)
        return forward(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", unmasked)


def dropout_is_on(game, monkeypatch):
    for module in game.policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    monkeypatch.setattr(game.policy._players, "eval", lambda: None)
    monkeypatch.setattr(CausalLMPolicy, "train", torch.nn.Module.train)


@in_place_of(Scorer, "_by_responses")
def masked_tokens_are_scored(by_responses, scorer, who, prompts, responses, *rest):
    responses = replace(responses, mask=torch.ones_like(responses.mask))
    return by_responses(scorer, who, prompts, responses, *rest)


@in_place_of(Scorer, "_by_responses")
def the_end_is_not_scored(by_responses, scorer, who, prompts, responses, *rest):
    ended = torch.isin(responses.tokens, torch.tensor(EOS_ID))
    responses = replace(responses, mask=responses.mask & ~ended)
    return by_responses(scorer, who, prompts, responses, *rest)


@in_place_of(generation, "_up_to_end")
def the_end_is_masked_when_it_is_drawn(up_to_end, tokens, request):
    return torch.isin(tokens, torch.tensor(request.ends)).long().cumsum(-1) == 0


@in_place_of(generation, "mix")
def mixtures_are_drawn_from_the_first_player(mix, logits, weights):
    return logits[0].log_softmax(-1)


@in_place_of(generation, "position_ids")
def the_generator_forgets_positions(position_ids, mask):
    """The prompts' cache is made without the positions that go with it."""
    return torch.arange(mask.shape[1]).expand(mask.shape)


FAULTS = [
    (the_adapted_model_as_reference, {STAYS, LOADED, APART}, "gpt2"),
    (the_anchor_is_the_policy, {APART}, "llama"),
    (adapters_are_merged, {MERGED}, "llama"),
    (the_base_has_moved, {LOADED}, "llama"),
    (players_of_no_weight_enter, {MIXTURE}, "llama"),
    (half_of_the_policy_is_frozen, {TRAINED}, "llama"),
    (the_anchor_is_trained, {TRAINED}, "llama"),
    (the_policy_is_switched_away_in_the_backward, {GRADIENT}, "llama"),
    (positions_count_padding, {LOADED, PADDING}, "gpt2"),
    (padding_is_attended_to, {PADDING}, "llama"),
    (dropout_is_on, {DROPOUT}, "gpt2"),
    (masked_tokens_are_scored, {PADDING, END}, "llama"),
    (the_end_is_not_scored, {END}, "llama"),
    (the_end_is_masked_when_it_is_drawn, {STOP}, "llama"),
    (mixtures_are_drawn_from_the_first_player, {DRAWN}, "llama"),
    (the_generator_forgets_positions, {DRAWN}, "gpt2"),
]


@pytest.mark.parametrize(("plant", "names", "kind"), FAULTS)
def test_a_planted_fault_is_found(folders, monkeypatch, plant, names, kind):
    mixture = plant is mixtures_are_drawn_from_the_first_player
    game = game_of(folders[kind], NashMD(mixture=0.5) if mixture else NashMP())
    assert game.policy.capabilities  # what comes later must be found, too
    plant(game, monkeypatch)
    prompts = MANY if names == {STOP} else PROMPTS
    assert failing(checks_of(game, prompts, until=names)) >= names


class Wild(PreferenceOracle):
    """Answers that are no probabilities."""

    def forward(self, prompts, first, second):
        shape = (len(prompts), first.num, second.num)
        return Comparison(torch.full(shape, 1.5), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize(
    ("oracle", "name"),
    [
        (RuleOracle(lambda *_: 0.9, check_symmetry=False), SYMMETRY),
        (RuleOracle(lambda *_: 0.9), "oracle"),  # which refuses it by itself
        (RuleOracle(lambda *_: None), ANSWERS),
        (Wild(), PROBABILITY),
    ],
)
def test_a_wrong_oracle_is_found(folders, oracle, name):
    game = game_of(folders["llama"], oracle=oracle)
    assert failing(checks_of(game, until={name})) >= {name}


def test_drawn_labels_are_no_asymmetry():
    game = table_game(
        OnlineDPO(), 3, lambda P: BernoulliLabels(MatrixOracle(P), seed=0), rollout=Sample(4, 4),
        realisation=GradientSteps(),
    )  # fmt: skip
    checks = checks_of(game, game.oracle.prompts, rehearsed=True)
    assert failing(checks) == set()
    assert checks[SYMMETRY + " (answers are drawn)"].passed


@in_place_of(PayoffEstimator, "__call__")
def more_is_counted(call, *arguments):
    payoffs = call(*arguments)
    return replace(payoffs, queries=2 * payoffs.queries)


@in_place_of(NashMP, "queries")
def less_is_declared(queries, *arguments, **sizes):
    return 1


@in_place_of(OnlineGame, "on_save_checkpoint")
def the_snapshot_is_not_saved(save, game, checkpoint):
    save(game, checkpoint)
    checkpoint["online_game"]["snapshot"] = {}


@in_place_of(OnlineGame, "on_load_checkpoint")
def the_position_is_not_saved(load, game, checkpoint):
    load(game, checkpoint)
    game.progress.batches = 0


@in_place_of(CausalLMPolicy, "sample")
def draws_are_not_keyed(sample, policy, who, prompts, num, decoding, generator):
    stream = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    return sample(policy, who, prompts, num, decoding, stream)


@in_place_of(CausalLMPolicy, "checkpoint_keys")
def the_policy_is_not_saved(checkpoint_keys, policy):
    return {name for name in checkpoint_keys(policy) if "policy" not in name[9:]}


@pytest.mark.parametrize(
    ("plant", "names"),
    [
        (more_is_counted, {COUNTED, DECLARED}),
        (less_is_declared, {DECLARED}),
        (the_snapshot_is_not_saved, {RESUMED}),
        (the_position_is_not_saved, {RESUMED}),
        (draws_are_not_keyed, {RESUMED}),
        (the_policy_is_not_saved, {CHECKPOINT}),
    ],
)
def test_a_fault_of_the_round_is_found(folders, monkeypatch, plant, names):
    # The checkpoint lies within the lookahead's steps.
    game = game_of(folders["llama"], NashMP(inner_steps=2))
    plant(game, monkeypatch)
    with quiet():
        checks = dry_run(game, game.policy.encode(PROMPTS), make_trainer)
    found = {check.name.partition(",")[0] for check in checks if check.passed is False}
    assert found >= names


# What `fit` refuses before its first step -------------------------------------------------------


class Silent(PreferenceOracle):
    """An oracle that costs money."""

    def forward(self, prompts, first, second):
        raise AssertionError("the oracle was asked")


@pytest.mark.parametrize("policy", [{}, {"lora": None}, {"gradient_checkpointing": True}])
def test_a_healthy_model_is_not_refused(folders, monkeypatch, policy):
    rows = []
    hidden = Scorer._hidden

    def counted(self, player, tokens, *rest):
        rows.append(len(tokens))
        return hidden(self, player, tokens, *rest)

    monkeypatch.setattr(Scorer, "_hidden", counted)
    game = game_of(folders["gpt2"], NashMP(), Silent(), **policy)
    before = everything(game)
    refuse_unhealthy(game, MANY)
    assert differences(everything(game), before) == []
    rows.clear()  # a player's first pass is made twice, to compare two ways to its logits
    refuse_unhealthy(game, MANY)
    assert rows == 8 * [4]  # the reference twice, four players, two passes with gradient


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (the_adapted_model_as_reference, STAYS),
        (adapters_are_merged, MERGED),
        (the_anchor_is_the_policy, APART),
        (half_of_the_policy_is_frozen, TRAINED),
        (the_anchor_is_trained, TRAINED),
        (dropout_is_on, DROPOUT),
    ],
)
def test_an_unhealthy_model_is_refused(folders, monkeypatch, plant, name):
    game = game_of(folders["gpt2"], NashMP(), Silent())
    plant(game, monkeypatch)
    before = {n: v.clone() for n, v in game.state_dict().items()}
    with pytest.raises(UserError, match=f"cannot be trained as it is: {name}"):
        refuse_unhealthy(game, PROMPTS)
    assert plant is adapters_are_merged or differences(dict(game.state_dict()), before) == []


def test_tables_are_not_looked_at():
    game = table_game(NashMP(), 2)
    game.policy.sample = None
    refuse_unhealthy(game, game.oracle.prompts)


# The reference's fingerprint --------------------------------------------------------------------


class Move(L.Callback):
    """Moves one weight of the base model after some rounds, by the least that there is."""

    def __init__(self, after):
        self.after = after

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *rest):
        if pl_module.progress.round == self.after:
            players = pl_module.policy._players
            weight = players.language_model("policy").get_output_embeddings().weight
            weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(9.0))


def fit(game, callbacks, steps, ckpt_path=None):
    player = make_trainer(steps, callbacks)
    endless = EndlessBatches(3, 3, lambda: game.progress.batches)
    batches = DataLoader(range(3), batch_sampler=endless, collate_fn=lambda _: PROMPTS)
    with quiet():
        player.fit(game, batches, val_dataloaders=[], ckpt_path=ckpt_path, weights_only=True)
    return player


def test_a_reference_that_stays_is_left_in_peace(folders, tmp_path):
    fingerprint = ReferenceFingerprint(every=2)
    played = fit(game_of(folders["gpt2"]), [fingerprint], steps=5)
    played.save_checkpoint(tmp_path / "last.ckpt")
    resumed = ReferenceFingerprint(every=2)
    fit(game_of(folders["gpt2"]), [resumed], steps=7, ckpt_path=tmp_path / "last.ckpt")
    assert differences(resumed.state_dict(), fingerprint.state_dict()) == []
    assert fingerprint.state_dict()["log_prob"].shape == (2, 1)


@pytest.mark.parametrize(
    ("every", "after", "steps", "seen"),
    [(2, 1, 9, 2), (3, 3, 9, 6), (100, 1, 3, 3)],
    ids=["at the next look", "between two looks", "at the end"],
)
def test_a_reference_that_moves_ends_the_run(folders, every, after, steps, seen):
    game = game_of(folders["llama"])
    sentence = r"moved since training began: 1 of its weights .*, \S+\.weight among them"
    with pytest.raises(DivergenceError, match=sentence):
        fit(game, [ReferenceFingerprint(every), Move(after)], steps)
    assert game.progress.round == seen


def test_a_reference_that_another_player_plays_ends_the_run(folders, monkeypatch):
    """No weight moves: the log-probabilities tell."""
    game = game_of(folders["llama"])
    scatter(game.policy)
    plant = L.pytorch.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: the_adapted_model_as_reference(game, monkeypatch)
    )
    with pytest.raises(DivergenceError, match="moved since training began: the log-probability"):
        fit(game, [ReferenceFingerprint(2), plant], 2)


def test_another_reference_after_a_resume_is_refused(folders, tmp_path):
    played = fit(game_of(folders["llama"]), [ReferenceFingerprint()], steps=2)
    played.save_checkpoint(tmp_path / "last.ckpt")
    game = game_of(folders["llama"])
    the_base_has_moved(game, None)
    with pytest.raises(DivergenceError, match="moved since the run was begun"):
        fit(game, [ReferenceFingerprint()], 4, tmp_path / "last.ckpt")


def test_a_table_has_no_fingerprint():
    game = table_game(NashMD(), 2)
    fingerprint = ReferenceFingerprint(1)
    player = make_trainer(1, [Budget(rounds=3), fingerprint])
    with quiet():
        player.fit(game, DataLoader([0], collate_fn=lambda _: game.oracle.prompts), [])
    assert fingerprint.state_dict() == {}


# The command ------------------------------------------------------------------------------------


def lines_of(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line]


@pytest.mark.parametrize("config", ["language/nash_mp", "tabular/nash_mp", "tabular/sampled/egpo"])
def test_the_doctor_examines_a_configuration(config, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--model.rollout.num_responses", "4", "--model.rollout.num_opponents", "4"]
    few = [] if config == "tabular/nash_mp" else options
    main(["doctor", "--config", str(ROOT / f"configs/{config}.yaml"), *few])
    lines = lines_of(capsys)
    assert lines[-1].endswith("checks passed, 0 failed")
    assert {line.split()[0] for line in lines[:-1]} == {"ok", "skipped", "note"}
    assert len([line for line in lines if line.startswith("ok ")]) >= 13
    assert [*tmp_path.iterdir()] == []  # nothing is written


def test_the_doctor_examines_text_prompts(folders, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [*PROMPTS.text, "b c d."]
    prompts = write(tmp_path / "prompts.jsonl", *({"prompt": text} for text in texts))
    config = ROOT / "configs/language/nash_mp.yaml"
    options = f"""
        --num_prompts 3 --model.policy.model {folders["gpt2"]}
        --model.oracle RuleOracle --model.oracle.function nlhf_zoo.oracles.rules.shorter_wins
        --data TextPrompts --data.path {prompts} --data.batch_size 2
        --trainer.callbacks Budget --trainer.callbacks.rounds 1
        --model.rollout.num_responses 2 --model.rollout.num_opponents 2
    """
    main(["doctor", "--config", str(config), *options.split()])
    lines = lines_of(capsys)
    assert any(line.startswith("ok") and END in line for line in lines)
    assert any("3 x 6 responses" in line for line in lines)


def test_a_failed_check_is_exit_code_1(capsys, monkeypatch):
    less_is_declared(None, monkeypatch)
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--config", str(ROOT / "configs/tabular/nash_mp.yaml")])
    assert end.value.code == 1
    lines = lines_of(capsys)
    (failed,) = [line for line in lines if line.startswith("FAIL")]
    assert DECLARED in failed
    assert "NashMP.queries must say what its plan asks for" in failed
    assert any(line.endswith("1 failed") for line in lines)
    assert lines[-2:-1] == ["What to change:"]
    assert lines[-1].startswith(f"  {DECLARED}: NashMP.queries must say")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--num_prompts", "0"], "--num_prompts must be at least 1"),
        (["--num_prompts", "few"], "--num_prompts: "),
        (["--model.betaa", "1"], "betaa"),
        (["--model.beta", "-1"], "beta must be a finite number above 0"),
        (["--ckpt_path", "missing.ckpt"], "ckpt_path missing.ckpt is no file"),
    ],
)
def test_misuse_is_one_sentence(options, sentence):
    config = str(ROOT / "configs/tabular/nash_mp.yaml")
    assert sentence in refused("doctor", "--config", config, *options)


def test_without_a_rehearsal_no_round_is_played(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs/tabular/sampled/egpo.yaml")
    main(["doctor", "--config", config, "--no_rehearsal"])
    lines = lines_of(capsys)
    assert not any(RESUMED in line for line in lines)
    assert "the oracle was asked" in "".join(lines)
