"""A population of judges."""

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from judges import FairJudge, Judge, actions, opinion, prompts, responses

from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.callbacks import QueryLog
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.oracles import (
    BernoulliLabels,
    CachedOracle,
    Comal,
    EmbeddingOracle,
    EnsembleOracle,
    ListedResponses,
    MatrixOracle,
    OrderSwap,
    PreferenceOracle,
    RuleOracle,
)
from nlhf_zoo.oracles.rules import shorter_wins
from nlhf_zoo.oracles.tables.base import TableOracle
from nlhf_zoo.policies import TabularPolicy
from nlhf_zoo.records import Prompts
from nlhf_zoo.solvers import regularised_nash


def of_scores(*scores: float) -> torch.Tensor:
    """P = sigmoid(s - s'): a transitive judge."""
    s = torch.tensor(scores, dtype=torch.float64)
    return torch.sigmoid(s[:, None] - s)


def rotated() -> list[PreferenceOracle]:
    """Judges of one table who rank (a, b, c), (b, c, a) and (c, a, b), with scores 2, 1, 0."""
    return [MatrixOracle(of_scores(*s)) for s in ((2, 1, 0), (0, 2, 1), (1, 0, 2))]


def test_transitive_judges_make_a_cycle():
    oracle = EnsembleOracle(rotated())
    # Two rank a before b, next to each other, and one b before a, two places apart.
    win = (2 / (1 + math.exp(-1)) + 1 / (1 + math.exp(2))) / 3
    assert win == pytest.approx(0.5271067, abs=1e-7)
    cycle = [[0.5, win, 1 - win], [1 - win, 0.5, win], [win, 1 - win, 0.5]]
    torch.testing.assert_close(oracle.table, torch.tensor([cycle], dtype=torch.float64))
    for member in oracle.members:
        order = member.table[0].sum(1).argsort(descending=True).tolist()
        assert all(member.table[0, i, j] > 0.5 for i, j in itertools.combinations(order, 2))


def test_all_ways_to_ask_give_the_weighted_mean():
    tables = [m.table for m in rotated()]
    oracle = EnsembleOracle(rotated(), weights=[3, 1, 4])
    mean = (3 * tables[0] + 1 * tables[1] + 4 * tables[2]) / 8
    torch.testing.assert_close(oracle.table, mean)
    few, more = actions([2, 0]), actions([1, 1, 0])
    everyone = actions([0, 1, 2], enumerated=True)
    prompt = Prompts(torch.tensor([0]))
    for first, second in itertools.product((few, more, everyone), repeat=2):
        answer = oracle(prompt, first, second)
        by_hand = mean[0][first.actions[0][:, None], second.actions[0]]
        torch.testing.assert_close(answer.preference[0], by_hand)
        assert answer.valid.all()
        product, valid = oracle.expected(prompt, first, second)
        torch.testing.assert_close(product[0], by_hand @ second.weight[0])
        assert valid.all()
    assert oracle.state_dict() == {}


def test_precision_is_the_highest_of_the_members():
    P = of_scores(2, 1, 0)
    oracle = EnsembleOracle([MatrixOracle(P, dtype="float32"), MatrixOracle(P.mT)])
    assert oracle.table.dtype == torch.float64
    assert (oracle.table - 0.5).abs().max() < 1e-7


def test_members_without_a_table_give_none():
    oracle = EnsembleOracle([EmbeddingOracle(num_actions=3, dim=2, seed=s) for s in (0, 1)])
    assert oracle.table is None
    asked = Prompts(torch.tensor([0])), *2 * [actions([0, 1, 2], enumerated=True)]
    product, _ = oracle.expected(*asked)
    by_hand = sum(member.expected(*asked)[0] for member in oracle.members)
    torch.testing.assert_close(product, by_hand / 2)


# ---- texts ---------------------------------------------------------------------------------------


def fair(name: str, first: str, second: str) -> float:
    return opinion(name, first, second) if first < second else 1 - opinion(name, second, first)


class Own(FairJudge):
    """A judge whose opinions are not the others'."""

    def answers(self, questions):
        for number, answer in super().answers(questions):
            q = questions[number]
            yield number, answer if math.isnan(answer) else fair(self.name, q.first, q.second)


