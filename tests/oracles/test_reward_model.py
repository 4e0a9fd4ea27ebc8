"""Reward models as oracles; and what all oracles share that load a model and its settings."""

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jsonargparse
import pytest
import torch
from language_models import refused
from text_models import (
    CHAT,
    CONFIGS,
    PAD,
    SMALL,
    VOCABULARY,
    folder,
    one_by_one,
    prompts,
    responses,
    save,
    user,
)
from text_models import tokenizer as word_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from nlhf_zoo.oracles import (
    GeneralPreferenceModelOracle,
    GenerativePairModelOracle,
    PairModelOracle,
    PreferenceOracle,
    RewardModelOracle,
)
from nlhf_zoo.text_models.loading import ModelSettings, read_settings, write_settings
from oracles.zoo import listen

# ---- rewards -------------------------------------------------------------------------------------


FIRST = [["w1 w2 w3", "w9", "", "w30 w2 w4 w5 w6 w7 w8"], ["w4 w4", "w5 w1", "w6", "w7 w2 w1"]]
SECOND = [["w8 w1 w3 w5", "w9"], ["w20 w21 w22", ""]]
SAID = [
    [{"role": "system", "content": "w7"}, *user("w1"), *user("w1 w2 w3 w4")],
    [*user("w4"), {"role": "assistant", "content": "w5 w6"}, *user("w5")],
]
ASKED = prompts("w1 w2 w3 w4", "w5", conversations=SAID), responses(*FIRST), responses(*SECOND)


def rewards(path, conversations, rows, template=None):
    """r(x, y) [B, K]."""
    return one_by_one(path, conversations, rows, template)[:, :, 0]


def bradley_terry(first, second, temperature=1.0):
    """By exponentials: e^r / (e^r + e^r')."""
    one, other = (r.double().div(temperature).exp() for r in (first, second))
    return (one[:, :, None] / (one[:, :, None] + other[:, None, :])).float()


def expected(paths, weights=(1.0,), temperature=1.0, penalty=0.0):
    """The answers to `ASKED`."""
    first, second = (
        sum(w * rewards(path, SAID, rows) for w, path in zip(weights, paths, strict=True))
        for rows in (FIRST, SECOND)
    )
    return bradley_terry(first - penalty, second, temperature)


def not_a_reward_model(message, path, **options):
    """The one sentence of a refusal."""
    sentence = refused(message, RewardModelOracle, str(path), **options)
    assert len(sentence.splitlines()) == 1
    return sentence


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "roberta"])
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_rewards_are_those_of_each_text_alone(name, batch_size):
    oracle = RewardModelOracle(folder(name), temperature=2.0, batch_size=batch_size)
    answer = oracle(*ASKED)
    assert answer.valid.all()
    close(answer.preference, expected([folder(name)], temperature=2.0))
    first = rewards(folder(name), SAID, FIRST)
    assert first.std() > 0.1
    mine = oracle(ASKED[0], ASKED[1], ASKED[1]).preference
    close(mine, bradley_terry(first, first, temperature=2.0))


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama_pad", "gpt2_pad_is_end"])
def test_the_padding_side_of_the_tokenizer_does_not_matter(name, tmp_path):
    for side in ("left", "right"):
        path = shutil.copytree(folder(name), tmp_path / side)
        word_tokenizer(padding_side=side, pad_token=PAD).save_pretrained(path)
        close(RewardModelOracle(str(path))(*ASKED).preference, expected([folder(name)]))


def test_a_template_without_a_chat_template():
    path, template = folder("gpt2", chat=None), "w10 {prompt} w11 {response} w12"
    oracle, rows = RewardModelOracle(path, template=template), [["w3", "w4 w5"]]
    answer = oracle(prompts("w1 w2"), responses(*rows), responses(["w6"]))
    first, second = (rewards(path, [user("w1 w2")], one, template) for one in (rows, [["w6"]]))
    close(answer.preference, bradley_terry(first, second))
    written = oracle.models[0].encoder.render_response(user("{response} {0}"), "{prompt}")
    assert written == "w10 {response} {0} w11 {prompt} w12"  # braces of a text are text


