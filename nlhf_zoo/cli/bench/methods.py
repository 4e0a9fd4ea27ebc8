"""The algorithms that are compared: all public ones as they come, and one of one's own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlhf_zoo import algorithms
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.cli.bench.sources import checksums
from nlhf_zoo.cli.parser import SentenceParser
from nlhf_zoo.errors import UserError

Block = dict[str, Any]
# Arguments of those that cannot do without; all others are played with their defaults.
_GIVEN: dict[str, Block] = {"MovingMagnet": {"inner": {"class_path": "nlhf_zoo.EGPO"}}}


@dataclass(frozen=True, slots=True)
class Method:
    """An algorithm with its arguments.

    Args:
        name: of its class.
        block: {class_path, init_args}, from which it is made.
        algorithm: the one that was made.
        rate: of the optimiser, where a part trains; None for the part's own.
    """

    name: str
    block: Block
    algorithm: PolicyOptimizer
    rate: float | None = None

    @property
    def sources(self) -> dict[str, str]:
        """Checksums of the files of one's own that it is written in, by module; of ours none."""
        return checksums(self.block)


def ours() -> list[Method]:
    """All public algorithms, in the order of their names, but those that take scores.

    The games have preferences alone.
    """
    found = []
    for name in sorted(algorithms.__all__):
        kind = getattr(algorithms, name)
        is_one = inspect.isclass(kind) and issubclass(kind, PolicyOptimizer)
        if is_one and not inspect.isabstract(kind) and kind.seeks_equilibrium:
            block: Block = {"class_path": f"nlhf_zoo.{name}", "init_args": _GIVEN.get(name, {})}
            found.append(made(block) if name in _GIVEN else Method(name, block, kind()))
    return [method for method in found if not method.algorithm.by_score]


def made(block: Mapping[str, Any] | str, rate: float | None = None) -> Method:
    """An algorithm by its block, or by the path of its class.

    Args:
        block: {class_path, init_args}, or the path alone.
        rate: of the optimiser; None for a part's own.

    Raises:
        UserError: there is no such class, or it cannot be made so.
    """
    parser = SentenceParser(prog="nlhf bench")
    parser.add_argument("--algorithm", type=PolicyOptimizer)
    given = block if isinstance(block, str) else json.dumps(block)
    parsed = parser.parse_args([f"--algorithm={given}"])
    try:
        algorithm = parser.instantiate(parsed).algorithm
    except ValueError as error:
        raise UserError(f"--algorithm: {error}") from error
    written = json.loads(parser.dump(parsed, format="json", skip_unset=False))["algorithm"]
    return Method(type(algorithm).__name__, written, algorithm, rate)
