"""Language models as policies: what would go wrong without a word (design, section 5).

Every test starts from adapters with random non-zero weights, so that players which are mixed up
differ.
"""

import itertools
import shutil

import language_models as lm
import numpy as np
import pytest
import torch
from slow import half_of
from tiny_models import (
    ARCHITECTURES,
    EOS_ID,
    make_policy,
    save_tiny,
    scatter_adapters,
    tiny_model,
    tiny_prompts,
)

from nlhf_zoo.policies import LoRA, Pretrained
from nlhf_zoo.policies.base import mix
from nlhf_zoo.policies.language_model.scoring import token_log_prob
from nlhf_zoo.records import PLAIN, Prompts, Responses

# ---- players ----


@lm.each_architecture
@lm.each_way
def test_log_prob_is_that_of_the_weights_put_together_by_hand(kind, lora):
    policy = lm.shared_policy(kind, lora)
    prompts, responses = lm.drawn(policy, num=8)
    assert len(set(responses.mask.sum(-1).flatten().tolist())) > 1  # padded on both sides
    mixed, by_hand = {"policy": 0.3, "anchor": 0.5, "reference": 0.2}, []
    for who in (lm.POLICY, lm.REFERENCE, lm.ANCHOR, lm.HALF, mixed):
        ours = policy.log_prob(who, prompts, responses).detach().double()
        by_hand.append(lm.log_prob_by_hand(policy, who, prompts, responses))
        torch.testing.assert_close(
            ours, by_hand[-1], atol=lm.TOLERANCE, rtol=1e-5, msg=lambda m, w=who: f"{w}: {m}"
        )
    for one, other in itertools.combinations(by_hand, 2):  # players that are mixed up would show
        assert (one - other).abs().median() > 1e-2


def test_the_shape_of_the_adapters_is_the_one_that_was_asked_for():
    lora = LoRA(r=9, alpha=6, target_modules=["q_proj", "up_proj"], rslora=True)
    policy = make_policy(lm.tiny_folder("qwen2"), lora=lora)
    shapes = {tuple(p.shape) for n, p in policy.snapshot().items() if ".lora_A" in n}
    assert shapes == {(9, 32)}
    assert len(policy.snapshot()) == 2 * 2 * 2  # two layers, two projections, A and B
    prompts, responses = lm.drawn(policy)
    found = policy.log_prob(lm.HALF, prompts, responses).detach().double()
    expected = lm.log_prob_by_hand(policy, lm.HALF, prompts, responses)
    torch.testing.assert_close(found, expected, atol=lm.TOLERANCE, rtol=1e-5)


@lm.each_way
def test_a_mixture_of_weight_one_is_that_player_exactly(lora):
    policy = lm.shared_policy("llama", lora)
    for one, other in (("policy", "reference"), ("reference", "policy"), ("anchor", "reference")):
        prompts, alone = lm.drawn(policy, {one: 1.0})
        _, ends = lm.drawn(policy, {one: 1.0, other: 0.0})
        _, turned = lm.drawn(policy, {other: 0.0, one: 1.0})
        for mixed in (ends, turned):
            assert torch.equal(mixed.tokens, alone.tokens)
            assert torch.equal(mixed.log_prob, alone.log_prob)
        for who in ({one: 1.0, other: 0.0}, {other: 0.0, one: 1.0}):
            found = policy.log_prob(who, prompts, alone)
            assert torch.equal(found, policy.log_prob({one: 1.0}, prompts, alone))