def test_equal_tokens_pass_once():
    """In each of several models, and of two texts that differ in a blank."""
    for oracle in (
        RewardModelOracle(folder("llama")),
        GeneralPreferenceModelOracle(folder("llama", 6, settings=ModelSettings("general"))),
    ):
        heard = listen(oracle)
        spaced = responses(["w1 w2", "w1  w2", "w3"])
        answer = oracle(prompts("w0"), spaced, spaced).preference[0]
        assert len(heard()) == 2
        assert answer[0, 1] == 0.5
        assert (answer[:2, 2] != 0.5).all()


def test_batches_hold_like_lengths_the_longest_first():
    oracle, sizes = RewardModelOracle(folder("llama"), batch_size=3), []

    def hook(module, arguments, keywords):
        sizes.append(tuple(keywords["input_ids"].shape))

    oracle.models[0].network.register_forward_pre_hook(hook, with_kwargs=True)
    rows = [" ".join(["w1"] * length) for length in (1, 9, 2, 10, 1, 11, 3)]
    mine = responses([f"{text} w{number}" for number, text in enumerate(rows)])
    oracle(prompts("w0"), mine, mine)
    beside = 7  # tokens of the chat template, the prompt, and the last word
    assert sizes == [(3, 12 + beside - 1), (3, 4 + beside - 1), (1, 2 + beside - 1)]


def test_of_equal_texts_the_one_that_was_cut_is_worse():
    mine = responses(["w1", "w1"], truncated=[[True, False]])
    oracle = RewardModelOracle(folder("llama"), penalty_without_end=1.0)
    answer = oracle(prompts("w0"), mine, mine)
    close(answer.preference[0], torch.sigmoid(torch.tensor([[0.0, -1.0], [1.0, 0.0]])))


@pytest.mark.parametrize(
    ("name", "limit"), [("llama", 64), ("gpt2", 64), ("bert", 512), ("roberta", 18)]
)
def test_the_limit_is_the_models_own(name, limit):
    oracle = RewardModelOracle(folder(name), template="{prompt} {response}")
    assert oracle.models[0].max_tokens == limit
    beside = 3  # beginning, prompt and end
    rows = [" ".join(["w1"] * number) for number in (limit - beside, limit - beside + 1)]
    answer = oracle(prompts("w0"), responses(rows), responses(["w2"]))
    assert answer.valid[0, :, 0].tolist() == [True, False]
    sentence, more = f"reads {limit} tokens at most, but max_tokens is", {"max_tokens": limit + 1}
    not_a_reward_model(sentence, folder(name), template="{prompt} {response}", **more)
    nothing = RewardModelOracle(folder(name), max_tokens=2, template="{prompt} {response}")
    assert not nothing(prompts("w0"), responses(rows), responses(["w2"])).valid.any()


@pytest.mark.parametrize("name", [name for name in CONFIGS if "_" not in name])
def test_a_checkpoint_needs_none_of_its_buffers(name):
    oracle = RewardModelOracle(folder(name), template="{prompt} {response}")
    assert len(list(oracle.parameters())) > 10
    assert set(oracle.state_dict()) <= {name for name, _ in oracle.named_parameters()}


def test_dtype(monkeypatch):
    def dtypes(**options):
        return {p.dtype for p in RewardModelOracle(folder("llama"), **options).parameters()}

    assert dtypes(dtype="float32") == {torch.float32}
    assert dtypes(dtype="bfloat16") == {torch.bfloat16}
    answer = RewardModelOracle(folder("llama"), dtype="bfloat16")(*ASKED).preference
    assert answer.dtype == torch.float32
    close(answer, expected([folder("llama")]), atol=0.1)
    for has_bfloat16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bfloat16: has)
        assert dtypes() == {dtype}


def test_several_rewards_are_weighted_not_their_preferences():
    """Each model reads with its own tokenizer and chat template, and is given each text once."""
    models, weights = [folder(name) for name in ("llama", "gpt2", "bert")], [1.5, -0.5, 2.0]
    oracle = RewardModelOracle(models, weights=weights, temperature=0.7)
    heard = listen(oracle)
    close(oracle(*ASKED).preference, expected(models, weights, temperature=0.7))
    assert len(heard()) == 3 * (8 + 4 - 1)  # "w9" is a response of both players to one prompt
    close(RewardModelOracle(models)(*ASKED).preference, expected(models, [1 / 3] * 3))


