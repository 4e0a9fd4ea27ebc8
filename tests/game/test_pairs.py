"""Comparison designs in the game: what the oracle is asked, what is counted, what is refused."""

from functools import partial

import pytest
import rows
import torch
import zoo
from oracles.zoo import listen, rule
from text_models import prompts, responses

from nlhf_zoo.algorithms import EGPO, SPPO, MovingMagnet, NashMP, OnlineDPO, OnlineIPO
from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.algorithms.optimistic_mirror_descent import OptimisticMirrorDescent
from nlhf_zoo.errors import UserError
from nlhf_zoo.game import designs
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.health.dry_run import dry_run
from nlhf_zoo.oracles import BudgetedOracle, CachedOracle, PreferenceOracle
from nlhf_zoo.oracles.ledger import spent
from nlhf_zoo.records import Comparison, ProximalStep

GAMES = 3  # prompts of a batch


def make_game(algorithm, rollout, **parts):
    return zoo.small_game(algorithm, GAMES, rollout=rollout, realisation=GradientSteps(), **parts)


class Counting(PreferenceOracle):
    """Another oracle that counts distinct pairs, calls, and how often each action stands first."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.pairs, self.calls = oracle, 0, 0

    @property
    def support(self):
        return self.oracle.support

    def forward(self, prompts, first, second):
        self.calls += 1
        each = first.num * (first.num - 1) // 2 if first is second else first.num * second.num
        self.pairs += len(prompts) * each
        return self.oracle(prompts, first, second)


# ---- what is asked, and counted ----

# Of a round: 6 responses a prompt, 3 of each opponent.
COUNTS = [
    (SPPO(), "circle", 6),
    (SPPO(inner_steps=2), "regular(3)", 2 * 9),
    (SPPO(self_play=False), "circle", 6 * 2),
    (OnlineDPO(), "regular(1)", 3),
    (NashMP(inner_steps=2), "circle", 2 * 2 * 12),
    (NashMP(self_play=True), "circle", 2 * 6),
    (OptimisticMirrorDescent(eta=0.3), "regular(1)", 2 * 6),
    (MovingMagnet(inner=EGPO(), every=2), "regular(3)", 2 * 6 * 3),
]


@pytest.mark.parametrize(
    ("algorithm", "pairs", "queries", "epochs"),
    [
        *[(*count, None) for count in COUNTS],
        *[(*count, 2) for count in COUNTS if getattr(count[0], "inner_steps", 1) == 1],
    ],
    ids=lambda c: getattr(c, "paper", c),
)
def test_what_is_counted_is_what_is_asked_and_what_is_declared(algorithm, pairs, queries, epochs):
    game = make_game(algorithm, Sample(6, 3, epochs, pairs=pairs), wrap=Counting)
    assert game.queries_per_round() == queries
    zoo.fit(game, rounds=2)
    assert game.progress.queries_per_prompt == 2 * queries
    assert game.oracle.pairs == game.progress.queries == 2 * queries * GAMES
    assert game.progress.invalid == game.progress.unjudged == 0


def test_a_part_of_a_batch_is_judged_in_one_call():
    game = make_game(SPPO(), Sample(6, pairs="circle"), wrap=Counting, micro_batches=3)
    zoo.fit(game, rounds=2)
    assert game.oracle.calls == 2 * 3


def asked_of(game, drawn):
    """What the oracle says of given responses; they are the opponents too."""
    return zoo.judge(game, game.step, zoo.all_prompts(game), drawn, [drawn])


def drawn_by(game, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return game.rollout.play(game.step, game.policy, zoo.all_prompts(game), rng)[0]


class Place(PreferenceOracle):
    """Says .7 of whatever stands first."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle

    @property
    def support(self):
        return self.oracle.support

    def forward(self, prompts, first, second):
        shape = len(prompts), first.num, second.num
        return Comparison(torch.full(shape, 0.7), torch.ones(shape, dtype=torch.bool))


def test_a_constant_bias_to_a_place_cancels_in_a_circle():
    payoffs = {}
    for pairs in ("circle", "regular(1)"):
        game = make_game(SPPO(), Sample(6, pairs=pairs), wrap=Place)
        payoffs[pairs] = asked_of(game, drawn_by(game)).payoff
    half = torch.full((GAMES, 6), 0.5, dtype=torch.float64)
    torch.testing.assert_close(payoffs["circle"], half)
    assert (payoffs["regular(1)"] - 0.5).abs().min() > 0.1  # where each stands in one place


