"""Texts as models that judge read them: begun once, of two parts, in batches, in their template."""

import shutil
from functools import cache, partial

import preference_runs
import pytest
import torch
from language_models import new_folder, refused
from text_models import CHAT, PADDED, folder, prompts, responses, save, user
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    PreTrainedTokenizerFast,
    XLNetConfig,
)

from nlhf_zoo.oracles import GenerativePairModelOracle, PairModelOracle, RewardModelOracle
from nlhf_zoo.preference_models import BradleyTerryHead, PreferenceModel, PretrainedBackbone
from nlhf_zoo.text_models.loading import ModelSettings, Source, write_settings
from oracles.zoo import PAIR, generative, reward

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0)


def preference(oracle, prompt="w1", first="w2 w3", second="w4"):
    answer = oracle(prompts(prompt), responses([first]), responses([second]))
    assert answer.valid.all()
    return answer.preference[0, 0, 0]


def rewards(path, *given):
    """r of texts as plain transformers reads them, one at a time; a pair is two texts."""
    words = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        return [model(**words(*texts, return_tensors="pt")).logits[0] for texts in given]


def by_rewards(path, *given):
    first, second = rewards(path, *given)
    return (first - second)[0].sigmoid()


# ---- what stands around a text ----


def test_a_text_that_is_in_its_template_begins_once():
    """Whether the template has the first token, or the prompt; and it ends once."""
    path, texts = folder("gpt2"), (["w1 w9 w2 w3"], ["w1 w9 w4"])
    expected = by_rewards(path, *texts)
    for template, prompt in (
        ("{prompt} w9 {response}", "w1"),
        ("<s> {prompt} w9 {response}", "w1"),
        ("{prompt} w9 {response}", "<s> w1"),
        ("<s> {prompt} w9 {response} </s>", "w1"),
    ):
        close(preference(RewardModelOracle(path, template=template), prompt), expected)
    # What a response writes is no end of the template.
    ended = RewardModelOracle(path, template="{prompt} w9 {response}")
    close(preference(ended, first="w2 w3 </s>"), by_rewards(path, ["w1 w9 w2 w3 </s>"], texts[1]))


def test_a_model_of_the_first_format_reads_what_it_was_trained_on(tmp_path):
    path = shutil.copytree(folder("gpt2"), tmp_path / "model")
    template = "<s> {prompt} w9 {response}"
    write_settings(path, ModelSettings("reward", template, format=1))
    expected = by_rewards(path, ["<s> w1 w9 w2 w3"], ["<s> w1 w9 w4"])
    close(preference(RewardModelOracle(str(path))), expected)


def test_a_question_begins_once():
    same = [generative(chat_template=False, template=begin + PAIR) for begin in ("", "<s> ")]
    close(*map(preference, same))
    assert len({oracle.fingerprint for oracle in same}) == 2


# ---- types of tokens ----


@cache
def bert(labels=1, **changes):
    """A BERT whose tokenizer is its own: it makes types of tokens."""
    path = new_folder() / "bert"
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"w{number}" for number in range(41))]
    torch.manual_seed(2)
    config = BertConfig(**PADDED | {"pad_token_id": 0, "num_labels": labels, **changes})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(path)
    return str(path)


SEP = "{prompt} [SEP] {response}"


@pytest.mark.parametrize("template", [SEP, "[CLS]{prompt}[SEP]{response}[SEP]"])
def test_two_texts_have_the_types_that_the_tokenizer_makes_of_a_pair(template):
    oracle = RewardModelOracle(bert(), template=template)
    expected = by_rewards(bert(), ("w1", "w2 w3"), ("w1", "w4"))
    assert (expected - by_rewards(bert(), ["w1 [SEP] w2 w3"], ["w1 [SEP] w4"])).abs() > 0.01
    close(preference(oracle), expected)
    ours, theirs = (["w2 w3", "w5"], ["w6", "w6 w7"]), (["w4"], ["w8"])
    many = oracle(prompts("w1 w2", "w3"), responses(*ours), responses(*theirs)).preference
    for row, prompt in enumerate(("w1 w2", "w3")):
        for place, text in enumerate(ours[row]):
            expected = by_rewards(bert(), (prompt, text), (prompt, theirs[row][0]))
            close(many[row, place, 0], expected)


def test_one_text_has_one_type():
    oracle = RewardModelOracle(bert(), template="{prompt} w9 {response}")
    close(preference(oracle), by_rewards(bert(), ["w1 w9 w2 w3"], ["w1 w9 w4"]))
    plain = RewardModelOracle(bert(type_vocab_size=1), template=SEP)
    texts = ["w1 [SEP] w2 w3"], ["w1 [SEP] w4"]
    close(preference(plain), by_rewards(bert(type_vocab_size=1), *texts))


def test_where_the_second_text_begins_is_seen_or_there_is_no_answer():
    """A response that writes a separator, and a prompt, leave it open."""
    ours, theirs = (["w2 [SEP] w3", "w5"], ["w2", "w3"]), (["w4"], ["w4"])
    oracle = RewardModelOracle(bert(), template=SEP)
    answer = oracle(prompts("w1", "w1 [SEP]"), responses(*ours), responses(*theirs))
    assert answer.valid.flatten().tolist() == [False, True, False, False]


def test_a_pair_of_two_texts_and_no_template_of_three():
    oracle = PairModelOracle(bert(), "{prompt} w9 {first} [SEP] {second}", order="none")
    (logit,) = rewards(bert(), ("w1 w9 w2 w3", "w4"))
    close(preference(oracle), logit[0].sigmoid())
    three = "{prompt} [SEP] {first} [SEP] {second}"
    refused(r"write \[SEP\] once, between the two texts", PairModelOracle, bert(), three)
    PairModelOracle(bert(type_vocab_size=1), three)


