"""Players of a language model: named LoRA adapters on one base model, or copies of the module."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.lora import LoRA


class Players(nn.Module, ABC):
    """The players of a language model, each a causal language model when it is called.

    ``policy`` alone carries gradient.
    """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of all players, ``reference`` among them."""

    @abstractmethod
    def add(self, player: str, source: str) -> None:
        """Make a frozen player, equal to another."""

    @abstractmethod
    def module(self, player: str) -> nn.Module:
        """What to call for a player, inside ``playing``."""

    @abstractmethod
    def playing(
        self, players: Sequence[str], num: int
    ) -> AbstractContextManager[dict[str, list[str]]]:
        """Let ``module`` play these players, ``num`` rows of the batch each.

        Yields:
            further arguments of the call.
        """

    @property
    @abstractmethod
    def one_call(self) -> bool:
        """Whether one call can hold rows of several players."""

    @abstractmethod
    def language_model(self, player: str) -> Any:
        """The transformers model behind a player: its body, its output layer."""

    @abstractmethod
    def parameters_of(self, player: str) -> dict[str, nn.Parameter]:
        """Parameters that tell this player from others, by a name that players share.

        Raises:
            ValueError: there is no such player, or it is the base model itself.
        """

    @torch.no_grad()
    def lerp_(self, source: str, target: str, weight: float) -> None:
        """Move ``target`` by ``weight`` towards ``source``, in place; 1 copies bit for bit.

        Raises:
            ValueError: the reference, which never moves, is the target.
        """
        if target == "reference":
            raise ValueError("the reference never moves")
        moved, kept = self.parameters_of(source), self.parameters_of(target)
        for name, old in kept.items():
            if weight == 1:
                old.copy_(moved[name])
            else:
                old.lerp_(moved[name], weight)

    @abstractmethod
    def reference_weights(self) -> dict[str, Tensor]:
        """All tensors that the reference is computed from, by name; those of no other player."""

    def checkpoint_keys(self) -> set[str]:
        """Names of the parameters that no model folder holds: what a checkpoint must."""
        own = {id(p) for name in self.names for p in self._own(name).values()}
        return {name for name, p in self.named_parameters() if id(p) in own}

    def _own(self, player: str) -> Mapping[str, nn.Parameter]:
        """Parameters of a player that were made here; none for what was loaded and never moves."""
        return {} if player == "reference" else self.parameters_of(player)


