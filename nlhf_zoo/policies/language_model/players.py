"""Players of a language model: named LoRA adapters on one base model, or copies of the module."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.peft_calls import without_false_alarm, without_new_hooks
from nlhf_zoo.policies.language_model.sharding import Sharding
from nlhf_zoo.policies.language_model.targets import (
    Coverage,
    choose,
    coverage,
    linear_weights,
    written,
)
from nlhf_zoo.text_models.loading import refuse_not_finite


@dataclass(frozen=True)  # no slots: jsonargparse reads the defaults by vars()
class LoRA:
    """Low-rank adapters, arXiv 2106.09685, made by peft.

    Args:
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapters' input; it acts only where the policy asks for dropout.
        target_modules: names of the layers that get an adapter. "all-linear" is every linear layer
            of the language model but the output layer, and of mixtures of experts what peft makes
            of it; "all-linear-and-experts" is these layers, all of them, and the experts whose
            weights lie in one tensor. A layer that an adapter could not act on gets none.
        rslora: scale by alpha / sqrt(r) instead.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    rslora: bool = False


class Players(nn.Module, ABC):
    """The players of a language model, each a causal language model when it is called.

    ``policy`` alone carries gradient.

    Attributes:
        names: of all players, ``reference`` among them.
        one_call: whether one call may hold rows of several players, if the model lets it.
        kept: what an engine that draws keeps of them from one rollout to the next.
        sharding: how their weights are spread over processes; None where each holds all.
    """

    names: tuple[str, ...]
    one_call: ClassVar[bool]
    kept: Any = None
    sharding: Sharding | None = None

    @abstractmethod
    def add(self, player: str, source: str) -> None:
        """Make a frozen player, equal to another."""

    @abstractmethod
    def module(self, player: str) -> Any:
        """What to call for a player, inside ``playing``."""

    @abstractmethod
    def playing(
        self, players: Sequence[str], num: int
    ) -> AbstractContextManager[dict[str, list[str]]]:
        """Let ``module`` play these players, ``num`` rows of the batch each.

        Yields:
            further arguments of the call.
        """

    @abstractmethod
    def language_model(self, player: str) -> Any:
        """The transformers model behind a player: its body, its output layer."""

    @abstractmethod
    def parameters_of(self, player: str) -> dict[str, nn.Parameter]:
        """Parameters that tell this player from others, by a name that players share.

        Raises:
            ValueError: there is no such player, or it is the base model itself.
        """

    @abstractmethod
    def reference_weights(self) -> dict[str, Tensor]:
        """All tensors that the reference is computed from, by name; those of no other player."""

    @abstractmethod
    def replicated(self) -> list[nn.Parameter]:
        """Parameters that stay whole in every process where weights are sharded."""

    def models(self) -> list[Any]:
        """The transformers models behind all players, each once."""
        return list({id(m): m for m in map(self.language_model, self.names)}.values())

    def body(self, player: str) -> Callable[..., Any]:
        """What gives the hidden states of a player, inside ``playing``."""
        model = self.language_model(player)
        return model.base_model if self.sharding is None else self.sharding.body(model)

    def at_rest(self) -> None:
        """Let all weights lie where they may be read and written, as they may not when gathered."""
        if self.sharding is not None:
            self.sharding.reshard()

    @property
    def called_together(self) -> bool:
        """Whether all processes must call a model equally often, for each waits for the others."""
        return self.sharding is not None and self.sharding.layerwise

    def most_calls(self, number: int) -> int:
        """How often all processes call a model, where this one needs so many calls.

        The largest number of all where weights are sharded: each call waits for the others.
        """
        return number if self.sharding is None else self.sharding.largest(number)

    def gathered(self, players: Sequence[str]) -> AbstractContextManager[None]:
        """Hold the weights of these players whole inside; drawing takes place in it."""
        if self.sharding is None:
            return nullcontext()
        return self.sharding.gathered([self.language_model(player) for player in players])

    def checkpoint_keys(self) -> set[str]:
        """Names of the parameters that no model folder holds: what a checkpoint must."""
        made_here = self._made_here()
        return {name for name, p in self.named_parameters() if id(p) in made_here}

    def _made_here(self) -> set[int]:
        """Numbers of the parameters of all players but the reference, which never moves."""
        moving = (player for player in self.names if player != "reference")
        return {id(p) for player in moving for p in self.parameters_of(player).values()}