@pytest.mark.parametrize("weights", [[1.0], [0.3, -2.0]])
def test_a_response_without_end_is_penalised_once(weights):
    models = [folder(name) for name in ("llama", "gpt2")][: len(weights)]
    cut = [[False, True, False, True], [True] * 4]
    oracle = RewardModelOracle(models, weights=weights, penalty_without_end=0.75)
    answer = oracle(ASKED[0], responses(*FIRST, truncated=cut), ASKED[2])
    close(answer.preference, expected(models, weights, penalty=0.75 * torch.tensor(cut)))
    assert oracle.reads_truncated
    assert not RewardModelOracle(models).reads_truncated


def test_what_one_of_several_cannot_read_is_invalid():
    oracle = RewardModelOracle([folder("llama"), folder("bert")])  # 64 tokens, and 512
    answer = oracle(prompts("w0"), responses(["w1 " * 70, "w1"]), responses(["w2"]))
    assert answer.valid.flatten().tolist() == [False, True]
    assert oracle.last_error == (
        "texts that were longer than 64 tokens, or without a token that may be read: 1"
    )


def test_a_padding_token_is_found_in_a_tiny_vocabulary():
    """Where there is no padding token, one that ends no text of the batch takes its place."""
    path = folder("llama", chat="{% for m in messages %} {{ m['content'] }}{% endfor %}")
    rows = [list(VOCABULARY)]  # every token ends one text
    oracle = RewardModelOracle(path, batch_size=1000)
    answer = oracle(prompts("w1 w2"), responses(*rows), responses(["w3 w4 w5"]))
    first, second = (rewards(path, [user("w1 w2")], r) for r in (rows, [["w3 w4 w5"]]))
    close(answer.preference, bradley_terry(first, second))


# ---- fingerprints --------------------------------------------------------------------------------


def test_the_fingerprint_sees_the_weights_and_the_chat_template(tmp_path):
    moved, retold = (shutil.copytree(folder("llama"), tmp_path / n) for n in ("moved", "retold"))
    network = AutoModelForSequenceClassification.from_pretrained(moved)
    with torch.no_grad():
        next(network.parameters())[0, 0] += 1e-3
    network.save_pretrained(moved)
    word_tokenizer(chat=CHAT + " </s>").save_pretrained(retold)
    paths = [folder("llama"), folder("llama", chat=None), str(moved), str(retold)]
    prints = {RewardModelOracle(one, template="{prompt} {response}").fingerprint for one in paths}
    assert len(prints) == 4


