"""Training a preference model: heads, losses, what is written, resumed, measured and refused."""

# ruff: noqa: E501  # tables of one row a line

import functools
import itertools
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from forked import KILLED, nlhf
from paths import ROOT
from preference_runs import HEADS, TEMPLATES, configuration, fit, logged, part, refused, run, write
from rows import write as rows
from scipy.special import expit
from text_models import CONFIGS as MODELS
from text_models import folder as saved
from text_models import save, user
from tiny_models import save_tiny
from together import trainer

from nlhf_zoo import oracles
from nlhf_zoo.data.pairs import Pairs
from nlhf_zoo.errors import UserError
from nlhf_zoo.losses.preference import cross_entropy, squared_error
from nlhf_zoo.oracles.text_oracle import Question
from nlhf_zoo.policies import LoRA
from nlhf_zoo.preference_models import (
    BradleyTerryHead,
    GeneralPreferenceHead,
    LettersBackbone,
    PairHead,
    PreferenceModel,
    PretrainedBackbone,
)
from nlhf_zoo.preference_models.folder import write_folder
from nlhf_zoo.preference_models.held_out import HeldOut
from nlhf_zoo.text_models.loading import read_settings

VERSION = "runs/model/version_0"
WORDS = ["".join(word) for word in itertools.product("abh", repeat=2)]
each_kind = pytest.mark.parametrize("kind", HEADS)


def pairs(*shown, probability=None):
    """Pairs (prompt, first, second)."""
    chances = torch.ones(len(shown)) if probability is None else torch.tensor(probability)
    prompts, firsts, seconds = zip(*shown, strict=True)
    return Pairs([user(prompt) for prompt in prompts], firsts, seconds, chances)


def template(kind, blank=">"):
    return TEMPLATES["pair" if kind == "pair" else "response"].replace(">", blank)


def model(kind="general", **options):
    """A small model whose outputs are far apart."""
    heads = {
        "reward": BradleyTerryHead(temperature=0.7),
        "pair": PairHead(),
        "general": GeneralPreferenceHead(dimension=4, temperature=0.3),
    }
    head = options.pop("head", None) or heads[kind]
    given = {
        "backbone": LettersBackbone(hidden_size=16, layers=2),
        "template": template(head.reads),
    }
    made = PreferenceModel(head=head, **given | options)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name or "score" in name:
                parameter.normal_(std=0.3)
    return made


# ---- losses and heads ----------------------------------------------------------------------------


def test_losses_are_those_of_the_formulas():
    s, p = torch.tensor([-3.0, 0.0, 1.5, 40.0, 2.0]), torch.tensor([1.0, 0.3, 0.3, 0.0, 1.0])
    odds, label = s.double().numpy(), p.double().numpy()
    expected = -label * np.log(expit(odds)) - (1 - label) * np.log(expit(-odds))
    np.testing.assert_allclose(cross_entropy(s, p), expected, rtol=1e-5)
    np.testing.assert_allclose(squared_error(s, p), (expit(odds) - label) ** 2, rtol=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_a_loss_is_least_where_the_odds_are_those_of_the_label(loss):
    p = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    s = (p / (1 - p)).log().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(s, p).sum(), s)
    torch.testing.assert_close(gradient, torch.zeros(3, dtype=torch.float64))
    assert (loss(s + 0.1, p) > loss(s, p)).all()
    assert (loss(s - 0.1, p) > loss(s, p)).all()
    far = torch.tensor([1000.0, -1000.0], requires_grad=True)
    loss(far, torch.tensor([0.0, 1.0])).sum().backward()
    assert far.grad.isfinite().all()


