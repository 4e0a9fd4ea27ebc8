"""What language models draw: from which law, at what cost, and where a response ends."""

import math
import shutil
from collections import Counter

import language_models as lm
import numpy as np
import pytest
import torch
from language_models import stream
from scipy import stats
from slow import half_of
from tiny_models import ARCHITECTURES, EOS_ID, PAD_ID, VOCABULARY, make_policy, tiny_prompts
from zoo import decoded_by_hand

from nlhf_zoo.policies import TransformersGenerator
from nlhf_zoo.policies.language_model import generation
from nlhf_zoo.policies.language_model.generation import Drawn, Generator
from nlhf_zoo.records import PLAIN, Decoding, Responses

ERROR_RATE = 1e-4  # of each chi-square test, if seeds were drawn anew


# ---- decoding of mixtures ----


@lm.each_architecture
@lm.each_way
def test_the_generator_agrees_with_the_log_probability(kind, lora):
    """With a cache and without one."""
    policy = lm.shared_policy(kind, lora)
    for who in (lm.POLICY, lm.REFERENCE, lm.HALF):
        lm.assert_generator_agrees(policy, who, *lm.drawn(policy, who, num=4))


@lm.each_architecture
def test_right_padded_prompts_are_answered_alike(kind):
    policy = lm.shared_policy(kind)
    prompts, responses = lm.drawn(policy)
    again = policy.sample(lm.HALF, lm.padded_right(prompts), 3, PLAIN, stream())
    assert torch.equal(again.tokens, responses.tokens)
    torch.testing.assert_close(again.log_prob, responses.log_prob, atol=lm.TOLERANCE, rtol=1e-5)


@pytest.fixture
def laws(monkeypatch):
    """The next-token laws that tokens are drawn from, one [R, V] for each token."""
    seen, plain = [], generation.draw_one

    def spy(probability, stream):
        seen.append(probability.clone())
        return plain(probability, stream)

    monkeypatch.setattr(generation, "draw_one", spy)
    return seen


@half_of(
    "kind, lora, share",
    {kind: kind for kind in ARCHITECTURES},
    lm.WAYS,
    {"shared": True, "unshared": False},
)
def test_each_token_of_a_mixture_is_drawn_from_the_uncached_mixture(laws, kind, lora, share):
    """Two players that write into one cache follow neither law."""
    generator = TransformersGenerator(share_prompt=share)
    policy = make_policy(lm.tiny_folder(kind), lora=lora, generator=generator, max_new_tokens=8)
    mixed = {"policy": 0.5, "reference": 0.3, "anchor": 0.2}
    assert policy.capabilities  # which are found by drawing, too
    for who, num in ((lm.HALF, 8), (mixed, 1)):
        laws.clear()
        prompts, responses = lm.drawn(policy, who, num=num, seed=3)
        assert len({int(n) for n in prompts.mask.sum(-1)}) == 3
        if num > 1:  # rows that end early stand beside others
            assert {True, False} == set(responses.truncated.flatten().tolist())
        for b, k in np.ndindex(*responses.weight.shape):
            prompt, response = lm.row_of(prompts, responses, b, k)
            expected = lm.laws_by_hand(policy, who, prompt, response).exp()
            found = torch.stack([laws[t][b * num + k] for t in range(len(response))]).double()
            assert float((found - expected).abs().max()) < 1e-5
            assert float((found - expected).abs().sum(-1).max()) < 1e-4


@lm.each_way
def test_decoding_is_linear_in_tokens(lora):
    """Tokens that the bodies of the models see: each one once for each player, none twice."""
    policy = make_policy(lm.tiny_folder("llama"), lora=lora, max_new_tokens=24)
    policy.ends = []
    prompts = tiny_prompts(policy)
    rows, width = 3 * 4, prompts.tokens.shape[1]
    for who in (lm.POLICY, lm.HALF):
        policy.sample(who, prompts, 4, PLAIN, stream())
        with lm.counted(policy) as seen:
            policy.sample(who, prompts, 4, PLAIN, stream())
        assert sum(seen) <= len(who) * rows * (width + 24)


@lm.each_architecture
@pytest.mark.parametrize("who", [lm.POLICY, lm.HALF], ids=["policy", "half"])
def test_a_shared_prompt_changes_the_cost_and_not_the_law(kind, who):
    policy = make_policy(lm.tiny_folder(kind))
    policy.ends = []
    found, cost = {}, {}
    assert policy.capabilities  # which are found by drawing, too
    for share in (True, False):
        policy.generator = TransformersGenerator(share_prompt=share)
        with lm.counted(policy) as seen:
            found[share] = lm.drawn(policy, who, num=5)[1]
        cost[share] = sum(seen)
    assert torch.equal(found[True].tokens, found[False].tokens)
    gap = (found[True].log_prob - found[False].log_prob).abs().max()
    assert float(gap) < lm.TOLERANCE
    width = tiny_prompts(policy).tokens.shape[1]
    # All but a prompt's last token are seen once instead of five times.
    assert cost[False] - cost[True] == len(who) * 3 * 4 * (width - 1)


