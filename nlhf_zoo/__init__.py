"""nlhf_zoo: Nash learning from human feedback in PyTorch Lightning.

Every public name is here, and is imported when it is asked for (PEP 562): ``import nlhf_zoo``
costs nothing, and ``nlhf_zoo.NashMP`` no more than PyTorch.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__version__ = "0.2.0.dev0"

# What these folders hand on is public here, too; `__init__.pyi` says so to type checkers.
FOLDERS = (
    "algorithms",
    "callbacks",
    "data",
    "game",
    "metrics",
    "oracles",
    "policies",
    "preference_models",
    "records",
)
_OTHERS = {
    "DivergenceError": "errors",
    "OracleStoppedError": "errors",
    "UserError": "errors",
    "HealthCheck": "health",
    "ReferenceFingerprint": "health",
    "Solution": "solvers",
    "solve": "solvers",
}


@cache
def public_names() -> dict[str, str]:
    """The folder of each public name, read off the folders' ``__all__`` without importing them."""
    import ast

    folder_of = dict(_OTHERS)
    for folder in FOLDERS:
        spec = find_spec(f"{__name__}.{folder}")
        source = spec.loader.get_source(spec.name)  # type: ignore[union-attr]
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                folder_of |= dict.fromkeys(ast.literal_eval(node.value), folder)
    return folder_of


def __getattr__(name: str) -> object:
    if name == "__all__":
        return sorted(public_names())
    if name.startswith("__") or name not in public_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{public_names()[name]}"), name)


def __dir__() -> list[str]:
    return [*filter(lambda name: name.startswith("__"), globals()), *FOLDERS, *public_names()]


# Where modules that had other names are now: configurations and code of users may name them still.
_MOVED_INTO = {
    "algorithms": "closed_form",
    "data.tables": "data.games data.small_language data.votes",
    "data.texts": "data.conversations data.pair_rows",
    "game": "compatibility micro_batches online_game realisation rollout",
    "health": "callbacks.reference_fingerprint",
    "oracles.tables": "oracles.generated",
    "oracles.wrappers": (
        "oracles.bernoulli oracles.budgeted oracles.cached "
        "oracles.ensemble oracles.listed oracles.order_swap"
    ),
    "policies.language_model": "policies.exporting policies.generation policies.players",
}
_RENAMED = {
    "callbacks.health_check": "health.suite",
    "callbacks.query_log": "callbacks.logs",
    "callbacks.resume_state": "callbacks.checkpoint",
    "callbacks.time_log": "callbacks.logs",
    "data.listed_responses": "data.texts.conversations",
    "data.prompt_rows": "data.text_prompts",
    "metrics.base": "metrics.game",
    "metrics.distance": "metrics.game",
    "metrics.exploitability": "metrics.game",
    "metrics.win_rate": "metrics.game",
    "oracles.answer_store": "oracles.wrappers.cached",
    "oracles.embedding": "oracles.tables.from_files",
    "oracles.general_preference": "oracles.models.response",
    "oracles.generative_pair_model": "oracles.models.generative_pair",
    "oracles.matrix": "oracles.tables.from_files",
    "oracles.pair_model": "oracles.models.pair",
    "oracles.reward_model": "oracles.models.response",
    "oracles.rule": "oracles.rules.rule_oracle",
    "oracles.small_language": "oracles.tables.generated",
    "oracles.table": "oracles.tables.base",
    "oracles.texts": "oracles.text_oracle",
    "oracles.votes": "oracles.tables.from_files",
    "phases": "game.micro_batches",
    "policies.causal_lm": "policies.language_model.policy",
    "policies.mlp": "policies.finite",
    "policies.model_source": "policies.language_model.sources",
    "policies.tabular": "policies.finite",
    "preference_models.heads": "text_models.heads",
    "preference_models.unreadable": "preference_models.reader",
    "scoring": "game.log_probs",
    "solvers.linear": "solvers.nash",
    "solvers.regularised": "solvers.nash",
    "solvers.solution": "solvers.nash",
    "random_streams": "records.random_streams",
}
MOVED = {f"{__name__}.{old}": f"{__name__}.{new}" for old, new in _RENAMED.items()} | {
    f"{__name__}.{old}": f"{__name__}.{folder}.{old.rpartition('.')[2]}"
    for folder, olds in _MOVED_INTO.items()
    for old in olds.split()
}


class _MovedModules:
    """Finds a module under the name that it had: it is the module of today."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])


if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(_MovedModules())  # type: ignore[arg-type]  # importlib.abc takes 15 ms
