"""Oracles over tables and embeddings, and what they read: matrices, distributions and votes."""

# ruff: noqa: E501  # tables of one row a line

import importlib
import inspect
import io
import pkgutil

import jsonargparse
import numpy as np
import pytest
import torch
from paths import DATA
from serving import forever
from torch import distributed

from nlhf_zoo import oracles
from nlhf_zoo.data.tables import files as tables
from nlhf_zoo.data.tables.files import read_distribution, read_matrix
from nlhf_zoo.data.tables.votes import read_votes
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import (
    BernoulliLabels,
    EmbeddingOracle,
    MatrixOracle,
    PreferenceOracle,
    UniformRandom,
    VotesOracle,
)
from nlhf_zoo.oracles.base import _RENAMED
from nlhf_zoo.records import Prompts, Responses

CYCLE = [[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]


def prompts(*ids):
    return Prompts(torch.tensor(ids))


def enumerated(num_prompts, num_actions, seed=0):
    """All actions, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(num_prompts, num_actions, generator=generator, dtype=torch.float64)
    tokens = torch.arange(num_actions).expand(num_prompts, num_actions)[:, :, None]
    weight = weight / weight.sum(1, keepdim=True)
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight, enumerated=True)


def sampled(num_prompts, num_actions, num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(num_actions, (num_prompts, num, 1), generator=generator)
    weight = torch.full((num_prompts, num), 1 / num, dtype=torch.float64)
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight)


def game_of(oracle):
    """The game by the simplest questions there are: one pair a time, [C, N, N]."""
    num_prompts, num_actions = oracle.support.shape
    mask, weight = torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1, 1)
    one = [Responses(torch.tensor([[[a]]]), mask, weight) for a in range(num_actions)]
    rows = [
        [[oracle(prompts(c), a, b).preference.item() for b in one] for a in one]
        for c in range(num_prompts)
    ]
    return torch.tensor(rows, dtype=torch.float64)


# One row an oracle: how it is made, with some of its options.
ZOO = {
    "MatrixOracle": lambda **given: MatrixOracle(np.array([CYCLE, CYCLE]), **given),
    "VotesOracle": lambda **given: VotesOracle(DATA / "debian_leader_2010.csv", **given),
    "UniformRandom": lambda **given: UniformRandom(num_games=4, num_actions=6, seed=1, **given),
    "BradleyTerry": lambda **given: oracles.BradleyTerry(4, num_actions=6, seed=1, **given),
    "Cyclic": lambda **given: oracles.Cyclic(num_actions=5, **given),
    "CyclicBlocks": lambda **given: oracles.CyclicBlocks(num_actions=13, **given),
    "Comal": oracles.Comal,
    "SineGame": lambda **given: oracles.SineGame(num_actions=12, seed=1, **given),
    "Annotators": lambda **given: oracles.Annotators(seed=1, **given),
    "SmallLanguage": lambda: oracles.SmallLanguage(num_letters=4, length=2),
    "ServedTable": lambda **given: oracles.ServedTable(forever(UniformRandom(3, 5, seed=2, **given))),
    "EmbeddingOracle": lambda **given: EmbeddingOracle(num_actions=11, dim=4, seed=1, block_size=30, **given),
}  # fmt: skip


# Those of texts have rows in tests/oracles/zoo.py and in test_contracts_of_oracles.py; those
# around others: test_wrappers, test_cached, test_ensemble, test_listed.
def test_every_oracle_of_a_table_has_a_row():
    of_tables = {name for name in oracles.__all__ if ".tables." in vars(oracles)[name].__module__}
    assert of_tables - {"TableOracle"} | {"ServedTable"} == set(ZOO)


# What oracles are made of and asked, which is no oracle.
PARTS = {"Answer", "HashedNgrams", "PairwiseJudge", "Question", "TextFeatures"}


def test_every_oracle_is_handed_on():
    files = pkgutil.walk_packages(oracles.__path__, "nlhf_zoo.oracles.")
    classes = {
        one
        for file in files
        for one in vars(importlib.import_module(file.name)).values()
        if isinstance(one, type) and issubclass(one, PreferenceOracle)
    }
    public = {vars(oracles)[name] for name in {*oracles.__all__} - PARTS}
    bases = {PreferenceOracle, oracles.TextOracle}
    whole = {one for one in classes if not inspect.isabstract(one)}
    assert public == whole | bases


def test_what_may_change_on_resume_is_an_argument():
    classes = [vars(oracles)[name] for name in {*oracles.__all__} - PARTS]
    changing = {one.__name__: one.may_change_on_resume for one in classes}
    for one in classes:
        assert changing[one.__name__] <= inspect.signature(one).parameters.keys() - {"oracle"}
    named = {name for name, changes in changing.items() if changes}
    cached, served = {"BudgetedOracle", "CachedOracle"}, {"ServedOracle", "ServedTable"}
    assert named == cached | served | {"HumanOracle", "JudgeOracle"}


@pytest.fixture(params=ZOO)
def oracle(request):
    return ZOO[request.param]()


def asked(oracle):
    """Prompts, and responses of two players, in the ways in which a game may ask."""
    num_prompts, num_actions = oracle.support.shape
    for who in (list(range(num_prompts)), list(range(num_prompts))[::-1], [0, 0]):
        everyone, other = (enumerated(len(who), num_actions, seed) for seed in (0, 2))
        few, more = (sampled(len(who), num_actions, num, seed=num) for num in (4, 5))
        for first, second in [(everyone, other), (few, other), (everyone, few), (few, more)]:
            yield who, prompts(*who), first, second


def test_answers_do_not_depend_on_how_one_asks(oracle):
    game = game_of(oracle)
    for who, prompt, first, second in asked(oracle):
        answer = oracle(prompt, first, second)
        rows, columns = first.actions[:, :, None], second.actions[:, None, :]
        batch = torch.arange(len(who))[:, None, None]
        torch.testing.assert_close(answer.preference, game[who][batch, rows, columns])
        assert answer.valid.all()
    if oracle.table is not None:
        torch.testing.assert_close(oracle.table, game)
        everything = enumerated(*oracle.support.shape)
        answer = oracle(oracle.prompts, everything, everything)
        assert answer.preference.data_ptr() == oracle.table.data_ptr(), "the table was copied"


def test_expected_is_the_weighted_sum_of_answers(oracle):
    for _, *question in asked(oracle):
        product, valid = oracle.expected(*question)
        by_hand = (oracle(*question).preference * question[2].weight[:, None, :]).sum(-1)
        torch.testing.assert_close(product, by_hand, atol=1e-14, rtol=0)
        base, base_valid = PreferenceOracle.expected(oracle, *question)
        torch.testing.assert_close(product, base, atol=1e-14, rtol=0)
        assert torch.equal(valid, base_valid)


def test_laws_of_the_game(oracle):
    everyone = enumerated(*oracle.support.shape)
    P = oracle(oracle.prompts, everyone, everyone).preference
    assert (P + P.mT - 1).abs().max() <= min(oracle.tolerance, 1e-14)
    assert torch.equal(P.diagonal(dim1=1, dim2=2), torch.full(P.shape[:2], 0.5).double())


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"SmallLanguage"}))
def test_float32_is_the_same_game_at_half_the_size(name):
    double, single = ZOO[name](), ZOO[name](dtype="float32")
    everyone = enumerated(*double.support.shape)
    (product, valid), (other, other_valid) = (
        one.expected(one.prompts, everyone, everyone) for one in (double, single)
    )
    torch.testing.assert_close(product, other, check_dtype=False, atol=1e-6, rtol=0)
    assert torch.equal(valid, other_valid)
    assert other.dtype == torch.float32


def test_a_game_is_not_in_the_checkpoint(oracle):
    assert oracle.state_dict().keys() <= {"served"}  # a digest, by which it is known again


def test_enumerated_responses_must_be_all_actions():
    with pytest.raises(ValueError, match="2 responses are enumerated, of 3 actions"):
        MatrixOracle(np.array(CYCLE))(prompts(0), enumerated(1, 2), enumerated(1, 2))


@pytest.mark.parametrize("name", ["UniformRandom", "BradleyTerry", "SineGame", "Annotators"])
def test_without_a_seed_the_game_is_the_run_s(name):
    make = getattr(oracles, name)
    torch.manual_seed(17)
    torch.rand(5)
    assert torch.equal(make().table, make(seed=17).table)
    assert not torch.equal(make().table, make(seed=18).table)


@pytest.mark.parametrize("name", [n for n in oracles.__all__ if n in ZOO])
def test_oracles_are_configured_by_class_path(name, tmp_path):
    np.save(tmp_path / "P.npy", np.array(CYCLE))
    needed = {"MatrixOracle": ["--oracle.path", str(tmp_path / "P.npy")]}
    needed["VotesOracle"] = ["--oracle.path", str(DATA / "debian_leader_2012.csv")]
    needed["ServedTable"] = ["--oracle.url", ZOO["ServedTable"]().client.url]
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--oracle", type=PreferenceOracle)
    parsed = parser.parse_args(["--oracle", f"nlhf_zoo.oracles.{name}", *needed.get(name, [])])
    made = parser.instantiate_classes(parsed)
    assert type(made.oracle) is getattr(oracles, name)


# --- embeddings -------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 70, 10**6])
def test_embedding_oracle_is_the_explicit_matrix(block_size):
    oracle = EmbeddingOracle(num_actions=50, dim=6, scale=2.0, seed=3, block_size=block_size)
    rotation = torch.block_diag(*3 * [torch.tensor([[0.0, -1.0], [1.0, 0.0]])]).double()
    vectors = oracle.embeddings
    explicit = torch.sigmoid(2.0 * vectors @ rotation @ vectors.T)[None]
    everyone = enumerated(1, 50)
    P = oracle(prompts(0), everyone, everyone).preference
    torch.testing.assert_close(P, explicit, atol=1e-14, rtol=0)
    assert (P + P.mT - 1).abs().max() < 1e-15
    product, _ = oracle.expected(prompts(0), everyone, everyone)
    expected = explicit @ everyone.weight[:, :, None]
    torch.testing.assert_close(product, expected[:, :, 0], atol=1e-14, rtol=0)
    assert oracle.table is None
    assert torch.equal(oracle.support, torch.ones(1, 50, dtype=torch.bool))


def test_drawn_embeddings_give_scores_of_variance_one():
    for dim in (2, 64):
        oracle = EmbeddingOracle(num_actions=2000, dim=dim, seed=0)
        first, second = sampled(1, 1000, 1000), sampled(1, 1000, 1000, seed=1)
        second = Responses(second.tokens + 1000, second.mask, second.weight)
        scores = torch.logit(oracle(prompts(0), first, second).preference)
        assert 0.8 < scores.std() < 1.2
        assert scores.abs().max() > 2


def test_embeddings_from_a_file(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    oracle = EmbeddingOracle(tmp_path / "v.npy")
    assert torch.equal(oracle.embeddings, torch.from_numpy(vectors).double())


def test_embeddings_are_never_multiplied_out(monkeypatch):
    oracle = EmbeddingOracle(num_actions=200_000, dim=2, seed=0, dtype="float32", block_size=10**6)
    few, everyone = sampled(1, 200_000, 12), enumerated(1, 200_000)
    largest = 0
    mv = torch.mv

    def watched(block, weight, out):
        nonlocal largest
        largest = max(largest, block.numel())
        return mv(block, weight, out=out)

    monkeypatch.setattr(torch, "mv", watched)
    oracle.expected(prompts(0), few, everyone)
    assert 0 < largest <= 10**6
    monkeypatch.setattr(tables, "_available_memory", lambda: 2**30)
    with pytest.raises(UserError, match="will not fit in memory"):
        oracle(prompts(0), everyone, everyone)


def test_an_embedding_oracle_has_one_prompt():
    with pytest.raises(ValueError, match="one prompt"):
        EmbeddingOracle(num_actions=5, dim=2, seed=0)(prompts(1), *2 * [sampled(1, 5, 2)])


# --- labels -----------------------------------------------------------------------------------


def test_labels_are_antisymmetric_with_the_mean_of_the_oracle():
    game = UniformRandom(num_games=2, num_actions=4, seed=0)
    labels = BernoulliLabels(game, seed=0)
    both, everyone = prompts(0, 1), enumerated(2, 4)
    draws = torch.stack([labels(both, everyone, everyone).preference for _ in range(4000)])
    assert torch.equal(draws + draws.mT, torch.ones_like(draws))
    assert (draws.diagonal(dim1=2, dim2=3) == 0.5).all()
    off_diagonal = draws[:, :, ~torch.eye(4, dtype=torch.bool)]
    assert set(off_diagonal.unique().tolist()) == {0.0, 1.0}
    # 12 free entries, each beyond four standard errors with a chance of 6e-5: an error rate of 8e-4
    P = game.table
    error = (P * (1 - P) / len(draws)).sqrt()
    z = (draws.mean(0) - P) / error
    assert z[P != 0.5].abs().max() < 4
    # labels of different calls are independent, and so are those of different pairs
    assert (off_diagonal[1:] != off_diagonal[:-1]).any()
    assert len(off_diagonal.unique(dim=0)) > 100


def test_labels_between_different_responses_have_the_mean_of_the_oracle():
    game = MatrixOracle(np.array(CYCLE))
    labels = BernoulliLabels(game, seed=1)
    first, second = sampled(1, 3, 4, seed=1), sampled(1, 3, 5, seed=2)
    draws = torch.stack([labels(prompts(0), first, second).preference for _ in range(4000)])
    P = game(prompts(0), first, second).preference
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert ((draws.mean(0) - P) / (P * (1 - P) / len(draws)).sqrt()).abs().max() < 4


def test_expected_of_labels_is_noisy_and_unbiased():
    game = MatrixOracle(np.array(CYCLE))
    labels = BernoulliLabels(game, seed=2)
    everyone = enumerated(1, 3)
    draws = torch.stack([labels.expected(prompts(0), everyone, everyone)[0] for _ in range(4000)])
    exact, _ = game.expected(prompts(0), everyone, everyone)
    error = draws.std(0) / len(draws) ** 0.5
    assert (error > 0).all()
    assert ((draws.mean(0) - exact) / error).abs().max() < 4


def test_labels_go_on_after_a_checkpoint_as_they_would_have():
    make = lambda seed: BernoulliLabels(UniformRandom(2, 4, seed=0), seed=seed)  # noqa: E731
    ask = lambda labels: labels(prompts(0, 1), *2 * [sampled(2, 4, 3)]).preference  # noqa: E731
    through, killed = make(5), make(5)
    assert all(torch.equal(ask(through), ask(killed)) for _ in range(3))
    buffer = io.BytesIO()
    torch.save(killed.state_dict(), buffer)
    buffer.seek(0)
    resumed = make(5)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    torch.rand(7)  # the global stream plays no part
    rest = [ask(through) for _ in range(3)]
    assert all(torch.equal(ask(resumed), own) for own in rest)
    assert not all(
        torch.equal(ask(fresh), own) for fresh, own in zip([make(5)] * 3, rest, strict=True)
    )
    other, fresh = make(6), make(5)
    assert not all(torch.equal(ask(other), ask(fresh)) for _ in range(3))


def test_labels_of_two_ranks_differ(monkeypatch):
    answers = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        labels = BernoulliLabels(UniformRandom(2, 10, seed=0), seed=0)
        answers.append(labels(prompts(0, 1), *2 * [enumerated(2, 10)]).preference)
    assert not torch.equal(*answers)


# --- votes ------------------------------------------------------------------------------------


def write(tmp_path, content, name="votes.csv"):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_votes_by_hand(tmp_path):
    text = "winner,loser,count,tie\nA,B,3,0\nB,A,1,0\nB,A,2,1\nC,A,5,0\nA,B,1,0\nB,C,4,0\n"
    votes = read_votes(write(tmp_path, text))
    assert votes.names == [["A", "B", "C"]]
    assert votes.prompts == [""]
    # A : B = 4 wins, 1 loss, 2 ties and 1 pseudo-tie
    expected = [[0.5, 5.5 / 8, 0.5 / 6], [2.5 / 8, 0.5, 4.5 / 5], [5.5 / 6, 0.5 / 5, 0.5]]
    expected = torch.tensor([expected], dtype=torch.float64)
    torch.testing.assert_close(votes.preference, expected, atol=1e-15, rtol=0)
    assert torch.equal(votes.preference + votes.preference.mT, torch.ones(1, 3, 3).double())

    votes = read_votes(tmp_path / "votes.csv", prior=0)
    expected = [[0.5, 5 / 7, 0], [2 / 7, 0.5, 1], [1, 0, 0.5]]
    expected = torch.tensor([expected], dtype=torch.float64)
    torch.testing.assert_close(votes.preference, expected, atol=1e-15, rtol=0)

    votes = read_votes(tmp_path / "votes.csv", prior=3.5)
    assert votes.preference[0, 0, 1].item() == pytest.approx((4 + 1 + 1.75) / (7 + 3.5), abs=1e-15)


def test_a_tie_may_be_listed_in_either_order_and_counts_default_to_one(tmp_path):
    one = read_votes(write(tmp_path, "winner,loser,tie\nA,B,0\nA,B,1\n", "one.csv"))
    other = read_votes(write(tmp_path, "tie,loser,winner\n0,B,A\n1,A,B\n", "other.csv"))
    assert one.preference[0, 0, 1].item() == pytest.approx((1 + 0.5 + 0.5) / 3, abs=1e-15)
    assert torch.equal(one.preference, other.preference)


def test_prompts_may_have_different_alternatives(tmp_path):
    text = "prompt,winner,loser,count\nq2,x,y,3\nq1,a,b,1\nq1,c,a,2\nq2,y,x,1\n"
    votes = read_votes(write(tmp_path, text))
    assert votes.prompts == ["q2", "q1"]
    assert votes.names == [["x", "y"], ["a", "b", "c"]]
    assert votes.support.tolist() == [[True, True, False], [True, True, True]]
    assert votes.preference.shape == (2, 3, 3)
    assert votes.preference[0, 0, 1].item() == pytest.approx(3.5 / 5)
    assert (votes.preference[0, 2] == 0.5).all()
    assert votes.preference[1, 2, 0].item() == pytest.approx(2.5 / 3)
    assert votes.preference[1, 1, 2] == 0.5  # nobody compared them: the prior alone
    oracle = VotesOracle(tmp_path / "votes.csv")
    assert torch.equal(oracle.support, votes.support)
    assert oracle.action_names == votes.names
    with pytest.raises(UserError, match="'b' with 'c' for prompt 'q1'"):
        read_votes(tmp_path / "votes.csv", prior=0)


def test_quotes_marks_and_blank_lines_of_spreadsheets(tmp_path):
    text = '\ufeffwinner,loser\r\n"Smith, J.",B\r\n\r\n'
    assert read_votes(write(tmp_path, text)).names == [["Smith, J.", "B"]]


@pytest.mark.parametrize(("year", "number", "voters"), [(2010, 5, 436), (2012, 4, 403)])
def test_the_debian_votes(year, number, voters):
    for folder in (DATA, DATA.parents[1] / "configs" / "data"):
        votes = read_votes(folder / f"debian_leader_{year}.csv", prior=0)
        [names] = votes.names
        assert len(names) == number
        winner = names.index("Stefano Zacchiroli")
        others = [i for i in range(number) if i != winner]
        assert (votes.preference[0, winner, others] > 0.5).all(), "the Condorcet winner"
        # Every voter compared every pair: a share is a whole number of half votes.
        halves = votes.preference * 2 * voters
        torch.testing.assert_close(halves, halves.round(), atol=1e-9, rtol=0)


HEADER = "winner,loser,count,tie\n"
BAD_VOTES = {
    "empty": ("", "is empty"),
    "blank": ("\n\n", "holds no votes"),
    "header only": (HEADER, "holds no votes"),
    "missing column": ("winner,count\nA,3\n", "lacks the column 'loser'"),
    "unknown column": ("winner,loser,votes\nA,B,3\n", "unknown column 'votes'"),
    "column twice": ("winner,loser,winner\nA,B,A\n", "the column 'winner' twice"),
    "too few fields": (HEADER + "A,B,1,0\nA,B,1\n", "line 3 .*has 3 fields, but there are 4"),
    "too many fields": ("winner,loser\nA,B,C\n", "line 2 .*has 3 fields, but there are 2"),
    "empty name": (HEADER + ",B,1,0\n", "line 2 .*the winner ''"),
    "space": (HEADER + "A, B,1,0\n", "line 2 .*the loser ' B'"),
    "empty prompt": ("prompt,winner,loser\n,A,B\n", "line 2 .*the prompt ''"),
    "itself": (HEADER + "A,A,1,0\n", "line 2 .*compares 'A' with itself"),
    "no number": (HEADER + "A,B,1,0\nA,B,many,0\n", "line 3 .*the count 'many'"),
    "empty count": (HEADER + "A,B,,0\n", "line 2 .*the count ''"),
    "negative": (HEADER + "A,B,-1,0\n", "line 2 .*the count '-1'"),
    "infinite": (HEADER + "A,B,inf,0\n", "line 2 .*the count 'inf'"),
    "nan": (HEADER + "A,B,nan,0\n", "line 2 .*the count 'nan'"),
    "tie": (HEADER + "A,B,1,2\n", "line 2 .*the tie '2'"),
    "latin-1": ("winner,loser\nJosé,B\n".encode("latin-1"), "not text in UTF-8"),
    "open quote": ('winner,loser\n"A,B\n', "is not CSV"),
    "binary": (b"\x93NUMPY\x01\x00", "not text in UTF-8"),
}


# --- matrices and distributions -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_matrices_from_npy(tmp_path, dtype):
    np.save(tmp_path / "P.npy", np.array(CYCLE, dtype=dtype))
    matrix = read_matrix(tmp_path / "P.npy")
    assert matrix.names is None
    assert matrix.preference.dtype == torch.float64
    assert torch.equal(matrix.preference + matrix.preference.mT, torch.ones(1, 3, 3).double())
    torch.testing.assert_close(
        matrix.preference[0], torch.tensor(CYCLE).double(), atol=1e-7, rtol=0
    )
    np.save(tmp_path / "P.npy", np.array([CYCLE, np.transpose(CYCLE)], dtype=dtype))
    assert MatrixOracle(tmp_path / "P.npy").num_prompts == 2


def test_matrices_from_csv(tmp_path):
    rows = "0.5,0.9,0.1\n0.1,0.5,0.9\n0.9,0.1,0.5\n"
    named = read_matrix(write(tmp_path, "rock,paper,scissors\n" + rows, "named.csv"))
    assert named.names == ["rock", "paper", "scissors"]
    plain = read_matrix(write(tmp_path, rows, "plain.csv"))
    assert plain.names is None
    for matrix in (named, plain):
        torch.testing.assert_close(matrix.preference[0], torch.tensor(CYCLE, dtype=torch.float64))
    assert MatrixOracle(tmp_path / "named.csv").action_names == [["rock", "paper", "scissors"]]


BAD_CSV = {
    "empty": ("", "is empty"),
    "names only": ("a,b\n", "holds no numbers"),
    "ragged": ("0.5,0.5\n0.5\n", "line 2 .*has 1 fields"),
    "word": ("0.5,x\n0.5,0.5\n", "line 1 .*holds 'x'"),
    "word below": ("a,b\n0.5,0.5\n0.5,y\n", "line 3 .*holds 'y'"),
    "names twice": ("a,a\n0.5,0.5\n0.5,0.5\n", "names 'a' twice"),
    "empty name": ("a,\n0.5,0.5\n0.5,0.5\n", "a name is empty"),
    "not square": ("0.5,0.5\n", r"square|shape"),
    "outside": ("0.5,1.5\n-0.5,0.5\n", r"\[0, 1\]"),
    "nan": ("0.5,nan\n0.5,0.5\n", "finite"),
    "not antisymmetric": ("0.5,0.9\n0.9,0.5\n", "antisymmetric"),
    "latin-1": ("é,b\n0.5,0.5\n".encode("latin-1"), "not text in UTF-8"),
    "open quote": ('"0.5,0.5\n', "is not CSV"),
}


class Trap:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


BAD_ARRAYS = {
    "object": (np.array([Trap(), 1], dtype=object), "not a complete .npy file of numbers"),
    "text": (np.array([["a", "b"]]), "not real numbers"),
    "complex": (np.eye(2) * 1j, "not real numbers"),
    "bool": (np.eye(2) > 0, "not real numbers"),
    "vector": (np.full(3, 0.5), "square|shape"),
    "number": (np.array(0.5), "square|shape"),
    "four axes": (np.full((1, 1, 2, 2), 0.5), "square|shape"),
    "nothing": (np.zeros((0, 0)), "empty|complete"),
    "not square": (np.full((2, 3), 0.5), "square|shape"),
    "infinite": (np.full((2, 2), np.inf), "finite"),
}


def test_what_will_not_fit_in_memory_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)}
    np.lib.format.write_array_header_1_0(header, shape)
    path = write(tmp_path, header.getvalue(), "large.npy")
    with pytest.raises(UserError, match=r"\[10000000, 10000000\] will not fit in memory"):
        read_matrix(path)

    array = write(tmp_path, np.full((500, 500), 0.5), "P.npy")
    text = write(tmp_path, "\n".join([",".join(["0.5"] * 500)] * 500), "P.csv")
    votes = write(tmp_path, "winner,loser\n" + "".join(f"a{i},b{i}\n" for i in range(500)))
    monkeypatch.setattr(tables, "_available_memory", lambda: 2**20)
    for read, path in ((read_matrix, array), (read_matrix, text), (read_votes, votes)):
        with pytest.raises(UserError, match="will not fit in memory"):
            read(path)


def test_available_memory_is_plausible():
    assert 2**20 < tables._available_memory() < 2**50


def test_distributions(tmp_path):
    one = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    np.save(tmp_path / "mu.npy", one.numpy())
    for path in (
        tmp_path / "mu.npy",
        write(tmp_path, "0.2,0.3,0.5\n", "row.csv"),
        write(tmp_path, "0.2\n0.3\n0.5\n", "column.csv"),
        write(tmp_path, "a,b,c\n0.2,0.3,0.5\n", "named.csv"),
    ):
        torch.testing.assert_close(read_distribution(path, "reference"), one, atol=1e-15, rtol=0)
    np.save(tmp_path / "mu.npy", np.array([[0.2, 0.8], [0.5, 0.5]]))
    assert read_distribution(tmp_path / "mu.npy", "start").shape == (2, 2)
    np.save(tmp_path / "mu.npy", np.array([[0.2, 0.8]]))
    assert read_distribution(tmp_path / "mu.npy", "start").shape == (1, 2)
    thirds = read_distribution(write(tmp_path, "0.3333333,0.3333333,0.3333333", "3.csv"), "start")
    assert abs(thirds.sum() - 1) < 1e-15


BAD_DISTRIBUTIONS = {
    "sum": (np.array([0.5, 0.6]), "reference .* sums to 1.1: probabilities must sum to 1"),
    "sum of a row": (np.array([[0.5, 0.5], [0.5, 0.4]]), "sums to 0.9 in row 1"),
    "negative": (np.array([1.5, -0.5]), "negative"),
    "nan": (np.array([np.nan, 1.0]), "not finite"),
    "axes": (np.full((2, 2, 2), 0.5), r"must be \[N\] or \[C, N\]"),
    "number": (np.array(1.0), r"must be \[N\] or \[C, N\]"),
    "text": (np.array(["0.5", "0.5"]), "not real numbers"),
}


BAD_EMBEDDINGS = {
    "odd": (np.ones((3, 3)), "must be even, but it is 3"),
    "vector": (np.ones(4), r"must be \[N, D\]"),
    "one": (np.ones((1, 4)), r"must be \[N, D\]"),
    "nan": (np.full((3, 2), np.nan), "not finite"),
    "text": (np.array([["a", "b"]] * 2), "not real numbers"),
}


BAD = {
    "votes.csv": (read_votes, BAD_VOTES),
    "P.csv": (MatrixOracle, BAD_CSV),
    "P.npy": (read_matrix, BAD_ARRAYS),
    "mu.npy": (lambda path: read_distribution(path, "reference"), BAD_DISTRIBUTIONS),
    "v.npy": (EmbeddingOracle, BAD_EMBEDDINGS),
}


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in BAD for name in BAD[file][1]])
def test_refused_files(file, name, tmp_path):
    read, contents = BAD[file]
    content, sentence = contents[name]
    path = write(tmp_path, content, file)
    with pytest.raises(UserError, match=sentence) as error:
        read(path)
    assert str(path) in str(error.value)


FEW_VOTES = "winner,loser\nA,B\nB,C\n"
REFUSED = {
    "votes missing": (lambda at: read_votes(at / "none.csv"), "does not exist"),
    "votes a folder": (read_votes, "is not a file"),
    **{
        f"prior {prior}": (
            lambda at, prior=prior: read_votes(write(at, FEW_VOTES), prior),
            "prior must be a finite number",
        )
        for prior in (-1.0, float("nan"), float("inf"))
    },
    "no vote, no prior": (lambda at: read_votes(write(at, FEW_VOTES), 0.0), "nobody compared 'A' with 'C' in votes"),
    "count 0": (lambda at: read_votes(write(at, "winner,loser,count\nA,B,0\n"), 0.0), "nobody compared 'A' with 'B'"),
    "matrix missing": (lambda at: read_matrix(at / "none.npy"), "does not exist"),
    "matrix a folder": (read_matrix, "is not a file"),
    "ending": (lambda at: read_matrix(write(at, "0.5", "P.txt")), r"must end in \.npy or \.csv"),
    "empty": (lambda at: read_matrix(write(at, "", "empty.npy")), "is empty"),
    "text": (lambda at: read_matrix(write(at, "hello", "P.npy")), r"not a complete \.npy"),
    "several": (lambda at: read_matrix(write(at, saved(np.savez), "P.npy")), "archive of several"),
    "cut": (lambda at: read_matrix(write(at, saved()[:-8], "P.npy")), r"not a complete \.npy"),
    "tensor": (lambda at: MatrixOracle(torch.full((2, 2), 0.7)), "the matrix"),
    "embeddings": (lambda at: EmbeddingOracle(write(at, "1,2", "v.csv")), r"must end in \.npy"),
    "dim odd": (lambda at: EmbeddingOracle(num_actions=5, dim=3), "dim must be even, but it is 3"),
    "one action": (lambda at: EmbeddingOracle(num_actions=1, dim=2), "num_actions and dim of at least 2"),
    "scale": (lambda at: EmbeddingOracle(scale=float("inf")), "scale must be a finite"),
    "block": (lambda at: EmbeddingOracle(block_size=0), "block_size must be at least 1"),
    "large": (lambda at: EmbeddingOracle(num_actions=10**12, dim=64), "will not fit in memory"),
}  # fmt: skip


def saved(save=np.save) -> bytes:
    file = io.BytesIO()
    save(file, np.array(CYCLE))
    return file.getvalue()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    make, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        make(tmp_path)


@pytest.mark.parametrize(("old", "new"), _RENAMED.items())
def test_a_member_under_its_old_name_is_refused(old, new):
    with pytest.raises(TypeError, match=rf"Late\.{old} is called {new} since version 0\.2"):
        type("Late", (PreferenceOracle,), {old: None})


def test_the_names_that_paths_had_before_are_read(tmp_path):
    np.save(tmp_path / "P.npy", np.array(CYCLE))
    np.save(tmp_path / "v.npy", np.eye(4))
    votes = DATA / "debian_leader_2010.csv"
    for oracle, name, path in (
        (MatrixOracle, "matrix", tmp_path / "P.npy"),
        (VotesOracle, "votes", votes),
        (EmbeddingOracle, "embeddings", tmp_path / "v.npy"),
    ):
        assert oracle(**{name: path}).num_actions == oracle(path=path).num_actions
        with pytest.raises(UserError, match=f"path and {name}, an older name of it"):
            oracle(path=path, **{name: path})
    for oracle in (MatrixOracle, VotesOracle):
        with pytest.raises(UserError, match="reads a file: give its path"):
            oracle()