@lm.each_way
def test_the_reference_keeps_its_bits(lora):
    """Through training, sampling, copies, averages and half steps. Merging adapters moves them."""
    policy = make_policy(lm.tiny_folder("llama"), ("anchor", "lookahead", "magnet"), lora=lora)
    prompts, responses = lm.drawn(policy)
    before = lm.log_probs_of(policy, prompts, responses)
    base = {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
    start = policy.snapshot()
    lm.train(policy)
    for who in (lm.HALF, lm.REFERENCE, {"lookahead": 0.5, "magnet": 0.5}):
        policy.log_prob(who, prompts, lm.drawn(policy, who)[1])
    policy.copy_("policy", "lookahead")
    policy.restore(start)
    lm.train(policy, seed=7)
    policy.copy_("policy", "anchor")
    policy.lerp_("policy", "magnet", 0.3)
    after = lm.log_probs_of(policy, prompts, responses)
    assert torch.equal(before["reference"], after["reference"])
    for player in ("policy", "anchor", "lookahead", "magnet"):
        assert (before[player] - after[player]).abs().max() > 1e-3, player
    kept = {n for n in base if not any(n in lm.names_of(policy, p) for p in policy.players)}
    kept |= lm.names_of(policy, "reference")
    now = dict(policy.named_parameters())
    assert kept
    assert all(torch.equal(base[name], now[name]) for name in kept)


@lm.each_way
def test_the_policy_alone_trains_whoever_plays(lora):
    """peft's own switches flip `requires_grad`: a policy that was switched off would not train."""
    policy = make_policy(lm.tiny_folder("llama"), ("anchor", "lookahead"), lora=lora)
    expected = lm.names_of(policy, "policy")
    assert expected
    assert lm.trained_names(policy) == expected
    for player in policy.players:
        with policy._players.playing([player], 2):
            assert lm.trained_names(policy) == expected, player
    prompts, responses = lm.drawn(policy)
    for who in (lm.POLICY, lm.REFERENCE, lm.ANCHOR, lm.HALF):
        policy.sample(who, prompts, 2, PLAIN, lm.stream())
        with torch.no_grad():
            policy.log_prob(who, prompts, responses)
        assert lm.trained_names(policy) == expected, who
    policy.train()
    policy.eval()
    policy.copy_("policy", "anchor")
    policy.restore(policy.snapshot())
    assert lm.trained_names(policy) == expected


@lm.each_way
@pytest.mark.parametrize("who", [lm.POLICY, lm.REFERENCE, lm.HALF], ids=str)
def test_gradients_reach_the_policy_alone(lora, who):
    """After sampling and scoring of others, and whether or not the policy was scored first."""
    policy = make_policy(lm.tiny_folder("llama"), lora=lora)
    prompts, responses = lm.drawn(policy, who)
    log_prob = policy.log_prob(lm.POLICY, prompts, responses)
    others = sum(policy.log_prob(who, prompts, responses) for who in (lm.REFERENCE, lm.ANCHOR))
    assert not others.requires_grad
    policy.sample(who, prompts, 2, PLAIN, lm.stream())
    (log_prob + others).sum().backward()
    reached = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == lm.names_of(policy, "policy")


@pytest.mark.parametrize("player", ["reference", "anchor"])
def test_a_failure_while_others_play_leaves_the_policy_playing(player):
    policy = lm.shared_policy("llama")
    prompts, responses = lm.drawn(policy)
    before = policy.log_prob(lm.POLICY, prompts, responses)
    with pytest.raises(RuntimeError, match="on purpose"), policy._players.playing([player], 1):
        raise RuntimeError("on purpose")
    assert torch.equal(policy.log_prob(lm.POLICY, prompts, responses), before)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_gradient_is_that_of_the_weights_put_together_by_hand(kind):
    """d/dB = (alpha / r) d/dW A^T and d/dA = (alpha / r) B^T d/dW."""
    policy = lm.shared_policy(kind)
    prompts, responses = lm.drawn(policy, num=1)
    policy.zero_grad()
    policy.log_prob(lm.POLICY, prompts, responses).sum().backward()
    plain = lm.put_together(policy, "policy")
    for b in range(len(prompts)):
        prompt, response = lm.row_of(prompts, responses, b, 0)
        lm.sum_along(lm.laws_along(plain, prompt, response), response).backward()
    adapters = dict(policy._players.module("policy").named_parameters())
    checked = 0
    for name, a in adapters.items():
        if ".lora_A.policy." not in name:
            continue
        b = adapters[name.replace(".lora_A.", ".lora_B.")]
        place = name.partition(".lora_A.")[0].removeprefix("base_model.model.")
        gradient = plain.get_parameter(f"{place}.weight").grad
        gradient = gradient.T if kind == "gpt2" else gradient
        scale = policy.lora.alpha / policy.lora.r
        for ours, theirs in ((a.grad, b.T @ gradient), (b.grad, gradient @ a.T)):
            tolerance = 1e-4 * float(ours.abs().max())
            torch.testing.assert_close(ours, scale * theirs, atol=tolerance, rtol=1e-4)
            checked += 1
    assert checked >= 8


@lm.each_way
def test_copies_and_averages_by_hand(lora):
    policy = make_policy(lm.tiny_folder("llama"), ("anchor", "lookahead"), lora=lora)
    parameters = dict(policy.named_parameters())

    def values(player):
        return {n: parameters[n].detach().clone() for n in sorted(lm.names_of(policy, player))}

    def close(found, expected):
        for (name, one), other in zip(found.items(), expected, strict=True):
            torch.testing.assert_close(one, other, msg=name)

    old = {player: values(player) for player in ("policy", "anchor", "lookahead")}
    places = {name: p.data_ptr() for name, p in parameters.items()}
    policy.lerp_("policy", "anchor", 0.25)
    pairs = zip(old["anchor"].values(), old["policy"].values(), strict=True)
    close(values("anchor"), [0.75 * a + 0.25 * p for a, p in pairs])
    policy.copy_("policy", "anchor")
    pairs = zip(values("anchor").values(), old["policy"].values(), strict=True)
    assert all(torch.equal(a, p) for a, p in pairs)
    for player in ("policy", "lookahead"):
        assert all(torch.equal(values(player)[n], x) for n, x in old[player].items())
    assert places == {name: p.data_ptr() for name, p in policy.named_parameters()}
    prompts, responses = lm.drawn(policy)
    found = lm.log_probs_of(policy, prompts, responses)
    assert torch.equal(found["anchor"], found["policy"])
    assert not torch.equal(found["lookahead"], found["policy"])
    for source, target in (("policy", "reference"), ("policy", "nobody"), ("nobody", "anchor")):
        with pytest.raises(ValueError, match=r"never moves|no adapter|no player"):
            policy.lerp_(source, target, 0.5)


@lm.each_way
def test_a_snapshot_comes_back_to_the_bit(lora):
    policy = make_policy(lm.tiny_folder("llama"), lora=lora)
    prompts, responses = lm.drawn(policy)
    before = lm.log_probs_of(policy, prompts, responses)
    start = policy.snapshot()
    lm.train(policy)
    moved = lm.log_probs_of(policy, prompts, responses)
    policy.restore(start)
    after = lm.log_probs_of(policy, prompts, responses)
    assert not torch.equal(moved["policy"], before["policy"])
    assert all(torch.equal(before[player], after[player]) for player in policy.players)


@lm.each_way
def test_players_start_as_the_policy_and_the_magnet_as_the_reference(lora):
    policy = make_policy(lm.tiny_folder("llama"), ("anchor", "magnet"), lora=lora, scatter=False)
    prompts, responses = lm.drawn(policy)
    found = lm.log_probs_of(policy, prompts, responses)
    assert all(torch.equal(found[player], found["reference"]) for player in policy.players)
    lm.train(policy)
    after = lm.log_probs_of(policy, prompts, responses)
    assert not torch.equal(after["policy"], found["policy"])
    assert all(torch.equal(after[p], found[p]) for p in ("anchor", "magnet", "reference"))


def test_the_magnet_starts_as_the_reference_even_beside_another_policy():
    policy = make_policy(lm.tiny_folder("llama"))
    policy._players.add("magnet", "reference")
    prompts, responses = lm.drawn(policy)
    found = lm.log_probs_of(policy, prompts, responses)
    torch.testing.assert_close(found["magnet"], found["reference"], atol=1e-6, rtol=0)
    assert (found["policy"] - found["reference"]).abs().min() > 1e-3


@lm.each_way
def test_what_is_kept_is_what_no_folder_holds(lora):
    policy = make_policy(lm.tiny_folder("llama"), ("anchor", "magnet"), lora=lora)
    expected = set().union(*(lm.names_of(policy, p) for p in ("policy", "anchor", "magnet")))
    kept = policy.checkpoint_keys()
    assert kept == expected
    assert kept <= set(policy.state_dict())
    state = {name: value for name, value in policy.state_dict().items() if name in kept}
    other = make_policy(lm.tiny_folder("llama"), ("anchor", "magnet"), lora=lora, scatter=False)
    other.load_state_dict(state, strict=False)
    prompts, responses = lm.drawn(policy)
    one, two = (lm.log_probs_of(p, prompts, responses) for p in (policy, other))
    assert all(torch.equal(one[player], two[player]) for player in policy.players)


def test_three_adapters_are_what_the_players_cost():
    """One base model for all: parameters beyond it are those of the adapters."""
    policy = make_policy(lm.tiny_folder("llama"), ("anchor", "lookahead"))
    base = sum(p.numel() for p in tiny_model("llama").parameters())
    adapter = sum(p.numel() for p in policy.snapshot().values())
    assert sum(p.numel() for p in policy.parameters()) == base + 3 * adapter


# ---- layout: padding, batches, caches, chunks ----


def widened(prompts, left=0, right=0, fill=7):
    """The same prompts with more padding, of a token that would be noticed."""
    pad = torch.nn.functional.pad
    tokens = pad(prompts.tokens, (left, right), value=fill)
    return Prompts(prompts.ids, tokens, pad(prompts.mask, (left, right)), prompts.text)


def longer(responses, by, fill=7):
    pad = torch.nn.functional.pad
    tokens = pad(responses.tokens, (0, by), value=fill)
    return Responses(tokens, pad(responses.mask, (0, by)), responses.weight)


SIXTEEN = [("to be or not to be"[i:] + "?") * (1 + i % 2) for i in range(16)]


@lm.each_architecture
@lm.each_way
def test_padding_and_batches_change_nothing(kind, lora):
    """Position ids that count padding are wrong on GPT-2; a mask that does not, on all."""
    policy = lm.shared_policy(kind, lora)
    prompts, responses = lm.drawn(policy, texts=SIXTEEN, num=2)
    right = lm.padded_right(prompts)
    assert not torch.equal(right.mask, prompts.mask)
    with torch.no_grad():
        whole = policy.log_prob(lm.HALF, prompts, responses)
        same = {
            "left": policy.log_prob(lm.HALF, widened(prompts, left=5), responses),
            "right": policy.log_prob(lm.HALF, right, responses),
            "both": policy.log_prob(lm.HALF, widened(right, right=3), responses),
            "behind": policy.log_prob(lm.HALF, prompts, longer(responses, 4)),
        }
        alone = []
        for b in range(len(prompts)):
            row = prompts.tokens[b][prompts.mask[b]][None]
            one = Prompts(prompts.ids[b : b + 1], row, torch.ones_like(row, dtype=torch.bool))
            each = [policy.log_prob(lm.HALF, one, part_of(responses, b, k)) for k in range(2)]
            alone.append(torch.cat(each, 1))
        same["alone"] = torch.cat(alone)
    for name, found in same.items():
        gap = float((found - whole).abs().max())
        assert gap < lm.TOLERANCE, f"{name}: {gap}"


def part_of(responses, b, k):
    """One response, without padding."""
    tokens = responses.tokens[b, k][responses.mask[b, k]][None, None]
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.ones(1, 1))


