"""The loop: when players move, what a step is, what is counted, what invalid answers do."""

import copy
import math
from dataclasses import replace

import lightning as L
import pytest
import torch
import zoo
from paths import CONFIGS
from slow import half_of

from nlhf_zoo.algorithms import EGPO, SPPO, MovingMagnet, NashMD, NashMP, OnlineDPO, OnlineIPO
from nlhf_zoo.algorithms.surrogates import proximal_regression
from nlhf_zoo.callbacks import Budget, read_history
from nlhf_zoo.cli.main import main
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.playing import Fresh
from nlhf_zoo.game.realisation import ClosedForm, GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.policies import MLPPolicy, TabularPolicy
from nlhf_zoo.records import Responses
from nlhf_zoo.records.random_streams import random_stream

C, N = 3, 4


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)


def linear_decay(optimizer):
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=20)


ALL_KINDS = [made() for made in (NashMP, EGPO, OnlineIPO, SPPO, OnlineDPO, NashMD)]
ALL_KINDS.append(OnlineIPO(surrogate=proximal_regression))


def name_of(algorithm):
    return f"{type(algorithm).__name__}-{algorithm.chosen_surrogate(False).__name__}"


def each(*algorithms):
    return pytest.mark.parametrize("algorithm", algorithms, ids=name_of)


all_kinds = each(*ALL_KINDS)


def make_game(algorithm, rollout=None, kind=TabularPolicy, num_games=C, wrap=None, **kwargs):
    P, log_reference = zoo.small_games(num_games, N)
    oracle = zoo.Scored(P) if wrap is None else wrap(zoo.Scored(P))
    start = zoo.TensorReference(zoo.normal_logits(num_games, N, seed=6))
    torch.manual_seed(0)  # of an MLP's weights
    policy = kind(zoo.TensorReference(log_reference), start)
    parts = {"optimizer": sgd, "rollout": rollout, "realisation": GradientSteps()} | kwargs
    return OnlineGame(policy, oracle, algorithm, zoo.BETA, **parts)


