"""Responses that can be listed, and the small language."""

import itertools
import math

import language_models as lm
import numpy as np
import pytest
import torch
from tiny_models import (
    EOS_ID,
    PAD,
    VOCABULARY,
    make_policy,
    tiny_model,
    tiny_prompts,
    tiny_tokenizer,
)

from nlhf_zoo.data.tables import small_language
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import SmallLanguage
from nlhf_zoo.policies import CausalLMPolicy, ModelSource, SmallLanguageModel
from nlhf_zoo.policies.language_model.sources import Loaded
from nlhf_zoo.records import PLAIN, Responses

# ---- listed responses ----


def test_all_words_are_listed_and_their_probabilities_sum_to_one():
    prompts = lm.small_prompts(lm.small())
    listed = lm.small().enumerate(prompts)
    assert [*listed.text[2]] == small_language.words()
    assert listed.enumerated
    assert listed.tokens.shape == (4, 512, 3)
    each = Responses(listed.tokens, listed.mask, listed.weight)  # not listed: row by row
    for who in (lm.POLICY, lm.REFERENCE, lm.HALF):
        with torch.no_grad():
            at_once, by_row = (lm.small().log_prob(who, prompts, r) for r in (listed, each))
        torch.testing.assert_close(at_once.exp().sum(-1), torch.ones(4))
        torch.testing.assert_close(at_once, by_row, atol=lm.TOLERANCE, rtol=1e-5)


def test_one_pass_over_prefixes_is_what_listed_responses_cost():
    """64 prefixes of two letters instead of 512 words."""
    prompts = lm.small_prompts(lm.small())
    with lm.counted(lm.small()) as seen, torch.no_grad():
        lm.small().log_prob(lm.POLICY, prompts, lm.small().enumerate(prompts))
    assert seen == [4 * 64 * 4]


def test_gradients_of_listed_responses_are_those_of_each():
    policy = lm.small_policy()
    prompts = lm.small_prompts(policy, (2, 0))
    listed = policy.enumerate(prompts)
    weight = torch.randn(2, 512, generator=lm.stream())
    found = []
    for responses in (listed, Responses(listed.tokens, listed.mask, listed.weight)):
        policy.zero_grad()
        (policy.log_prob(lm.POLICY, prompts, responses) * weight).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad]))
    scale = float(found[0].abs().max())
    torch.testing.assert_close(found[0], found[1], atol=1e-5 * scale, rtol=1e-4)


def test_listed_responses_of_some_prompts_in_another_order():
    whole = lm.words_law(lm.small(), lm.HALF)
    prompts = lm.small_prompts(lm.small(), (2, 0))
    with torch.no_grad():
        some = lm.small().log_prob(lm.HALF, prompts, lm.small().enumerate(prompts)).exp()
    torch.testing.assert_close(some, whole[[2, 0]])


class ShortWords(ModelSource):
    """After "x:" words of one or two of the letters a to c, after "y:" one of twelve letters.

    The law is that of a random model on these, and every word ends: the listed words are all.
    """

    def load(self):
        from transformers import LlamaForCausalLM

        letters = torch.tensor([VOCABULARY.index(letter) for letter in "abcdefghijkl"])
        colon, y = VOCABULARY.index(":"), VOCABULARY.index("y")

        class Model(LlamaForCausalLM):
            def forward(self, input_ids, logits_to_keep=0, **kwargs):
                output = super().forward(input_ids=input_ids, **kwargs)
                place = torch.arange(input_ids.shape[1]).expand_as(input_ids)
                start = torch.where(input_ids == colon, place, 0).cummax(-1).values
                since = place - start
                after_y = input_ids.gather(1, (start - 1).clamp(min=0)) == y
                allowed = torch.zeros_like(output.logits, dtype=torch.bool)
                allowed[..., letters[:3]] = (since < 2)[..., None]
                allowed[..., letters] |= (after_y & (since == 0))[..., None]
                allowed[..., letters] &= ~(after_y & (since > 0))[..., None]
                allowed[..., EOS_ID] = since > 0
                allowed[..., EOS_ID] |= ~allowed.any(-1)
                output.logits = output.logits.masked_fill(~allowed, -torch.inf)
                output.logits = output.logits[:, -logits_to_keep:]
                return output

        plain = tiny_model("llama")
        model = Model(plain.config).eval()
        model.load_state_dict(plain.state_dict())
        return Loaded(model, tiny_tokenizer(pad=PAD))


SHORT = ["".join(w) for n in (1, 2) for w in itertools.product("abc", repeat=n)]
LISTS = [SHORT, [*"abcdefghijkl"], SHORT[::-1]]


def short_policy(names):
    return make_policy(ShortWords(), names=names, softmax_chunk=0, max_new_tokens=3)


@pytest.mark.parametrize("names", [[SHORT] * 3, LISTS], ids=["one list", "several"])
def test_listed_responses_may_differ_in_length_and_between_prompts(names):
    texts = ["x:", "y:" if names is LISTS else "bx:", "dogs. x:"]
    policy = short_policy(names)
    prompts = tiny_prompts(policy, texts)
    listed = policy.enumerate(prompts)
    widths = [[len(name) + 1 for name in row] for row in names]
    assert listed.mask.sum(-1).tolist() == widths
    each = Responses(listed.tokens, listed.mask, listed.weight)
    for who in (lm.POLICY, lm.REFERENCE, lm.HALF):
        with torch.no_grad():
            found = policy.log_prob(who, prompts, listed)
            by_row = policy.log_prob(who, prompts, each)
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(3))
        torch.testing.assert_close(found, by_row, atol=lm.TOLERANCE, rtol=1e-5)
    # By hand: the plain model on "x:a" and its end.
    x, colon, a = (VOCABULARY.index(letter) for letter in "x:a")
    laws = lm.laws_along(ShortWords().load().model, [x, colon], [a, EOS_ID])
    found = policy.log_prob(lm.REFERENCE, prompts, listed)[0, 0]
    assert float(found) == pytest.approx(lm.sum_along(laws, [a, EOS_ID]).item(), abs=1e-5)


