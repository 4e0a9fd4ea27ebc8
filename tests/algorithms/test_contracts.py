"""What every algorithm in ``zoo.py`` is held to; exceptions are declared, never made by name."""

import inspect
import math

import pytest
import torch
import zoo
from paths import ROOT

from nlhf_zoo import algorithms
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.records import Decoding
from nlhf_zoo.solvers import exploitability, regularised_nash, trajectory_metrics

every_algorithm = pytest.mark.parametrize("row", zoo.ROWS, ids=str)
every_gradient = pytest.mark.parametrize("row", zoo.GRADIENT, ids=str)
every_closed_form = pytest.mark.parametrize("row", zoo.CLOSED_FORM, ids=str)


@pytest.fixture(scope="module")
def games():
    """Five games: preferences, references and certified equilibria."""
    P, log_reference = zoo.small_games()
    solution = regularised_nash(P, log_reference, zoo.BETA)
    assert solution.exploitability.max() < 1e-12
    return P, log_reference, solution.log_policy


def gradient_game(algorithm, **parts):
    return zoo.small_game(algorithm, **{"realisation": GradientSteps(), **parts})


# ---- the table ----


def concrete_algorithms():
    """Those of the package that seek an equilibrium, below forms that several share."""
    found, left = [], [PolicyOptimizer]
    while left:
        below = left.pop().__subclasses__()
        ours = [cls for cls in below if cls.__module__.startswith("nlhf_zoo.")]
        left += [cls for cls in ours if inspect.isabstract(cls)]
        concrete = [cls for cls in ours if not inspect.isabstract(cls)]
        found += [cls for cls in concrete if cls.seeks_equilibrium]
    return sorted(found, key=lambda cls: cls.__name__)


def test_algorithms_are_final():
    assert not any(cls.__subclasses__() for cls in concrete_algorithms())


@pytest.mark.parametrize("cls", concrete_algorithms(), ids=lambda cls: cls.__name__)
def test_an_algorithm_is_a_row_a_configuration_a_page_and_an_export(cls):
    name = zoo.snake_case(cls.__name__)
    assert cls in {row.algorithm for row in zoo.ROWS}, f"{cls.__name__} has no row in tests/zoo.py"
    assert cls.__module__ == f"nlhf_zoo.algorithms.{name}"
    assert cls.__name__ in algorithms.__all__
    assert (ROOT / "configs" / "tabular" / f"{name}.yaml").is_file()
    assert (ROOT / "docs" / "algorithms" / f"{name}.md").is_file()
    assert cls.paper.startswith("arXiv:")