class Silent(PreferenceOracle):
    """Another oracle that answers nothing of the first prompts, as many as it is told."""

    def __init__(self, oracle, prompts):
        super().__init__()
        self.oracle, self.prompts_without = oracle, prompts

    @property
    def support(self):
        return self.oracle.support

    def forward(self, prompts, first, second):
        said = self.oracle(prompts, first, second)
        valid = (prompts.ids >= self.prompts_without)[:, None, None].expand(said.preference.shape)
        return Comparison(said.preference.masked_fill(~valid, float("nan")), valid)


@pytest.mark.parametrize(
    ("algorithm", "asked"), [(SPPO(), 6), (SPPO(self_play=False), 12)], ids=["themselves", "others"]
)
def test_what_a_design_leaves_out_is_not_invalid(algorithm, asked):
    for silent in (0, 1, GAMES):
        wrap = partial(Silent, prompts=silent)
        game = make_game(algorithm, Sample(6, 3, pairs="circle"), wrap=wrap)
        drawn = game.rollout.play(game.step, game.policy, zoo.all_prompts(game), torch.Generator())
        payoffs = zoo.judge(game, game.step, zoo.all_prompts(game), *drawn)
        assert (payoffs.queries, payoffs.answers) == (asked, asked)
        assert payoffs.invalid == game.progress.invalid == silent * asked
        assert game.progress.unjudged == silent
        assert (~payoffs.valid).sum() == silent * 6
        assert payoffs.payoff[silent:].isfinite().all()


def test_a_run_without_invalid_answers_is_within_any_limit():
    game = make_game(SPPO(), Sample(6, pairs="circle"), max_invalid=0.0)
    zoo.fit(game, rounds=25)
    assert game.progress.round == 25


# ---- what is drawn ----


class Masks(OnlineGame):
    """Remembers what it was told to ask about, and what was drawn."""

    def judge(self, step, prompts, responses, opponents, asked=None):
        if not hasattr(self, "told"):
            self.told, self.drawn = [], []
        self.told.append(asked)
        self.drawn.append(responses.tokens)
        return super().judge(step, prompts, responses, opponents, asked)


def told(pairs, **parts):
    rollout = Sample(6, pairs=pairs)
    game = make_game(SPPO(), rollout, game_class=Masks, **parts)
    zoo.fit(game, rounds=3)
    return game


def test_designs_have_a_stream_of_their_own():
    """Other draws are what they were, each batch has another design, and a run has the same."""
    everything, in_parts = told("all", micro_batches=3), told("circle", micro_batches=3)
    assert everything.told == [None] * 9
    for one, other in zip(everything.drawn[:3], in_parts.drawn[:3], strict=True):
        assert torch.equal(one, other)
    circle, again = told("circle"), told("circle")
    first, second, third = (torch.cat(masks) for masks in circle.told)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    for one, other in zip(circle.told, again.told, strict=True):
        assert torch.equal(one[0], other[0])
    assert (circle.log_policy() == again.log_policy()).all()


def test_overlap_changes_no_design():
    plain, overlapped = (
        told("circle", micro_batches=2, overlap_judging=overlap) for overlap in (False, True)
    )
    for one, other in zip(plain.told, overlapped.told, strict=True):
        assert torch.equal(one[0], other[0])
    assert (plain.log_policy() == overlapped.log_policy()).all()


def test_the_doctor_rehearses_the_design():
    def make_trainer(max_steps, callbacks):
        return rows.trainer(max_steps=max_steps, limit_val_batches=0, callbacks=[*callbacks])

    for rollout in (Sample(6, pairs="circle"), Sample(6, epochs=2, minibatch=1, pairs="circle")):
        game = make_game(SPPO(), rollout)
        checks = dry_run(game, zoo.all_prompts(game), make_trainer)
        assert all(check.passed for check in checks), checks
        assert game.rollout is rollout
        figure = next(check.figure for check in checks if "as declared" in check.name)
        assert figure.startswith("6 counted")


# ---- oracles of texts ----

MINE = responses(["w1", "w2 w3", "w4", "w5 w6 w7"], ["w8 w9", "w9", "w1 w2 w9", "w3"])


