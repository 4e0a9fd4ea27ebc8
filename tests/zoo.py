"""The one table of algorithms, and the small games and players that tests put them in.

A new algorithm is one row here: every contract of ``test_contracts.py``, ``test_closed_form.py``,
``test_gradients.py`` and ``test_game.py`` then runs over it.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning as L
import rows
import torch
from torch import Tensor

from nlhf_zoo import algorithms
from nlhf_zoo.algorithms import PolicyOptimizer, surrogates
from nlhf_zoo.algorithms.base import PlayerMoves, Surrogate
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.callbacks import Budget
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.data.tables import games
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.game.rollout import Rollout
from nlhf_zoo.oracles import MatrixOracle, PreferenceOracle
from nlhf_zoo.policies import Reference, TabularPolicy
from nlhf_zoo.records import Batch, Comparison, Decoding, Prompts, ProximalStep, Responses

BETA = 0.1


@dataclass(frozen=True)
class Row:
    """One algorithm with one choice of arguments.

    After ``rounds`` of the closed form on `small_games` the exploitability at BETA is below
    ``reaches``, if `last_iterate` is declared. ``contraction`` is the factor by which log(pi/pi*)
    shrinks in a round near the equilibrium at BETA, for an algorithm that converges linearly:
    KL(pi* || pi) then falls by its square. ``biased``: its sampled gradient is not the enumerated
    one in the mean.
    """

    algorithm: type[PolicyOptimizer]
    kwargs: dict[str, Any] = field(default_factory=dict)
    rounds: int = 300
    reaches: float = 1e-8
    contraction: float | None = None
    biased: bool = False

    @property
    def takes_surrogate(self) -> bool:
        """Whether its loss may be another one."""
        if isinstance(inner := self.kwargs.get("inner"), Row):
            return inner.takes_surrogate
        return "surrogate" in inspect.signature(self.algorithm).parameters

    def make(self, **kwargs: Any) -> PolicyOptimizer:
        """A new algorithm; `kwargs` (a surrogate) go to the innermost one."""
        given = dict(self.kwargs)
        if isinstance(given.get("inner"), Row):
            return self.algorithm(**(given | {"inner": given["inner"].make(**kwargs)}))
        return self.algorithm(**(given | kwargs))

    @property
    def by_score(self) -> bool:
        """Whether its steps take scores of single responses."""
        return self.make().by_score

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self.kwargs.items())
        return f"{self.algorithm.__name__}({shown})"


UNIFORM = Decoding(temperature=float("inf"))

ROWS = [
    Row(algorithms.NashMP, contraction=1 / (1 + 2 * BETA)),
    Row(algorithms.NashMP, {"eta": 1.0}, contraction=1 / 2),
    Row(algorithms.NashMP, {"kappa": 0.5, "inner_steps": 2}, rounds=600),
    Row(algorithms.EGPO, contraction=1 / (1 + 2 * BETA)),
    Row(algorithms.EGPO, {"eta": 0.3, "scored": UNIFORM}, contraction=1 - 0.3 * BETA),
    Row(algorithms.NashProx, contraction=(1 + 2 * BETA) ** (-1 / 3)),
    Row(algorithms.NashMP, {"eta": "adaptive"}, rounds=60),
    Row(algorithms.EGPO, {"eta": "adaptive"}, rounds=60),
    Row(algorithms.OnlineIPO, {"eta": 0.3}, contraction=1 - 0.3 * BETA),
    Row(algorithms.OnlineIPO, {"eta": 0.3, "self_play": False}, contraction=1 - 0.3 * BETA),
    Row(
        algorithms.OnlineIPO,
        {"eta": 0.3, "self_play": False, "scored": UNIFORM},
        contraction=1 - 0.3 * BETA,
    ),
    Row(algorithms.INPO, contraction=1 - 0.3 * BETA),
    Row(algorithms.PairwiseGRPO, {"eta": 0.3}, contraction=1 - 0.3 * BETA),
    # z^2 = (1 - 0.3 beta) (z + 1) / 2
    Row(algorithms.MNPO, rounds=600, contraction=0.979932),
    Row(algorithms.IPOMD, {"eta": 0.3}),
    Row(algorithms.NashEMA, {"eta": 0.3}),
    Row(algorithms.NashMD, rounds=1000, reaches=1e-6),
    Row(algorithms.NashMD, {"eta": 1.0}),
    Row(algorithms.NashMD, {"eta": 0.3, "mixture": 0.125}),
    Row(algorithms.OptimisticMirrorDescent, {"eta": 0.3}, contraction=1 - 0.3 * BETA),
    Row(algorithms.OptimisticMirrorDescent, {"eta": 0.3, "regularised": False}),
    Row(algorithms.SPPO),
    Row(algorithms.SPPO, {"self_play": False, "inner_steps": 2}),
    Row(algorithms.RSPO, contraction=1 - 0.3 * BETA),
    Row(algorithms.RSPO, {"forward_kl": 0.1, "inner_steps": 2}),
    Row(algorithms.OnlineDPO),
    Row(algorithms.OnlineDPO, {"hard": True}),
    Row(algorithms.XPO, {"alpha": 0.1}),
    Row(algorithms.DNO, biased=True),
    Row(algorithms.REBEL),
    Row(algorithms.REBEL, {"eta": 0.3, "regularised": True, "inner_steps": 2}),
    Row(algorithms.MovingMagnet, {"inner": Row(algorithms.EGPO), "every": 3}),
    Row(algorithms.MovingMagnet, {"inner": Row(algorithms.NashMD), "every": 2}),
]
GRADIENT = [row for row in ROWS if not row.make().adaptive]
UNBIASED = [row for row in GRADIENT if not row.biased]
CLOSED_FORM = [row for row in ROWS if row.make().closed_form]
SURROGATES: list[Surrogate] = [
    surrogates.proximal_regression, surrogates.ipo_regression, surrogates.policy_gradient,
    surrogates.sppo_regression, surrogates.logistic,
]  # fmt: skip


def fits(surrogate: Surrogate, step: ProximalStep) -> bool:
    """Whether a surrogate can realise a step."""
    if surrogate is surrogates.policy_gradient:
        return dict(step.sampler) == {"policy": 1.0} and step.scored.is_plain
    return surrogate is not surrogates.logistic or step.pairs


def snake_case(name: str) -> str:
    """NashMP -> nash_mp, OptimisticMirrorDescent -> optimistic_mirror_descent."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def decoded_by_hand(probability: Sequence[float], decoding: Decoding) -> list[float]:
    """Temper and truncate probabilities, one rule after another."""
    tempered = [float(p) ** (1 / decoding.temperature) if p > 0 else 0.0 for p in probability]
    law = _normalised(tempered)
    order = sorted(range(len(law)), key=lambda token: -law[token])
    if decoding.top_k:
        least = law[order[min(decoding.top_k, len(order)) - 1]]
        law = _normalised([p if p >= least else 0.0 for p in law])  # ties stay together
    kept, mass = set(), 0.0
    for token in order:
        if mass < decoding.top_p:
            kept.add(token)
        mass += law[token]
    if decoding.top_p < 1:
        law = _normalised([p if token in kept else 0.0 for token, p in enumerate(law)])
    return _normalised([p if p >= decoding.min_p * max(law) else 0.0 for p in law])


