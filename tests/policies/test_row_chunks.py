"""Rows of a batch in chunks: the same law and gradient, in the memory of one chunk."""

import inspect
import itertools
import weakref

import language_models as lm
import pytest
import torch
from tiny_models import make_policy, save_tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nlhf_zoo.algorithms import NashMP, OnlineDPO, surrogates
from nlhf_zoo.game import checkpointing
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import RuleOracle
from nlhf_zoo.oracles.rules import shorter_wins
from nlhf_zoo.policies import CausalLMPolicy, LoRA
from nlhf_zoo.policies.language_model import chunk_size
from nlhf_zoo.policies.language_model.row_chunks import plan
from nlhf_zoo.records import Batch, Prompts, Responses

FUNCTIONS = [function for _, function in inspect.getmembers(surrogates, inspect.isfunction)]
SURROGATES = [f for f in FUNCTIONS if [*inspect.signature(f).parameters] == ["step", "batch"]]
TEXTS = [("to be or not to be"[i:] + "?") * (1 + i % 2) for i in range(16)]
WHO = {"policy": 0.3, "anchor": 0.5, "reference": 0.2}


class Peak(TorchDispatchMode):
    """Most bytes of tensors made inside that were alive at once: of any machine the same."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.most = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage):
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key, size):
        self.known.discard(key)
        self.now -= size


def in_chunks_of(policy, max_tokens):
    policy._chunk_size = chunk_size.ChunkSize(max_tokens)
    return policy


def gradient(policy, loss):
    policy.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def assert_same(found, expected):
    """But for rounding: a row that is missing, or in another's place, is off by a tenth."""
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def many(num, longest=None):
    """Prompts of different lengths, and one response of up to 12 tokens to each."""
    policy = lm.shared_policy("llama")
    prompts = policy.encode(
        Prompts(
            torch.arange(num),
            text=[*itertools.islice(itertools.cycle(TEXTS if longest is None else [longest]), num)],
        )
    )
    tokens = torch.randint(4, 30, (num, 1, 12), generator=lm.stream())
    lengths = torch.randint(1, 13, (num, 1, 1), generator=lm.stream())
    lengths = lengths if longest is None else torch.full_like(lengths, 12)
    return prompts, Responses(tokens, torch.arange(12) < lengths, torch.ones(num, 1))


def test_a_plan_has_each_row_once_and_no_chunk_has_more_tokens():
    lengths = torch.randint(1, 50, (40,), generator=lm.stream()).tolist()
    for max_tokens in (1, 49, 100, 10_000):
        chunks = plan(lengths, max_tokens)
        assert sorted(itertools.chain(*chunks)) == [*range(40)]
        sizes = [len(chunk) * max(lengths[n] for n in chunk) for chunk in chunks]
        assert all(s <= max_tokens or len(c) == 1 for s, c in zip(sizes, chunks, strict=True))
        real = [sum(lengths[n] for n in chunk) for chunk in chunks]
        if max_tokens == 100:  # of like lengths: little padding
            assert sum(sizes) < 1.1 * sum(real)
        assert max(lengths) == max(lengths[n] for n in chunks[-1])


@lm.each_architecture
def test_the_law_in_chunks_is_that_of_plain_transformers(kind):
    policy = make_policy(lm.tiny_folder(kind), max_tokens_per_chunk=40)
    prompts, responses = lm.drawn(policy, num=2)
    for who in (lm.POLICY, WHO):
        expected = lm.log_prob_by_hand(policy, who, prompts, responses)
        with lm.counted(policy) as seen:
            for score in (policy.log_prob, frozen(policy)):
                found = score(who, prompts, responses)
                torch.testing.assert_close(
                    found.detach().double(), expected, atol=lm.TOLERANCE, rtol=1e-5
                )
        assert len(seen) >= 4 * len(who)
        assert max(seen) <= 40


def frozen(policy):
    return torch.no_grad()(policy.log_prob)


@lm.each_way
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_the_gradient_of_each_surrogate_is_the_whole_batch_s(lora, checkpointing):
    options = {"lora": lora, "gradient_checkpointing": checkpointing}
    policy = make_policy(lm.tiny_folder("llama"), **options)
    policy.train()
    prompts, responses = lm.drawn(policy, num=3)
    rng, shape = lm.stream(), responses.weight.shape
    preference = torch.rand(*shape, shape[1], generator=rng)
    step = NashMP().steps(0.1, 0)[0]
    assert len(SURROGATES) >= 5
    for surrogate in SURROGATES:
        found = []
        for max_tokens in (None, 50):
            log_prob = in_chunks_of(policy, max_tokens).log_prob(lm.POLICY, prompts, responses)
            batch = Batch(
                log_prob, *torch.linspace(-9, -5, 2 * log_prob.numel()).view(2, *shape),
                preference.mean(-1), responses.weight, 0.1, False, True,
                preference, responses.pair_weight(),
            )  # fmt: skip
            found.append(gradient(policy, surrogate(step, batch).sum()))
        assert found[0].any()
        assert_same(*found[::-1])