def test_log_odds_of_heads_are_those_of_the_formulas():
    first, second = torch.randn(2, 5, 6, dtype=torch.float64)
    rotation = np.kron(np.eye(3), [[0, -1], [1, 0]])
    expected = [
        (rotation @ v) @ w / 0.3 for v, w in zip(first.numpy(), second.numpy(), strict=True)
    ]
    found = GeneralPreferenceHead(6, temperature=0.3).log_odds(first, second)
    np.testing.assert_allclose(found, expected)
    reward = BradleyTerryHead(temperature=0.5).log_odds(first[:, :1], second[:, :1])
    np.testing.assert_allclose(reward, 2 * (first[:, 0] - second[:, 0]))
    np.testing.assert_allclose(PairHead(temperature=4.0).log_odds(first, first), first[:, 0] / 4)
    two = PairHead(outputs=2, temperature=4.0).log_odds(first, first)
    np.testing.assert_allclose(two, (first[:, 0] - first[:, 1]) / 4)


@pytest.mark.parametrize("head", [BradleyTerryHead(), GeneralPreferenceHead(8, temperature=0.3)])
def test_heads_of_single_responses_are_antisymmetric_to_the_last_bit(head):
    first, second = torch.randn(2, 100, head.outputs)
    assert torch.equal(head.log_odds(first, second), -head.log_odds(second, first))
    assert torch.equal(head.log_odds(first, first), torch.zeros(100))


# ---- what is written is the model ----------------------------------------------------------------


def questions(*prompts):
    return [Question(user(p), a, b) for p in prompts for a, b in itertools.combinations(WORDS, 2)]


def answers(oracle, asked):
    return torch.tensor(
        [answer for _, answer in sorted(oracle.answers(asked))], dtype=torch.float64
    )


def as_written(made, folder):
    reader = made.reader
    write_folder(folder, reader.network, made._config, reader.encoder.tokenizer, made.settings)
    return getattr(oracles, HEADS[made.head.kind][1])(str(folder))


def expected_answers(made, asked):
    """What the model says, of a cross-encoder in both orders."""
    shown = [(q.conversation, q.first, q.second) for q in asked]
    forward = made.reader.preferences(shown)
    if made.head.reads == "response":
        return forward
    return (forward + (1 - made.reader.preferences([(c, b, a) for c, a, b in shown]))) / 2


@pytest.mark.parametrize("head", [*HEADS, PairHead(outputs=2, temperature=2.0)])
def test_the_oracle_is_the_model(head, tmp_path):
    """Its weights are the model's, bit for bit, and so its answers are, but for the rounding."""
    made = model(head) if head in HEADS else model(head=head)
    asked = questions("a", "habc")
    oracle = as_written(made, tmp_path / "model")
    written = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    for name, value in made.reader.network.state_dict().items():
        assert torch.equal(written.state_dict()[name], value), name
    found, expected = answers(oracle, asked), expected_answers(made, asked)
    # Batches are of other shapes, which round otherwise.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.std() > 0.02  # far from a constant
    assert read_settings(str(tmp_path / "model"), made.head.kind, "Test") == made.settings


@pytest.mark.parametrize("architecture", ["llama", "llama_pad_is_end", "gpt2", "bert", "roberta"])
@each_kind
def test_any_classifier_of_transformers_is_a_backbone(architecture, kind, tmp_path):
    made = model(kind, backbone=saved(architecture), template=template(kind, " "))
    asked = [Question(user("w1 w2"), f"w{i}", f"w{j} w3 w4") for i in range(5) for j in range(5)]
    expected = expected_answers(made, asked)
    assert expected.isfinite().all()
    assert expected.std() > 1e-3
    torch.testing.assert_close(
        answers(as_written(made, tmp_path / "model"), asked), expected, rtol=0, atol=1e-6
    )
    loaded, written = (
        transformers.AutoConfig.from_pretrained(path)
        for path in (saved(architecture), tmp_path / "model")
    )
    assert loaded.pad_token_id == written.pad_token_id  # that of a batch is no part of the model
    assert loaded.use_cache == written.use_cache
    # in training the texts stand in one batch, as they come
    shown = [(q.conversation, q.first, q.second) for q in asked]
    trained = made.reader.log_odds(made.reader.encode(shown)).sigmoid().double()
    torch.testing.assert_close(trained, made.reader.preferences(shown), rtol=0, atol=1e-5)


