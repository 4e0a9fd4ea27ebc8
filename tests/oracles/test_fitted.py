"""The model that is fitted to answers, and the oracle that asks where its members disagree."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.callbacks import QueryLog
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.checkpointing import checkpoint_keys
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.oracles import CachedOracle, FittedOracle, ListedResponses, Question, RuleOracle
from nlhf_zoo.policies import TabularPolicy
from nlhf_zoo.solvers.fitted_preference import fit_members, most_disputed, pair_features
from nlhf_zoo.text_models.features import HashedNgrams

TALK = [{"role": "user", "content": "a word"}]
WORDS = [f"{a}{b}" for a in "abcdef" for b in "abcdef"]
PAIRS = [Question(TALK, one, other) for n, one in enumerate(WORDS) for other in WORDS[:n]]
CYCLE = {"a": "b", "b": "c", "c": "a"}  # who is beaten


def cyclic(prompt: str, first: str, second: str) -> float:
    """First letters a > b > c > a, whatever the scale; others tie."""
    if CYCLE.get(first[0]) == second[0]:
        return 0.9
    return 0.1 if CYCLE.get(second[0]) == first[0] else 0.5


def later(prompt: str, first: str, second: str) -> float:
    """The word that ends later in the alphabet, mostly."""
    return 1 / (1 + math.exp(ord(second[1]) - ord(first[1])))


def silent(prompt: str, first: str, second: str) -> float | None:
    """Likewise, without an answer to "aa"."""
    return None if "aa" in (first, second) else later(prompt, first, second)


class Letters:
    """Which letters a word begins and ends with, of six."""

    size = 12

    def __call__(self, texts):
        rows = [[0.0] * 12 for _ in texts]
        for row, (_, word) in zip(rows, texts, strict=True):
            row["abcdef".index(word[0])] = row[6 + "abcdef".index(word[1])] = 1.0
        return torch.tensor(rows, dtype=torch.float64)


def fitted(rule=cyclic, **options) -> FittedOracle:
    return FittedOracle(RuleOracle(rule), **{"features": Letters(), "seed": 3, **options})


def answered(oracle: FittedOracle, questions) -> list[float]:
    found = dict(oracle.answers(questions))
    assert sorted(found) == list(range(len(questions)))
    return [found[number] for number in range(len(questions))]


def test_pair_features_are_antisymmetric_and_hold_a_cycle():
    one, other = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    torch.testing.assert_close(pair_features(one, other), -pair_features(other, one))
    assert pair_features(one, other).shape == (5, 10)
    # φ φ'ᵀ − φ' φᵀ above the diagonal, by hand.
    matrix = torch.einsum("nd,ne->nde", one, other) - torch.einsum("nd,ne->nde", other, one)
    above = torch.stack([matrix[:, i, j] for i in range(4) for j in range(i + 1, 4)], -1)
    torch.testing.assert_close(pair_features(one, other)[:, 4:], above)


def test_members_are_the_minima_that_another_optimiser_finds():
    stream = torch.manual_seed(1)
    features = torch.randn(40, 3, dtype=torch.float64, generator=stream)
    preference = torch.rand(40, dtype=torch.float64, generator=stream)
    weight = torch.empty(2, 40, dtype=torch.float64).exponential_(generator=stream)
    weight[1] *= 50  # far from flat
    centre = torch.tensor([[0.0, 0, 0], [1, -2, 3]], dtype=torch.float64)
    found = fit_members(features, preference, weight, 0.3, centre, torch.zeros_like(centre))
    x, p = features.numpy(), preference.numpy()
    for member, w, c in zip(found, weight.numpy(), centre.numpy(), strict=True):

        def objective(parameters, w=w, c=c):
            s = x @ parameters
            loss = p * np.logaddexp(0, -s) + (1 - p) * np.logaddexp(0, s)
            return (w * loss).sum() + 0.15 * ((parameters - c) ** 2).sum()

        best = minimize(objective, np.zeros(3), method="Nelder-Mead",
                        options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000})  # fmt: skip
        np.testing.assert_allclose(member.numpy(), best.x, atol=1e-6)
    far = torch.full((2, 3), 30.0, dtype=torch.float64)  # where a whole Newton step goes too far
    again = fit_members(features, preference, weight, 0.3, centre, far)
    torch.testing.assert_close(found, again, rtol=0, atol=1e-8)


def test_what_is_disputed_is_where_members_differ():
    preferences = torch.tensor([[0.5, 0.9, 0.2, 0.9], [0.5, 0.1, 0.3, 0.1]])
    assert most_disputed(preferences, 1).tolist() == [1]
    assert most_disputed(preferences, 3).tolist() == [1, 2, 3]


def test_everything_is_asked_until_it_knows_enough_and_then_a_share():
    oracle = fitted(later, min_answers=300, share=0.25)
    few, many = PAIRS[:100], PAIRS[100:]
    assert answered(oracle, few) == [later("", q.first, q.second) for q in few]
    assert oracle.oracle.ledger["queries"] == 100
    assert oracle.ledger["modelled"] == 0
    answered(oracle, many)  # 200 that are missing, and a share of the rest
    rest = len(many) - 200
    assert oracle.ledger["modelled"] == rest - math.ceil(rest / 4)
    assert oracle.oracle.ledger["queries"] == 300 + math.ceil(rest / 4)
    assert 0.8 < oracle.foreseen <= 1


def test_it_learns_a_cycle_that_no_score_explains():
    oracle = fitted(min_answers=400, share=0.1)
    answered(oracle, PAIRS)
    ask = [Question(TALK, one, other) for one, other in (("af", "bf"), ("bf", "cf"), ("cf", "af"))]
    assert (oracle.preferences(ask)[0] > 0.7).all()


def test_disputed_pairs_are_those_of_letters_that_it_has_not_seen():
    known = [q for q in PAIRS if {q.first[0], q.second[0]} <= {*"abcd"}]
    oracle = fitted(min_answers=len(known), share=0.2)
    answered(oracle, known)
    news = [q for q in PAIRS if q not in known]
    before = oracle.oracle.ledger["queries"]
    seen = []
    inner = oracle.oracle.answers
    oracle.oracle.answers = lambda questions: (seen.extend(questions), inner(questions))[1]
    answered(oracle, [*known[:200], *news])
    assert oracle.oracle.ledger["queries"] - before == len(seen) == math.ceil((200 + len(news)) / 5)
    # The share of new letters among what is asked is above their share among the questions.
    asked_news = sum(q in news for q in seen) / len(seen)
    assert asked_news > 1.3 * len(news) / (200 + len(news))


def test_what_the_oracle_leaves_open_stays_invalid_and_is_not_learnt_from():
    oracle = fitted(silent, min_answers=20, share=1.0)
    without = [q for q in PAIRS if "aa" in (q.first, q.second)]
    assert all(map(math.isnan, answered(oracle, without[:5])))
    assert oracle.counts.tolist() == [0, 0, 0]
    answers = answered(oracle, PAIRS[:60])
    assert [math.isnan(a) for a in answers] == ["aa" in (q.first, q.second) for q in PAIRS[:60]]


def test_state_holds_all_that_it_has_learnt():
    whole, first = fitted(min_answers=50), fitted(min_answers=50)
    answered(whole, PAIRS[:150])
    answered(first, PAIRS[:150])
    resumed = fitted(min_answers=50)
    resumed.load_state_dict(first.state_dict())
    assert answered(resumed, PAIRS[150:300]) == answered(whole, PAIRS[150:300])
    assert torch.equal(resumed.parameters_of_fits, whole.parameters_of_fits)


def test_older_answers_give_way():
    oracle = fitted(min_answers=20, share=1.0, remembered=20)
    answered(oracle, PAIRS[:50])
    last = PAIRS[70:77]
    answered(oracle, last)
    places = torch.arange(50, 57) % 20
    assert oracle.answer[places].tolist() == [cyclic("", q.first, q.second) for q in last]
    assert oracle.counts[0] == 57


def test_hashed_ngrams_see_wording_and_the_prompt_where_told():
    plain, of_prompt = HashedNgrams(8, 2), HashedNgrams(8, 2, of_prompt=True)
    texts = [("p", "abc"), ("q", "abc"), ("p", "cba"), ("p", "")]
    one, two = plain(texts), of_prompt(texts)
    assert torch.equal(one[0], one[1])
    assert not torch.equal(two[0], two[1])
    assert not torch.equal(one[0], one[2])
    assert not one[3].any()
    torch.testing.assert_close(one[:3].norm(dim=-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 0.0}, "share must be above 0 and at most 1, but it is 0.0"),
        ({"share": math.nan}, "share must be"),
        ({"min_answers": 0}, "min_answers must be at least 1"),
        ({"members": 1}, "one cannot disagree"),
        ({"l2": 0.0}, "l2 must be a finite number above 0"),
        ({"remembered": 50}, "answers nothing before it has min_answers 100"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, said):
    with pytest.raises(UserError, match=re.escape(said)):
        fitted(**options)


def test_a_cache_outside_is_refused(tmp_path):
    with pytest.raises(UserError, match="put CachedOracle inside of it"):
        CachedOracle(fitted(), tmp_path / "answers.sqlite")
    assert FittedOracle(CachedOracle(RuleOracle(cyclic), tmp_path / "answers.sqlite"))


def test_what_was_foreseen_is_logged_and_what_was_learnt_is_in_the_checkpoint(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text(json.dumps({"prompt": "a word", "responses": WORDS}))
    oracle = fitted(later, min_answers=100)
    game = OnlineGame(TabularPolicy(), ListedResponses(oracle, path), NashMP())
    metrics = {}
    logger = SimpleNamespace(log_metrics=lambda values, step: metrics.update(values))
    trainer = SimpleNamespace(loggers=[logger])
    QueryLog().on_train_batch_end(trainer, game, None, None, 0)
    assert "oracle/foreseen" not in metrics
    assert game.oracle.table is not None  # which asks
    QueryLog().on_train_batch_end(trainer, game, None, None, 0)
    assert metrics["oracle/foreseen"] == oracle.foreseen > 0.7
    assert metrics["ledger/queries"] + metrics["ledger/modelled"] == len(PAIRS)
    learnt = {f"oracle.oracle.{name}" for name in oracle.state_dict()}
    assert len(learnt) == 7
    assert learnt <= checkpoint_keys(game)