@pytest.mark.parametrize("cls", concrete_algorithms(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", ["scored", "opponent"])
def test_a_decoding_that_is_given_is_that_of_every_step(cls, name):
    if name not in inspect.signature(cls).parameters:
        return
    decoding = Decoding(temperature=0.5)
    apart = {"self_play": False} if "self_play" in inspect.signature(cls).parameters else {}
    steps = cls(**{name: decoding}, **apart).steps(0.1, 0)
    assert [getattr(step, name) for step in steps] == [decoding] * len(steps)


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_the_step_of_online_dpo_is_the_best_answer_to_its_policy(beta):
    """argmax <q, pi> - beta KL(pi || mu) is mu exp(q / beta): whatever surrogate takes the step."""
    (step,) = algorithms.OnlineDPO().steps(beta, 0)
    assert dict(step.centre) == {"reference": 1.0}
    assert step.step_size == pytest.approx(1 / beta)


@pytest.mark.parametrize("inner", [algorithms.NashMP(), algorithms.OnlineIPO(), algorithms.SPPO()])
def test_a_magnet_stands_wherever_the_reference_stood(inner):
    """In the centre, the opponents, the sampler, and in losses that name the reference."""
    plan = algorithms.MovingMagnet(inner, every=3).steps(0.1, 4)
    for step, plain in zip(plan, inner.steps(0.1, 1), strict=True):
        assert plain.reference == "reference"
        assert step.reference == "magnet"
        mixtures = [step.centre, step.sampler, *(opponent for _, opponent in step.payoff)]
        assert not any("reference" in mixture for mixture in mixtures)


# ---- declarations ----


@every_algorithm
@pytest.mark.parametrize("beta", [0.001, 0.1, 1.0])
def test_plans_can_be_played_by_the_declared_players(row, beta):
    algorithm = row.make()
    players = {"policy", "reference", *algorithm.players}
    assert len(players) == 2 + len(algorithm.players)
    written = {"policy"}
    for number in (0, 1, 7):
        steps = algorithm.steps(beta, number)
        assert steps[-1].writes == "policy"
        for step in steps:
            opponents = {player for _, mixture in step.payoff for player in mixture}
            named = {*step.centre, *step.sampler, *opponents, *(step.explored or {})}
            assert {*named, step.reference} <= players
            assert step.writes in players - {"reference"}
            assert step.step_size > 0
            assert all(weight >= 0 for weight in step.centre.values())
            written.add(step.writes)
    moved = _Recorder()
    for number in range(12):
        algorithm.end_round(moved, number)
    # A player that nothing writes or moves is a copy of the start for ever, and is declared so.
    assert written | moved.targets == players - {"reference", *algorithm.fixed_players}


class _Recorder:
    def __init__(self):
        self.targets = set()

    def copy_(self, source, target):
        self.targets.add(target)

    def lerp_(self, source, target, weight):
        self.targets.add(target)


@every_algorithm
def test_scheduled_is_true_where_plans_differ(row):
    algorithm = row.make()
    first, *others = (list(algorithm.steps(zoo.BETA, number)) for number in range(8))
    assert algorithm.scheduled == any(plan != first for plan in others)


ROUNDS = 4


@every_closed_form
def test_declared_queries_are_those_of_the_closed_form(row, games):
    P, log_reference, _ = games
    algorithm = row.make()
    trajectory = zoo.engine(algorithm, P, log_reference, log_reference).run(0, ROUNDS)
    declared = algorithm.queries(0, 0, enumerated=True)
    if algorithm.adaptive:  # the first asks one more, and one that is rejected asks one
        asked = trajectory.queries.diff(dim=0, prepend=torch.ones(1, len(P), dtype=torch.long))
        assert set(asked.flatten().tolist()) <= {1, declared}
        assert (trajectory.queries[0] == 1 + declared).all()
    else:
        assert trajectory.queries.tolist() == [declared * (i + 1) for i in range(ROUNDS)]


@every_gradient
@pytest.mark.parametrize("rollout", [Enumerate(), Sample(4, 3)], ids=["enumerated", "sampled"])
def test_declared_queries_are_those_that_the_game_counts(row, games, rollout):
    game = gradient_game(row.make(), rollout=rollout, wrap=zoo.Spy)
    zoo.fit(game, ROUNDS)
    assert game.progress.round == ROUNDS
    assert game.progress.queries_per_prompt == ROUNDS * game.queries_per_round()
    assert game.progress.queries == len(games[0]) * game.progress.queries_per_prompt
    if not rollout.enumerated:
        # Of K with L all pairs are distinct, of K with themselves K (K - 1) / 2.
        pairs = sum(
            num * (num - 1) // 2 if itself else num * other
            for num, other, itself in game.oracle.asked
        )
        assert game.progress.queries_per_prompt == pairs


def test_the_policy_as_opponent_is_asked_about_at_each_gradient_step(games):
    game = zoo.fit(gradient_game(zoo.TwoSteps(weight=0.1)), ROUNDS)
    assert game.queries_per_round() == 4
    # In the first round the lookahead is still the policy that the second step starts from again.
    assert game.progress.queries_per_prompt == 4 * ROUNDS - 1


# ---- the equilibrium ----


def claims_fixed_point(algorithm):
    return algorithm.last_iterate and not algorithm.scheduled


def moved_by_one_round(algorithm, games):
    """How far a round moves the equilibrium's log-policy, and the exploitability after it."""
    P, log_reference, nash = games
    log_policy = (
        zoo.engine(algorithm, P, log_reference, nash).run(0, 1).log_policy[0].log_softmax(-1)
    )
    gap = exploitability(P, log_policy, log_reference, zoo.BETA)
    return (log_policy - nash).abs().max().item(), gap.max().item()


@pytest.mark.parametrize(
    "row", [row for row in zoo.CLOSED_FORM if claims_fixed_point(row.make())], ids=str
)
def test_the_equilibrium_is_a_fixed_point_where_that_is_claimed(row, games):
    distance, gap = moved_by_one_round(row.make(), games)
    assert distance < 1e-10
    assert gap < 1e-10


def gradient_norm(algorithm, games):
    """Norm of the enumerated gradient at the equilibrium, over all steps of the plan."""
    game = gradient_game(algorithm, start=games[2])
    norms = []
    for number, step in enumerate(game.plan):
        game.progress.step = number
        game.policy.zero_grad()
        game.training_step(zoo.all_prompts(game), 0).backward()
        norms.append(game.policy.networks["policy"].logits.grad.norm().item())
        assert step is game.step
    return max(norms)


@pytest.mark.parametrize(
    "row", [row for row in zoo.GRADIENT if claims_fixed_point(row.make())], ids=str
)
def test_the_gradient_is_zero_at_the_equilibrium_where_that_is_claimed(row, games):
    assert gradient_norm(row.make(), games) < 1e-10


@pytest.mark.parametrize(
    "algorithm",
    [
        algorithms.SPPO(),
        algorithms.DNO(),
        algorithms.NashMD(eta=1.0),
        algorithms.NashMD(eta=0.3, mixture=0.5),
        algorithms.OptimisticMirrorDescent(regularised=False),
    ],
    ids=lambda a: type(a).__name__,
)
def test_negative_control_others_leave_the_equilibrium(algorithm, games):
    assert not claims_fixed_point(algorithm)
    distance, gap = moved_by_one_round(algorithm, games)
    assert distance > 1e-3
    assert gap > 1e-7
    assert gradient_norm(algorithm, games) > 1e-4


def test_negative_control_the_gradient_of_online_dpo_is_not_zero_at_the_equilibrium(games):
    assert gradient_norm(algorithms.OnlineDPO(), games) > 1e-4


@every_closed_form
def test_the_last_iterate_goes_where_it_is_declared_to_go(row, games):
    P, log_reference, _ = games
    algorithm = row.make()
    trajectory = zoo.engine(algorithm, P, log_reference, log_reference).run(0, row.rounds)
    gap = exploitability(P, trajectory.log_policy[-1], log_reference, zoo.BETA).max().item()
    if algorithm.last_iterate:
        assert gap < row.reaches
    else:
        assert gap > 1e-4


@pytest.mark.parametrize("row", [row for row in zoo.ROWS if row.contraction], ids=str)
def test_linear_convergence_has_the_rate_of_the_theory(row, games):
    """Near the equilibrium log(pi/pi*) shrinks by the row's factor, and KL by its square."""
    P, log_reference, nash = games
    log_policies = zoo.engine(row.make(), P, log_reference, log_reference).run(0, 1500).log_policy
    divergence = trajectory_metrics(P, log_policies, log_reference, zoo.BETA, nash)["kl_to_nash"]
    for curve in divergence.T:
        linear = ((curve < 1e-4) & (curve > 1e-20)).nonzero()[:, 0].double()
        x, y = linear - linear.mean(), curve[linear.long()].log()
        slope = ((x * y).sum() / (x * x).sum()).item()
        assert slope == pytest.approx(2 * math.log(row.contraction), rel=0.1)
