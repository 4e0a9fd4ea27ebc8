"""KL and entropy from samples: unbiased by enumeration, with no more variance than by samples."""

import itertools

import language_models as lm
import pytest
import torch
from tiny_models import VOCABULARY, make_policy, tiny_prompts
from zoo import normal_logits, small_game

from nlhf_zoo.algorithms import EGPO
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records import Responses


def all_responses(policy, prompts, most):
    """Every response of at most so many tokens, as all prompts have them."""
    ends, vocabulary = {*policy.ends}, range(len(VOCABULARY))
    words = [
        word
        for length in range(1, most + 1)
        for word in itertools.product(vocabulary, repeat=length)
        if not ends & {*word[:-1]} and (length == most or word[-1] in ends)
    ]
    tokens = torch.tensor([[*word, *[0] * (most - len(word))] for word in words])
    mask = torch.tensor([[True] * len(word) + [False] * (most - len(word)) for word in words])
    tokens, mask = (t.expand(len(prompts), -1, -1) for t in (tokens, mask))
    return Responses(tokens, mask, torch.full(tokens.shape[:2], 1 / len(words)))


def exact(policy, prompts, responses):
    """KL(policy || reference), the entropy, and the law [B, N] that they are of."""
    with torch.no_grad():
        ours, theirs = (
            policy.log_prob({player: 1.0}, prompts, responses).double()
            for player in ("policy", "reference")
        )
    law = ours.exp()
    torch.testing.assert_close(law.sum(-1), torch.ones(len(law)).double(), atol=1e-4, rtol=0)
    impossible = law == 0
    ratio = (ours - theirs).masked_fill(impossible, 0.0)
    return (law * ratio).sum(-1), torch.special.entr(law).sum(-1), law, ratio


def assert_unbiased(policy, prompts, responses, estimate=None):
    """The mean over the law of what is said along each response is the exact figure."""
    kl, entropy, law, ratio = exact(policy, prompts, responses)
    with torch.no_grad():
        found = (estimate or policy.divergence)(
            {"policy": 1.0}, {"reference": 1.0}, prompts, responses
        )
    found_kl, found_entropy = (each.double() for each in found)
    assert float(kl.min()) > 0.1
    torch.testing.assert_close((law * found_kl).sum(-1), kl, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close((law * found_entropy).sum(-1), entropy, atol=1e-3, rtol=1e-3)
    return law, ratio, found_kl, found_entropy, kl, entropy


def variance(law, values):
    mean = (law * values).sum(-1, keepdim=True)
    return (law * (values - mean) ** 2).sum(-1)


def test_token_by_token_it_is_unbiased_and_varies_less():
    """On the small language; a length-normalised policy is one all the same."""
    policy = lm.small_policy()
    prompts = lm.small_prompts(policy)
    listed = policy.enumerate(prompts)
    each = Responses(listed.tokens, listed.mask, listed.weight)
    law, ratio, kl, entropy, _, _ = assert_unbiased(policy, prompts, each)
    assert bool((variance(law, kl) < 0.7 * variance(law, ratio)).all())
    assert bool((variance(law, entropy) < variance(law, law.log())).all())
    policy.length_normalised = True
    again = policy.divergence(lm.POLICY, lm.REFERENCE, prompts, each)
    torch.testing.assert_close(again[0].double(), kl)


@pytest.mark.parametrize(
    "options",
    [{"softmax_chunk": 7}, {"min_new_tokens": 2, "softmax_chunk": 0}],
    ids=["free", "two at least"],
)
def test_responses_of_different_lengths(options):
    """Of a model that ends its responses, some at once, unless that is forbidden; and in chunks."""
    folder = lm.tiny_folder("llama")
    policy = make_policy(folder, max_new_tokens=2, **options)
    prompts = tiny_prompts(policy).take([1])
    responses = all_responses(policy, prompts, 2)
    _, _, kl, entropy, _, _ = assert_unbiased(policy, prompts, responses)
    policy._chunk_size.max_tokens = 1024
    in_chunks = policy.divergence(lm.POLICY, lm.REFERENCE, prompts, responses)
    for whole, part in zip((kl, entropy), in_chunks, strict=True):
        torch.testing.assert_close(part.double(), whole, atol=lm.TOLERANCE, rtol=1e-5)


def test_by_log_probabilities_alone_it_is_unbiased_too():
    """What a policy has that says nothing else; the roles the other way round would not be."""
    policy = lm.small_policy()
    prompts = lm.small_prompts(policy)
    listed = policy.enumerate(prompts)
    each = Responses(listed.tokens, listed.mask, listed.weight)

    def estimate(*given):
        return Policy.divergence(policy, *given)

    law, _, kl, _, truth, _ = assert_unbiased(policy, prompts, each, estimate)
    assert float(kl.min()) >= 0
    turned, _ = estimate({"reference": 1.0}, {"policy": 1.0}, prompts, each)
    assert float(((law * turned).sum(-1) - truth).abs().min()) > 0.05


def test_of_a_table_it_is_exact():
    game = small_game(EGPO())
    prompts = game.oracle.prompts
    ours, theirs = (normal_logits(*game.log_policy().shape, seed=seed) for seed in (1, 2))
    game.policy.networks["policy"].logits.data.copy_(ours)
    game.policy.log_reference.copy_(theirs.log_softmax(-1))
    drawn = game.policy.sample(
        {"policy": 1.0}, prompts, 3, game.algorithm.scored, torch.Generator().manual_seed(0)
    )
    one, other = (torch.distributions.Categorical(logits=each) for each in (ours, theirs))
    kl, entropy = game.policy.divergence({"policy": 1.0}, {"reference": 1.0}, prompts, drawn)
    assert kl.shape == entropy.shape == drawn.weight.shape
    expected = torch.distributions.kl_divergence(one, other)
    torch.testing.assert_close(kl, expected[:, None].expand_as(kl))
    torch.testing.assert_close(entropy, one.entropy()[:, None].expand_as(entropy))