@half_of(
    "kind, lora, who",
    {kind: kind for kind in ARCHITECTURES},
    lm.WAYS,
    {"policy": lm.POLICY, "half": lm.HALF},
)
def test_chunks_of_the_softmax_change_nothing(kind, lora, who):
    """Neither the values nor the gradients; 0 takes the model's own logits, softcap and all."""
    policy = make_policy(lm.tiny_folder(kind), lora=lora)
    prompts, responses = lm.drawn(policy)
    found = {}
    for chunk in (0, 1, 7, 10_000):
        policy._score.softmax_chunk = chunk
        policy.zero_grad()
        log_prob = policy.log_prob(who, prompts, responses)
        (log_prob * torch.arange(9.0).view(3, 3)).sum().backward()
        gradient = [p.grad.clone() for p in policy.parameters() if p.requires_grad]
        assert all(bool(g.any()) for g in gradient)
        found[chunk] = (log_prob.detach(), torch.cat([g.flatten() for g in gradient]))
    for chunk, (log_prob, gradient) in found.items():
        torch.testing.assert_close(
            log_prob, found[0][0], atol=lm.TOLERANCE, rtol=1e-5, msg=str(chunk)
        )
        scale = float(found[0][1].abs().max())
        torch.testing.assert_close(gradient, found[0][1], atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True], ids=["fixed head", "trained head"])