@pytest.mark.parametrize("missing", ["b", "cc"])
def test_listed_responses_that_are_not_all_are_refused(missing):
    names = [[name for name in SHORT if name != missing]]
    policy = short_policy(names)
    prompts = tiny_prompts(policy, ("x:",))
    with pytest.raises(UserError, match=r"have a probability of 0\.\d+ only"):
        policy.log_prob(lm.POLICY, prompts, policy.enumerate(prompts))


def test_responses_that_cannot_be_written_are_refused():
    policy = make_policy(lm.tiny_folder("llama"), names=[["fine", "Ähm"]])
    with pytest.raises(UserError, match="cannot write the response 'Ähm'"):
        policy.enumerate(tiny_prompts(policy, ("go on.",)))


def test_an_oracle_without_words_lists_nothing():
    assert lm.shared_policy("llama").enumerate(tiny_prompts(lm.shared_policy("llama"))) is None
    partly = torch.ones(4, 512, dtype=torch.bool)
    partly[1, 7] = False
    policy = CausalLMPolicy(SmallLanguageModel(), max_new_tokens=3)
    policy.bind((), partly, SmallLanguage().action_names)
    assert policy.enumerate(lm.small_prompts(policy)) is None


# ---- the small language ----


def test_the_small_language_by_hand():
    """Weights drawn again here, the formula term by term."""
    words = small_language.words()
    assert len(words) == 512
    assert [words[n] for n in (0, 1, 8, 511)] == ["aaa", "aab", "aba", "hhh"]
    weights = 1.5 * torch.randn(4, 3, 8, generator=lm.stream(3), dtype=torch.float64)
    P = small_language.preference(1.5, 2.0, 3)
    pairs = [(0, "abc", "hgf"), (3, "ddd", "ade"), (1, "aaa", "aab"), (2, "fed", "def")]
    for x, one, other in pairs:
        letters = ["abcdefgh".index(c) for c in one], ["abcdefgh".index(c) for c in other]
        quality = [sum(float(weights[x, i, n]) for i, n in enumerate(word)) for word in letters]
        phase = [2 * math.pi / 3 * (sum(word) % 3) for word in letters]
        logit = quality[0] - quality[1] + 2.0 * math.sin(phase[0] - phase[1])
        found = float(P[x, words.index(one), words.index(other)])
        assert found == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)
    torch.testing.assert_close(P + P.mT, torch.ones_like(P))


def test_without_quality_each_third_beats_the_next():
    P = small_language.preference(0.0, 3.0, 0)[0]
    third = torch.tensor([sum("abcdefgh".index(c) for c in w) % 3 for w in small_language.words()])
    strong = 1 / (1 + math.exp(-3 * math.sin(2 * math.pi / 3)))
    for phase in range(3):
        block = P[third == (phase + 1) % 3][:, third == phase]
        torch.testing.assert_close(block, torch.full_like(block, strong))
        same = P[third == phase][:, third == phase]
        torch.testing.assert_close(same, torch.full_like(same, 0.5))


def test_words_are_judged_by_their_text():
    oracle = SmallLanguage()
    prompts = lm.small_prompts(lm.small())
    first, second = (lm.small().sample(lm.POLICY, prompts, 5, PLAIN, lm.stream(s)) for s in (0, 1))
    found = oracle(prompts, first, second).preference
    words = small_language.words()
    for b, k, j in np.ndindex(4, 5, 5):
        row, column = words.index(first.text[b][k]), words.index(second.text[b][j])
        assert found[b, k, j] == oracle.table[b, row, column]
    product, valid = oracle.expected(prompts, first, lm.small().enumerate(prompts))
    assert valid.all()
    rows = torch.tensor([[words.index(w) for w in row] for row in first.text])
    expected = oracle.table.gather(1, rows[..., None].expand(-1, -1, 512)).mean(-1)
    torch.testing.assert_close(product, expected, atol=1e-6, rtol=1e-6)


def test_what_is_no_word_is_refused():
    oracle = SmallLanguage()
    policy = lm.small_policy(max_new_tokens=4)
    prompts = lm.small_prompts(policy)
    longer_words = policy.sample(lm.POLICY, prompts, 2, PLAIN, lm.stream())
    match = r"is no word of the small language, as 'aaa' is: set model.policy.max_new_tokens"
    with pytest.raises(UserError, match=match):
        oracle(prompts, longer_words, longer_words)
    for quality, cycle in ((-1, 3), (math.nan, 3), (1, math.inf)):
        with pytest.raises(UserError, match="must be a finite number of at least 0"):
            SmallLanguage(quality, cycle)


def test_the_small_model_is_the_same_whatever_was_drawn_before():
    torch.manual_seed(1)
    one = SmallLanguageModel().load().model.state_dict()
    state = torch.get_rng_state()
    two = SmallLanguageModel().load().model.state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = SmallLanguageModel(seed=1).load().model.state_dict()
    assert not all(torch.equal(one[name], other[name]) for name in one)