@pytest.mark.parametrize("chunk", [0, 3], ids=["all logits", "softmax in chunks"])
@lm.each_way
def test_the_gradient_through_a_mixture_is_the_whole_batch_s(lora, chunk):
    options = {"lora": lora, "softmax_chunk": chunk, "min_new_tokens": 3}
    policy = make_policy(lm.tiny_folder("gemma2"), **options)
    prompts, responses = lm.drawn(policy, num=3)
    found = [
        gradient(policy, (in_chunks_of(policy, n).log_prob(WHO, prompts, responses) ** 2).sum())
        for n in (None, 30)
    ]
    assert_same(*found[::-1])
    reached = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert reached == lm.names_of(policy, "policy")


def test_listed_responses_are_scored_some_prompts_at_a_time():
    policy = lm.small_policy()
    prompts = lm.small_prompts(policy)
    assert policy.capabilities  # found by calls that would be counted
    words = policy.enumerate(prompts)
    factor = torch.randn(words.weight.shape, generator=lm.stream())
    found, passes = [], []
    for max_tokens in (None, 1):
        with lm.counted(policy) as seen:
            log_prob = in_chunks_of(policy, max_tokens).log_prob(lm.POLICY, prompts, words)
        passes.append(seen)
        found.append((log_prob.detach(), gradient(policy, (log_prob * factor).sum())))
    assert [len(seen) for seen in passes] == [1, len(prompts)]
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    assert_same(found[1][1], found[0][1])


def test_one_chunk_is_computed_once_and_of_several_all_but_the_last_again():
    policy = make_policy(lm.tiny_folder("llama"))
    prompts, responses = many(12)
    assert policy.capabilities  # found by calls that would be counted
    seen = {}
    for max_tokens in (None, 10**6, 100):
        with lm.counted(policy) as passes:
            log_prob = in_chunks_of(policy, max_tokens).log_prob(lm.POLICY, prompts, responses)
            forward = len(passes)
            found = gradient(policy, log_prob.sum())
        seen[max_tokens] = (passes, forward, log_prob.detach(), found)
    whole, one, several = seen.values()
    assert one[0] == whole[0]
    assert len(one[0]) == 1
    assert all(torch.equal(a, b) for a, b in zip(one[2:], whole[2:], strict=True))
    passes, forward = several[:2]
    assert forward > 3
    assert passes[forward:] == passes[: forward - 1][::-1]  # the backward, in its order
    rows = [[int(m.sum()) for m in part.flatten(0, -2)] for part in (prompts.mask, responses.mask)]
    real = sum(a + b - 1 for a, b in zip(*rows, strict=True))
    assert real <= sum(passes[:forward]) <= 1.2 * real  # the padding of like lengths


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@lm.each_way
def test_the_memory_of_a_step_does_not_grow_with_its_rows(lora, checkpointing):
    options = {"lora": lora, "gradient_checkpointing": checkpointing, "softmax_chunk": 16}
    policy = make_policy(lm.tiny_folder("llama"), **options)

    def peak(num, max_tokens, grad=True):
        prompts, responses = many(num, longest=TEXTS[1])
        in_chunks_of(policy, max_tokens)
        policy.zero_grad()
        with Peak() as bytes_, torch.set_grad_enabled(grad):
            log_prob = policy.log_prob(lm.POLICY, prompts, responses)
            if grad:
                log_prob.sum().backward()
        return bytes_.most

    peak(1, None)  # what is made once
    for grad in (True, False):
        few, more, whole = peak(8, 100, grad), peak(24, 100, grad), peak(24, None, grad)
        # Left are the tokens themselves; and masks and positions, which transformers keeps for
        # each layer that it computes again.
        share = 0.15 if checkpointing and grad else 0.03
        assert more - few < share * (whole - few)


def test_dropout_drops_the_same_units_when_a_chunk_is_computed_again(tmp_path):
    """The gradient is that of the rows one after the other, each kept, from the same seed."""
    path, lora = save_tiny(tmp_path, "llama", attention_dropout=0.5), LoRA(4, 8, dropout=0.5)
    policy = make_policy(path, lora=lora, dropout=True, max_tokens_per_chunk=1)
    prompts, responses = many(6)
    factor = torch.randn(6, 1, generator=lm.stream())
    lengths = [int(prompts.mask[b].sum() + responses.mask[b].sum()) for b in range(6)]
    torch.manual_seed(3)
    found = policy.log_prob(lm.POLICY, prompts, responses)
    ours, after = gradient(policy, (found * factor).sum()), torch.get_rng_state()
    in_chunks_of(policy, None)
    torch.manual_seed(3)
    alone = torch.zeros(6, 1)
    for b in sorted(range(6), key=lambda b: (lengths[b], -b)):
        tokens, answer = (
            t[b][m[b]][None]
            for t, m in ((prompts.tokens, prompts.mask), (responses.tokens, responses.mask))
        )
        row = Prompts(prompts.ids[:1], tokens, torch.ones_like(tokens, dtype=torch.bool))
        full = torch.ones_like(answer, dtype=torch.bool)[None]
        log_prob = policy.log_prob(lm.POLICY, row, Responses(answer[None], full, torch.ones(1, 1)))
        alone = alone.index_put((torch.tensor([b]),), log_prob[0])
    torch.testing.assert_close(found, alone, atol=lm.TOLERANCE, rtol=1e-5)
    assert_same(ours, gradient(policy, (alone * factor).sum()))
    assert torch.equal(after, torch.get_rng_state())