def test_texts_are_put_to_every_member():
    oracle = EnsembleOracle([Own("one"), Own("two"), Own("three")], weights=[1, 2, 1])
    first, second = responses(["a", "b", "c"]), responses(["a", "d"])
    answer = oracle(prompts("x"), first, second)
    by_hand = [
        [
            0.5 if a == b else (fair("one", a, b) + 2 * fair("two", a, b) + fair("three", a, b)) / 4
            for b in second.text[0]
        ]
        for a in first.text[0]
    ]
    torch.testing.assert_close(answer.preference[0], torch.tensor(by_hand, dtype=torch.float64))
    assert [m.ledger["queries"] for m in oracle.members] == [5, 5, 5]
    assert oracle.support is oracle.prompts is oracle.action_names is oracle.table is None
    assert not oracle.answers_table


def test_an_answer_is_valid_where_every_member_has_one():
    oracle = EnsembleOracle([Own("one"), Own("two", silent="b")])
    first, second = responses(["a", "b"]), responses(["c", "b", "d"])
    answer = oracle(prompts("x"), first, second)
    assert answer.valid[0].tolist() == [[True, False, True], [False, True, False]]
    product, valid = oracle.expected(prompts("x"), first, second)
    mean = [(fair("one", "a", b) + fair("two", "a", b)) / 2 for b in "cd"]
    torch.testing.assert_close(product[0], torch.tensor([sum(mean) / 2, 0.5], dtype=torch.float64))
    assert valid.tolist() == [[True, True]]


# ---- agreement -----------------------------------------------------------------------------------


def share(judges, pairs) -> list[list[float]]:
    """Counted one pair after the other."""

    def agreeing(one, other):
        both = [(one(a, b), other(a, b)) for a, b in pairs]
        same = [(p > 0.5) == (q > 0.5) for p, q in both if 0.5 not in (p, q) and p == p and q == q]
        return sum(same) / len(same)

    return [[agreeing(one, other) for other in judges] for one in judges]


