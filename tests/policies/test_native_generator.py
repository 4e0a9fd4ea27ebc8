"""The decoder of our own draws the law that is scored, whatever rows stand beside."""

import gc
from dataclasses import replace

import architectures
import language_models as lm
import numpy as np
import pytest
import torch
from language_models import stream
from tiny_models import ARCHITECTURES, make_policy, tiny_prompts

from nlhf_zoo.policies import LoRA, NativeGenerator, TransformersGenerator
from nlhf_zoo.policies.language_model.decoding import generator, law, rows
from nlhf_zoo.records import PLAIN, Decoding
from policies.test_lm_generation import ERROR_RATE, all_responses, chi_square, each_row

slow = pytest.mark.slow
MIXED = {"policy": 0.5, "reference": 0.3, "anchor": 0.2}


def native(kind, lora=lm.LORA, every=None, **options):
    options = {"max_new_tokens": 12} | options
    engine = NativeGenerator(every)
    return make_policy(lm.tiny_folder(kind), lora=lora, generator=engine, **options)


@pytest.fixture
def laws(monkeypatch):
    """The law of each token, by the row and the token's number."""
    seen, plain = {}, rows.Draw.__call__

    def spy(self, now, logits, number):
        of_all = self.law(logits, number)[0]
        for index, found in zip(now.index.tolist(), of_all, strict=True):
            seen[index, int(number)] = found.double()
        plain(self, now, logits, number)

    monkeypatch.setattr(rows.Draw, "__call__", spy)
    return seen


def assert_laws_by_hand(policy, laws, who, num):
    laws.clear()
    prompts, responses = lm.drawn(policy, who, num=num, seed=3)
    for b, k in np.ndindex(*responses.weight.shape):
        prompt, response = lm.row_of(prompts, responses, b, k)
        expected = lm.laws_by_hand(policy, who, prompt, response)
        found = torch.stack([laws[b * num + k, t] for t in range(len(response))])
        assert float((found - expected).abs().max()) < 1e-4
        total = lm.sum_along(expected, response)
        assert float(responses.log_prob[b, k]) == pytest.approx(float(total), abs=lm.TOLERANCE)
    return responses


@pytest.mark.parametrize(
    ("kind", "lora"),
    [(kind, lm.LORA) for kind in ARCHITECTURES]
    + [pytest.param(kind, None, marks=[slow] * (kind != "llama")) for kind in ARCHITECTURES],
)
def test_each_token_is_drawn_from_the_law_of_plain_transformers(laws, kind, lora):
    """Rows one by one, unpadded, without a cache, in float32; beyond a sliding window of 4."""
    policy = native(kind, lora)
    assert policy.capabilities.drawing.native
    assert policy.capabilities.fallback == ""
    cut = set()
    for who, num in ((lm.POLICY, 2), (MIXED, 4)):
        responses = assert_laws_by_hand(policy, laws, who, num)
        cut |= set(responses.truncated.flatten().tolist())
    assert cut == {True, False}


# Sliding windows, biases of positions, several norms, experts, latent and shared keys and values.
DOZEN = [
    "bloom", "mpt", "falcon@alibi", "gpt_neox", "opt", "qwen3", "gemma3_text", "gemma3n_text",
    "olmo2", "deepseek_v3", "gpt_oss", "cohere2", "phi3", "mixtral",
]  # fmt: skip


@slow
@pytest.mark.parametrize("name", DOZEN)
def test_a_dozen_architectures_token_by_token(laws, tmp_path, name):
    """Each player alone by plain calls without a cache, one row at a time, unpadded."""
    policy = make_policy(
        architectures.save(name, tmp_path), generator=NativeGenerator(), max_new_tokens=16
    )
    assert policy.capabilities.drawing.native, policy.capabilities.fallback
    for who in (lm.POLICY, lm.HALF):
        laws.clear()
        prompts, responses = lm.drawn(policy, who, num=2)
        for b, k in np.ndindex(*responses.weight.shape):
            prompt, response = lm.row_of(prompts, responses, b, k)
            expected = plain_laws(policy, who, prompt, response)
            found = torch.stack([laws[2 * b + k, t] for t in range(len(response))])
            assert float((found - expected).abs().max()) < 1e-3


