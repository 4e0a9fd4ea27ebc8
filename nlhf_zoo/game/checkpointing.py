"""What a checkpoint holds of a game, and the places that a game goes back to."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.accounting import Progress
from nlhf_zoo.game.lightning_internals import trainer_of
from nlhf_zoo.metrics.processes import objects_of_each
from nlhf_zoo.oracles.ledger import ledgers
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.finite import FinitePolicy
from nlhf_zoo.records.finite import refuse_diverged
from nlhf_zoo.records.shards import like

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame

# The start of a round: where a half step is trained from, and the policy goes back to ------------


def round_start(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Copy the policy's parameters and the optimiser's state, by the number of the parameter."""
    state = {
        index: copy.deepcopy(optimizer.state[parameter])
        for index, parameter in enumerate(_parameters(optimizer))
        if parameter in optimizer.state
    }
    return {"policy": policy.snapshot(), "optimizer": state}


def return_to(start: dict[str, Any], policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Put policy and optimiser back to a round's start, bit for bit.

    Not the optimiser's param_groups: these hold the learning rate, which the scheduler has moved.
    """
    policy.restore(start["policy"])
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for index, state in start["optimizer"].items():
        parameter = parameters[index]
        # A checkpoint's lies in main memory, and whole; a step count stays so, as torch has it.
        optimizer.state[parameter] = {
            name: like(v.to(parameter.device), parameter)
            if isinstance(v, Tensor) and v.dim()
            else v
            for name, v in copy.deepcopy(state).items()
        }


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


# The last optimiser step: where a run ends whose oracle has stopped ------------------------------


def position(game: OnlineGame) -> dict[str, Any]:
    """Where a game stands, weights apart: progress, and what the oracle keeps in its state."""
    return {"progress": asdict(game.progress), "oracle": oracle_state(game)}


def rewind(game: OnlineGame, place: dict[str, Any]) -> None:
    """Go back to a position, so that what failed since is tried anew."""
    game.progress = Progress(**place["progress"])
    restore_oracle(game, place["oracle"])


def oracle_state(game: OnlineGame) -> dict[str, Tensor]:
    """What moves in an oracle while it is asked, as the number of what it has drawn: a copy."""
    frozen = _frozen(game)
    state = game.oracle.state_dict()
    return {name: state[name].clone() for name in state if f"oracle.{name}" not in frozen}


@torch.no_grad()
def restore_oracle(game: OnlineGame, kept: Mapping[str, Tensor]) -> None:
    """Put back what ``oracle_state`` returned."""
    state = game.oracle.state_dict()
    for name, value in kept.items():
        state[name].copy_(value)


# The checkpoint -----------------------------------------------------------------------------------


def checkpoint_keys(game: OnlineGame) -> set[str]:
    """Names in the game's ``state_dict``, but of weights that are loaded from files again."""
    policy = {f"policy.{name}" for name in game.policy.checkpoint_keys()}
    rest = {name for name in game.state_dict() if not name.startswith("policy.")}
    return policy | (rest - _frozen(game))


def save(game: OnlineGame, checkpoint: dict[str, Any]) -> None:
    """Hold what trains, and what Lightning does not know of: position, versions, products."""
    optional = {f"policy.{name}" for name in game.policy.optional_checkpoint_keys()}
    state, keys = checkpoint["state_dict"], checkpoint_keys(game) | optional
    checkpoint["state_dict"] = {name: state[name] for name in state if name in keys}
    checkpoint["online_game"] = {
        "progress": asdict(game.progress),
        "versions": dict(game.versions),
        "snapshot": game.round_start,
        "products": _products(game),
        "realisation": game.realisation.state_dict(),
        "ledgers": {name: ledger.counts() for name, ledger in ledgers(game.oracle).items()},
        "actions": _actions(game),
        "rollout": {} if game.reuse is None else game.reuse.state_dict(),
    }


def _products(game: OnlineGame) -> dict[str, Tensor]:
    """What is remembered in any process, each of which has prompts of its own."""
    own, trainer = game.estimator.products, trainer_of(game)
    if trainer is None or trainer.world_size == 1:
        return dict(own)
    each = objects_of_each(trainer, {name: product.cpu() for name, product in own.items()})
    return {name: product for products in each for name, product in products.items()}


def load(game: OnlineGame, checkpoint: dict[str, Any]) -> None:
    """Take back what ``save`` holds beside the tensors.

    Of another oracle than the run's nothing is loaded: it stays as it was made.

    Raises:
        UserError: the checkpoint is no game's, lacks what trains here, is of a run that had
            diverged, or of a table with other actions.
    """
    if "online_game" not in checkpoint:
        raise UserError("the checkpoint holds no online game: give one that `nlhf fit` has written")
    kept = checkpoint_keys(game)
    if not game.loads_oracle:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: v for n, v in state.items() if not _is_oracles(n)}
        kept = {name for name in kept if not _is_oracles(name)}
    missing = sorted(kept - checkpoint["state_dict"].keys())
    if missing:  # loading is not strict, for the sake of the weights that were left out
        raise UserError(
            f"the checkpoint does not fit the model: it lacks {len(missing)} of its "
            f"parameters, {missing[0]} among them"
        )
    # Those of a part that trains no more: the optimiser's state would not fit either.
    trained = checkpoint["state_dict"].keys() - game.state_dict().keys()
    more = sorted(name for name in trained if name.startswith("policy.") and ".policy." in name)
    if more:
        raise UserError(
            f"the checkpoint does not fit the model: it has also {len(more)} parameters that are "
            f"not trained here, {more[0]} among them: go on with the options, and the version of "
            "nlhf_zoo, that it was written with"
        )
    parameters = kept & {name for name, _ in game.named_parameters()}
    refuse_diverged({name: checkpoint["state_dict"][name] for name in parameters})
    state = checkpoint["online_game"]
    if state.get("actions", _actions(game)) != _actions(game):
        raise UserError(
            "the oracle lists other actions than that of the checkpoint's run, or in another "
            "order, and the policy's probabilities stand in that order"
        )
    game.progress = Progress(**state["progress"])
    game.versions.clear()
    game.versions.update(state["versions"])
    game.round_start = state["snapshot"]
    game.realisation.load_state_dict(state.get("realisation", {}))
    if game.reuse is not None:
        game.reuse.load_state_dict(state.get("rollout", {}))
    if not game.loads_oracle:
        return
    game.estimator.products = dict(state["products"])
    for name, ledger in ledgers(game.oracle).items():
        ledger.restore(state.get("ledgers", {}).get(name, {}))


def _actions(game: OnlineGame) -> str:
    return actions_digest(game.policy, game.oracle.action_names)


def actions_digest(policy: Policy, names: Sequence[Sequence[str]] | None) -> str:
    """A digest of the names of a table's actions, in the order in which a policy has them.

    Empty where they have none, or the policy reads them as texts.
    """
    if names is None or not isinstance(policy, FinitePolicy):
        return ""
    return hashlib.sha256(json.dumps([[*row] for row in names]).encode()).hexdigest()


def _is_oracles(name: str) -> bool:
    return name.startswith("oracle.")


def _frozen(game: OnlineGame) -> set[str]:
    return {f"oracle.{n}" for n, p in game.oracle.named_parameters() if not p.requires_grad}