def test_agreement_over_a_table_is_over_all_its_pairs():
    agreement = EnsembleOracle(rotated()).agreement()
    third = torch.full((3, 3), 1 / 3, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(agreement.share, third)
    assert agreement.compared.tolist() == [[3] * 3] * 3
    assert agreement.mean == pytest.approx(1 / 3)
    ties = torch.full((3, 3), 0.5, dtype=torch.float64)
    agreement = EnsembleOracle([MatrixOracle(ties), *rotated()[:1]]).agreement()
    assert agreement.compared.tolist() == [[0, 0], [0, 3]]
    assert math.isnan(agreement.mean)


def test_agreement_leaves_out_what_a_prompt_has_not():
    tables = [torch.stack([of_scores(*s), of_scores(*s)]) for s in ((2, 1, 0), (0, 1, 2))]
    support = torch.tensor([[True] * 3, [True, True, False]])
    members = [TableOracle(table, support) for table in tables]
    assert EnsembleOracle(members).agreement().compared[0, 1] == 3 + 1


def test_agreement_on_texts_is_that_of_the_last_calls():
    oracle = EnsembleOracle([Own("one"), Own("two"), Own("three", silent="b")])
    assert math.isnan(oracle.agreement().mean)

    judges = [
        lambda a, b: fair("one", a, b),
        lambda a, b: fair("two", a, b),
        lambda a, b: math.nan if "b" in (a, b) else fair("three", a, b),
    ]
    mine = responses([*"abcdefg"])
    oracle(prompts("x"), mine, mine)  # in self-play each pair counts once
    pairs = [*itertools.combinations("abcdefg", 2)]
    agreement = oracle.agreement()
    assert agreement.share.tolist() == share(judges, pairs)
    assert agreement.compared.tolist() == [[21, 21, 15], [21, 21, 15], [15, 15, 15]]
    oracle(prompts("x"), responses([*"hi"]), responses([*"hijk"]))
    pairs += [(a, b) for a in "hi" for b in "hijk" if a != b]
    assert oracle.agreement().share.tolist() == share(judges, pairs)
    for _ in range(20):
        oracle(prompts("x"), responses(["l"]), responses(["m"]))
    assert oracle.agreement().share.tolist() == share(judges, [("l", "m")])
    assert copy.deepcopy(oracle).agreement().compared.max() == 20


def test_what_cannot_be_compared_is_not_logged():
    def logged(*members):
        metrics = {}
        logger = SimpleNamespace(log_metrics=lambda values, step: metrics.update(values))
        game = OnlineGame(TabularPolicy(), EnsembleOracle([*members]), NashMP())
        QueryLog().on_train_batch_end(SimpleNamespace(loggers=[logger]), game, None, None, 0)
        return metrics

    ties = MatrixOracle(torch.full((3, 3), 0.5, dtype=torch.float64))
    assert "oracle/agreement" not in logged(ties, rotated()[0])
    undecided = EnsembleOracle([ties, rotated()[0]])  # on the first judge's side, everywhere
    both = logged(undecided, *rotated()[:2])
    assert both["oracle/agreement"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)


# ---- composition ---------------------------------------------------------------------------------


def test_labels_of_a_population_of_remembered_judges(tmp_path):
    """Two judges that prefer a place, each behind a cache of its own file; labels of their mean."""
    judges = [Judge("one"), Judge("two", tokens=3)]
    members = [CachedOracle(OrderSwap(j), tmp_path / f"{j.name}.db") for j in judges]
    oracle = BernoulliLabels(EnsembleOracle(members, weights=[1, 3]), seed=0)
    mine, calls = responses(["a", "b", "c"]), 400
    wins = sum(oracle(prompts("x"), mine, mine).preference for _ in range(calls))[0]
    for i, j in itertools.combinations(range(3), 2):
        a, b = "abc"[i], "abc"[j]
        p = (opinion("x", a, b) + 1 - opinion("x", b, a)) / 2  # both judges answer by texts alone
        assert abs(wins[i, j] - calls * p) <= 4 * math.sqrt(calls * p * (1 - p)), "1 in 5,000 runs"
        assert wins[i, j] + wins[j, i] == calls
    assert [len(judge.asked) for judge in judges] == [6, 6]
    assert [judge.ledger["queries"] for judge in judges] == [3, 3]
    assert [member.ledger["cache_hits"] for member in members] == [3 * (calls - 1)] * 2


def test_the_equilibrium_of_a_cycle_is_mixed():
    table = EnsembleOracle(rotated()).table
    uniform = torch.full((1, 3), -math.log(3), dtype=torch.float64)
    policy = regularised_nash(table, uniform, 0.01).log_policy.exp()
    torch.testing.assert_close(policy, torch.full_like(policy, 1 / 3))


# ---- refusals ------------------------------------------------------------------------------------


def listed(tmp_path, *lines: str) -> ListedResponses:
    path = tmp_path / f"{hash(lines)}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return ListedResponses(RuleOracle(shorter_wins), path)


def refused(members, weights=None) -> str:
    with pytest.raises(UserError) as error:
        EnsembleOracle(members, weights)
    return str(error.value)


def test_ensembles_that_make_no_sense(tmp_path):
    assert refused([]) == "an ensemble needs two oracles at least, but it has 0"
    assert refused([Comal()]) == "an ensemble needs two oracles at least, but it has 1"
    assert "3 oracles has 2 weights" in refused(rotated(), [1, 2])
    for wrong in (0, -1, math.nan, math.inf):
        assert f"above 0, but one is {wrong}" in refused(rotated(), [1, 2, wrong])
    other = MatrixOracle(of_scores(3, 2, 1, 0))
    assert "number 2, MatrixOracle, has other actions than the" in refused([*rotated()[:1], other])
    assert "number 2, Judge, has other actions" in refused([*rotated()[:1], Judge()])
    line = '{"prompt": "x", "responses": ["a", "bc"], "names": ["A", "B"]}'
    one = listed(tmp_path, line)
    other_prompt = listed(tmp_path, line.replace("x", "y"))
    other_names = listed(tmp_path, line.replace("A", "C"))
    assert "number 3, ListedResponses, has other prompts" in refused([one, one, other_prompt])
    assert "number 2, ListedResponses, has other names" in refused([one, other_names])