def test_a_model_of_types_is_trained_as_it_is_read(tmp_path):
    made = PreferenceModel(PretrainedBackbone(bert()), BradleyTerryHead(), template=SEP)
    found = made.reader.preferences([(user("w1"), "w2 w3", "w4")])[0]
    close(found.float(), by_rewards(bert(), ("w1", "w2 w3"), ("w1", "w4")))
    path = shutil.copytree(bert(), tmp_path / "old")
    write_settings(path, ModelSettings("reward", made.settings.template, format=1))
    expected = by_rewards(bert(), ["w1 [SEP] w2 w3"], ["w1 [SEP] w4"])
    close(preference(RewardModelOracle(str(path))), expected)


# ---- alone and in a batch ----


@cache
def xlnet():
    """Its summary is of the last position, which is padding in a batch."""
    shape = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "initializer_range": 0.3}
    config = XLNetConfig(vocab_size=46, num_labels=1, pad_token_id=0, **shape)
    return save(new_folder() / "xlnet", config)


def test_a_model_that_reads_padding_reads_one_text_at_a_time():
    make = partial(RewardModelOracle, xlnet(), template="{prompt} {response}")
    sentence = "the reward model .* of a short text where .*: set RewardModelOracle.batch_size to 1"
    refused(sentence, make)
    close(preference(make(batch_size=1)), by_rewards(xlnet(), ["w1 w2 w3"], ["w1 w4"]))
    refused("set PairModelOracle.batch_size to 1", PairModelOracle, xlnet(), PAIR)
    other = make(batch_size=1).models[0]
    other.batch_size, other._is_looked_at = 2, False  # as it is where there is a GPU
    refused("batch_size to 1", other, [(6, 7), (8,)])


def test_a_model_that_would_learn_from_padding_is_not_trained(tmp_path):
    backbone = preference_runs.part("PretrainedBackbone", name=xlnet())
    options = {"backbone": backbone, "template": "{prompt} {response}"}
    config = preference_runs.configuration(tmp_path, "reward", **options)
    path = preference_runs.write(tmp_path, config)
    assert "it would learn from padding: take" in preference_runs.refused("fit", "--config", path)


def test_what_a_load_looks_at_is_counted_nowhere():
    oracle = reward("llama", template="{prompt} {response}")
    assert oracle.last_error == ""
    assert generative().label_mass != generative().label_mass  # NaN: nothing was read
    reward("llama", template="{prompt} {response}", max_tokens=5)  # nothing is cut, nor looked at


# ---- the chat template's variables ----

THINKING = CHAT + "{% if enable_thinking is false %} w39{% endif %}"
QUICK = {"chat_template_kwargs": {"enable_thinking": False}}


@torch.no_grad()
def test_variables_reach_the_chat_template_and_the_fingerprint():
    path = folder("gpt2", chat=THINKING)
    plain, quick = (RewardModelOracle(path, **options) for options in ({}, QUICK))
    words = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    first, second = (
        model(
            **words.apply_chat_template(
                [*user("w1"), {"role": "assistant", "content": text}],
                enable_thinking=False,
                return_tensors="pt",
            )
        ).logits[0]
        for text in ("w2 w3", "w4")
    )
    close(preference(quick), (first - second)[0].sigmoid())
    assert (preference(plain) - preference(quick)).abs() > 1e-3
    for make in (
        partial(RewardModelOracle, path),
        partial(PairModelOracle, path),
        partial(
            GenerativePairModelOracle,
            folder("gpt2", auto=AutoModelForCausalLM, chat=THINKING),
            labels=("w38", "w39"),
        ),
    ):
        assert make().fingerprint != make(**QUICK).fingerprint
        refused("does not mention enable", make, chat_template_kwargs={"enable": True})
    given = "RewardModelOracle.chat_template_kwargs is for the chat template"
    refused(given, RewardModelOracle, path, template=SEP, **QUICK)


def test_what_is_trained_with_variables_is_read_with_them(tmp_path):
    backbone = PretrainedBackbone(folder("gpt2", chat=THINKING))
    made = PreferenceModel(backbone, BradleyTerryHead(), **QUICK)
    path = shutil.copytree(backbone.name, tmp_path / "model")
    write_settings(path, made.settings)
    read = RewardModelOracle(str(path))
    assert read.fingerprint == RewardModelOracle(backbone.name, max_tokens=64, **QUICK).fingerprint
    close(preference(read), made.reader.preferences([(user("w1"), "w2 w3", "w4")])[0].float())


def test_a_model_that_would_write_something_else_says_nothing_of_a_pair():
    oracle = generative("llama", min_label_mass=0.999)
    answer = oracle(prompts("w1"), responses(["w2"]), responses(["w3"]))
    assert not answer.valid.any()
    path = folder("llama", auto=AutoModelForCausalLM)
    default = GenerativePairModelOracle(path, PAIR, labels=("w38", "w39"))
    assert default.min_label_mass == 0.01


def test_a_tokenizer_is_read_as_it_was_saved(tmp_path):
    """Of a Qwen2's transformers 5.23.0 makes another one, as a script in findings/ shows."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate("?ab")}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    AutoConfig.for_model("qwen2").save_pretrained(tmp_path)
    read = Source(str(tmp_path), "the model").tokenizer()
    assert read("a b a")["input_ids"] == [1, 2, 1]
    assert read.decode([1, 2]) == "a b"