@lm.each_architecture
def test_a_static_cache_draws_the_same(kind):
    policy = make_policy(lm.tiny_folder(kind))
    _, dynamic = lm.drawn(policy)
    policy.generator = TransformersGenerator(cache="static")
    _, static = lm.drawn(policy)
    assert torch.equal(static.tokens, dynamic.tokens)
    torch.testing.assert_close(static.log_prob, dynamic.log_prob, atol=lm.TOLERANCE, rtol=1e-5)


@lm.each_way
def test_prompts_of_one_token_leave_nothing_to_share(lora):
    policy = lm.shared_policy("gpt2", lora)
    prompts = tiny_prompts(policy, ("a", "b"))
    assert prompts.tokens.shape == (2, 1)
    for num in (1, 4):
        responses = policy.sample(lm.HALF, prompts, num, PLAIN, stream())
        lm.assert_generator_agrees(policy, lm.HALF, prompts, responses)


# ---- what is drawn follows the law ----


def test_a_token_is_drawn_by_its_probability_whatever_number_comes(monkeypatch):
    """Also where the sum of probabilities is a little off; what has none is never drawn."""
    law = torch.tensor([[0.0, 0.2, 0.0, 0.5, 0.3001, 0.0]])
    for number, token in [(0.0, 1), (0.19, 1), (0.21, 3), (0.69, 3), (0.71, 4), (1 - 2**-53, 4)]:
        with monkeypatch.context() as patched:
            patched.setattr(
                torch, "rand", lambda shape, n=number, **_: torch.full(shape, n).double()
            )
            assert generation.draw_one(law, stream()).tolist() == [[token]], number
    many = generation.draw_one(law.expand(20_000, -1), stream())[:, 0]
    assert chi_square(torch.bincount(many, minlength=6)[None], law) > ERROR_RATE
    # A tail of rare tokens keeps its probability: sums in float32 would lose it.
    tail = torch.cat([torch.tensor([1.0]), torch.full((1000,), 1e-8)])[None]
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 1 - 5e-6).double())
    assert float(generation.draw_one(tail, stream())) == pytest.approx(500, abs=2)


def chi_square(counts, probability):
    """The p-value of counts [C, N] of draws from laws [C, N], in cells of five expected or more."""
    statistic = freedom = 0
    for row, law in zip(np.asarray(counts, float), np.asarray(probability, float), strict=True):
        assert not row[law == 0].any(), "what has no probability was drawn"
        expected = row.sum() * law / law.sum()
        order = np.argsort(-expected)
        seen, wanted, cells = 0.0, 0.0, 0
        for place in order:
            seen, wanted = seen + row[place], wanted + expected[place]
            if wanted >= 5:
                statistic += (seen - wanted) ** 2 / wanted
                seen, wanted, cells = 0.0, 0.0, cells + 1
        freedom += cells - 1  # what is left over is given by the others
    return float(stats.chi2.sf(statistic, freedom))


def words_drawn(policy, who, decoding=PLAIN, num=1024, seed=0):
    """How often each word was drawn [C, N]."""
    prompts = lm.small_prompts(policy)
    responses = policy.sample(who, prompts, num, decoding, stream(seed))
    index = (responses.tokens * torch.tensor([64, 8, 1])).sum(-1)
    counts = torch.zeros(4, 512).scatter_add_(1, index, torch.ones(4, num))
    return counts, responses


# By the reference's weight.
MIXTURES = {weight: {"policy": 1 - weight, "reference": weight} for weight in (0.0, 0.5, 1.0)}


def test_mixtures_draw_from_three_laws():
    """Chi-square of 4,096 draws against all 512 probabilities, and against the other laws."""
    laws = {weight: lm.words_law(lm.small(), who) for weight, who in MIXTURES.items()}
    for weight, who in MIXTURES.items():
        counts, _ = words_drawn(lm.small(), who)
        for other, law in laws.items():
            p = chi_square(counts, law)
            assert (p > ERROR_RATE) if other == weight else (p < 1e-12), (weight, other, p)


