"""Weights of language models spread over processes by FSDP2, arXiv 2304.11277.

Each process holds a part of every weight. A block of layers is gathered for its forward and its
backward, and its parts lie apart again afterwards; what is outside the blocks, the embedding and
the output layer among it, stays gathered from a forward to the backward, or to the next `reshard`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError
from nlhf_zoo.records.shards import is_sharded, whole

_HIDDEN = "sharded_hidden_states"  # the method of a root that scoring calls


class Sharding:
    """Models whose weights are spread over the processes of a device mesh.

    Args:
        models: causal language models of transformers, each with weights of its own.
        mesh: a `DeviceMesh` of one dimension.
        replicated: parameters that every process holds whole, as adapters: these train as they do
            without sharding, but for `mean_gradients`. All start as those of the first process.
        layerwise: gather a block at a time for drawing, too.

    Raises:
        UserError: a model cannot be sharded.
    """

    def __init__(
        self,
        models: Sequence[Any],
        mesh: Any,
        replicated: Sequence[nn.Parameter],
        layerwise: bool = False,
    ) -> None:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.replicated = list(replicated)
        self.layerwise = layerwise
        self._group = mesh.get_group()
        self._blocks = {id(model): blocks(model) for model in models}
        self._roots = list(models)
        ignored = set(replicated)
        refuse_models(models, replicated)
        self._device = torch.device(mesh.device_type)
        if self._device.type == "cuda":
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._begin_as_the_first()
        for model in models:
            for block in self._blocks[id(model)]:
                fully_shard(block, mesh=mesh, ignored_params=ignored)
            fully_shard(model, mesh=mesh, ignored_params=ignored)
            # `base_model` called from outside would be computed without what the root gathers.
            setattr(model, _HIDDEN, MethodType(_hidden, model))
            register_fsdp_forward_method(model, _HIDDEN)

    @torch.no_grad()
    def _begin_as_the_first(self) -> None:
        """Replicated parameters become those of the first process, on this process's device."""
        for parameter in self.replicated:
            parameter.data = parameter.data.to(self._device)
            torch.distributed.broadcast(parameter.data, group_src=0, group=self._group)

    def body(self, model: Any) -> Callable[..., Any]:
        """What gives a model's hidden states, as its `base_model` does."""
        found: Callable[..., Any] = getattr(model, _HIDDEN)
        return found

    def reshard(self) -> None:
        """Let every weight lie in parts, as it is kept: only so may it be read or written.

        What is written into a gathered weight is lost when the parts take its place, in silence.
        """
        for model in self._roots:
            for unit in self._units(model):
                unit.reshard()

    def largest(self, number: int) -> int:
        """The largest of the numbers that processes have."""
        of_all = torch.tensor(number, device=self._device)
        torch.distributed.all_reduce(of_all, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(of_all)

    @contextmanager
    def gathered(self, models: Iterable[Any]) -> Iterator[None]:
        """Each process holds these models whole inside, and calls them as often as it likes.

        With ``layerwise`` nothing is: inside, too, all processes must call them equally often.
        """
        roots = [] if self.layerwise else list(models)
        try:
            for model in roots:
                for unit in self._units(model):
                    unit.unshard()
                    unit.set_reshard_after_forward(False, recurse=False)
            yield
        except BaseException:
            self._forget(models)
            raise
        finally:
            for model in roots:
                for unit in self._units(model):
                    unit.set_reshard_after_forward(unit is not model, recurse=False)
            self.reshard()

    def _forget(self, models: Iterable[Any]) -> None:
        """Of a forward that was broken off: its units would hold themselves to be in it."""
        for model in models:
            if hasattr(model, "reset_iter_state"):  # since torch 2.13
                model.reset_iter_state()

    def _units(self, model: Any) -> list[Any]:
        return [model, *self._blocks[id(model)]]

    @torch.no_grad()
    def mean_gradients(self) -> None:
        """Replace gradients of replicated parameters by their means over processes.

        Sharded ones have theirs from the backward. A parameter without a gradient counts as zero
        where another process has one.
        """
        trained = [p for p in self.replicated if p.requires_grad]
        if not trained:
            return
        has = torch.tensor([p.grad is not None for p in trained], device=trained[0].device).int()
        torch.distributed.all_reduce(has, group=self._group)
        some = [p for p, number in zip(trained, has.tolist(), strict=True) if number]
        for dtype in dict.fromkeys(p.dtype for p in some):  # in an order that all share
            alike = [p for p in some if p.dtype == dtype]
            for parameter in alike:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._average([p.grad for p in alike if p.grad is not None])

    def _average(self, gradients: list[Tensor]) -> None:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        flat /= torch.distributed.get_world_size(self._group)
        torch.distributed.all_reduce(flat, group=self._group)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _hidden(model: Any, **inputs: Any) -> Any:
    return model.base_model(**inputs)


def blocks(model: Any) -> list[nn.Module]:
    """The layers that transformers would leave on one device: the units that are gathered.

    Raises:
        UserError: it names none.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    found: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        for child in module.children():
            if type(child).__name__ in names:
                found.append(child)
            else:
                search(child)

    search(model)
    if not found:
        raise UserError(
            f"{type(model).__name__} has no blocks that transformers names in _no_split_modules, "
            "and fsdp2 would gather all of it at once: set trainer.strategy to ddp"
        )
    return found


def gradients(
    of: Tensor, parameters: Sequence[nn.Parameter], trained: Iterable[nn.Parameter]
) -> list[Tensor | None]:
    """Derivatives of a number by parameters; None where one does not depend on it.

    Those of sharded parameters are sharded likewise, and means over processes: a backward alone
    brings them there.

    Args:
        of: the number, in a graph.
        parameters: some of those that are trained, at rest.
        trained: all of them; gradients that they have stay.
    """
    if not any(map(is_sharded, parameters)):
        return list(torch.autograd.grad(of, parameters, allow_unused=True))
    before = [(parameter, parameter.grad) for parameter in trained]
    for parameter, _ in before:
        parameter.grad = None
    try:
        of.backward()
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def flat_gradient(
    of: Tensor, parameters: Sequence[nn.Parameter], trained: Iterable[nn.Parameter]
) -> Tensor:
    """All of the derivatives by parameters in one row, float64: 0 where there is none."""
    found = zip(gradients(of, parameters, trained), parameters, strict=True)
    each = [torch.zeros_like(p) if gradient is None else gradient for gradient, p in found]
    return torch.cat([whole(gradient).double().flatten() for gradient in each])


def refuse_models(models: Iterable[Any], replicated: Iterable[nn.Parameter]) -> None:
    """Refuse models without blocks, or with weights that cannot be gathered together.

    Raises:
        UserError: of which model, and what to do.
    """
    ignored = {id(parameter) for parameter in replicated}
    for model in models:
        blocks(model)
        types = {p.dtype for p in model.parameters() if id(p) not in ignored}
        if len(types) > 1 or not all(dtype.is_floating_point for dtype in types):
            said = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
            raise UserError(
                f"model.policy.model has weights of the types {said}, and fsdp2 shards those of "
                "one floating-point type: set the dtype of model.policy.model, leave four_bit out, "
                "or set trainer.strategy to ddp"
            )
