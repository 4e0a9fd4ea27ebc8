"""A best response is trained by the game's loop, resumes, and is measured by draws of its own."""

import csv
import json
from dataclasses import replace

import pytest
import torch
import zoo
from language_models import letters, tuned_adapter
from oracles.zoo import Sums

from nlhf_zoo import MatrixOracle, RuleOracle, TabularPolicy, solvers
from nlhf_zoo.cli.best_response import (
    SampledFigure,
    TrainingOptions,
    split_prompts,
    table,
    train_best_response,
    write_report,
)
from nlhf_zoo.cli.best_response.command import respond
from nlhf_zoo.data.prompts import table_prompts
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.policies.loading import LoadedPlayer, from_adapter, from_model
from nlhf_zoo.records import PLAIN, Prompts

OPTIONS = TrainingOptions(
    answers=8_000, responses=8, opponents=4, batch_size=5, learning_rate=0.1, draws=16, measured=64
)
LEAST = replace(OPTIONS, answers=100, responses=2, opponents=2, draws=2, measured=8, batch_size=2)
TEXTS = Prompts(torch.arange(4), text=["go on.", "a", "to be", "b"])


def parts(num_games=5):
    """A table's policy that is not its reference, and who judges."""
    P, mu = zoo.small_games(num_games)
    start = zoo.normal_logits(*mu.shape, seed=7).log_softmax(-1)
    policy, oracle = TabularPolicy(zoo.TensorReference(mu)), MatrixOracle(P)
    policy.bind((), oracle.support)
    with torch.no_grad():
        policy.networks["policy"].logits.copy_(start)
    return policy, oracle, solvers.exploitability(P, start, mu, zoo.BETA), start


def trained(folder, options=OPTIONS, wrap=lambda oracle: oracle, **changes):
    policy, oracle, exact, start = parts()
    split = split_prompts(table_prompts(oracle), **{"disjoint": False, **changes})
    found = train_best_response(policy, wrap(oracle), zoo.BETA, split, options, folder)
    return found, policy, exact, start


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("best_response"))


# ---- training --------------------------------------------------------------------------------


def test_the_bound_is_attained_nearly_and_the_opponent_is_the_policy_that_was_given(played):
    found, policy, exact, start = played
    torch.testing.assert_close(policy.networks["opponent"].logits, start)
    response = policy.distribution({"policy": 1.0}, Prompts(torch.arange(5)))
    law = policy.log_reference
    P = zoo.small_games()[0]
    bound = solvers.win_rate(P, response, start) - 0.5
    bound = bound + zoo.BETA * (solvers.kl(start, law) - solvers.kl(response, law))
    assert (bound <= exact + 1e-12).all()
    assert bound.mean() > 0.6 * exact.mean()
    assert found.interval.low < exact.mean()
    error = (found.interval.high - found.interval.low) / 4
    assert found.interval.mean == pytest.approx(bound.mean().item(), abs=4 * error)


def test_training_begins_at_the_policy_where_the_bound_is_0(played):
    looks = played[0].looks
    assert (looks[0].round, looks[0].bound, looks[0].low) == (0, 0.0, 0.0)
    assert [look.round for look in looks[:-1]] == [*range(0, 5 * (len(looks) - 1), 5)]
    assert played[0].best.low == max(look.low for look in looks) > 0


def test_answers_are_all_that_were_asked_and_within_the_budget(played, tmp_path):
    found = played[0]
    assert found.answers <= OPTIONS.answers
    a_round = 5 * 8 * 4
    looks, measured = len(found.looks) * 5 * 16 * 2, 5 * 64 * 2
    assert found.answers == found.rounds * a_round + looks + measured
    assert OPTIONS.answers - found.answers < a_round + 5 * 16 * 2 + 1
    assert [look.answers for look in found.looks[:2]] == [160, 5 * a_round + 320]


def test_the_policy_of_the_best_look_is_measured_and_training_ends_behind_it(tmp_path):
    """At a rate that ruins it: the best is the start, whose every draw is 0."""
    wild = replace(OPTIONS, learning_rate=30.0, patience=2)
    found, policy, _, start = trained(tmp_path, wild)
    assert [look.round for look in found.looks] == [0, 5, 10]
    assert (found.best.round, found.interval.mean) == (0, 0.0)
    torch.testing.assert_close(policy.networks["policy"].logits, start)