# ---- a number that is found out ----


def test_on_a_processor_auto_is_a_fixed_number():
    policy = make_policy(lm.tiny_folder("llama"), max_tokens_per_chunk="auto")
    prompts, responses = many(80, longest=TEXTS[1])
    with lm.counted(policy) as seen:
        policy.log_prob(lm.POLICY, prompts, responses).sum()
    assert max(seen) <= 2048 < sum(seen)
    assert not policy._chunk_size.measured


@pytest.fixture
def gpu(monkeypatch):
    """A device whose memory can be asked for: that of a processor, as tensors have it."""
    asked = []

    def raised(device, work, num):
        asked.append(num)
        with Peak() as peak:
            work(num)
        return peak.most

    monkeypatch.setattr(chunk_size, "can_be_measured", lambda device: True)
    monkeypatch.setattr(chunk_size, "raised", raised)
    monkeypatch.setattr(chunk_size, "WITHOUT_MEASURE", 64)
    return asked


def test_what_is_measured_fits_into_half_of_what_is_free_and_is_measured_once(gpu, monkeypatch):
    free = 12 * 2**20
    monkeypatch.setattr(chunk_size, "free", lambda device: free)
    policy = make_policy(lm.tiny_folder("llama"), max_tokens_per_chunk="auto", dropout=True)
    prompts, responses = many(32)
    few = [t[:1] for t in (responses.tokens, responses.mask, responses.weight)]
    policy.log_prob(lm.POLICY, prompts.take([0]), Responses(*few))  # too few
    frozen(policy)(lm.POLICY, prompts, responses)
    policy.log_prob(lm.REFERENCE, prompts, responses)
    assert not gpu
    policy.log_prob(lm.POLICY, prompts, responses)
    tokens = int(policy._chunk_size.measured)
    assert gpu == [1, 2]
    assert tokens & (tokens - 1) == 0
    trained = sum(p.nbytes for p in policy.trained_parameters().values())
    with Peak() as peak:
        policy.log_prob(lm.POLICY, prompts, responses).sum().backward()
    assert (free - 3 * trained) / 8 < peak.most < (free - 3 * trained) / 2
    assert gpu == [1, 2]


def test_a_checkpoint_holds_what_was_measured_and_may_lack_it(gpu, monkeypatch):
    monkeypatch.setattr(chunk_size, "free", lambda device: 2**22)

    def game(max_tokens):
        options = {"max_new_tokens": 12, "max_tokens_per_chunk": max_tokens}
        policy = CausalLMPolicy(str(lm.tiny_folder("llama")), **options)
        return OnlineGame(
            policy, RuleOracle(shorter_wins), OnlineDPO(),
            rollout=Sample(2, 2), realisation=GradientSteps(),
        )  # fmt: skip

    def saved(game):
        checkpoint = {"state_dict": game.state_dict()}
        checkpointing.save(game, checkpoint)
        return checkpoint

    first = game("auto")
    first.policy.log_prob(lm.POLICY, *many(32))
    assert gpu
    checkpoint, gpu[:] = saved(first), []
    resumed = game("auto")
    checkpointing.load(resumed, checkpoint)
    resumed.load_state_dict(checkpoint["state_dict"], strict=False)
    resumed.policy.log_prob(lm.POLICY, *many(32))
    assert not gpu
    assert resumed.policy._chunk_size.measured == first.policy._chunk_size.measured > 0
    for one, other in ((None, "auto"), ("auto", 7)):  # as a run that found no room goes on
        checkpoint = saved(game(one))
        changed = game(other)
        checkpointing.load(changed, checkpoint)
        changed.load_state_dict(checkpoint["state_dict"], strict=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_what_is_measured_on_a_gpu_fits():
    policy = make_policy(lm.tiny_folder("llama"), max_tokens_per_chunk="auto").cuda()
    prompts, responses = (many(128)[0].to("cuda"), many(128)[1])
    tensors = (t.cuda() for t in (responses.tokens, responses.mask, responses.weight))
    policy.log_prob(lm.POLICY, prompts, Responses(*tensors)).sum().backward()
    assert int(policy._chunk_size.measured) >= 2048


@pytest.mark.parametrize("wrong", [0, -5, "all", "4096", 1.5, True])
def test_nonsense_is_refused(wrong):
    match = "max_tokens_per_chunk is null, .* from 1 on"
    lm.refused(match, CausalLMPolicy, "x", max_tokens_per_chunk=wrong)