@each_kind
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_adapters_are_merged_into_what_is_written_and_stay_themselves(kind, architecture, tmp_path):
    folder = save_tiny(tmp_path / "base", architecture)
    given = {"backbone": str(folder), "lora": LoRA(r=2, alpha=8)}
    made = model(kind, template=template(kind, ":"), **given)
    asked, before = questions("a", "habc"), {k: v.clone() for k, v in made.state_dict().items()}
    expected = expected_answers(made, asked)
    found = answers(as_written(made, tmp_path / "model"), asked)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
    after = made.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # the adapters matter
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    assert (expected_answers(made, asked) - expected).abs().max() > 1e-3


def test_a_half_precision_base_trains_adapters_in_full_precision(tmp_path):
    folder = save_tiny(tmp_path / "base", "llama")
    backbone = PretrainedBackbone(str(folder), dtype="bfloat16")
    head = GeneralPreferenceHead(dimension=4, temperature=10.0)
    made = model(head=head, backbone=backbone, template="{prompt}:{response}", lora=LoRA(r=2))
    assert {p.dtype for p in made._trained().values()} == {torch.float32}
    assert made.reader.network.get_base_model().dtype == torch.bfloat16
    loss = made.reader.log_odds(made.reader.encode([(user("ab"), "ab", "ha")])).sum()
    loss.backward()
    assert any(p.grad.abs().sum() > 0 for p in made._trained().values())
    asked = questions("a")
    found = answers(as_written(made, tmp_path / "model"), asked)
    torch.testing.assert_close(found, expected_answers(made, asked), rtol=0, atol=0.05)