class AdapterPlayers(Players):
    """LoRA adapters on one frozen base model; ``reference`` is the base with adapters off.

    Choosing a player flips no ``requires_grad``: nothing can turn the policy's training off, or
    another player's on.

    Args:
        model: a transformers causal language model.
        lora: the adapters' shape; not used where ``start`` is given.
        start: folder of a PEFT adapter that policy *and* reference start from (after supervised
            fine-tuning, for instance); None starts from the base model.
        without: names of layers that get no adapter, whatever ``lora`` says; not used where
            ``start`` is given.
    """

    one_call = True

    def __init__(
        self, model: Any, lora: LoRA, start: str | None = None, without: Sequence[str] = ()
    ) -> None:
        super().__init__()
        from peft import LoraConfig, PeftModel, get_peft_model
        from peft.tuners.lora import LoraLayer

        self._model: Any
        self._linear = linear_weights(model)
        try:
            with without_false_alarm():
                if start is None:
                    targets = choose(model, self._linear, lora.target_modules, without)
                    config = LoraConfig(
                        r=lora.r,
                        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float serves as well
                        lora_dropout=lora.dropout,
                        target_modules=targets.modules,
                        target_parameters=targets.parameters,
                        exclude_modules=targets.excluded,
                        use_rslora=lora.rslora,
                        fan_in_fan_out=_is_transposed(model),
                        task_type="CAUSAL_LM",
                    )
                    self._model = get_peft_model(model, config, adapter_name="policy")
                else:
                    self._model = PeftModel.from_pretrained(
                        model, start, adapter_name="policy", is_trainable=True
                    )
        except (ValueError, OSError, RuntimeError) as error:  # the last of weights that do not fit
            where, remedy = f"model.policy.adapter {start}", ""
            if start is None:
                where, names = "model.policy.lora", written(self._linear.layers)
                remedy = f" (the layers of this model that can have adapters: {names})"
            raise UserError(f"{where}: {error}{remedy}") from error
        self._config = self._model.peft_config["policy"]
        self.names = ("policy",)
        self._plays = "policy"
        self._base_is_reference = start is None
        if start is not None:
            refuse_not_finite(f"model.policy.adapter {start}", self.parameters_of("policy"))
        self._refuse_what_cannot_be_switched()
        self.lora_layers = [m for m in self._model.modules() if isinstance(m, LoraLayer)]
        if start is None:
            self.names = ("policy", "reference")
        else:
            self.add("reference", "policy")

    def _refuse_what_cannot_be_switched(self) -> None:
        """Adapters that cannot be chosen row by row would make all players one."""
        from peft.tuners.lora import LoraLayer

        config = self._config
        own = {id(parameter) for parameter in self.parameters_of("policy").values()}
        every = self._model.parameters()
        shared = any(p.requires_grad and id(p) not in own for p in every)
        changes_base = (
            getattr(config, "use_dora", False) or getattr(config, "bias", "none") != "none"
        )
        if changes_base or shared or not own:
            raise UserError(
                "model.policy.adapter must be a plain LoRA adapter, because DoRA, trained biases, "
                "modules_to_save and other methods cannot be switched between players"
            )
        if isinstance(self.language_model("policy").get_output_embeddings(), LoraLayer):
            raise UserError(
                "model.policy.lora.target_modules names the output layer, which all players "
                'share: leave it out, as "all-linear" does'
            )

    @torch.no_grad()
    def add(self, player: str, source: str) -> None:
        """Make a frozen adapter; that of a base model as source is the zero adapter."""
        self.names = (*self.names, player)
        config = copy.deepcopy(self._config)
        config.init_lora_weights = True  # others, such as PiSSA, would change the base model again
        with without_false_alarm():
            self._model.add_adapter(player, config)
        self._model.set_adapter("policy")  # adding one activates nothing, and stays so
        of_source = None if self.is_base(source) else self.parameters_of(source)
        for name, parameter in self.parameters_of(player).items():
            parameter.requires_grad_(False)
            if of_source is not None:
                parameter.copy_(of_source[name])
            elif "lora_B" in name or "lora_embedding_B" in name:
                parameter.zero_()

    def let_base_be_reference(self) -> None:
        """Take the bare base for ``reference``, in the place of the adapter started from."""
        if not self._base_is_reference:
            self._model.delete_adapter("reference")
        self._base_is_reference = True

    def module(self, player: str) -> Any:
        """The PEFT model, for every player."""
        return self._model

    @contextmanager
    def playing(self, players: Sequence[str], num: int) -> Iterator[dict[str, list[str]]]:
        """One player by its adapter in all layers, several by adapters row by row.

        One player may be played inside another: afterwards that other plays on.
        """
        names = ["__base__" if self.is_base(player) else player for player in players]
        if len(names) > 1:
            with without_new_hooks(self._model):
                yield {"adapter_names": [name for name in names for _ in range(num)]}
            return
        before = self._plays
        self._switch(names[0])
        try:
            yield {}
        finally:
            self._switch(before)

    def _switch(self, adapter: str) -> None:
        """Let the layers use another adapter, or none.

        Not by peft's `set_adapter` or `disable_adapter`: these flip `requires_grad`, and a policy
        that was switched off on the way would not train, without an error.
        """
        if adapter == self._plays:
            return
        self._plays = adapter
        for layer in self.lora_layers:
            layer._disable_adapters = adapter == "__base__"
            layer._active_adapter = ["policy" if adapter == "__base__" else adapter]

    @override
    def replicated(self) -> list[nn.Parameter]:
        return [p for name, p in self._model.named_parameters() if ".lora_" in name]

    def base_model(self) -> Any:
        """The model without adapters, which are lost."""
        return self._model.unload()

    def scale_of_policy(self) -> float:
        """Standard deviation of lora_B by which an adapter's output is as large as its input."""
        config = self._config
        scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        return float(1 / (scaling * config.r**0.5)) if scaling else 1.0

    def language_model(self, player: str) -> Any:
        """The base model with the adapters' layers in it."""
        return self._model.base_model.model

    def coverage(self) -> Coverage:
        """What part of the language model has adapters."""
        return coverage(self.language_model("policy"), self._linear)

    def is_base(self, player: str) -> bool:
        """Whether a player is the base model itself, without an adapter."""
        return player == "reference" and self._base_is_reference

    def parameters_of(self, player: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters, under names without its own."""
        if player not in self.names or self.is_base(player):
            raise ValueError(f"there is no adapter of player {player!r}")
        found = {}
        for name, parameter in self._model.named_parameters():
            before, lora, after = name.partition(".lora_")
            kind, _, rest = after.partition(".")
            if lora and (rest == player or rest.startswith(f"{player}.")):
                found[f"{before}{lora}{kind}{rest.removeprefix(player)}"] = parameter
        return found

    def reference_weights(self) -> dict[str, Tensor]:
        """The base model, and the reference's own adapter where it has one."""
        self.at_rest()
        others = self._made_here()
        return {name: t for name, t in _lasting_tensors(self._model) if id(t) not in others}


class CopiedPlayers(Players):
    """Full fine-tuning: every player is a copy of the module, and only the policy's is trained."""

    one_call = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.names = ("policy",)
        self._models = nn.ModuleDict({"policy": model.requires_grad_(True)})
        self.add("reference", "policy")

    @override
    def add(self, player: str, source: str) -> None:
        self.names = (*self.names, player)
        self._models[player] = copy.deepcopy(self._models[source]).requires_grad_(False)

    @override
    def module(self, player: str) -> Any:
        return self._models[player]

    @contextmanager
    def playing(self, players: Sequence[str], num: int) -> Iterator[dict[str, list[str]]]:
        """Nothing is to be switched: a module serves one player.

        Raises:
            ValueError: several players are asked of one call.
        """
        if len(players) != 1:
            raise ValueError("copies of a module cannot share a call")
        yield {}

    @override
    def language_model(self, player: str) -> Any:
        return self._models[player]

    @override
    def replicated(self) -> list[nn.Parameter]:
        return []

    def parameters_of(self, player: str) -> dict[str, nn.Parameter]:
        """All parameters of the player's module."""
        if player not in self._models:
            raise ValueError(f"there is no player {player!r}")
        self.at_rest()
        return dict(self._models[player].named_parameters())

    @override
    def reference_weights(self) -> dict[str, Tensor]:
        self.at_rest()
        return dict(_lasting_tensors(self._models["reference"]))


def _lasting_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the buffers that a checkpoint would hold: others may follow the inputs."""
    yield from module.named_parameters()
    lasting = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in lasting)


def _is_transposed(model: nn.Module) -> bool:
    """Whether its linear layers are GPT-2's, whose weights are [in, out]."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())