def test_logits_of_one_chunk_are_all_that_is_held(trained):
    """Sizes that the law is asked for, and what is kept for the backward; none is [M, V]."""
    sizes, m, h, v = [], 50, 4, 11
    weight = torch.randn(v, h, dtype=torch.float64, requires_grad=trained)

    def law(one, other):
        sizes.append(len(one))
        return mix([one @ weight.T, other @ weight.T], [0.3, 0.7])

    one = torch.randn(m, h, dtype=torch.float64, requires_grad=True)
    other = torch.randn(m, h, dtype=torch.float64)
    tokens, factor = torch.randint(v, (m,)), torch.randn(m, dtype=torch.float64)
    leaves = [one, weight] if trained else [one]
    whole = law(one, other).gather(-1, tokens[:, None])[:, 0]
    expected = torch.autograd.grad((whole * factor).sum(), leaves)
    sizes.clear()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.shape) or t, lambda t: t
    ):
        found = token_log_prob(law, [one, other], tokens, 8)
    torch.testing.assert_close(found, whole)
    if trained:  # computed again in the backward
        assert saved
        assert not [shape for shape in saved if shape[-1:] == (v,) and shape[0] > 1]
    else:
        kept = [t.shape for fn, _ in found.grad_fn.next_functions for t in fn.saved_tensors]
        assert kept == [(min(8, m - begin), h) for begin in range(0, m, 8)]
    gradient = torch.autograd.grad((found * factor).sum(), leaves)
    torch.testing.assert_close(gradient, expected)
    assert max(sizes) == 8
    assert sum(sizes) <= (2 * m if trained else m) + 1
    assert token_log_prob(law, [one[:0], other[:0]], tokens[:0], 8).shape == (0,)