def test_a_folder_is_replaced_whole(tmp_path, monkeypatch):
    made, other = model(), model()
    as_written(made, tmp_path / "model")
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    monkeypatch.setattr("nlhf_zoo.preference_models.folder.write_settings", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        as_written(other, tmp_path / "model")
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before
    monkeypatch.undo()
    as_written(other, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/model.safetensors").read_bytes() != before["model.safetensors"]


# ---- training ------------------------------------------------------------------------------------


@each_kind
def test_fit_writes_an_oracle(kind, tmp_path):
    out, err = fit(tmp_path, configuration(tmp_path, kind))
    folder = tmp_path / VERSION / "preference_model"
    assert f"Preference model: {folder}, for {HEADS[kind][1]}" in out
    oracle = getattr(oracles, HEADS[kind][1])(str(folder))
    checkpoint = torch.load(tmp_path / VERSION / "checkpoints/last.ckpt", weights_only=True)
    weights = transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    kept = {k.removeprefix("reader.network."): v for k, v in checkpoint["state_dict"].items()}
    assert weights.keys() <= kept.keys()
    assert all(torch.equal(kept[name], weights[name]) for name in weights)
    assert answers(oracle, questions("ab")).isfinite().all()
    figures = logged(tmp_path / VERSION)
    names = ("accuracy", "ece", "log_loss", "symmetry_error", "cyclic_triples")
    assert {f"val/{name}" for name in names} <= figures.keys()
    assert [*dict(figures["train/loss"])] == [*range(10)]
    assert "held out" not in err
    (accuracy,) = re.findall(r"^val/accuracy +(\S+)$", out, re.M)
    assert float(accuracy) == pytest.approx(figures["val/accuracy"][-1][1], rel=1e-3)
    maximum = max(value for _, value in figures["val/symmetry_error"])
    assert maximum > 0.01 if kind == "pair" else maximum < 1e-12


def kill_before(batch):
    """SIGKILL when so many batches were trained on."""
    original = PreferenceModel.training_step

    @functools.wraps(original)
    def step(self, *args):
        if self.batches == batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args)

    PreferenceModel.training_step = step


@pytest.mark.parametrize("kind", ["pair", pytest.param("general", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(kind, tmp_path):
    options = {"lora": {"r": 2}, "dropout": True} if kind == "general" else {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        config = configuration(Path(), kind, **options)
        config["trainer"] |= {"accumulate_grad_batches": 1, "max_epochs": 3}
        write(tmp_path / name, config)
    go = functools.partial(nlhf, "fit", "--config", "model.yaml")
    assert go(folder=tmp_path / "whole").code == 0
    for batch in (5, 12):  # between two epochs, and within the third
        last = ["--ckpt_path", "last"] if batch > 5 else []
        kill = functools.partial(kill_before, batch)
        assert go(*last, folder=tmp_path / "killed", before=kill).code == KILLED
    done = go("--ckpt_path", "last", folder=tmp_path / "killed")
    assert done.code == 0, done.err
    runs = [tmp_path / name / VERSION for name in ("whole", "killed")]
    one, other = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in runs)
    assert one["preference_model"] == other["preference_model"] == {"batches": 15}
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name])
    files = [(run / "preference_model/model.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1]


def test_a_cross_encoder_sees_pairs_in_orders_of_a_stream_of_its_own():
    made, other = model("pair"), model("pair")
    batch = pairs(*[("ab", f"a{c}", f"b{c}") for c in "abcdefgh"] * 8, probability=[0.9, 0.2] * 32)
    seen = [made._in_drawn_order(batch) for _ in range(4)]
    again = [other._in_drawn_order(batch) for _ in range(4)]
    assert seen[0].first == again[0].first  # of (seed, process, batch) alone
    assert seen[0].first != seen[1].first
    turned = torch.tensor([[a.startswith("b") for a in one.first] for one in seen])
    assert 0.35 < turned.double().mean() < 0.65  # of 256 coins: beyond it once in 10^6
    for one, row in zip(seen, turned, strict=True):
        for number, turn in enumerate(row.tolist()):
            plain = batch.first[number], batch.second[number]
            assert (one.first[number], one.second[number]) == (plain[::-1] if turn else plain)
        torch.testing.assert_close(
            one.probability, torch.where(row, 1 - batch.probability, batch.probability)
        )
    assert model("general")._in_drawn_order(batch) is batch


def test_the_loss_is_swapped_by_its_name(tmp_path):
    config = configuration(tmp_path, loss="nlhf_zoo.losses.preference.squared_error")
    fit(tmp_path, config, "--trainer.max_steps", "1")
    (first,) = dict(logged(tmp_path / VERSION)["train/loss"]).values()
    assert first < 0.5  # (sigma(s) - 1)^2 near 1/4, where cross-entropy is near log 2
    made = model()
    made.loss = squared_error
    made.log = lambda *_, **__: None
    batch = pairs(("ab", "ab", "ha"), ("ha", "bb", "ha"), probability=[1.0, 0.3])
    expected = ((made(batch) - batch.probability.double()) ** 2).mean()
    torch.testing.assert_close(made.training_step(batch, 0).double(), expected, rtol=1e-5, atol=0)


def test_adapters_alone_are_trained_and_kept(tmp_path):
    folder = save_tiny(tmp_path / "base", "llama")
    given = {"template": "{prompt}:{response}", "lora": {"r": 2}}
    fit(tmp_path, configuration(tmp_path, backbone=str(folder), **given))
    kept = torch.load(tmp_path / VERSION / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert kept
    assert all("lora_" in name or "score.modules_to_save" in name for name in kept)
    loaded = PretrainedBackbone(str(folder)).load(GeneralPreferenceHead()).network
    trained = loaded.model.state_dict()
    path = tmp_path / VERSION / "preference_model"
    written = transformers.AutoModel.from_pretrained(path).state_dict()
    moved = {
        name.split(".")[-2] for name in written if not torch.equal(written[name], trained[name])
    }
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_off_unless_it_is_asked_for(dropout):
    made = model(backbone=saved("bert"), template=template("", " "), dropout=dropout).train()
    encoded = made.reader.encode([(user("w1"), "w2", "w3 w4")])
    one, other = made.reader.log_odds(encoded), made.reader.log_odds(encoded)
    assert torch.equal(one, other) is not dropout
    made.eval()
    assert torch.equal(made.reader.log_odds(encoded), made.reader.log_odds(encoded))


def test_texts_that_a_network_cannot_read_are_told_apart():
    made = model("pair", max_tokens=9)
    texts = made.reader.encode([(user("ab"), "a", "b"), (user("ab"), "a" * 9, "b")])
    problems = [made.reader.problem(one) for one in [*texts, ((), ())]]
    assert problems[:2] == ["", "has a text of 14 tokens, and 9 are read at most"]
    assert "without tokens, or one that holds a special token" in problems[2]
    everything = [((number,), (number,)) for number in range(len(made.reader.encoder.tokenizer))]
    made.reader._pad = None
    with pytest.raises(UserError, match="has no padding token, and every other one ends a text"):
        made.reader.log_odds(everything)


# ---- figures of held-out pairs -------------------------------------------------------------------


@each_kind
def test_figures_are_those_of_both_orders(kind):
    made, held_out = model(kind), HeldOut()
    shown = [("ab", a, b) for a, b in itertools.combinations(WORDS[:5], 2)] + [("ha", "a", "b")]
    labels = torch.rand(len(shown)).round(decimals=1).tolist()
    held_out.begin()
    for start in range(0, len(shown), 4):
        held_out.add(pairs(*shown[start : start + 4], probability=labels[start : start + 4]))
    found = held_out.figures(made.reader.preferences, torch.device("cpu"))

    # one pair at a time, by the network alone
    def chance(prompt, a, b):
        texts = made.reader.encode([(user(prompt), a, b)])
        return expit(made.reader.log_odds(texts).item())

    p = np.array([(chance(x, a, b) + 1 - chance(x, b, a)) / 2 for x, a, b in shown])
    t = np.array(labels)
    known = t != 0.5
    np.testing.assert_allclose(found["accuracy"], ((p > 0.5) == (t > 0.5))[known].mean(), atol=1e-6)
    np.testing.assert_allclose(
        found["log_loss"], -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), rtol=1e-4
    )
    error = np.mean([abs(chance(*one) + chance(one[0], one[2], one[1]) - 1) for one in shown])
    np.testing.assert_allclose(found["symmetry_error"], error, atol=1e-6)
    wins = {
        (a, b): chance("ab", a, b) > chance("ab", b, a)
        for a, b in itertools.permutations(WORDS[:5], 2)
    }
    cycles = [
        wins[a, b] == wins[b, c] == wins[c, a] for a, b, c in itertools.combinations(WORDS[:5], 3)
    ]
    np.testing.assert_allclose(found["cyclic_triples"], np.mean(cycles))


def test_what_cannot_be_read_has_no_part_in_the_figures():
    made, held_out = model(max_tokens=6), HeldOut()
    batch = pairs(("ab", "a", "b"), ("ab", "a", "bbbbbbb"), ("ha", "a", "h"))
    held_out.begin()
    held_out.add(batch)
    found = held_out.figures(made.reader.preferences, torch.device("cpu"))
    chances = made(batch)
    assert chances.isnan().tolist() == [False, True, False]
    np.testing.assert_allclose(found["accuracy"], (chances[[0, 2]] > 0.5).double().mean())
    assert found["cyclic_triples"].isnan()  # of three responses one cannot be read


def with_pairs(config, folder, *data):
    """A configuration of other pairs, of which some may be held out."""
    place = {"path": rows(folder / "pairs.jsonl", *data), "limit": None, "validation_path": None}
    config["data"]["init_args"] |= {**place, "batch_size": 2}
    return config


def test_that_there_are_no_triples_is_said_once(tmp_path):
    data = [{"prompt": p, "chosen": "ab", "rejected": "hb"} for p in ("ab", "ba", "ha", "hb")]
    config = with_pairs(configuration(tmp_path), tmp_path, *data)
    _, err = fit(tmp_path, config)
    assert err.count("val/cyclic_triples is left out") == 1
    assert "val/cyclic_triples" not in logged(tmp_path / VERSION)
    assert "val/accuracy" in logged(tmp_path / VERSION)


def test_a_checkpoint_is_validated_and_told_apart(tmp_path):
    fit(tmp_path, configuration(tmp_path))
    checkpoint = tmp_path / VERSION / "checkpoints/last.ckpt"
    args = ["--config", str(tmp_path / "model.yaml"), "--ckpt_path", str(checkpoint)]
    run("validate", *args, "--trainer.logger.name", "again")
    last = logged(tmp_path / VERSION)
    again = logged(tmp_path / "runs/again")
    for name in ("val/accuracy", "val/ece", "val/log_loss", "val/cyclic_triples"):
        assert again[name][0][1] == pytest.approx(last[name][-1][1], rel=1e-5)
    game = ["--config", str(ROOT / "configs/tabular/nash_mp.yaml")]
    game += ["--trainer.logger.save_dir", str(tmp_path / "games")]
    other = shutil.copy(checkpoint, tmp_path / "other.ckpt")
    assert "holds no online game" in refused("fit", *game, "--ckpt_path", str(other))


def test_checkpoints_of_something_else():
    made = model()
    with pytest.raises(UserError, match="the checkpoint holds no preference model"):
        made.on_load_checkpoint({"state_dict": {}})
    other = {"state_dict": {}, "preference_model": {"batches": 1}}
    with pytest.raises(UserError, match=r"it lacks \d+ of its parameters, reader\.network\."):
        made.on_load_checkpoint(other)


def test_pairs_that_cannot_be_read_are_left_out_where_that_is_asked_for(tmp_path):
    prompts = ("ab", "ba", "ha", "hb")
    data = [{"prompt": p, "chosen": "ab", "rejected": "hb" * n} for n in (1, 9) for p in prompts]
    config = with_pairs(configuration(tmp_path, max_tokens=8, unreadable="drop"), tmp_path, *data)
    config["data"]["init_args"]["num_validation"] = None
    _, err = fit(tmp_path, config)
    assert "pairs.jsonl: 4 of 8 pairs cannot be read, and are left out" in err
    assert "no pairs are held out" in err
    made = model(max_tokens=8, unreadable="drop")
    made._trainer, made.log = trainer(0, 1), lambda *_, **__: None
    loss = made.training_step(pairs(("ab", "ab", "hb" * 9)), 0)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in made._trained().values())


# ---- what is refused -----------------------------------------------------------------------------

REFUSED = {
    "odd dimension": ("--model.head.dimension 3", r"dimension must be an even number of at least 2, not 3"),
    "dimension 0": ("--model.head.dimension 0", r"dimension must be an even number of at least 2, not 0"),
    "temperature 0": ("--model.head.temperature 0", r"GeneralPreferenceHead\.temperature must be a finite number above 0, not 0"),
    "three outputs": ("--model.head PairHead --model.head.outputs 3", r"outputs"),
    "no response in the template": ("--model.template {prompt}", r"PreferenceModel\.template '\{prompt\}' has no field \{response\}"),
    "template of another head": ("--model.template {prompt}{first}{second}", r"PreferenceModel\.template .* has no field \{response\}"),
    "no template at all": ("--model.template null", r"has no chat template: set PreferenceModel\.template"),
    "max_tokens beyond the model": ("--model.max_tokens 65", r"reads 64 tokens at most, but model\.max_tokens is 65"),
    "max_tokens 0": ("--model.max_tokens 0", r"model\.max_tokens must be at least 1, not 0"),
    "a pair that is too long": ("--model.max_tokens 5", r"line 1 of .*train\.jsonl has a text of 6 tokens, and 5 are read at most: .* model\.unreadable"),
    "nothing that can be read": ("--model.max_tokens 5 --model.unreadable drop", r"can read none of the 40 pairs"),
    "adapters on no layer": ("--model.lora.target_modules nonsense", r"model\.lora\.target_modules 'nonsense' names no layer of the backbone of letters"),
    "adapters of rank 0": ("--model.lora.r 0", r"model\.lora does not fit .*"),
    "half precision": ("--trainer.precision bf16-true", r"bf16-true would round what is trained: set it to 32-true or bf16-mixed"),
    "no backbone": ("--model.backbone /no/such/model", r"the backbone /no/such/model is no folder here, nor had from the hub"),
    "unknown head": ("--model.head Head", r"--model\.head: there is no class 'Head'"),
    "unknown loss": ("--model.loss nlhf_zoo.losses.preference.hinge", r"--model\.loss"),
    "unknown optimizer": ("--model.optimizer Adm", r"--model\.optimizer: .*'Adm'"),
    "endless": ("--trainer.max_epochs -1", r"nothing would end this run"),
    "prompts of a game": ("--data TablePrompts --trainer.max_steps 1", r"PreferencePairs"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_sentence(case, tmp_path):
    args, sentence = REFUSED[case]
    config = write(tmp_path, configuration(tmp_path))
    said = refused("fit", "--config", config, *args.split())
    assert re.search(sentence, said), said
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_run_that_diverges_says_so(tmp_path):
    config = write(tmp_path, configuration(tmp_path))
    said = refused("fit", "--config", config, "--model.optimizer.lr", "1e30")
    assert re.search(r"training diverged: .*so lower the learning rate", said)


def test_no_held_out_pairs_to_validate_on(tmp_path):
    config = configuration(tmp_path)
    config["data"]["init_args"] |= {"validation_path": None, "num_validation": None}
    said = refused("validate", "--config", write(tmp_path, config))
    assert "there are no validation pairs" in said


def test_backbones_that_are_no_classifiers(tmp_path):
    def said(folder, *args):
        config = configuration(tmp_path, backbone=str(folder), template="{prompt} {response}")
        return refused("fit", "--config", write(tmp_path, config), *args)

    whole = save(tmp_path / "whole", MODELS["llama"]())
    half = json.dumps(part("PretrainedBackbone", name=whole, dtype="bfloat16"))
    assert "would round what is trained: set model.lora" in said(whole, "--model.backbone", half)
    (tmp_path / "empty").mkdir()
    assert "is a folder without config.json" in said(tmp_path / "empty")
    image = tmp_path / "image"
    transformers.ViTConfig().save_pretrained(image)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "whole" / name, image)
    assert "cannot be loaded as a sequence classifier" in said(image)
    deeper = MODELS["llama"]()
    deeper.num_hidden_layers = 3
    deeper.save_pretrained(tmp_path / "whole")
    assert re.search(r"is no whole model: its file lacks model\.layers\.2", said(whole))


def test_a_checkpoint_is_tested_on_other_pairs_but_trained_on_with_its_own(tmp_path):
    fit(tmp_path, configuration(tmp_path))
    checkpoint = str(tmp_path / VERSION / "checkpoints/last.ckpt")
    config = configuration(tmp_path)
    place = config["data"]["init_args"]
    other = tmp_path / "other.jsonl"
    row = {"prompt": "hahaha", "chosen": "fab", "rejected": "abe"}
    other.write_text(json.dumps(row | {"chosen": "a" * 500}) + "\n" + json.dumps(row) + "\n")
    place |= {"validation_path": str(other), "num_validation": None}
    args = ["--config", write(tmp_path, config), "--ckpt_path", checkpoint]
    out, err = run("test", *args)
    assert "test/accuracy" in out
    assert "1 held-out pairs of this process cannot be read" in err
    assert "validation" in refused("fit", *args)
    assert "`nlhf oracle` the answers" in refused("predict", *args)
