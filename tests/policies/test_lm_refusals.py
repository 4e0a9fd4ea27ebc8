"""Prompts as a language model reads them, and what it refuses, in one sentence each."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from language_models import (
    HALF,
    POLICY,
    assert_generator_agrees,
    drawn,
    each_architecture,
    refused,
    shared_policy,
    stream,
    tiny_folder,
    tuned_adapter,
)
from tiny_models import (
    BOS,
    EOS,
    EOS_ID,
    PAD_ID,
    VOCABULARY,
    make_policy,
    save_tiny,
    tiny_model,
    tiny_prompts,
    tiny_tokenizer,
)
from tokenizers import processors
from transformers import AutoTokenizer

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies import CausalLMPolicy, LoRA, ModelSource, Pretrained
from nlhf_zoo.policies.language_model.sources import Loaded
from nlhf_zoo.records import PLAIN, Prompts

# ---- prompts ----


def conversation(*contents, roles=("user", "assistant")):
    return [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]


def test_a_conversation_has_its_template_once(tmp_path):
    """The tokenizer puts its first token before a text, and the template has it already."""
    policy = make_policy(tiny_folder("gemma2"))
    talks = [conversation("hi."), conversation("hi.", "go on.", "why?")]
    prompts = policy.encode(Prompts(torch.arange(2), conversations=talks))
    expected = [
        "<bos><turn>u:hi.<turn><turn>a:",
        "<bos><turn>u:hi.<turn><turn>a:go on.<turn><turn>u:why?<turn><turn>a:",
    ]
    for tokens, mask, text in zip(prompts.tokens, prompts.mask, expected, strict=True):
        kept = tokens[mask].tolist()
        assert "".join(VOCABULARY[t].replace("Ġ", " ") for t in kept) == text
        assert kept.count(VOCABULARY.index(BOS)) == 1
    assert prompts.mask[:, -1].all()  # padded on the left
    assert not prompts.mask[0, 0]


def test_plain_text_has_what_the_tokenizer_adds():
    for kind, first in (("llama", [VOCABULARY.index(BOS)]), ("gpt2", [])):
        prompts = shared_policy(kind).encode(Prompts(torch.arange(2), text=["ab", "ab c"]))
        letters = [VOCABULARY.index(c) for c in "ab"]
        assert prompts.tokens[0][prompts.mask[0]].tolist() == [*first, *letters]
        assert (prompts.tokens[0][~prompts.mask[0]] == shared_policy(kind).pad).all()
        assert not prompts.mask[0, :2].any()


def test_a_text_begins_once_and_ends_as_its_writer_ended_it(tmp_path):
    """Whatever stands in it already, and whatever the tokenizer puts behind a text by itself."""
    path = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    words = tiny_tokenizer(bos=True)
    first, end = (words.convert_tokens_to_ids(token) for token in (BOS, EOS))
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, first), (EOS, end)]
    )
    words.save_pretrained(path)
    assert AutoTokenizer.from_pretrained(path)("ab")["input_ids"][-1] == end
    texts = ["ab", f"{BOS}ab", f"{BOS}ab{EOS}", f"{BOS}{BOS}ab"]
    prompts = make_policy(path).encode(Prompts(torch.arange(4), text=texts))
    letters = [VOCABULARY.index(c) for c in "ab"]
    found = [row[mask].tolist() for row, mask in zip(prompts.tokens, prompts.mask, strict=True)]
    once = [first, *letters]
    assert found == [once, once, [*once, end], [first, *once]]  # the last one's writer wrote two


def test_variables_of_a_chat_template(tmp_path):
    """They reach it, and what it does not know is refused."""
    path = save_tiny(tmp_path / "model", "gpt2", chat=True)
    words = AutoTokenizer.from_pretrained(path)
    words.chat_template += "{% if enable_thinking is false %}.:.{% endif %}"
    words.save_pretrained(path)
    talk = Prompts(torch.arange(1), conversations=[conversation("hi.")])
    plain, quick = (
        make_policy(path, chat_template_kwargs=given).encode(talk).tokens[0].tolist()
        for given in (None, {"enable_thinking": False})
    )
    assert quick == [*plain, *(VOCABULARY.index(c) for c in ".:.")]
    for given, match in (
        ({"enable_thinkin": False}, "does not mention enable_thinkin$"),
        ({"tokenize": True}, "tokenize is no variable of a chat template: leave it out"),
    ):
        refused(match, make_policy, path, chat_template_kwargs=given)
    bare = {"chat_template_kwargs": {"enable_thinking": False}}
    refused("policy's tokenizer has no chat template", make_policy, tiny_folder("gpt2"), **bare)


def test_prompts_with_tokens_keep_them():
    policy = shared_policy("llama")
    prompts = tiny_prompts(policy)
    again = policy.encode(prompts)
    assert torch.equal(again.tokens, prompts.tokens)
    assert torch.equal(again.mask, prompts.mask)


def test_a_tokenizer_from_elsewhere():
    policy = make_policy(Pretrained(str(tiny_folder("llama")), tokenizer=str(tiny_folder("gpt2"))))
    assert policy.tokenizer.bos_token is None


# ---- refusals ----


def test_models_that_cannot_be_had_are_refused(tmp_path):
    refused("there is no folder /nowhere", make_policy, Path("/nowhere"))
    (tmp_path / "empty").mkdir()
    refused("model.policy.model .*empty: the tokenizer", make_policy, tmp_path / "empty")
    shutil.copytree(tiny_folder("llama"), tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    refused("half cannot be loaded as a causal", make_policy, tmp_path / "half")
    refused("model.policy.model none/such", make_policy, Pretrained("none/such"))
    source = Pretrained(str(tiny_folder("llama")), tokenizer="/nowhere")
    refused("there is no folder /nowhere", make_policy, source)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    """Its client would try again and again for each file, a minute in all."""
    from huggingface_hub import constants

    from nlhf_zoo.text_models import loading

    asked = []

    class Nowhere:
        def head(self, url, timeout):
            asked.append(url)
            raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_session", Nowhere)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    loading._hub_is_reached.cache_clear()
    for _ in range(2):
        refused("none/such.*: the hub cannot be reached", make_policy, Pretrained("none/such"))
    loading._hub_is_reached.cache_clear()
    assert asked == [constants.ENDPOINT]


def test_weights_that_could_run_code_are_refused(tmp_path):
    path = shutil.copytree(tiny_folder("llama"), tmp_path / "pickled")
    torch.save(tiny_model("llama").state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    refused("cannot be loaded as a causal language model", make_policy, path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    path = save_tiny(tmp_path / "model", "llama", vocab_size=len(VOCABULARY) - 1)
    refused("has the token 36, but the model embeds 36 tokens only", make_policy, path)


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        (["lm_head", "q_proj"], "names the output layer"),
        (["no_such_layer"], r"model.policy.lora.*no_such_layer"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(targets, match):
    refused(match, make_policy, tiny_folder("llama"), lora=LoRA(target_modules=targets))


@pytest.mark.parametrize(
    "changes",
    [{"bias": "all"}, {"modules_to_save": ["norm"]}, {"use_dora": True}, {"kind": "IA3"},
     {"kind": "Prefix"}, {"trainable_token_indices": [4]}],
    ids=str,
)  # fmt: skip
def test_adapters_that_players_would_share_are_refused(tmp_path, changes):
    import peft

    changes = dict(changes)
    given = {"task_type": "CAUSAL_LM"}
    if (kind := changes.pop("kind", "Lora")) == "Prefix":
        config = peft.PrefixTuningConfig(num_virtual_tokens=2, **given)
    else:
        given |= {"target_modules": ["q_proj"]} | changes
        given |= {"feedforward_modules": []} if kind == "IA3" else {}
        config = getattr(peft, f"{kind}Config")(**given)
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "adapter")
    match = "plain LoRA adapter|Cannot set a prompt learning adapter"
    refused(match, make_policy, tiny_folder("llama"), adapter=str(tmp_path / "adapter"))


def test_adapters_of_another_model_are_refused(tmp_path):
    refused("model.policy.adapter /nowhere", make_policy, tiny_folder("llama"), adapter="/nowhere")
    tuned = str(tuned_adapter())
    for other in (tiny_folder("gpt2"), save_tiny(tmp_path / "wide", "llama", hidden_size=64)):
        refused("model.policy.adapter .*tuned", make_policy, other, adapter=tuned)
    refused("do not set lora to null", CausalLMPolicy, "x", lora=None, adapter=tuned)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_four_bits_without_a_gpu_are_refused():
    source = Pretrained(str(tiny_folder("llama")), four_bit=True)
    refused("four_bit needs a GPU, and there is none here", make_policy, source)


def test_numbers_out_of_range_are_refused():
    for wrong in ({"max_new_tokens": 0}, {"softmax_chunk": -1}):
        refused("max_new_tokens of at least 1 and softmax_chunk", CausalLMPolicy, "x", **wrong)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prompt_without_room_for_a_response_is_refused(kind):
    policy = shared_policy(kind)
    text = "a" * (64 - 6 - (kind == "llama"))
    fits = tiny_prompts(policy, (text,))
    policy.sample(POLICY, fits, 1, PLAIN, stream())
    longer_prompt = Prompts(torch.arange(1), text=[text + "a"])
    match = "a prompt of 59 tokens and a response of 6 exceed the model's 64 positions"
    refused(match, policy.sample, POLICY, policy.encode(longer_prompt), 1, PLAIN, stream())
    refused(match, policy.sample, POLICY, longer_prompt, 1, PLAIN, stream())


def test_prompts_that_cannot_be_read_are_refused():
    talk = Prompts(torch.arange(1), conversations=[conversation("hi.")])
    refused("the policy's tokenizer has no chat template", shared_policy("llama").encode, talk)
    system = [{"role": "system", "content": "be good."}, *conversation("hi.")]
    talk = Prompts(torch.arange(1), conversations=[system])
    match = "chat template refuses a prompt: System role"
    message = refused(match, shared_policy("gemma2").encode, talk)
    assert "\n" not in message
    refused("needs prompts of text", shared_policy("llama").encode, Prompts(torch.arange(2)))
    empty = Prompts(torch.tensor([4, 9]), text=["a", ""])
    refused("the prompt number 9 has no tokens", shared_policy("gpt2").encode, empty)


class Scaled(ModelSource):
    """An architecture that multiplies its logits by a number that its configuration hides."""

    def load(self):
        from transformers import CohereConfig, CohereForCausalLM

        config = CohereConfig(
            vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, logit_scale=0.5, initializer_range=0.2,
            bos_token_id=0, eos_token_id=EOS_ID, pad_token_id=PAD_ID,
        )  # fmt: skip
        torch.manual_seed(0)
        model = CohereForCausalLM(config).eval()
        model.config.logit_scale = 1.0  # the model has read it already
        return Loaded(model, tiny_tokenizer())


def test_logits_that_are_not_the_output_layer_s_are_noticed():
    policy = make_policy(Scaled())
    prompts, responses = drawn(policy)
    assert policy.capabilities.softmax_chunk == 0
    assert_generator_agrees(policy, HALF, prompts, responses)


@each_architecture
def test_an_attention_that_works_is_taken(kind):
    """PyTorch's own where the architecture has it; Gemma-2's cap on scores needs the plain one."""
    config = shared_policy(kind)._players.language_model("policy").config
    assert config._attn_implementation == ("eager" if kind == "gemma2" else "sdpa")


def test_no_part_of_a_model_asks_whether_its_code_may_run(tmp_path, monkeypatch):
    """transformers 5.23 does not hand `trust_remote_code` on to the parts of a model, and asks."""
    folder = save_tiny(tmp_path, "llama")
    trace = tmp_path / "was_run"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w')\nclass Vision: pass\n")
    # No class of transformers fits this vision tower, so that only its own code could make it.
    vision = {"model_type": "blip_2_vision_model", "auto_map": {"AutoModel": "code.Vision"}}
    text = {"model_type": "gemma3_text", "num_hidden_layers": 1, "hidden_size": 32}
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(whole))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "yes")
    with pytest.raises(UserError, match="needs code of its own, which is never run, so take"):
        Pretrained(str(folder)).load()
    assert not asked
    assert not trace.exists()