# ---- dropout, checkpointing, precision ----


DROPOUT = {
    "llama": {"attention_dropout": 0.5},
    "qwen2": {"attention_dropout": 0.5},
    "gemma2": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
}


def with_dropout(tmp_path, kind, **kwargs):
    path = save_tiny(tmp_path / kind, kind, **DROPOUT[kind])
    policy = make_policy(path, lora=LoRA(r=4, alpha=8, dropout=0.5), **kwargs)
    policy.train()  # as Lightning does before it trains
    return policy


@half_of(
    "kind, checkpointing",
    {kind: kind for kind in ARCHITECTURES},
    {"": False, "checkpointing": True},
)
def test_dropout_is_off_everywhere(tmp_path, kind, checkpointing):
    policy = with_dropout(tmp_path, kind, gradient_checkpointing=checkpointing)
    without = make_policy(lm.tiny_folder(kind))
    prompts, responses = lm.drawn(policy)
    assert torch.equal(lm.drawn(without)[1].tokens, responses.tokens)
    for who in (lm.POLICY, lm.HALF, lm.REFERENCE):
        expected = without.log_prob(who, prompts, responses)
        for _ in range(2):
            assert torch.equal(policy.log_prob(who, prompts, responses), expected), who


@lm.each_architecture
def test_dropout_is_in_the_trained_log_probability_where_it_is_asked_for(tmp_path, kind):
    policy = with_dropout(tmp_path, kind, dropout=True)
    without = make_policy(lm.tiny_folder(kind))
    prompts, responses = lm.drawn(policy)
    assert torch.equal(lm.drawn(without)[1].tokens, responses.tokens)
    one, two = (policy.log_prob(lm.POLICY, prompts, responses) for _ in range(2))
    assert (one - two).abs().min() > 1e-3
    with torch.no_grad():
        for who in (lm.POLICY, lm.REFERENCE, lm.HALF):
            exact = without.log_prob(who, prompts, responses)
            assert torch.equal(policy.log_prob(who, prompts, responses), exact)
    assert torch.equal(lm.drawn(policy)[1].tokens, responses.tokens)