class Stopping(zoo.Spy):
    """Stops once, in the middle of the training."""

    left = 0

    def forward(self, *args):
        Stopping.left -= 1
        if Stopping.left == 0:
            raise OracleStoppedError("the judge is gone")
        return super().forward(*args)


@pytest.mark.parametrize("questions", [16, 20], ids=["in a round", "in a look"])
def test_an_interrupted_training_goes_on_and_ends_with_the_same_figures(
    played, questions, tmp_path
):
    """Each look is four questions of its own, behind the rounds 0, 5 and 10."""
    Stopping.left = questions
    with pytest.raises(OracleStoppedError, match=r"^the judge is gone$"):
        trained(tmp_path, wrap=Stopping)
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    resumed = trained(tmp_path, wrap=Stopping)[0]
    assert resumed.looks == played[0].looks
    assert torch.equal(resumed.draws, played[0].draws)
    assert resumed.answers == played[0].answers


def test_a_training_that_has_ended_is_not_done_again(tmp_path):
    few = replace(OPTIONS, answers=3_000)
    first = trained(tmp_path, few)[0]
    again = trained(tmp_path, few)[0]
    assert torch.equal(again.draws, first.draws)
    with pytest.raises(UserError, match=r"another best response \(its learning_rate is another\)"):
        trained(tmp_path, replace(few, learning_rate=0.2))


@pytest.mark.slow
def test_a_policy_on_an_adapter_answers_to_its_base(tmp_path):
    """Loaded, its reference is the bare base; bound anew by the game it still is.

    Nor does it matter how a run has divided log-probabilities: a law is what it is.
    """
    policy = from_adapter(tuned_adapter(), letters("llama"), max_new_tokens=2)
    rng = torch.Generator().manual_seed(0)
    drawn = policy.sample({"policy": 1.0}, policy.encode(TEXTS), 6, PLAIN, rng)
    law = {p: policy.log_prob({p: 1.0}, TEXTS, drawn) for p in ("policy", "reference")}
    policy.length_normalised = True
    found = train_best_response(
        policy, RuleOracle(Sums()), 0.1, split_prompts(TEXTS), LEAST, tmp_path
    )
    again = {p: policy.log_prob({p: 1.0}, TEXTS, drawn) for p in ("opponent", "reference")}
    torch.testing.assert_close(again["opponent"], law["policy"], atol=1e-4, rtol=0)
    torch.testing.assert_close(again["reference"], law["reference"], atol=1e-4, rtol=0)
    assert (law["policy"] - law["reference"]).abs().max() > 0.01
    assert len(found.draws) == len(found.split.measurement) == 1


@pytest.mark.slow
def test_a_whole_model_gets_an_adapter_of_the_rank_that_is_wanted(tmp_path):
    """It was loaded with the smallest, of zeros."""
    policy, options = from_model(letters("llama"), max_new_tokens=2), replace(LEAST, rank=5)
    split = split_prompts(TEXTS)
    found = train_best_response(policy, RuleOracle(Sums()), 0.1, split, options, tmp_path)
    parameters = policy.trained_parameters()
    assert {p.shape[0] for name, p in parameters.items() if "lora_A" in name} == {5}
    assert found.rounds >= 1


# ---- what is refused -------------------------------------------------------------------------