class AdapterPlayers(Players):
    """LoRA adapters on one frozen base model; ``reference`` is the base with adapters off.

    Choosing a player flips no ``requires_grad``: nothing can turn the policy's training off, or
    another player's on.

    Args:
        model: a transformers causal language model.
        lora: the adapters' shape; not used where ``start`` is given.
        start: folder of a PEFT adapter that policy *and* reference start from (after supervised
            fine-tuning, for instance); None starts from the base model.
    """

    def __init__(self, model: Any, lora: LoRA, start: str | None = None) -> None:
        super().__init__()
        from peft import LoraConfig, PeftModel, get_peft_model
        from peft.tuners.lora import LoraLayer

        self._model: Any
        try:
            if start is None:
                config = LoraConfig(
                    r=lora.r,
                    lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float serves as well
                    lora_dropout=lora.dropout,
                    target_modules=lora.target_modules,
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
            where = "model.policy.lora" if start is None else f"model.policy.adapter {start}"
            raise UserError(f"{where}: {error}") from error
        self._config = self._model.peft_config["policy"]
        self._names: tuple[str, ...] = ("policy", "reference")
        self._base_is_reference = start is None
        self._refuse_what_cannot_be_switched()
        self._layers = [m for m in self._model.modules() if isinstance(m, LoraLayer)]
        if start is not None:
            self._make("reference")
            self._copy("policy", "reference")

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

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return self._names

    def _make(self, player: str) -> None:
        config = copy.deepcopy(self._config)
        config.init_lora_weights = True  # others, such as PiSSA, would change the base model again
        self._model.add_adapter(player, config)
        self._model.set_adapter("policy")  # adding one activates nothing, and stays so
        for parameter in self.parameters_of(player).values():
            parameter.requires_grad_(False)

    def _copy(self, source: str, target: str) -> None:
        with torch.no_grad():
            for name, new in self.parameters_of(target).items():
                new.copy_(self.parameters_of(source)[name])

    def add(self, player: str, source: str) -> None:
        """Make a frozen adapter; that of a base model as source is the zero adapter."""
        self._names = (*self._names, player)
        self._make(player)
        if source == "reference" and self._base_is_reference:
            with torch.no_grad():
                for name, parameter in self.parameters_of(player).items():
                    if "lora_B" in name or "lora_embedding_B" in name:
                        parameter.zero_()
        else:
            self._copy(source, player)

    def module(self, player: str) -> nn.Module:
        """The PEFT model, for every player."""
        model: nn.Module = self._model
        return model

    @contextmanager
    def playing(self, players: Sequence[str], num: int) -> Iterator[dict[str, list[str]]]:
        """One player by its adapter in all layers, several by adapters row by row."""
        base = self._base_is_reference
        names = ["__base__" if p == "reference" and base else p for p in players]
        if len(names) > 1:
            yield {"adapter_names": [name for name in names for _ in range(num)]}
            return
        if names != ["policy"]:
            self._switch(names[0])
        try:
            yield {}
        finally:
            if names != ["policy"]:
                self._switch("policy")

    def _switch(self, adapter: str) -> None:
        """Let the layers use another adapter, or none.

        Not by peft's `set_adapter` or `disable_adapter`: these flip `requires_grad`, and a policy
        that was switched off on the way would not train, without an error.
        """
        for layer in self._layers:
            layer._disable_adapters = adapter == "__base__"
            layer._active_adapter = ["policy" if adapter == "__base__" else adapter]

    @property
    def one_call(self) -> bool:
        """Rows of one call may have different adapters."""
        return True

    def language_model(self, player: str) -> Any:
        """The base model with the adapters' layers in it."""
        return self._model.base_model.model

    def parameters_of(self, player: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters, under names without its own."""
        if player not in self._names or (player == "reference" and self._base_is_reference):
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
        others = [p for p in self._names if p != "reference"]
        own = {id(p) for player in others for p in self.parameters_of(player).values()}
        return {name: t for name, t in _lasting_tensors(self._model) if id(t) not in own}

    @property
    def peft_model(self) -> Any:
        """The PEFT model, for export."""
        return self._model


class CopiedPlayers(Players):
    """Full fine-tuning: every player is a copy of the module, and only the policy's is trained.

    Args:
        model: a transformers causal language model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._models = nn.ModuleDict({"policy": model.requires_grad_(True)})
        self.add("reference", "policy")

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return tuple(self._models)

    def add(self, player: str, source: str) -> None:
        """Copy a module and freeze it."""
        self._models[player] = copy.deepcopy(self._models[source]).requires_grad_(False)

    @override
    def module(self, player: str) -> nn.Module:
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

    @property
    def one_call(self) -> bool:
        """A module serves one player."""
        return False

    @override
    def language_model(self, player: str) -> Any:
        return self._models[player]

    def parameters_of(self, player: str) -> dict[str, nn.Parameter]:
        """All parameters of the player's module."""
        if player not in self._models:
            raise ValueError(f"there is no player {player!r}")
        return dict(self._models[player].named_parameters())

    @override
    def reference_weights(self) -> dict[str, Tensor]:
        return dict(_lasting_tensors(self._models["reference"]))


def _lasting_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the buffers that a checkpoint would hold: others may follow the inputs."""
    yield from module.named_parameters()
    lasting = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in lasting)


def _is_transposed(model: nn.Module) -> bool:
    """Whether its linear layers are GPT-2's, whose weights are [in, out]."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def mix(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""Log-probabilities of the geometric mixture prod_i pi_i^{w_i} / Z of next-token laws.

    Args:
        logits: of each player [..., V].
        weights: w_i, summing to 1.

    Returns:
        normalised log-probabilities [..., V]; of one player alone, exactly that player's.
    """
    if len(logits) == 1:
        return logits[0].log_softmax(-1)
    total = weights[0] * logits[0].log_softmax(-1)
    for weight, other in zip(weights[1:], logits[1:], strict=True):
        total = total + weight * other.log_softmax(-1)
    return total.log_softmax(-1)