@torch.no_grad()
def plain_laws(policy, who, prompt, response):
    total = 0
    for player, weight in who.items():
        with policy._players.playing([player], 1):
            row = torch.tensor([prompt + response])
            logits = policy._players.module(player)(input_ids=row, use_cache=False).logits[0]
        total = total + weight * logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return total.log_softmax(-1)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # without biases, and with some
def test_weights_that_lie_transposed_give_the_same_law(laws, monkeypatch, kind):
    monkeypatch.setattr(generator, "_LONG", 1)
    policy = native(kind)
    for who, num in ((lm.POLICY, 3), (lm.REFERENCE, 1), (lm.HALF, 2)):
        assert_laws_by_hand(policy, laws, who, num)


@pytest.mark.parametrize(
    "lora", [lm.LORA, pytest.param(None, marks=slow)], ids=["one call", "a call each"]
)
def test_what_is_drawn_is_the_same_whatever_rows_stand_beside(lora):
    """Nor does it matter when it is asked which rows have ended."""
    found = {}
    for every in (1, 3, 100):
        policy = native("llama", lora, every, max_new_tokens=24)
        _, found[every] = lm.drawn(policy, lm.HALF, num=8)
    policy.generator = TransformersGenerator()
    policy._capabilities = None
    _, plain = lm.drawn(policy, lm.HALF, num=8)  # by the same numbers, if they are the first
    lengths = plain.mask.sum(-1)
    assert int(lengths.min()) < 8 < int(lengths.max()) == 24
    for responses in found.values():
        assert torch.equal(responses.tokens, plain.tokens)
        assert torch.equal(responses.mask, plain.mask)
        assert torch.equal(responses.truncated, plain.truncated)
        torch.testing.assert_close(responses.log_prob, plain.log_prob, atol=lm.TOLERANCE, rtol=1e-5)


def test_the_stream_goes_on_from_the_same_place_however_long_responses_are():
    policy = native("llama", max_new_tokens=24)
    rng = stream()
    policy.sample(lm.POLICY, tiny_prompts(policy), 4, PLAIN, rng)
    one = torch.rand(4, generator=rng)
    policy.generator.check_every = 5
    policy.ends = policy.plain_tokens()  # so that responses are short
    rng = stream()
    policy.sample(lm.POLICY, tiny_prompts(policy), 4, PLAIN, rng)
    assert torch.equal(one, torch.rand(4, generator=rng))


def test_rows_that_have_ended_cost_nothing():
    """Tokens that the body of the model sees: those of responses, and each prompt once."""
    policy = native("llama", every=1, max_new_tokens=40)
    prompts = tiny_prompts(policy)
    assert policy.capabilities
    with lm.counted(policy) as seen:
        responses = policy.sample(lm.POLICY, prompts, 32, PLAIN, stream())
    read = prompts.tokens.numel()
    drawn = int(responses.mask.sum())
    assert int(responses.mask.sum(-1).min()) < 5
    assert sum(seen) - read <= drawn * (1 + 1 / 7)


def test_the_adapters_of_the_hour_are_drawn_from():
    policy = native("llama")
    for number in range(2):
        with torch.no_grad():
            for parameter in policy.trained_parameters().values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream(number)))
        lm.assert_generator_agrees(policy, lm.POLICY, *lm.drawn(policy, lm.POLICY))


