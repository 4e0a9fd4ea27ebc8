"""FSDP2: the game of processes that share the weights is that of one process that has them all."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import in_ranks
from language_models import stream, tiny_folder
from lightning.pytorch.plugins import MixedPrecision
from tiny_models import make_policy, tiny_prompts
from torch import Tensor, nn

from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.game.sharding import refuse_strategy
from nlhf_zoo.game.strategies import FSDP2Strategy
from nlhf_zoo.health.reference_fingerprint import refuse_apart
from nlhf_zoo.policies import CausalLMPolicy, LoRA, NativeGenerator, TransformersGenerator
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records import PLAIN, Prompts, Responses
from nlhf_zoo.records.shards import local, whole

LORA = LoRA(r=4, alpha=8)
TEXTS = ("go on.", "a", "to be or not?", "be it so")
OTHERS = ({"reference": 0.5, "anchor": 0.5}, {"anchor": 1.0})


def two_processes(work: Callable[[], None], folder: Path) -> None:
    runs = in_ranks(2, partial(_in_group, work), folder)
    assert all(run.code == 0 for run in runs), "\n".join(run.err for run in runs)


def _in_group(work: Callable[[], None]) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    work()
    dist.destroy_process_group()


def spread(policy: CausalLMPolicy, layerwise: bool = False) -> CausalLMPolicy:
    """Share a policy's weights among all processes."""
    from torch.distributed.device_mesh import init_device_mesh

    policy.shard(init_device_mesh("cpu", (dist.get_world_size(),)), layerwise)
    return policy


def some_responses(policy: CausalLMPolicy, num: int) -> Responses:
    """Random ones of uneven lengths, two for each prompt."""
    tokens = torch.randint(4, 30, (num, 2, 6), generator=stream(3))
    length = 1 + torch.arange(num * 2).view(num, 2, 1) % 6
    mask = torch.arange(6) < length
    return Responses(tokens.masked_fill(~mask, policy.pad), mask, torch.full((num, 2), 0.5))


def some_loss(policy: Policy, prompts: Prompts, responses: Responses) -> Tensor:
    """Mean over prompts of what asks for all players, and for a mixture."""
    apart = policy.log_prob({"policy": 1.0}, prompts, responses)
    for number, others in enumerate(OTHERS):
        with torch.no_grad():
            log_prob = policy.log_prob(others, prompts, responses)
        apart = apart - (0.5 + number) * log_prob
    return apart.square().sum(-1).mean() / 100


def mine(prompts: Prompts, responses: Responses) -> tuple[Prompts, Responses]:
    """The part of this process of a batch for all."""
    each = len(prompts) // dist.get_world_size()
    rows = range(dist.get_rank() * each, (dist.get_rank() + 1) * each)
    parts = (t[rows.start : rows.stop] for t in (responses.tokens, responses.mask))
    return prompts.take(rows), Responses(*parts, torch.full((each, 2), 0.5))


def equal_everywhere(tensor: Tensor) -> bool:
    each = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(each, tensor.contiguous())
    return all(torch.equal(other, tensor) for other in each)  # to the bit


def assert_same_gradients(found: dict[str, nn.Parameter], wanted: dict[str, nn.Parameter]) -> None:
    assert wanted.keys() == found.keys()
    largest = max(float(p.grad.abs().max()) for p in wanted.values())
    for name, parameter in found.items():
        gradient = whole(parameter.grad)
        assert float((gradient - wanted[name].grad).abs().max()) <= 3e-6 * largest
        assert equal_everywhere(gradient)


def trains_as_one(lora: LoRA | None, options: dict[str, Any], folder: Path) -> None:
    """Scores before anything is drawn: a root that has drawn would hide that scoring passes it."""
    one, shared = both = [make_policy(folder, lora=lora, **each) for each in ({}, options)]
    spread(shared)
    prompts = tiny_prompts(one, TEXTS)
    responses = some_responses(one, len(TEXTS))
    batches = (prompts, responses), mine(prompts, responses)
    wanted, found = trained = [policy.trained_parameters() for policy in both]
    optimizers = [torch.optim.AdamW(p.values(), lr=0.01) for p in trained]
    starts = []
    for number in range(4):
        for policy, optimizer, batch in zip(both, optimizers, batches, strict=True):
            optimizer.zero_grad()
            some_loss(policy, *batch).backward()
            policy.mean_gradients()
            policy.at_rest()
        if number == 0:
            assert_same_gradients(found, wanted)
        norms = [torch.nn.utils.clip_grad_norm_(p.values(), 1.0) for p in trained]
        assert float(whole(norms[1])) == pytest.approx(float(norms[0]), rel=1e-5)
        for policy, optimizer in zip(both, optimizers, strict=True):
            optimizer.step()
            policy.log_prob({"anchor": 1.0}, *mine(prompts, responses))  # which gathers its root
            policy.lerp_("policy", "anchor", 0.25)
            if number == 1:
                starts.append(policy.snapshot())
            if number == 2:
                policy.copy_("policy", "anchor")
                policy.restore(starts[both.index(policy)])
    for player in ("policy", "anchor"):
        before = one._players.parameters_of(player)
        for name, parameter in shared._players.parameters_of(player).items():
            torch.testing.assert_close(whole(parameter), before[name], rtol=0, atol=1e-4)

    refused_where_apart(shared)