def parameters(game, player="policy"):
    return [p.detach().clone() for p in game.policy.networks[player].parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- the loop rule: the plan advances between optimiser steps ----


def double_backward(
    algorithm, kind, optimizer, rounds, scheduled, restore_state=True, restore_groups=False
):
    """Two half steps a round, without hooks and Trainer; losses and samples are the game's."""
    game = make_game(algorithm, Sample(4, 3), kind)
    optimizer = optimizer(list(game.policy.networks["policy"].parameters()))
    scheduler = linear_decay(optimizer) if scheduled else None
    prompts, drawn = zoo.all_prompts(game), 0

    def gradient_step(step):
        nonlocal drawn
        stream = random_stream(0, 0, drawn, torch.device("cpu"))
        drawn += 1
        responses, opponents = game.rollout.play(step, game.policy, prompts, stream)
        payoffs = zoo.judge(game, step, prompts, responses, opponents)
        optimizer.zero_grad()
        game.improve(step, prompts, responses, payoffs).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()

    for number in range(rounds):
        first, second = algorithm.steps(zoo.BETA, number)
        weights, state = parameters(game), copy.deepcopy(optimizer.state_dict())
        for _ in range(first.gradient_steps):
            gradient_step(first)
        game.policy.copy_("policy", "lookahead")
        with torch.no_grad():
            network = game.policy.networks["policy"]
            for parameter, old in zip(network.parameters(), weights, strict=True):
                parameter.copy_(old)
        now = optimizer.state_dict()
        if restore_groups:
            now["param_groups"] = state["param_groups"]
        if restore_state:
            now["state"] = state["state"]
        optimizer.load_state_dict(now)
        for _ in range(second.gradient_steps):
            gradient_step(second)
        algorithm.end_round(game.policy, number)
    return parameters(game)


EXTRAGRADIENT = [EGPO(), NashMP(), NashMP(kappa=0.5, inner_steps=2, surrogate=proximal_regression)]


@half_of(
    "algorithm, kind, optimizer, scheduled",
    dict(zip(["EGPO", "NashMP", "NashMP-2-steps"], EXTRAGRADIENT, strict=True)),
    {"table": TabularPolicy, "mlp": MLPPolicy},
    {"sgd": sgd, "adam": adam},
    {"constant": False, "decayed": True},
)
def test_extragradient_is_a_double_backward_bit_for_bit(algorithm, kind, optimizer, scheduled):
    schedule = linear_decay if scheduled else None
    game = make_game(algorithm, Sample(4, 3), kind, optimizer=optimizer, lr_scheduler=schedule)
    start = parameters(game)
    zoo.fit(game, rounds=5)
    assert equal(parameters(game), double_backward(algorithm, kind, optimizer, 5, scheduled))
    assert not equal(parameters(game), start)


def test_the_comparison_sees_an_optimiser_state_that_was_not_restored():
    game = zoo.fit(
        make_game(EGPO(), Sample(4, 3), optimizer=adam, lr_scheduler=linear_decay), rounds=5
    )
    right = double_backward(EGPO(), TabularPolicy, adam, 5, True)
    no_state = double_backward(EGPO(), TabularPolicy, adam, 5, True, restore_state=False)
    old_rate = double_backward(EGPO(), TabularPolicy, adam, 5, True, restore_groups=True)
    assert equal(parameters(game), right)
    assert not equal(parameters(game), no_state)
    assert not equal(parameters(game), old_rate)


def test_enumerated_egpo_is_the_paper_s_loss_by_autograd():
    """By its own formula: sum_yy' pi pi' (D log(pi/mu) - D P pi'' / beta)^2, from the matrix."""
    P, log_mu = zoo.small_games(C, N)
    theta = zoo.normal_logits(C, N, seed=6).log_softmax(-1)

    def half_step(at, opponent):
        logits = at.clone().requires_grad_()
        log_pi = logits.log_softmax(-1)
        d = log_pi - log_mu - torch.einsum("cij,cj->ci", P, opponent.softmax(-1)) / zoo.BETA
        weight = log_pi.detach().exp()
        square = (d[:, :, None] - d[:, None, :]) ** 2
        loss = (weight[:, :, None] * weight[:, None, :] * square).sum((1, 2)).mean()
        return at - 0.05 * torch.autograd.grad(loss, logits)[0]

    game = make_game(EGPO(), optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    for _ in range(6):
        theta = half_step(theta, half_step(theta, theta))
    zoo.fit(game, rounds=6)
    torch.testing.assert_close(game.log_policy(), theta.log_softmax(-1), atol=1e-12, rtol=0)


def test_a_gradient_step_on_uniform_responses_is_the_exact_step():
    """The gradient of 2 Var(d) under uniform weights is 4/N (d - mean d): a step of EGPO."""
    eta = 0.5
    rate = eta * zoo.BETA * N / 4 * C  # the loss is a mean over C games
    game = make_game(EGPO(scored=zoo.UNIFORM), optimizer=lambda p: torch.optim.SGD(p, lr=rate))
    P, log_reference = zoo.small_games(C, N)
    exact = zoo.engine(EGPO(eta), P, log_reference, game.log_policy()).run(0, 10).log_policy[-1]
    zoo.fit(game, rounds=10)
    torch.testing.assert_close(game.log_policy(), exact.log_softmax(-1), atol=1e-12, rtol=0)


def test_a_second_fit_starts_from_a_new_optimiser():
    """A half step goes back to the new optimiser's state, not to that of the first fit."""
    game = zoo.fit(make_game(EGPO(), optimizer=adam), rounds=3)
    other = make_game(EGPO(), optimizer=adam)
    with torch.no_grad():
        for new, old in zip(other.policy.parameters(), game.policy.parameters(), strict=True):
            new.copy_(old)
    zoo.fit(game, rounds=5)
    zoo.fit(other, rounds=2)
    assert equal(parameters(game), parameters(other))


# ---- players ----


class Watch(L.Callback):
    """Parameters of all players before each training step, and where the plan stands."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, game, batch, batch_idx):
        players = {p: parameters(game, p) for p in game.policy.networks}
        at = game.progress
        self.seen.append((at.round, at.step, at.gradient_step, players))


def watch(algorithm, rounds=3):
    callback = Watch()
    zoo.fit(make_game(algorithm, Sample(3, 2)), rounds, callbacks=[callback])
    return callback.seen


@pytest.mark.parametrize("kappa", [1.0, 0.25])
def test_what_nash_mp_s_players_hold_at_each_phase(kappa):
    seen = watch(NashMP(kappa=kappa, inner_steps=2))
    assert [phase[:3] for phase in seen] == [
        (r, s, g) for r in range(3) for s in range(2) for g in range(2)
    ]
    for number in range(3):
        start, inside, restored, late = (phase[3] for phase in seen[4 * number : 4 * number + 4])
        # The lookahead is trained as the policy; it and the anchor do not move meanwhile.
        assert not equal(start["policy"], inside["policy"])
        assert equal(start["anchor"], inside["anchor"])
        assert equal(start["lookahead"], inside["lookahead"])
        # Then the policy is back where it was, and the lookahead is elsewhere.
        assert equal(start["policy"], restored["policy"])
        assert not equal(restored["lookahead"], start["lookahead"])
        assert not equal(restored["lookahead"], restored["policy"])
        assert equal(restored["anchor"], start["anchor"])
        assert not equal(late["policy"], restored["policy"])
        assert equal(late["lookahead"], restored["lookahead"])
        if number < 2:
            after = seen[4 * number + 4][3]
            expected = [
                a.lerp(p, kappa) for a, p in zip(start["anchor"], after["policy"], strict=True)
            ]
            for found, wanted in zip(after["anchor"], expected, strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-15, rtol=0)
            assert equal(after["anchor"], after["policy"]) == (kappa == 1)


def test_sppo_s_anchor_is_the_policy_of_the_round_s_start():
    seen = watch(SPPO(inner_steps=3))
    for number in range(3):
        phases = [phase[3] for phase in seen[3 * number : 3 * number + 3]]
        for phase in phases:
            assert equal(phase["anchor"], phases[0]["policy"])
        assert not equal(phases[2]["policy"], phases[0]["policy"])


def test_the_magnet_moves_every_so_many_rounds():
    seen = watch(MovingMagnet(EGPO(), every=2), rounds=5)
    starts = [phase[3] for phase in seen if phase[1:3] == (0, 0)]
    assert equal(starts[0]["magnet"], starts[1]["magnet"])
    assert equal(starts[2]["magnet"], starts[2]["policy"])
    assert equal(starts[3]["magnet"], starts[2]["policy"])
    assert equal(starts[4]["magnet"], starts[4]["policy"])
    assert not equal(starts[4]["magnet"], starts[2]["magnet"])


@all_kinds
def test_the_reference_never_moves(algorithm):
    game = make_game(algorithm, Sample(4, 2), optimizer=adam)
    before = game.log_policy("reference").clone()
    assert torch.equal(before, zoo.small_games(C, N)[1].log_softmax(-1))
    zoo.fit(game, rounds=5)
    assert torch.equal(game.log_policy("reference"), before)
    assert not torch.equal(game.log_policy("policy"), before)


# ---- batches ----


@half_of(
    "algorithm, optimizer",
    {name_of(algorithm): algorithm for algorithm in ALL_KINDS}
    | {"NashMP-2-steps": NashMP(inner_steps=2, kappa=0.5)},
    {"sgd": sgd, "adam": adam},
)
def test_one_prompt_accumulated_eight_times_is_a_batch_of_eight(algorithm, optimizer):
    whole = make_game(algorithm, num_games=8, optimizer=optimizer)
    parts = make_game(algorithm, num_games=8, optimizer=optimizer)
    zoo.fit(whole, rounds=4, data=TablePrompts(batch_size=8))
    zoo.fit(parts, rounds=4, data=TablePrompts(batch_size=1), accumulate_grad_batches=8)
    for player in whole.policy.networks:
        for one, other in zip(parameters(whole, player), parameters(parts, player), strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert parts.progress.round == whole.progress.round == 4
    assert parts.progress.batches == 8 * whole.progress.batches
    # Products are remembered for one batch of prompts only.
    if getattr(algorithm, "inner_steps", 1) == 1:
        assert parts.progress.queries_per_prompt == whole.progress.queries_per_prompt
        assert parts.progress.queries == whole.progress.queries


def test_games_of_a_batch_do_not_meet():
    """Together or alone: the same policies, but for the mean over the batch."""
    together = zoo.fit(make_game(EGPO()), rounds=4)
    P, log_reference = zoo.small_games(C, N)
    start = zoo.normal_logits(C, N, seed=6).log_softmax(-1)
    for game in range(C):
        pick = slice(game, game + 1)
        alone = OnlineGame(
            TabularPolicy(
                zoo.TensorReference(log_reference[pick]), zoo.TensorReference(start[pick])
            ),
            MatrixOracle(P[pick]),
            EGPO(),
            zoo.BETA,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.3 / C, momentum=0.9),
            realisation=GradientSteps(),
        )
        zoo.fit(alone, rounds=4)
        torch.testing.assert_close(
            alone.log_policy(), together.log_policy()[pick], atol=1e-12, rtol=0
        )


def test_samples_of_two_steps_and_two_seeds_differ(monkeypatch):
    game = make_game(OnlineIPO(), Sample(50))
    first, second = (Fresh(game, game.step).play(zoo.all_prompts(game)) for _ in "ab")
    assert not torch.equal(first[0].tokens, second[0].tokens)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    game.progress.batches = 0
    other = Fresh(game, game.step).play(zoo.all_prompts(game))
    assert not torch.equal(first[0].tokens, other[0].tokens)


# ---- the closed form through the Trainer ----


@pytest.mark.parametrize("row", zoo.CLOSED_FORM, ids=str)
def test_the_closed_form_in_training_steps_is_the_closed_form(row):
    game = make_game(row.make(), realisation=ClosedForm(rounds_per_step=7))
    start, (P, log_reference) = game.log_policy(), zoo.small_games(C, N)
    exact = zoo.engine(row.make(), P, log_reference, start).run(0, 23)
    zoo.fit(game, rounds=23)
    torch.testing.assert_close(
        game.log_policy(), exact.log_policy[-1].log_softmax(-1), atol=1e-12, rtol=0
    )
    assert game.progress.round == 23
    assert game.progress.queries_per_prompt == exact.most_queries[-1]
    assert game.progress.queries == exact.queries[-1].expand(C).sum()
    assert game.progress.batches == math.ceil(23 / 7)


@pytest.mark.parametrize("realisation", [ClosedForm(), GradientSteps()])
@pytest.mark.parametrize(("queries", "rounds"), [(0, 0), (1, 0), (7, 3), (8, 4)])
def test_a_round_that_would_exceed_the_budget_is_not_begun(realisation, queries, rounds):
    game = make_game(NashMP(), realisation=realisation)
    zoo.fit(game, None, callbacks=[Budget(queries=queries)])
    assert game.progress.round == rounds
    assert game.progress.queries_per_prompt == 2 * rounds
    assert game.finished


@pytest.mark.parametrize("realisation", [ClosedForm(), GradientSteps()])
def test_a_round_that_asks_nothing_ends_by_its_number(realisation):
    """Against the reference alone the first product is all there is: it was divided by zero."""
    algorithm = zoo.AgainstOne({"reference": 1.0})
    game = make_game(algorithm, realisation=realisation)
    zoo.fit(game, None, callbacks=[Budget(rounds=5, queries=9)])
    assert (game.progress.round, game.progress.queries_per_prompt) == (5, 1)
    with pytest.raises(UserError, match=r"AgainstOne asks nothing .*: give it rounds"):
        zoo.fit(make_game(algorithm), None, callbacks=[Budget(queries=9)])


# ---- answers that could not be had ----


def drawn(*actions):
    """The same responses to each prompt."""
    tokens = torch.tensor(actions).expand(C, -1)[:, :, None]
    weight = torch.full(tokens.shape[:2], 1 / len(actions), dtype=torch.float64)
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight)


def gradient_on(algorithm, scored, opponents, **silence):
    """Gradient of the loss [C, N] with these responses, and the game."""
    rollout = Sample(scored.num, opponents[0].num)
    game = make_game(algorithm, rollout, wrap=lambda oracle: zoo.Silent(oracle, **silence))
    zoo.scatter_players(game)
    scored = replace(scored, version=game.policy.stamp(game.step.sampler))
    payoffs = zoo.judge(game, game.step, zoo.all_prompts(game), scored, opponents)
    loss = game.improve(game.step, zoo.all_prompts(game), scored, payoffs)
    return torch.autograd.grad(loss, game.policy.networks["policy"].logits)[0], game


@pytest.mark.parametrize("allowed", [False, True])
def test_stale_responses_are_refused_unless_they_are_allowed(allowed):
    """Drawn before a gradient step, trained on after it."""
    game = make_game(OnlineDPO(), Sample(4, 1))
    game.allow_stale = allowed
    prompts, step = zoo.all_prompts(game), game.step
    drawn, opponents = game.rollout.play(step, game.policy, prompts, torch.Generator())
    payoffs = zoo.judge(game, step, prompts, drawn, opponents)
    assert game.improve(step, prompts, drawn, payoffs).isfinite()  # fresh
    game.versions.moved("policy")  # as after a gradient step
    if allowed:
        assert game.improve(step, prompts, drawn, payoffs).isfinite()
    else:
        with pytest.raises(UserError, match=r"drawn by version 0 of the weights, .* version 1"):
            game.improve(step, prompts, drawn, payoffs)


def test_an_oracle_that_does_not_answer_ends_the_run():
    def play(silent, rounds):
        game = make_game(OnlineDPO(), Sample(4, 1), wrap=lambda o: zoo.Silent(o, prompts=silent))
        return zoo.fit(game, rounds=rounds, callbacks=())

    with pytest.raises(UserError, match="Silent had no valid answer to 67% of what it was asked"):
        play((0, 1), 30)
    assert play((0, 1), 19).progress.round == 19  # twenty steps are looked at
    assert play((0,), 30).progress.round == 30  # a third is less than half


def opponents_of(algorithm, scored, *actions):
    return [scored] if algorithm.steps(zoo.BETA, 0)[0].self_play else [drawn(*actions)]


@all_kinds
def test_an_invalid_response_leaves_the_loss_and_the_others_weigh_more(algorithm):
    """As if the response, and the opponent, had not been drawn."""
    long, short = drawn(0, 1, 2, 3), drawn(0, 1, 3)
    found, game = gradient_on(algorithm, long, opponents_of(algorithm, long, 3, 2, 0), action=2)
    expected, _ = gradient_on(algorithm, short, opponents_of(algorithm, short, 3, 0))
    torch.testing.assert_close(found, expected)
    assert game.progress.unjudged == 0
    # Of 4 with themselves, action 2 with the 3 others; of 4 x 3, a row and a column.
    assert game.progress.invalid == C * (3 if game.step.self_play else 6)


@all_kinds
@pytest.mark.parametrize("lie", [0.0, 1.0, math.nan])
def test_a_prompt_without_answers_leaves_the_loss_and_is_counted(algorithm, lie):
    scored = drawn(0, 1, 2, 3)
    opponents = opponents_of(algorithm, scored, 3, 0)
    found, game = gradient_on(algorithm, scored, opponents, prompts=(1,), lie=lie)
    expected, _ = gradient_on(algorithm, scored, opponents)
    assert (found[1] == 0).all()
    # The mean is over the two prompts that were judged.
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]] * 3 / 2)
    assert game.progress.unjudged == 1


@all_kinds
def test_an_invalid_answer_is_never_a_label(algorithm):
    """Whatever stands in its place changes nothing, bit for bit."""
    scored = drawn(0, 1, 2, 3)
    opponents = opponents_of(algorithm, scored, 3, 2)
    found = [
        gradient_on(algorithm, scored, opponents, prompts=(0,), action=1, lie=lie)[0]
        for lie in (0.0, 1.0, 0.5, math.nan)
    ]
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.isfinite(found[0]).all()


@all_kinds
def test_a_batch_without_any_answer_moves_nothing(algorithm):
    game = make_game(algorithm, Sample(3, 2), wrap=lambda oracle: zoo.Silent(oracle, (0, 1, 2)))
    before = parameters(game)
    zoo.fit(game, rounds=2)
    assert equal(parameters(game), before)
    steps = 2 * sum(step.gradient_steps for step in game.plan)
    assert game.progress.unjudged == C * steps
    assert game.progress.invalid == game.progress.queries  # everything that was asked


@all_kinds
def test_enumerated_responses_may_be_invalid_too(algorithm):
    """Weights are those of the valid responses, scaled to 1; no NaN, no trace of the rest."""
    gradients = []
    for lie in (0.0, math.nan):
        game = make_game(algorithm, wrap=lambda oracle, lie=lie: zoo.Silent(oracle, (1,), 2, lie))
        zoo.scatter_players(game)
        loss = game.training_step(zoo.all_prompts(game), 0)
        gradients.append(torch.autograd.grad(loss, game.policy.networks["policy"].logits)[0])
        assert game.progress.unjudged == 1
    assert torch.equal(*gradients)
    assert torch.isfinite(gradients[0]).all()
    assert (gradients[0][1] == 0).all()
    assert gradients[0][0].norm() > 0


# ---- what the loop is for ----


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["sampled", "mlp"])
@pytest.mark.parametrize(
    "name", ["nash_mp", "egpo", "nash_md", "online_ipo", "optimistic_mirror_descent"]
)
def test_a_hundred_sampled_pairs_a_step_solve_the_game(
    folder, name, tmp_path, monkeypatch, record_property
):
    """A tenth of the reference's exploitability, mean of ten games (arXiv 2503.08942's simulation).

    The policy starts at the reference, so the first row of the history is the reference's.
    """
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(CONFIGS / "tabular" / folder / f"{name}.yaml")])
    history = read_history(tmp_path / "runs" / "tabular" / folder / name / "version_0")
    start, end = history["exploitability"][0], history["exploitability"][-1]
    worst = (end / start).max()
    figures = f"mean {end.mean() / start.mean():.3f} of the reference's, worst game {worst:.3f}"
    record_property(f"exploitability, {folder} {name}", figures)
    print(f"{folder} {name}: exploitability {figures}")
    assert history["kl_to_reference"][0].max() < 1e-12
    assert end.mean() < start.mean() / 10