def test_nothing_is_left_in_the_layers_of_peft(monkeypatch):
    policy = native("llama")
    assert policy.capabilities
    before = {name: (set(vars(m)), len(m._forward_hooks)) for name, m in policy.named_modules()}
    lm.drawn(policy)

    def fail(*_):
        raise RuntimeError("on the way")

    with monkeypatch.context() as patched:
        patched.setattr(rows.Draw, "__call__", fail)
        with pytest.raises(RuntimeError, match="on the way"):
            lm.drawn(policy)
    after = {name: (set(vars(m)), len(m._forward_hooks)) for name, m in policy.named_modules()}
    assert before == after
    lm.train(policy, steps=1)  # gradient still reaches the adapters


def test_bfloat16_is_drawn_and_scored_alike():
    policy = native("llama")
    policy.language_model.to(torch.bfloat16)
    policy._capabilities = None
    assert policy.capabilities.drawing.native
    prompts, responses = lm.drawn(policy, lm.HALF)
    again = policy.log_prob(lm.HALF, prompts, responses).detach()
    gap = (again - responses.log_prob).abs() / responses.mask.sum(-1)
    assert float(gap.max()) < policy.capabilities.rounding


# ---- what does not fit ----


def test_what_does_not_fit_is_drawn_by_transformers_and_said_once(tmp_path, capsys):
    from tiny_models import save_tiny

    shape = {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]}
    path = save_tiny(tmp_path / "lfm2", "lfm2", **shape)
    policy = make_policy(path, generator=NativeGenerator())
    capsys.readouterr()
    for seed in range(2):
        lm.assert_generator_agrees(policy, lm.HALF, *lm.drawn(policy, lm.HALF, seed=seed))
    said = capsys.readouterr().err
    assert said.count("nlhf: ") == 1
    assert "Lfm2ForCausalLM is decoded by transformers, not by NativeGenerator: " in said
    assert policy.capabilities.drawing.shared_prompt == "reordered"


def test_a_decoder_that_draws_from_another_law_is_not_used(monkeypatch):
    """As of an architecture that reads its cache in a way of its own."""
    monkeypatch.setattr(law, "mix", lambda logits, _: logits[0].log_softmax(-1))
    found = native("llama").capabilities
    assert not found.drawing.native
    assert "would be off by" in found.fallback


def test_a_check_of_less_than_a_token_is_refused():
    with pytest.raises(ValueError, match="check_every must be at least 1"):
        NativeGenerator(0)


# ---- the law ----


def words_drawn(policy, who, decoding=PLAIN, num=1024):
    prompts = lm.small_prompts(policy)
    responses = policy.sample(who, prompts, num, decoding, stream())
    index = (responses.tokens * torch.tensor([64, 8, 1])).sum(-1)
    return torch.zeros(4, 512).scatter_add_(1, index, torch.ones(4, num))


def test_mixtures_draw_from_three_laws():
    """Chi-square of 4,096 draws against all 512 probabilities, and against the other laws."""
    policy = lm.small_policy(generator=NativeGenerator())
    mixtures = {weight: {"policy": 1 - weight, "reference": weight} for weight in (0.0, 0.5, 1.0)}
    expected = {weight: lm.words_law(policy, who) for weight, who in mixtures.items()}
    for weight, who in mixtures.items():
        counts = words_drawn(policy, who)
        for other, of_words in expected.items():
            p = chi_square(counts, of_words)
            assert (p > ERROR_RATE) if other == weight else (p < 1e-12), (weight, other, p)


def test_what_is_drawn_with_a_decoding_follows_its_law():
    decoding = Decoding(temperature=1.5, top_k=4, top_p=0.8)
    policy = lm.small_policy(generator=NativeGenerator())
    counts = words_drawn(policy, lm.HALF, decoding)
    assert chi_square(counts, lm.words_law(policy, lm.HALF, decoding)) > ERROR_RATE
    assert chi_square(counts, lm.words_law(policy, lm.HALF)) < 1e-12


