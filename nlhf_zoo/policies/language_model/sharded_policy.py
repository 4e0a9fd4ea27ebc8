"""What a language model does as a policy whose weights are spread over processes."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.language_model.generation import Generator
from nlhf_zoo.policies.language_model.players import Players
from nlhf_zoo.policies.language_model.sharding import Sharding, refuse_models


class ShardedPolicy(Policy):
    """A policy of players whose weights can be sharded.

    Attributes:
        generator: engine that draws responses.
        compile_body: compile the model's body for scoring.
    """

    generator: Generator
    compile_body: bool
    _players: Players

    @override
    def refuse_sharding(self, layerwise: bool) -> None:
        self.generator.refuse_sharding(layerwise)
        if self.compile_body:
            raise UserError("model.policy.compile does not go with fsdp2: set it to false")
        refuse_models(self._players.models(), self._players.replicated())

    @override
    def shard(self, mesh: Any, layerwise: bool) -> None:
        if (players := self._players).sharding is None:
            players.sharding = Sharding(players.models(), mesh, players.replicated(), layerwise)
        players.at_rest()

    @override
    def at_rest(self) -> None:
        self._players.at_rest()

    @override
    def mean_gradients(self) -> None:
        if self._players.sharding is not None:
            self._players.sharding.mean_gradients()