DECODINGS = [
    Decoding(temperature=0.6), Decoding(temperature=2.0, top_k=3), Decoding(top_p=0.7),
    Decoding(min_p=0.5), Decoding(temperature=1.5, top_k=4, top_p=0.8, min_p=0.1),
    Decoding(temperature=math.inf), Decoding(temperature=math.inf, top_k=2),
]  # fmt: skip


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_what_is_drawn_with_a_decoding_follows_its_law(decoding):
    law = lm.words_law(lm.small(), lm.HALF, decoding)
    torch.testing.assert_close(law.sum(-1), torch.ones(4))
    counts, responses = words_drawn(lm.small(), lm.HALF, decoding)
    assert chi_square(counts, law) > ERROR_RATE
    if math.isfinite(decoding.temperature):
        plain = lm.words_law(lm.small(), lm.HALF)
        assert chi_square(counts, plain) < 1e-12
    else:
        torch.testing.assert_close(law, torch.full_like(law, 1 / 512))
    # The generator's own figure is that of the whole law, whatever the decoding.
    lm.assert_generator_agrees(lm.small(), lm.HALF, lm.small_prompts(lm.small()), responses)


@pytest.mark.parametrize("decoding", DECODINGS[:5], ids=str)
def test_the_log_probability_under_a_decoding_by_hand(decoding):
    policy = lm.shared_policy("llama")
    prompts, responses = lm.drawn(policy, lm.HALF, decoding=decoding)
    found = policy.log_prob(lm.HALF, prompts, responses, decoding).detach()
    for b, k in np.ndindex(*found.shape):
        prompt, response = lm.row_of(prompts, responses, b, k)
        rows = zip(lm.laws_by_hand(policy, lm.HALF, prompt, response), response, strict=True)
        expected = sum(math.log(decoded_by_hand(law.exp(), decoding)[token]) for law, token in rows)
        assert float(found[b, k]) == pytest.approx(expected, abs=1e-4)


def responses_of(rows, pad, width):
    """Responses to one prompt."""
    tokens = torch.tensor([[row + [pad] * (width - len(row)) for row in rows]])
    mask = torch.tensor([[[i < len(row) for i in range(width)] for row in rows]])
    return Responses(tokens, mask, torch.full(tokens.shape[:2], 1 / len(rows)))


def all_responses(ends, pad):
    """Every response of at most two tokens: ended ones, and those that were cut."""
    tokens = range(len(VOCABULARY))
    rows = [[t] for t in ends] + [[t, u] for t in tokens if t not in ends for u in tokens]
    return responses_of(rows, pad, 2)


@lm.each_architecture
def test_all_responses_have_probability_one_and_are_drawn_so(kind):
    """The end of a sequence is scored once where it was drawn, and never where it was not.

    1 + 36 x 37 responses of at most two tokens; padding may be the end-of-sequence token.
    """
    policy = make_policy(lm.tiny_folder(kind), max_new_tokens=2)
    prompts = tiny_prompts(policy, ("go on.",))
    listed = all_responses(policy.ends, policy.pad)
    with torch.no_grad():
        law = policy.log_prob(lm.HALF, prompts, listed).exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    responses = policy.sample(lm.HALF, prompts, 4096, PLAIN, stream())
    times = Counter(tuple(row[keep].tolist()) for row, keep in each_row(responses))
    counts = [[times.pop(tuple(row[keep].tolist()), 0) for row, keep in each_row(listed)]]
    assert not times  # all that was drawn is listed
    assert chi_square(counts, law) > ERROR_RATE


def each_row(responses):
    return zip(responses.tokens.flatten(0, 1), responses.mask.flatten(0, 1), strict=True)


# ---- the end of a response ----


@lm.each_architecture
def test_responses_end_with_their_end_or_are_marked(kind):
    policy = lm.shared_policy(kind)
    _, responses = lm.drawn(policy, lm.POLICY, num=40)
    ended = 0
    cut = responses.truncated.flatten().tolist()
    for (row, keep), truncated in zip(each_row(responses), cut, strict=True):
        length = int(keep.sum())
        assert keep[:length].all()  # no hole
        assert (row[length:] == policy.pad).all()
        ends = (row[:length] == EOS_ID).nonzero().flatten().tolist()
        assert ends == ([] if truncated else [length - 1])
        assert not truncated or length == policy.max_new_tokens
        ended += not truncated
    assert 0 < ended < 120


def test_the_end_is_scored_once_where_it_stands_and_never_elsewhere():
    """By hand, on a model that pads with its end-of-sequence token."""
    policy = lm.shared_policy("qwen2")
    assert policy.pad == EOS_ID
    prompts = tiny_prompts(policy, ("go on.",))
    a, b = VOCABULARY.index("a"), VOCABULARY.index("b")
    rows = [[a, b, EOS_ID], [a, b], [EOS_ID], [a, b, a, b]]
    found = policy.log_prob(lm.POLICY, prompts, responses_of(rows, policy.pad, 5))[0].detach()
    prompt = prompts.tokens[0].tolist()
    for row, ours in zip(rows, found, strict=True):
        expected = lm.sum_along(lm.laws_by_hand(policy, lm.POLICY, prompt, row), row)
        assert float(ours) == pytest.approx(float(expected), abs=1e-5)
    law = lm.laws_by_hand(policy, lm.POLICY, prompt, rows[0])
    assert float(found[0] - found[1]) == pytest.approx(float(law[2, EOS_ID]), abs=1e-5)