def test_a_split_has_three_parts_that_share_no_prompt():
    split = split_prompts(Prompts(torch.arange(9)))
    places = [part.ids.tolist() for part in (split.training, split.selection, split.measurement)]
    assert [len(part) for part in places] == [4, 2, 3]
    assert sorted(i for part in places for i in part) == [*range(9)]
    small = split_prompts(Prompts(torch.arange(3)))
    assert {len(part) for part in (small.training, small.selection, small.measurement)} == {1}
    with pytest.raises(UserError, match=r"but there are 2: give at least 3, or "):
        split_prompts(Prompts(torch.arange(2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "draws": ({"draws": 1}, "draws must be at least 2, but it is 1"),
        "step": ({"step": 1.5}, "step must lie above 0 and be at most 1, but it is 1.5"),
        "rate": ({"learning_rate": float("inf")}, "learning_rate must be a finite number above 0"),
        "seed": ({"seed": -1}, "seed must be at least 0, but it is -1"),
    }.values(),
)
def test_options_out_of_their_range_are_refused(changes, message):
    with pytest.raises(UserError, match=f"^--response.{message}"):
        replace(OPTIONS, **changes)


def test_a_budget_without_a_round_and_a_game_without_temperature_are_refused(tmp_path):
    split = split_prompts(Prompts(torch.arange(5)), disjoint=False)
    needed = 5 * 64 * 2 + 2 * 5 * 16 * 2 + 5 * 8 * 4
    few = replace(OPTIONS, answers=needed - 1)
    with pytest.raises(UserError, match=f"one round .* takes {needed}: raise it"):
        few.rounds(split)
    assert replace(OPTIONS, answers=needed).rounds(split) == 1
    policy, oracle, *_ = parts()
    with pytest.raises(UserError, match=r"at a temperature above 0, but beta is 0\.0"):
        train_best_response(policy, oracle, 0.0, split, OPTIONS, tmp_path)


def test_the_reference_of_a_response_is_the_policys_own(tmp_path):
    (policy, oracle, *_), (other, *_) = parts(), parts()
    policy, other = LoadedPlayer("mine", policy), LoadedPlayer("theirs", other)
    prompts = table_prompts(oracle)
    for player, reference, words in (
        (policy, other.reference, "reference is another reference, so leave --reference out"),
        (policy.reference, policy.reference, "give that model itself as the policy$"),
    ):
        with pytest.raises(UserError, match=words):
            respond(player, reference, oracle, prompts, 0.1, OPTIONS, tmp_path)


# ---- the report ------------------------------------------------------------------------------


def figure(low, high, known=True):
    return SampledFigure((low + high) / 2, low, high, 1000, known)


def test_a_table_says_what_the_difference_means(played):
    found = played[0]
    middle, apart = found.interval.mean, found.interval.high - found.interval.low
    cases = {
        "has a blind spot": figure(middle - 3 * apart, middle - 2 * apart),
        "does not attain the estimate": figure(middle + 2 * apart, middle + 3 * apart),
        "agree within their intervals": figure(middle - apart, middle + apart),
        "these samples cannot tell": figure(middle - apart, middle + apart, known=False),
    }
    for words, estimate in cases.items():
        text = table(found, estimate)
        assert words in text
        assert sum(other in text for other in cases) == 1
        assert f"{estimate.value:.4f}" in text
    assert "these samples cannot tell" in table(found, None)
    assert "these very 5 prompts" in text
    assert f"[{found.interval.low:.4f}, {found.interval.high:.4f}]" in text


def test_files_hold_the_curve_and_the_figures(played, tmp_path):
    found = played[0]
    write_report(found, tmp_path, figure(0.0, 0.1))
    with (tmp_path / "bound.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["bound"]) for row in rows] == [look.bound for look in found.looks]
    assert [int(row["answers"]) for row in rows] == [look.answers for look in found.looks]
    content = json.loads((tmp_path / "bound.json").read_text())
    assert content["bound"]["low"] == found.interval.low
    assert content["answers"] == found.answers
    assert (tmp_path / "bound.txt").read_text() == table(found, figure(0.0, 0.1)) + "\n"
    assert (tmp_path / "bound.png").read_bytes()[:4] == b"\x89PNG"


def test_the_estimate_is_of_the_prompts_that_are_measured_and_of_the_policy_that_was_given(
    tmp_path,
):
    policy, oracle, exact, _ = parts()
    player, seen = LoadedPlayer("mine", policy), []

    def estimated(prompts):
        law = {p: policy.distribution({p: 1.0}, prompts) for p in ("policy", "reference")}
        rows = prompts.ids
        value = solvers.exploitability(oracle.table[rows], *law.values(), zoo.BETA)
        seen.append((rows.tolist(), value.tolist()))
        return figure(value.mean().item(), value.mean().item())

    options = replace(OPTIONS, prompts="split", batch_size=2, answers=2_000)
    prompts = table_prompts(oracle)
    said = respond(
        player, player.reference, oracle, prompts, zoo.BETA, options, tmp_path, estimated
    )
    ((rows, values),) = seen
    assert json.loads((tmp_path / "bound.json").read_text())["prompts"]["measurement"] == rows
    assert values == pytest.approx(exact[rows].tolist(), rel=1e-9)
    assert "neither trained on nor chosen by; nothing was chosen by its draws, 64 a prompt" in said
    assert str(tmp_path) in said
