"""nlhf_zoo: Nash learning from human feedback in PyTorch Lightning.

Every public name is here, and is imported when it is asked for (PEP 562): ``import nlhf_zoo``
costs nothing, and ``nlhf_zoo.NashMP`` no more than PyTorch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

__version__ = "0.1.0"

# Public names by the folder that has them; `__init__.pyi` says the same to type checkers.
_PUBLIC = {
    "algorithms": (
        "EGPO MovingMagnet NashMD NashMP OnlineDPO OnlineIPO OptimisticMirrorDescent "
        "PolicyOptimizer SPPO"
    ),
    "callbacks": (
        "Budget ExactMetrics GameCheckpoint GameProgressBar QueryLog ResumeState TimeLog "
        "read_history"
    ),
    "data": "PreferencePairs TablePrompts TextPrompts",
    "errors": "DivergenceError OracleStoppedError UserError",
    "game": "ClosedForm Enumerate GradientSteps OnlineGame Realisation Rollout Sample",
    "health": "HealthCheck ReferenceFingerprint",
    "metrics": (
        "CalibrationError CyclicTriples DualityGap Exploitability FlipRate KLToNash "
        "PreferenceAccuracy PreferenceLogLoss Span SymmetryError WinRate"
    ),
    "oracles": (
        "Annotators BernoulliLabels BradleyTerry BudgetedOracle CachedOracle Comal Cyclic "
        "CyclicBlocks EmbeddingOracle EnsembleOracle GeneralPreferenceModelOracle "
        "GenerativePairModelOracle JudgeOracle ListedResponses MatrixOracle OrderSwap "
        "PairModelOracle PreferenceOracle RewardModelOracle RuleOracle SineGame "
        "SmallLanguage TableOracle TextOracle UniformRandom VotesOracle"
    ),
    "policies": (
        "CausalLMPolicy FileReference Generator GivenReference LoRA MLPPolicy ModelSource "
        "NormalReference Policy Pretrained Reference SmallLanguageModel TabularPolicy "
        "TransformersGenerator UniformReference"
    ),
    "preference_models": (
        "Backbone BradleyTerryHead GeneralPreferenceHead LettersBackbone PairHead "
        "PreferenceHead PreferenceModel PretrainedBackbone"
    ),
    "records": (
        "Batch Comparison Conversation Decoding Mixture PLAIN Prompts ProximalStep Responses"
    ),
    "solvers": "Solution solve",
}
_FOLDER_OF = {name: folder for folder, names in _PUBLIC.items() for name in names.split()}

__all__ = sorted(_FOLDER_OF)


def __getattr__(name: str) -> object:
    if name not in _FOLDER_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FOLDER_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


# Where modules of version 0.1 are now: configurations and code of users may still name them.
_MOVED_INTO = {
    "algorithms": "closed_form",
    "data.tables": "data.games data.small_language data.votes",
    "data.texts": "data.conversations data.listed_responses data.pair_rows data.prompt_rows",
    "game": "compatibility micro_batches online_game phases realisation rollout scoring",
    "health": "callbacks.reference_fingerprint",
    "oracles.rules": "oracles.rule",
    "oracles.tables": (
        "oracles.embedding oracles.generated oracles.matrix oracles.votes oracles.small_language"
    ),
    "oracles.wrappers": (
        "oracles.answer_store oracles.bernoulli oracles.budgeted oracles.cached "
        "oracles.ensemble oracles.listed oracles.order_swap"
    ),
    "policies.language_model": "policies.exporting policies.generation policies.players",
}
_RENAMED = {
    "callbacks.health_check": "health.callback",
    "oracles.general_preference": "oracles.models.general_preference",
    "oracles.generative_pair_model": "oracles.models.generative_pair",
    "oracles.pair_model": "oracles.models.pair",
    "oracles.reward_model": "oracles.models.reward",
    "oracles.table": "oracles.tables.base",
    "policies.causal_lm": "policies.language_model.policy",
    "policies.model_source": "policies.language_model.sources",
    "preference_models.heads": "text_models.heads",
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