@pytest.mark.parametrize("engine", [NativeGenerator, TransformersGenerator])
def test_a_least_length_is_in_the_law_that_is_drawn_and_scored(engine):
    """All responses of at most two tokens: one of a single token has no probability."""
    policy = make_policy(
        lm.tiny_folder("llama"), max_new_tokens=2, min_new_tokens=1, generator=engine()
    )
    prompts = tiny_prompts(policy, ("go on.",))
    listed = all_responses(policy.ends, policy.pad)
    with torch.no_grad():
        of_all = policy.log_prob(lm.HALF, prompts, listed).exp()
        by_prefixes = policy.log_prob(lm.HALF, prompts, replace(listed, enumerated=True)).exp()
    assert float(of_all.sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(by_prefixes, of_all, atol=1e-6, rtol=1e-4)
    single = listed.mask.sum(-1) == 1
    assert single.any()
    assert float(of_all[single].max()) == 0
    responses = policy.sample(lm.HALF, prompts, 2048, PLAIN, stream())
    assert chi_square(counted(responses, listed), of_all) > ERROR_RATE
    lm.assert_generator_agrees(policy, lm.HALF, prompts, responses)


def counted(responses, listed):
    """How often each of the listed responses was drawn; all that was drawn is listed."""
    times = {}
    for row, keep in each_row(responses):
        key = tuple(row[keep].tolist())
        times[key] = times.get(key, 0) + 1
    counts = [[times.pop(tuple(row[keep].tolist()), 0) for row, keep in each_row(listed)]]
    assert not times
    return counts


def test_a_least_length_has_its_gradient():
    policy = make_policy(lm.tiny_folder("llama"), max_new_tokens=4, min_new_tokens=3)
    policy._score.softmax_chunk = 2
    prompts, responses = lm.drawn(policy, lm.POLICY, num=6)
    policy.capabilities.softmax_chunk  # noqa: B018  # found, so that it stays
    found = {}
    for chunk in (2, 1024):
        policy._score.softmax_chunk = chunk
        policy.zero_grad()
        policy.log_prob(lm.POLICY, prompts, responses).sum().backward()
        found[chunk] = {n: p.grad.clone() for n, p in policy.trained_parameters().items()}
    for name, gradient in found[2].items():
        assert bool(gradient.isfinite().all())
        torch.testing.assert_close(gradient, found[1024][name], atol=1e-5, rtol=1e-4)


def test_a_token_is_drawn_by_its_probability_whatever_number_comes():
    of_all = torch.tensor([[0.0, 0.2, 0.0, 0.5, 0.3001, 0.0, 0.0]])
    for number, token in [(0.0, 1), (0.19, 1), (0.21, 3), (0.69, 3), (0.71, 4), (1 - 2**-53, 4)]:
        uniform = torch.tensor([number], dtype=torch.float64)
        assert law.invert(of_all, uniform).tolist() == [token], number
    uniform = torch.rand(20_000, dtype=torch.float64, generator=stream())
    many = law.invert(of_all.expand(20_000, -1), uniform)
    assert chi_square(torch.bincount(many, minlength=7)[None], of_all) > ERROR_RATE
    # A tail of rare tokens keeps its probability: sums in float32 would lose it.
    tail = torch.cat([torch.tensor([1.0]), torch.full((1000,), 1e-8)])[None]
    rare = law.invert(tail, torch.tensor([1 - 5e-6], dtype=torch.float64))
    assert float(rare) == pytest.approx(500, abs=2)
    wide = torch.rand(64, 1501, generator=stream(1))
    uniform = torch.rand(64, dtype=torch.float64, generator=stream(2))
    below = wide.double().cumsum(-1)
    expected = torch.searchsorted(below, (uniform * below[:, -1])[:, None], right=True)[:, 0]
    assert torch.equal(law.invert(wide, uniform), expected)
    assert law.invert(torch.full((1, 9), torch.nan), uniform[:1]).shape == (1,)


def test_the_engine_holds_no_model():
    """A policy that is gone leaves nothing behind."""
    policy = native("gpt2", LoRA(r=2))
    lm.drawn(policy)
    assert not [o for o in gc.get_referrers(policy._players) if isinstance(o, NativeGenerator)]