@lm.each_way
@pytest.mark.parametrize(
    "who", [lm.POLICY, lm.HALF, {"policy": 0.5, "anchor": 0.5}], ids=["policy", "half", "anchor"]
)
def test_checkpointing_changes_no_gradient_and_keeps_the_cache(lora, who):
    """Activations of another player, computed again under the policy's adapter, would."""
    found = []
    for checkpointing in (False, True):
        policy = make_policy(
            lm.tiny_folder("llama"),
            lora=lora,
            gradient_checkpointing=checkpointing,
            max_new_tokens=12,
        )
        policy.train()
        policy.ends = []
        prompts, responses = lm.drawn(policy)
        with torch.no_grad():  # the check of the output layer, made once
            policy.log_prob(who, prompts, responses)
        passes = []
        block = policy._players.language_model("policy").base_model.layers[0]
        hook = block.mlp.register_forward_pre_hook(lambda *_, seen=passes: seen.append(1))
        policy.log_prob(who, prompts, responses).sum().backward()
        hook.remove()
        gradient = [p.grad for p in policy.parameters() if p.requires_grad]
        with lm.counted(policy) as seen:
            lm.drawn(policy, who)
        found.append((gradient, sum(seen), len(passes)))
    (plain, cost, passes), (again, cost_again, passes_again) = found
    assert all(torch.equal(one, two) for one, two in zip(plain, again, strict=True))
    assert cost == cost_again
    assert cost <= len(who) * 9 * (12 + tiny_prompts(policy).tokens.shape[1])
    assert passes_again == passes + 1  # the policy's activations are computed again