def test_several_tokens_may_end_a_response(tmp_path):
    """A model's own ends, and its tokenizer's."""
    path = shutil.copytree(lm.tiny_folder("gemma2"), tmp_path / "model")
    others = [VOCABULARY.index(letter) for letter in "aeiourst"]
    (path / "generation_config.json").write_text(f'{{"eos_token_id": {others}}}')
    policy = make_policy(path)
    assert set(policy.ends) == {*others, EOS_ID}
    _, responses = lm.drawn(policy, lm.POLICY, num=60)
    last = Counter()
    for row, keep in each_row(responses):
        length = int(keep.sum())
        assert not set(row[: length - 1].tolist()) & set(policy.ends)
        last[int(row[length - 1])] += 1
    assert len(set(last) & set(policy.ends)) >= 4
    cut = sum(n for token, n in last.items() if token not in policy.ends)
    assert int(responses.truncated.sum()) == cut


def test_responses_without_an_end_are_never_marked():
    prompts = lm.small_prompts(lm.small())
    responses = lm.small().sample(lm.POLICY, prompts, 3, PLAIN, stream())
    assert responses.truncated is None
    assert responses.mask.all()
    assert responses.tokens.shape == (4, 3, 3)


def test_text_is_decoded_when_it_is_read(monkeypatch):
    policy = lm.shared_policy("gemma2")
    asked = []
    plain = policy.tokenizer.batch_decode
    monkeypatch.setattr(
        policy.tokenizer, "batch_decode", lambda *a, **k: asked.append(1) or plain(*a, **k)
    )
    prompts, responses = lm.drawn(policy, num=40)
    policy.log_prob(lm.POLICY, prompts, responses)
    assert not asked
    assert len(responses.text) == 3
    assert not asked
    special = {0, EOS_ID, PAD_ID, VOCABULARY.index("<turn>")}
    for b, row in enumerate(responses.text):
        for k, text in enumerate(row):
            _, kept = lm.row_of(prompts, responses, b, k)
            words = [VOCABULARY[t].replace("Ġ", " ") for t in kept if t not in special]
            assert text == "".join(words)
    assert responses.text[0][0] == responses.text[:2][0][0]
    assert len(asked) == 1
    assert any(EOS_ID in row for row in responses.tokens.flatten(0, 1).tolist())


def test_what_is_scored_is_what_was_drawn_token_for_token():
    """Some tokens are written and never read: decoding and encoding again loses them."""
    policy = lm.shared_policy("llama")
    prompts, responses = lm.drawn(policy, num=40)
    pair = VOCABULARY.index("ab")
    strange = (responses.tokens == pair).any(-1)
    assert strange.any()
    b, k = strange.nonzero()[0].tolist()
    prompt, response = lm.row_of(prompts, responses, b, k)
    again = policy.tokenizer(responses.text[b][k], add_special_tokens=False)["input_ids"]
    assert again != [t for t in response if t != EOS_ID]
    found = policy.log_prob(lm.HALF, prompts, responses)[b, k].detach()
    expected = lm.sum_along(lm.laws_by_hand(policy, lm.HALF, prompt, response), response)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


# ---- another engine ----


def test_an_engine_may_leave_anything_behind_the_end():
    """What stands there is neither scored nor shown."""

    class Fixed(Generator):
        def draw(self, players, request):
            self.request = request
            rows = len(request.tokens) * request.num
            tokens = torch.tensor([[4, 5, EOS_ID, 9, 9]]).repeat(rows, 1)
            mask = torch.tensor([[True, True, True, False, False]]).repeat(rows, 1)
            return Drawn(tokens, mask, torch.zeros(rows, dtype=torch.bool), torch.zeros(rows))

    policy = make_policy(lm.tiny_folder("gemma2"), generator=Fixed())
    prompts, responses = lm.drawn(policy, num=2)
    assert responses.tokens.tolist() == [[[4, 5, EOS_ID, PAD_ID, PAD_ID]] * 2] * 3
    assert [*responses.text[0]] == ["ab", "ab"]
    assert policy.generator.request.max_new_tokens == policy.max_new_tokens
    assert torch.equal(responses.log_prob, torch.zeros(3, 2))
    law = lm.laws_by_hand(policy, lm.POLICY, prompts.tokens[2].tolist(), [4, 5, EOS_ID])
    expected = float(lm.sum_along(law, [4, 5, EOS_ID]))
    found = policy.log_prob(lm.POLICY, prompts, responses).detach()
    assert float(found[2, 1]) == pytest.approx(expected, abs=1e-5)