@torch.no_grad()
def refused_where_apart(policy: CausalLMPolicy) -> None:
    strategy = FSDP2Strategy()
    strategy.parallel_devices = [torch.device("cpu")] * 2
    trainer = SimpleNamespace(world_size=2, global_rank=dist.get_rank(), strategy=strategy)
    game: Any = SimpleNamespace(policy=policy, _trainer=trainer, device=policy.device)
    refuse_apart(game)
    if policy.lora is None:
        return  # each has a part of its own
    if dist.get_rank() == 1:
        weight = next(iter(policy._players.parameters_of("anchor").values()))
        weight[0, 0] += 1e-6
    with pytest.raises(DivergenceError, match="lora_A" if dist.get_rank() else "not the same"):
        refuse_apart(game)


def held(policy: CausalLMPolicy) -> float:
    """The share of all weights that lie in this process."""
    every = list(policy.parameters())
    here = sum(local(parameter).numel() for parameter in every)
    return here / sum(parameter.numel() for parameter in every)


def draws_as_one(lora: LoRA | None, folder: Path) -> None:
    """Each process until its own responses end, and nothing is left gathered."""
    for generator in (TransformersGenerator(), NativeGenerator()):
        policy = spread(make_policy(folder, lora=lora, generator=generator, max_new_tokens=12))
        assert held(policy) < 0.7
        assert policy.capabilities.drawing.native == isinstance(generator, NativeGenerator)
        assert held(policy) < 0.7
        if dist.get_rank() == 1:  # all its responses end with the first token
            policy.ends = list(range(policy.language_model.config.vocab_size))
        prompts = tiny_prompts(policy, TEXTS[: 1 + dist.get_rank()])
        for who in ({"policy": 1.0}, {"policy": 0.5, "reference": 0.25, "anchor": 0.25}):
            drawn = policy.sample(who, prompts, 2, PLAIN, stream(dist.get_rank()))
            assert held(policy) < 0.7
            assert (drawn.mask.sum(-1) == 1).all() == (dist.get_rank() == 1)
            scored = policy.log_prob(who, prompts, drawn)
            torch.testing.assert_close(drawn.log_prob, scored, rtol=0, atol=1e-4)


WAYS = [LORA, None]


@pytest.mark.parametrize("lora", WAYS, ids=["lora", "full"])
def test_two_processes_train_as_one(lora: LoRA | None, tmp_path: Path):
    two_processes(partial(trains_as_one, lora, {}, tiny_folder("llama")), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("lora", WAYS, ids=["lora", "full"])
def test_chunks_of_rows_are_equally_many(lora: LoRA | None, tmp_path: Path):
    """One process needs more of them than the other, and the backward computes them again."""
    options = {"max_tokens_per_chunk": 44, "gradient_checkpointing": True}
    two_processes(partial(trains_as_one, lora, options, tiny_folder("llama")), tmp_path)


@pytest.mark.parametrize("lora", WAYS, ids=["lora", "full"])
def test_each_draws_until_its_own_responses_end(lora: LoRA | None, tmp_path: Path):
    two_processes(partial(draws_as_one, lora, tiny_folder("llama")), tmp_path)


def test_gradients_are_not_scaled_by_each_process():
    strategy, policy = FSDP2Strategy(), make_policy(tiny_folder("llama"), lora=LORA)
    strategy.precision_plugin = MixedPrecision("bf16-mixed", "cpu")
    refuse_strategy(strategy, policy)
    strategy.precision_plugin = MixedPrecision("16-mixed", "cpu")
    with pytest.raises(UserError, match="set it to bf16-mixed"):
        refuse_strategy(strategy, policy)