@lm.each_architecture
def test_a_base_in_bfloat16_has_adapters_in_float32(tmp_path, kind):
    from transformers import AutoModelForCausalLM

    path = shutil.copytree(lm.tiny_folder(kind), tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(path)
    policy, exact = make_policy(path), make_policy(lm.tiny_folder(kind))
    for name, parameter in policy.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
    prompts, responses = lm.drawn(policy)
    for who in (lm.POLICY, lm.REFERENCE, lm.HALF):
        found = policy.log_prob(who, prompts, responses).detach()
        assert found.dtype == torch.float32
        gap = (found - exact.log_prob(who, prompts, responses).detach()).abs()
        assert float((gap / responses.mask.sum(-1)).max()) < 0.1  # 8 bits of a token's figure
    again = policy.log_prob(lm.HALF, prompts, responses).detach()
    assert float(((again - responses.log_prob).abs() / responses.mask.sum(-1)).max()) < 0.05
    policy.log_prob(lm.POLICY, prompts, responses).sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


def test_the_precision_can_be_chosen():
    policy = make_policy(Pretrained(str(lm.tiny_folder("llama")), dtype="bfloat16"))
    base = policy._players.language_model("policy").get_input_embeddings()
    assert base.weight.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_compiled_body_scores_the_same(monkeypatch, kind):
    """Players are switched under it; the compiler's front end alone, for the rest takes minutes."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, **kwargs: plain(m, backend="eager", **kwargs))
    policy, other = (make_policy(lm.tiny_folder(kind), compile=c) for c in (True, False))
    for who in (lm.POLICY, lm.REFERENCE, lm.HALF, lm.ANCHOR, lm.POLICY):
        prompts, responses = lm.drawn(policy, who)
        assert torch.equal(responses.tokens, lm.drawn(other, who)[1].tokens)
        expected = other.log_prob(who, prompts, responses)
        found = policy.log_prob(who, prompts, responses)
        torch.testing.assert_close(found, expected, atol=lm.TOLERANCE, rtol=1e-5)
    torch._dynamo.reset()


# ---- what comes with a model ----


def test_the_repository_s_generation_settings_are_not_the_policy_s(tmp_path):
    """A temperature, a penalty and a ban that a repository recommends are another policy."""
    path = shutil.copytree(lm.tiny_folder("llama"), tmp_path / "model")
    (path / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.1, "top_k": 2, "repetition_penalty": 2.0, '
        '"suppress_tokens": [4, 5, 6, 7, 8], "no_repeat_ngram_size": 1, "min_new_tokens": 5, '
        f'"eos_token_id": {EOS_ID}}}'
    )
    policy, other = make_policy(path), make_policy(lm.tiny_folder("llama"))
    for who in (lm.POLICY, lm.HALF):
        prompts, responses = lm.drawn(policy, who, num=20)
        assert torch.equal(responses.tokens, lm.drawn(other, who, num=20)[1].tokens)
        lm.assert_generator_agrees(policy, who, prompts, responses)
    # What an export writes again beside the model.
    assert policy.loaded_generation_config.temperature == 0.1


def test_an_adapter_is_the_start_and_the_reference():
    from peft import PeftModel

    policy = make_policy(
        lm.tiny_folder("llama"),
        ("anchor", "magnet"),
        adapter=str(lm.tuned_adapter()),
        scatter=False,
    )
    prompts, responses = lm.drawn(policy)
    found = lm.log_probs_of(policy, prompts, responses)
    assert all(torch.equal(x, found["policy"]) for x in found.values())
    tuned = PeftModel.from_pretrained(tiny_model("llama"), lm.tuned_adapter())
    merged = tuned.merge_and_unload().eval()
    base = lm.log_probs_of(make_policy(lm.tiny_folder("llama")), prompts, responses)["reference"]
    for b, k in np.ndindex(*responses.weight.shape):
        prompt, response = lm.row_of(prompts, responses, b, k)
        expected = lm.sum_along(lm.laws_along(merged, prompt, response), response).item()
        assert float(found["policy"][b, k]) == pytest.approx(expected, abs=1e-5)
    assert (found["policy"] - base).abs().min() > 1e-3
    assert lm.trained_names(policy) == lm.names_of(policy, "policy")
    lm.train(policy)
    after = lm.log_probs_of(policy, prompts, responses)
    assert (after["policy"] - found["policy"]).abs().min() > 1e-3
    for player in ("reference", "anchor", "magnet"):
        assert torch.equal(after[player], found[player]), player
    # The reference's adapter is read from its folder again.
    kept = set().union(*(lm.names_of(policy, p) for p in ("policy", "anchor", "magnet")))
    assert policy.checkpoint_keys() == kept
    scatter_adapters(policy)
    prompts, responses = lm.drawn(policy)
    lm.assert_generator_agrees(policy, lm.HALF, prompts, responses)
    assert lm.log_probs_of(policy, prompts, responses)["reference"].isfinite().all()


def test_an_adapter_that_changes_its_base_when_it_is_made_changes_it_once(tmp_path):
    """PiSSA's start takes its part out of the base model: a second one would take out more."""
    from peft import LoraConfig, PeftModel, get_peft_model

    path = tmp_path / "pissa"
    start = {"init_lora_weights": "pissa", "task_type": "CAUSAL_LM"}
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], **start)
    get_peft_model(tiny_model("llama"), config).save_pretrained(path)
    policy = make_policy(lm.tiny_folder("llama"), adapter=str(path), scatter=False)
    prompts, responses = lm.drawn(policy)
    found = lm.log_probs_of(policy, prompts, responses)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), path).eval()
    prompt, response = lm.row_of(prompts, responses, 1, 0)
    expected = lm.sum_along(lm.laws_along(loaded, prompt, response), response).item()
    for player in policy.players:
        assert float(found[player][1, 0]) == pytest.approx(expected, abs=1e-5), player


def test_versions_are_stamped(monkeypatch):
    policy = lm.shared_policy("llama")
    monkeypatch.setattr(policy, "versions", {"policy": 3, "anchor": 7, "reference": -1})
    expected = [(lm.POLICY, 3), (lm.ANCHOR, 7), (lm.REFERENCE, -1), (lm.HALF, 3)]
    expected += [({"policy": 0.5, "anchor": 0.5}, 7), ({"policy": 1.0, "anchor": 0.0}, 3)]
    for who, version in expected:
        assert lm.drawn(policy, who, num=1)[1].version == version, who


def test_a_length_normalised_figure_is_the_mean_over_tokens(monkeypatch):
    policy = lm.shared_policy("llama")
    prompts, responses = lm.drawn(policy)
    whole = policy.log_prob(lm.POLICY, prompts, responses)
    monkeypatch.setattr(policy, "length_normalised", True)
    found = policy.log_prob(lm.POLICY, prompts, responses)
    torch.testing.assert_close(found * responses.mask.sum(-1), whole)