def _normalised(law: list[float]) -> list[float]:
    return [p / sum(law) for p in law]


def normal_logits(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers of their own random stream."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def small_games(num_games: int = 5, num_actions: int = 6) -> tuple[Tensor, Tensor]:
    """Uniform random games and references with normal logits: P [C, N, N], log mu [C, N]."""
    P = games.uniform_random(num_games, num_actions, seed=3)
    return P, normal_logits(num_games, num_actions, seed=1).log_softmax(-1)


def scores_of(P: Tensor, log_reference: Tensor | None = None) -> Tensor:
    """Some number for each action there is [C, N], for a table of any kind."""
    exists = 1.0 if log_reference is None else (log_reference > -torch.inf)[:, None].to(P)
    return 6 * (P * exists).sum(-1) / (exists * torch.ones_like(P)).sum(-1)


class Scored(MatrixOracle):
    """A table that says, beside its preferences, what `scores_of` says."""

    @property
    def has_scores(self) -> bool:
        return True

    @property
    def score_table(self) -> Tensor:
        return scores_of(self.preference)

    def score(self, prompts: Prompts, responses: Responses) -> tuple[Tensor, Tensor]:
        scores = self.score_table[prompts.ids[:, None], self.actions(responses)]
        return scores, torch.ones_like(scores, dtype=torch.bool)


class TwoSteps(PolicyOptimizer):
    """A plan unlike those of the package: the second step starts where the first one ended.

    Both take two gradient steps against the policy of the moment; ``weight`` is that of the
    reference in their centre.
    """

    paper = "none"
    last_iterate = False
    players = ("lookahead",)

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        centre = {"lookahead": 1 - self.weight, "reference": self.weight}
        return [
            ProximalStep(centre, ((1.0, {"policy": 1.0}),), 0.5, writes, gradient_steps=2)
            for writes in ("lookahead", "policy")
        ]

    def loss(self, step: ProximalStep, batch: Batch) -> Tensor:
        return surrogates.proximal_regression(step, batch)


class AgainstOne(PolicyOptimizer):
    """Two steps a round against an opponent that stays; both are asked about by one product."""

    paper = "none"
    last_iterate = False
    players = ("anchor", "lookahead")

    def __init__(self, opponent: Mapping[str, float]) -> None:
        self.opponent = opponent

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        payoff = ((1.0, self.opponent),)
        centre = {"anchor": 1.0}
        return [ProximalStep(centre, payoff, 0.5, writes) for writes in ("lookahead", "policy")]

    def end_round(self, players: PlayerMoves, round: int) -> None:
        players.copy_("policy", "anchor")

    def loss(self, step: ProximalStep, batch: Batch) -> Tensor:
        return surrogates.proximal_regression(step, batch)


def engine(
    algorithm: PolicyOptimizer, P: Tensor, log_reference: Tensor, start: Tensor, beta: float = BETA
) -> ClosedFormRounds:
    """The closed form with every player at `start`, but the magnet, which is the reference yet."""
    players = {player: start.clone() for player in ("policy", *algorithm.players)}
    if "magnet" in players:
        players["magnet"] = log_reference.clone()
    return ClosedFormRounds(
        algorithm, beta, P, log_reference, players, scores=scores_of(P, log_reference)
    )


class TensorReference(Reference):
    """A reference or a start given as log-probabilities [C, N]."""

    def __init__(self, log_prob: Tensor) -> None:
        self.given = log_prob

    def logits(self, support: Tensor) -> Tensor:
        return self.given


def small_game(
    algorithm: PolicyOptimizer,
    num_games: int = 5,
    start: Tensor | None = None,
    lr: float = 0.1,
    game_class: type[OnlineGame] = OnlineGame,
    wrap: Callable[[MatrixOracle], PreferenceOracle] = lambda oracle: oracle,
    **parts: Any,
) -> OnlineGame:
    """A tabular policy in `small_games`; in closed form, or by plain gradient steps."""
    P, log_reference = small_games(num_games)
    policy = TabularPolicy(
        TensorReference(log_reference), None if start is None else TensorReference(start)
    )
    optimizer = partial(torch.optim.SGD, lr=lr)
    return game_class(policy, wrap(Scored(P)), algorithm, optimizer=optimizer, **parts)


class Spy(PreferenceOracle):
    """Another oracle's answers, through the interface alone.

    It records of each question K, L, and whether responses met themselves.
    """

    def __init__(self, oracle: PreferenceOracle) -> None:
        super().__init__()
        self.oracle = oracle
        self.asked: list[tuple[int, int, bool]] = []

    @property
    def support(self) -> Tensor | None:
        return self.oracle.support

    @property
    def has_scores(self) -> bool:
        return self.oracle.has_scores

    def score(self, prompts: Prompts, responses: Responses) -> tuple[Tensor, Tensor]:
        self.asked.append((responses.num, 1, False))
        return self.oracle.score(prompts, responses)

    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        self.asked.append((first.num, second.num, first is second))
        return self.oracle(prompts, first, second)


class Silent(PreferenceOracle):
    """Another oracle that has no answer for some prompts and some actions.

    Args:
        oracle: whose answers.
        prompts: those about which it says nothing.
        action: it says nothing about pairs with this action either.
        lie: what the preference says where it is invalid.
    """

    def __init__(
        self,
        oracle: PreferenceOracle,
        prompts: Sequence[int] = (),
        action: int | None = None,
        lie: float = float("nan"),
    ) -> None:
        super().__init__()
        self.oracle, self.silent, self.action, self.lie = oracle, prompts, action, lie

    @property
    def support(self) -> Tensor | None:
        return self.oracle.support

    @property
    def table(self) -> Tensor | None:
        return self.oracle.table

    @property
    def answers_table(self) -> bool:
        return False

    @property
    def prompts(self) -> Prompts | None:
        return self.oracle.prompts

    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        answer = self.oracle(prompts, first, second)
        valid = torch.ones_like(answer.valid)
        for prompt in self.silent:
            valid[prompts.ids == prompt] = False
        if self.action is not None:
            valid &= (first.actions != self.action)[:, :, None]
            valid &= (second.actions != self.action)[:, None, :]
        return Comparison(answer.preference.masked_fill(~valid, self.lie), valid)

    @property
    def has_scores(self) -> bool:
        return self.oracle.has_scores

    def score(self, prompts: Prompts, responses: Responses) -> tuple[Tensor, Tensor]:
        scores, _ = self.oracle.score(prompts, responses)
        valid = torch.ones_like(scores, dtype=torch.bool)
        for prompt in self.silent:
            valid[prompts.ids == prompt] = False
        if self.action is not None:
            valid &= responses.actions != self.action
        return scores.masked_fill(~valid, self.lie), valid


def all_prompts(game: OnlineGame) -> Prompts:
    """The prompts of a table."""
    return Prompts(torch.arange(len(game.oracle.support)))


class Given(Rollout):
    """Responses that are given, in place of another rollout's."""

    def __init__(
        self, rollout: Rollout, responses: Responses, opponents: Sequence[Responses]
    ) -> None:
        self.enumerated = rollout.enumerated
        self.num_responses, self.num_opponents = rollout.num_responses, rollout.num_opponents
        self.pairs = rollout.pairs
        self.given = responses, [*opponents]

    def responses(self, *_: Any) -> Responses:
        return self.given[0]

    def play(self, *_: Any) -> tuple[Responses, list[Responses]]:
        return self.given


def judge(
    game: OnlineGame,
    step: ProximalStep,
    prompts: Prompts,
    responses: Responses,
    opponents: Sequence[Responses],
) -> Payoffs:
    """What the oracle says of given responses, through the door that the loop takes."""
    rollout, game.rollout = game.rollout, Given(game.rollout, responses, opponents)
    try:
        return game.play_and_judge(step, prompts)[1]
    finally:
        game.rollout = rollout


def scatter_players(game: OnlineGame, scale: float = 0.7) -> None:
    """Put every player but the reference somewhere else, so that mixing two of them up shows.

    All games of a batch get the same offset, so that copies of one game stay copies.
    """
    with torch.no_grad():
        for number, (player, network) in enumerate(game.policy.networks.items()):
            # As if the game had moved them: no product is shared.
            game.versions[player] = 100 + number
            logits = next(iter(network.parameters()))
            logits += scale * normal_logits(logits.shape[-1], seed=100 + number)


def fit(
    game: OnlineGame,
    rounds: int | None = None,
    data: TablePrompts | None = None,
    callbacks: Sequence[L.Callback] = (),
    **trainer: Any,
) -> OnlineGame:
    """Train through Lightning, without files unless the trainer is to write some."""
    callbacks = [Budget(rounds=rounds), *callbacks]
    player = rows.trainer(devices=1, limit_val_batches=0, callbacks=callbacks, **trainer)
    player.fit(game, data or TablePrompts())
    return game