def test_the_fingerprint_sees_a_tokenizer_in_python(tmp_path):
    prints = []
    for extra in (0, 1):
        config = LlamaConfig(**SMALL | {"vocab_size": 384})
        path = save(tmp_path / str(extra), config)
        words = ByT5Tokenizer(extra_ids=100 + extra)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            Path(path, file).unlink()
        words.save_pretrained(path)
        prints.append(RewardModelOracle(path, template="{prompt} {response}").fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.parametrize("chat", [CHAT.replace("<s>", "{{ bos_token }}"), CHAT])
def test_the_fingerprint_sees_the_names_of_special_tokens(chat, tmp_path):
    """A chat template writes them; they stand in tokenizer_config.json alone."""
    other = shutil.copytree(folder("llama", chat=chat), tmp_path / "other")
    path = other / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<unk>"}))
    both = [RewardModelOracle(str(one)) for one in (folder("llama", chat=chat), other)]
    texts = [oracle.models[0].encoder.render_response(user("w1"), "w2") for oracle in both]
    assert (texts[0] != texts[1]) is ("bos_token" in chat)
    assert both[0].fingerprint != both[1].fingerprint


def test_the_fingerprint_sees_what_the_chat_template_writes(monkeypatch):
    """It may read more than the template's text and the names of tokens, as the date."""
    path, prints = folder("llama", chat="{{ strftime_now('%Y') }}" + CHAT), []
    for year in ("w1", "w1", "w2"):
        clock = SimpleNamespace(strftime=lambda form, year=year: year)
        clock = SimpleNamespace(now=lambda clock=clock: clock)
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        prints.append(RewardModelOracle(path).fingerprint)
    assert prints[0] == prints[1] != prints[2]


# ---- settings of a model that was trained here ---------------------------------------------------


def test_settings_are_read_back(tmp_path):
    for settings in (
        ModelSettings("pair", "{prompt}\n\u00e9 {first} {second}", 12, 0.25),
        ModelSettings("general"),
    ):
        write_settings(tmp_path, settings)
        assert read_settings(str(tmp_path), settings.kind, "Oracle") == settings
    assert [path.name for path in tmp_path.iterdir()] == ["preference_model.json"]
    given = json.loads((tmp_path / "preference_model.json").read_text())
    assert given == {
        "format": 2, "kind": "general", "template": None, "max_tokens": None, "temperature": 1.0,
        "chat_template_kwargs": {},
    }  # fmt: skip
    assert read_settings(str(tmp_path / "none"), "pair", "Oracle") is None


def test_settings_are_had_from_the_hub(tmp_path, monkeypatch):
    """As transformers keeps what it has loaded, here without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    for name in ("with", "without"):
        there = tmp_path / f"models--us--{name}"
        for part, text in (("refs/main", commit), (f"snapshots/{commit}/config.json", "{}")):
            (there / part).parent.mkdir(parents=True)
            (there / part).write_text(text)
    settings = ModelSettings("reward", None, 7, 2.0)
    write_settings(tmp_path / f"models--us--with/snapshots/{commit}", settings)
    assert read_settings("us/with", "reward", "Oracle") == settings
    for name in ("us/without", "us/nothing"):
        assert read_settings(name, "reward", "Oracle") is None


def test_settings_hold_where_nothing_else_is_given(tmp_path):
    path = shutil.copytree(folder("gpt2"), tmp_path / "reward")
    template = "w10 {prompt} w11 {response} w12"
    write_settings(path, ModelSettings("reward", template, 20, 2.0))
    plain = {"template": template, "max_tokens": 20, "temperature": 2.0}
    expected = RewardModelOracle(folder("gpt2"), **plain).fingerprint
    assert RewardModelOracle(str(path)).fingerprint == expected
    other = {"template": "{response} {prompt}", "max_tokens": 9, "temperature": 3.0}
    given = RewardModelOracle(str(path), **other).fingerprint
    assert given == RewardModelOracle(folder("gpt2"), **other).fingerprint != expected
    both = [str(path), folder("llama")]
    refused(r"with the temperatures \[2.0, 1.0\]: set", RewardModelOracle, both)
    RewardModelOracle(both, temperature=1.0)


@pytest.mark.parametrize(
    ("oracle", "kind", "right"),
    [
        (RewardModelOracle, "pair", "PairModelOracle"),
        (RewardModelOracle, "general", "GeneralPreferenceModelOracle"),
        (PairModelOracle, "reward", "RewardModelOracle"),
        (GenerativePairModelOracle, "pair", "PairModelOracle"),
        (GeneralPreferenceModelOracle, "reward", "RewardModelOracle"),
    ],
)
def test_a_model_of_another_kind_names_its_oracle(oracle, kind, right, tmp_path):
    CONFIGS["llama"]().save_pretrained(tmp_path)
    write_settings(tmp_path, ModelSettings(kind))
    refused(rf"{tmp_path} .* kind '{kind}', which .*: take {right}$", oracle, str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "no object with a format of at most 2: install a newer nlhf_zoo"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs must be an object"),
        ({"kind": "triple"}, "kind must be one of pair, reward, general, not 'triple'"),
        ({"kind": []}, r"kind must be one of pair, reward, general, not \[\]"),
        ({"template": 3}, "template must be a text or null"),
        ({"max_tokens": 0}, "max_tokens must be a number of at least 1"),
        ({"max_tokens": True}, "max_tokens must be a number of at least 1"),
        ({"temperature": 0}, "temperature must be a finite number above 0, not 0"),
        ({"temperature": math.inf}, "temperature must be a finite number above 0, not inf"),
        ({"more": 1}, "must be an object of chat_template_kwargs, format, kind, max_tokens, "),
        (None, "is no JSON"),
    ],
)
def test_a_file_of_settings_that_cannot_be_read(change, message, tmp_path):
    write_settings(tmp_path, ModelSettings("reward"))
    path = tmp_path / "preference_model.json"
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    assert "preference_model.json" in not_a_reward_model(message, tmp_path)


# ---- what is refused -----------------------------------------------------------------------------


def test_folders_that_hold_no_reward_model(tmp_path):
    for name in ("/no/such/folder", "models/none"):
        not_a_reward_model(f"{name} is no folder here, nor had from the hub", name)
    not_a_reward_model(r"is a folder without config\.json", tmp_path)
    (tmp_path / "config.json").write_text("{")
    not_a_reward_model("cannot be loaded", tmp_path)
    for labels in (2, 3):
        not_a_reward_model(f"has {labels} outputs", folder("llama", labels))
    LlamaForCausalLM(CONFIGS["llama"]()).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    not_a_reward_model("no trained sequence classifier: its file lacks score", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    not_a_reward_model("cannot be loaded as a sequence classifier", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")  # pickled weights may hold anything
    not_a_reward_model(r"cannot be loaded as a sequence classifier.*safetensors", tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_model_without_a_tokenizer(name, tmp_path):
    AutoModelForSequenceClassification.from_config(CONFIGS[name]()).save_pretrained(tmp_path)
    not_a_reward_model("has no tokenizer", tmp_path, template="{prompt} {response}")


def test_a_tokenizer_of_another_model(tmp_path):
    config = CONFIGS["llama"]()
    config.vocab_size = len(VOCABULARY) - 1
    path = save(tmp_path, config)
    not_a_reward_model(r"embeddings of 45 tokens.*gives tokens up to 45", path)


def test_chat_templates_that_do_not_do():
    not_a_reward_model(
        r"has no chat template: set RewardModelOracle\.template, as in '\{prompt\} \{response\}'",
        folder("llama", chat=None),
    )
    for left_out in ("user", "assistant"):
        chat = "{% for m in messages if m['role'] != '" + left_out + "' %}"
        chat += "{{ m['content'] }}{% endfor %}"
        not_a_reward_model("leaves out the prompt or the response", folder("llama", chat=chat))
    chat = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    oracle = RewardModelOracle(folder("llama", chat=chat + CHAT))
    said = [[{"role": "system", "content": "w1"}, *user("w2")]]
    mine = responses(["w3", "w4"])
    sentence = "system, user, assistant: no system; its prompt ends 'w2"
    refused(sentence, oracle, prompts("w2", conversations=said), mine, mine)


def test_code_of_a_repository_is_never_run(tmp_path):
    path = save(tmp_path, CONFIGS["llama"]())
    trace = tmp_path / "was_run"
    (tmp_path / "custom.py").write_text(f"open({str(trace)!r}, 'w')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "custom.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    not_a_reward_model("cannot be loaded", path)
    assert not trace.exists()


def test_reward_models_are_named_in_a_configuration():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--oracle", type=PreferenceOracle)
    given = {"model": folder("llama"), "temperature": 2}
    config = {"class_path": "RewardModelOracle", "init_args": given}
    made = parser.instantiate(parser.parse_object({"oracle": config})).oracle
    assert made.temperature == 2
    given["dtype"] = "float16"
    with pytest.raises(jsonargparse.ArgumentError, match=re.escape("float16")):
        parser.parse_object({"oracle": config})


def test_scores_are_the_rewards_over_the_temperature():
    """As numbers without a bound, with the preference sigma(r - r'), and each text read once."""
    path = folder("llama")
    oracle = RewardModelOracle(path, temperature=0.5)
    prompts_, first, _ = ASKED
    scores, valid = oracle.score(prompts_, first)
    assert valid.all()
    expected = rewards(path, SAID, FIRST) / 0.5
    torch.testing.assert_close(scores, expected.double(), rtol=1e-5, atol=1e-5)
    assert oracle.ledger["queries"] == sum(len({*row}) for row in FIRST)
    compared = oracle(prompts_, first, first).preference.double()
    odds = torch.sigmoid(scores[:, :, None] - scores[:, None, :])
    torch.testing.assert_close(compared, odds, rtol=1e-5, atol=1e-6)