def test_a_cache_is_asked_the_designs_pairs_and_pays_for_them_once(tmp_path):
    oracle = CachedOracle(rule(check_symmetry=False), tmp_path / "answers.sqlite")
    heard = listen(oracle)
    talk = prompts("w30", "w31")
    whole = rule()(talk, MINE, MINE).preference
    asked = designs.among_themselves(2, 4, 2, torch.Generator().manual_seed(3))
    found = [designs.ask(oracle, talk, MINE, MINE, asked) for _ in range(2)]
    texts = MINE.text
    pairs = [(talk.text[b], texts[b][k], texts[b][m]) for b, k, m in asked.nonzero().tolist()]
    assert heard() == [" | ".join(pair) for pair in pairs]
    assert len(pairs) == 2 * 4
    assert spent(oracle)["queries"] == spent(oracle)["cache_hits"] == 8
    for one in found:
        assert torch.equal(one.valid, asked)
        torch.testing.assert_close(one.preference[asked], whole[asked])


def test_a_budget_counts_the_designs_pairs_of_a_table():
    game = make_game(SPPO(), Sample(6, pairs="circle"), wrap=lambda o: BudgetedOracle(o, 10**6))
    zoo.fit(game, rounds=2)
    assert spent(game.oracle)["queries"] == game.progress.queries == 2 * 6 * GAMES


# ---- what is refused ----


@pytest.mark.parametrize(
    ("algorithm", "rollout", "words"),
    [
        (SPPO(), Sample(2, pairs="circle"), "does not fit SPPO: a circle needs three responses"),
        (SPPO(), Sample(5, pairs="regular(3)"), "both numbers are odd"),
        (OnlineDPO(), Sample(4, pairs="regular(4)"), "each of 4 responses has 3 others"),
        (NashMP(), Sample(4, 1, pairs="circle"), "meets 2 opponents, and num_opponents is 1"),
        (
            NashMP(self_play=True, reweighted=True),
            Sample(4, epochs=2, pairs="circle"),
            "NashMP.reweighted weighs all pairs anew, and model.rollout.pairs circle",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_design_that_does_not_fit_is_refused(algorithm, rollout, words):
    with pytest.raises(UserError, match=words):
        make_game(algorithm, rollout)


class OwnCount(PolicyOptimizer):
    """Online IPO that counts as in version 0.1."""

    paper = "none"
    last_iterate = True

    def steps(self, beta, round):
        return OnlineIPO().steps(beta, round)

    def queries(self, num_responses, num_opponents, enumerated):
        return 15


class OwnJudge(OnlineGame):
    """Judges as in version 0.1."""

    def judge(self, step, prompts, responses, opponents):
        return super().judge(step, prompts, responses, opponents)


def test_methods_of_before_go_on_without_a_design_and_are_refused_with_one():
    for algorithm in (OwnCount(), MovingMagnet(inner=OwnCount())):
        for rollout in (Enumerate(), Sample(6)):
            assert make_game(algorithm, rollout).queries_per_round() == 15
        for rollout in (Sample(6, pairs="circle"), Sample(6, epochs=2)):
            with pytest.raises(UserError, match=r"OwnCount.queries does not take (degree|reused)"):
                make_game(algorithm, rollout)
    game = make_game(OnlineIPO(), Sample(6), game_class=OwnJudge)
    zoo.fit(game, rounds=1)
    assert game.progress.queries_per_prompt == 15
    with pytest.raises(UserError, match=r"OwnJudge.judge does not take `asked`"):
        make_game(OnlineIPO(), Sample(6, pairs="circle"), game_class=OwnJudge)


class PairsOfOthers(PolicyOptimizer):
    """Draws its responses by another law than its opponent's, and compares them in pairs."""

    paper = "none"
    last_iterate = False

    def steps(self, beta, round):
        payoff = ((1.0, {"policy": 1.0}),)
        return [
            ProximalStep(
                {"reference": 1.0}, payoff, 1 / beta, sampler={"reference": 1.0}, pairs=True
            )
        ]


@pytest.mark.parametrize(("pairs", "queries"), [("all", 15), ("circle", 6)])
def test_pairs_among_themselves_are_declared_as_such_whoever_drew_them(pairs, queries):
    game = make_game(PairsOfOthers(), Sample(6, 3, pairs=pairs), wrap=Counting)
    assert game.queries_per_round() == queries
    zoo.fit(game, rounds=2)
    assert game.oracle.pairs == game.progress.queries == 2 * queries * GAMES
