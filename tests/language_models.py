"""What the tests of language models share: models made once, and an independent oracle.

The oracle builds each player's weights by hand and runs one row at a time: no padding, no cache, no
peft, all logits.
"""

import atexit
import shutil
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoConfig

from nlhf_zoo.data.tables import small_language
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import SmallLanguage
from nlhf_zoo.policies import LoRA, SmallLanguageModel
from nlhf_zoo.records import PLAIN, Prompts

LORA = LoRA(r=4, alpha=8)
POLICY, REFERENCE, ANCHOR = {"policy": 1.0}, {"reference": 1.0}, {"anchor": 1.0}
HALF = {"policy": 0.5, "reference": 0.5}
# Of a response's log-probability in float32: kernels round by the shape of a batch, on some
# machines more than on others. A wrong position, mask or player moves it by a hundred times that.
TOLERANCE = 1e-4

each_architecture = pytest.mark.parametrize("kind", tiny_models.ARCHITECTURES)
WAYS = {"lora": LORA, "full": None}  # what is trained
each_way = pytest.mark.parametrize("lora", WAYS.values(), ids=WAYS)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- models, made once ----


@cache
def _root():
    folder = tempfile.mkdtemp(prefix="tiny-models-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def new_folder():
    """Empty, and removed when the tests have ended."""
    return Path(tempfile.mkdtemp(dir=_root()))


@cache
def tiny_folder(kind):
    """Folder of an architecture's model; no test changes it."""
    return tiny_models.save_tiny(new_folder() / kind, kind)


@cache
def letters(kind, auto=None):
    """Folder of a model with a chat template, or of a classifier with one output; as above."""
    path = tiny_models.save_tiny(new_folder() / kind, kind, chat=True, max_position_embeddings=512)
    if auto is not None:
        torch.manual_seed(5)
        auto.from_config(AutoConfig.from_pretrained(path, num_labels=1)).save_pretrained(path)
    return str(path)


@cache
def shared_policy(kind, lora=LORA):
    """A policy that no test changes."""
    return tiny_models.make_policy(tiny_folder(kind), lora=lora)


@cache
def small():
    """The small language with players that differ; no test changes it."""
    return small_policy()


def small_policy(**kwargs):
    oracle = SmallLanguage()
    kwargs = {"max_new_tokens": 3, "names": oracle.action_names} | kwargs
    policy = tiny_models.make_policy(SmallLanguageModel(), **kwargs)
    tiny_models.scatter_adapters(policy, 0.4)
    return policy


def small_prompts(policy, ids=(0, 1, 2, 3)):
    texts = [small_language.PROMPTS[i] for i in ids]
    return policy.encode(Prompts(torch.tensor(ids), text=texts))


@cache
def tuned_adapter():
    """Folder of a Llama's adapter, as supervised fine-tuning leaves it."""
    from peft import LoraConfig, get_peft_model

    path = new_folder() / "tuned"
    config = LoraConfig(
        r=3, lora_alpha=9, lora_dropout=0.5, target_modules=["q_proj", "down_proj"],
        use_rslora=True, task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(tiny_models.tiny_model("llama"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2, generator=stream(11))
    model.save_pretrained(path)
    return path


# ---- the independent oracle ----


_MADE: dict = {}  # plain models of policies that did not change


def by_hand(policy, player):
    """A plain model with a player's weights, made once."""
    key = (id(policy), player, *(p._version for p in policy.parameters()))
    if key not in _MADE:
        _MADE[key] = (put_together(policy, player), policy)  # the policy, so that its id stays its
    return _MADE[key][0]


@torch.no_grad()
def put_together(policy, player):
    """W + (alpha / r) B A, without peft."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy.source.name, dtype=torch.float32)
    if policy.lora is None:
        model.load_state_dict(policy._players._models[player].state_dict())
        return model
    if player == "reference":
        return model
    weights = dict(model.named_parameters())
    adapters = dict(policy._players.module("policy").named_parameters())
    suffix = f".lora_A.{player}.weight"
    for name, a in adapters.items():
        if name.endswith(suffix):
            place = name.removesuffix(suffix)
            b = adapters[f"{place}.lora_B.{player}.weight"]
            rank = policy.lora.r**0.5 if policy.lora.rslora else policy.lora.r
            delta = policy.lora.alpha / rank * (b @ a)
            weight = weights[place.removeprefix("base_model.model.") + ".weight"]
            weight += delta.T if model.config.model_type == "gpt2" else delta  # [in, out] there
    return model


def laws_along(model, prompt, response):
    """Next-token log-probabilities [T, V] of a plain model along one row; nothing is padded."""
    logits = model(torch.tensor([prompt + response])).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


def sum_along(laws, response):
    """Log-probability of a response under the laws of its tokens."""
    return laws.gather(-1, torch.tensor(response)[:, None]).sum()


@torch.no_grad()
def laws_by_hand(policy, who, prompt, response):
    """Next-token log-probabilities [T, V] of a mixture along one row."""
    total = 0
    for player, weight in who.items():
        total = total + weight * laws_along(by_hand(policy, player), prompt, response)
    return total - total.exp().sum(-1, keepdim=True).log()


def row_of(prompts, responses, b, k):
    """Tokens of a prompt and of a response to it, without padding."""
    response = responses.tokens[b, k][responses.mask[b, k]].tolist()
    return prompts.tokens[b][prompts.mask[b]].tolist(), response


def log_prob_by_hand(policy, who, prompts, responses):
    """[B, K], row by row."""
    found = torch.zeros(responses.weight.shape, dtype=torch.float64)
    for b, k in np.ndindex(*found.shape):
        prompt, response = row_of(prompts, responses, b, k)
        found[b, k] = sum_along(laws_by_hand(policy, who, prompt, response), response)
    return found


def drawn(policy, who=HALF, num=3, decoding=PLAIN, seed=0, texts=None):
    prompts = tiny_models.tiny_prompts(policy, *([] if texts is None else [texts]))
    return prompts, policy.sample(who, prompts, num, decoding, stream(seed))


# ---- what tests do with a policy ----


def assert_generator_agrees(policy, who, prompts, responses):
    """What a generator says of its own draws is their log-probability, computed again."""
    again = policy.log_prob(who, prompts, responses).detach()
    torch.testing.assert_close(again, responses.log_prob, atol=TOLERANCE, rtol=1e-5)


def trained_names(policy):
    return {name for name, p in policy.named_parameters() if p.requires_grad}


def names_of(policy, player):
    """Names of a player's parameters, read off the model by another rule than the code's."""
    mark = f".{player}." if policy.lora else f"_models.{player}."
    return {
        n for n, _ in policy.named_parameters() if mark in n and ("lora_" in n or not policy.lora)
    }


def log_probs_of(policy, prompts, responses, players=None):
    with torch.no_grad():
        return {p: policy.log_prob({p: 1.0}, prompts, responses) for p in players or policy.players}


def train(policy, steps=2, lr=0.05, seed=0):
    """Some steps of policy gradient on responses of the policy, as a game would take them."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    for step in range(steps):
        prompts, responses = drawn(policy, POLICY, seed=seed + step)
        advantage = torch.randn(responses.weight.shape, generator=stream(seed + step))
        optimizer.zero_grad()
        (-advantage * policy.log_prob(POLICY, prompts, responses)).mean().backward()
        optimizer.step()


@contextmanager
def counted(policy):
    """Tokens of each forward pass."""
    seen = []

    def count(_module, args, kwargs):
        seen.append((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel())

    bodies = {id(m): m for p in policy.players if (m := policy._players.language_model(p))}
    hooks = [
        body.base_model.register_forward_pre_hook(count, with_kwargs=True)
        for body in bodies.values()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def padded_right(prompts, fill=7):
    tokens, mask = torch.full_like(prompts.tokens, fill), torch.zeros_like(prompts.mask)
    for b, row in enumerate(prompts.mask):
        tokens[b, : row.sum()] = prompts.tokens[b][row]
        mask[b, : row.sum()] = True
    return Prompts(prompts.ids, tokens, mask, prompts.text)


def refused(match, function, /, *args, **kwargs):
    """One sentence that says what is wrong."""
    with pytest.raises(UserError, match=match) as caught:
        function(*args, **kwargs)
    return str(caught.value)


@torch.no_grad()
def words_law(policy, who, decoding=PLAIN):
    """Probability of each word [C, N]."""
    prompts = small_prompts(policy)
    return policy.log_prob(who, prompts, policy.enumerate(prompts), decoding).exp()
