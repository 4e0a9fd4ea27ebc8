"""The benchmark: the same table twice, equal budgets, and submissions that are played again."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo import Row as ZooRow

from nlhf_zoo import algorithms
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.callbacks import read_history
from nlhf_zoo.cli.bench import command, exact, games, language, methods, rates
from nlhf_zoo.cli.bench.methods import Method, made, ours
from nlhf_zoo.cli.bench.results import FLOOR, Figure, summary
from nlhf_zoo.cli.bench.sources import checksums
from nlhf_zoo.cli.bench.voted import VotedSmallLanguage
from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.yaml_rules import dump
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import SmallLanguage
from nlhf_zoo.records import ProximalStep, Responses
from nlhf_zoo.solvers import exploitability

SMALL = ["bench", "--seeds", "[0, 1]", "--queries", "11"]
OWN = """
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.records import ProximalStep
class Mine(PolicyOptimizer):
    paper, last_iterate = "mine", True
    def __init__(self, weight: float = 0.2) -> None:
        self.weight = weight
    def steps(self, beta, round):
        centre = {"policy": 1 - self.weight, "reference": self.weight}
        return [ProximalStep(centre, ((1.0, {"policy": 1.0}),), self.weight / beta)]
"""


OURS = {"algorithm": {"class_path": "nlhf_zoo.EGPO"}, "sources": {}}


def submission(named, figures_of=()):
    results = [[method, "COMAL, β = 0.1", 0, "exploitability", 0.0] for method in figures_of]
    rest = {"part": "exact", "small": True, "seeds": [0], "queries": 20}
    return json.dumps({"format": "nlhf bench 2", "methods": named, "results": results, **rest})


class Leaves(algorithms.PolicyOptimizer):
    """Its steps are too large for any number."""

    paper = "none"
    last_iterate = False

    def steps(self, beta, round):
        return [ProximalStep({"policy": 1.0}, ((1.0, {"policy": 1.0}),), 1e308)]


@pytest.fixture(autouse=True)
def few_games(monkeypatch, tmp_path):
    monkeypatch.setattr(games, "GAMES", games.GAMES[:5])
    monkeypatch.chdir(tmp_path)


def ended(args):
    with pytest.raises(SystemExit) as caught:
        main(args)
    return caught.value.code


def test_the_set_is_of_twenty_games(monkeypatch):
    monkeypatch.undo()
    names = [game.name for game in games.GAMES]
    assert len(names) == len(set(names)) == 20
    for batch in games.batches([0, 3]):
        assert batch.names[: len(batch.names) // 2] == [(n, 0) for n, s in batch.names if s == 0]
        table = batch.table
        torch.testing.assert_close(table + table.mT, torch.ones_like(table), rtol=0, atol=1e-12)
    one, again = games.batches([4])[0], games.batches([4])[0]
    assert torch.equal(one.table, again.table)
    assert torch.equal(one.log_reference, again.log_reference)


def test_all_public_algorithms_are_found():
    public = {getattr(algorithms, name) for name in algorithms.__all__}
    found = {type(method.algorithm) for method in ours()}
    assert found == public - {algorithms.PolicyOptimizer, algorithms.REBEL}  # no game has scores
    assert methods._GIVEN.keys() <= set(algorithms.__all__)


def test_twice_gives_the_same_table(capsys):
    main([*SMALL, "--output", "one"])
    first = capsys.readouterr().out
    main([*SMALL, "--output", "two"])
    assert capsys.readouterr().out == first.replace("one/", "two/")
    names = re.findall(r"^\| (\w+) \| \d", first, re.M)
    assert {*names} == {m.name for m in ours() if m.algorithm.closed_form}
    content = json.loads(Path("one/results.json").read_text())
    assert len(content["results"]) == len(names) * 5 * 2 * 2 * 2  # games, betas, seeds, measures
    assert Path("one/figure.png").read_bytes().startswith(b"\x89PNG")
    assert ended([*SMALL, "--output", "one"]) == 2  # has results
    main(["bench", "--check", "one/results.json"])
    assert capsys.readouterr().out.count("all 40 hold") == len(names)


@pytest.mark.parametrize(
    "algorithm", [algorithms.EGPO(), algorithms.SPPO(), algorithms.EGPO(eta="adaptive")]
)
def test_budgets_are_spent_in_queries(algorithm):
    """In a batch or alone: the last round is the last one that the budget has room for."""
    queries = 11
    played = exact.play([Method("it", {}, algorithm)], [0], queries)[0]
    place = 0
    for batch in games.batches([0]):
        log_mu, number = batch.log_reference, len(batch.names)
        players = dict.fromkeys(("policy", *algorithm.players), log_mu)
        rounds = ClosedFormRounds(algorithm, 0.1, batch.table, log_mu, players).run(0, queries)
        asked = rounds.queries.reshape(queries, -1).expand(-1, number)
        for game in range(number):
            last = int((asked[:, game] <= queries).sum()) - 1
            each = [batch.table[game], rounds.log_policy[last, game], log_mu[game]]
            expected = exploitability(*each, 0.1).item()
            assert played.curve[-1, place + game] == pytest.approx(expected, rel=1e-6, abs=1e-13)
        place += number
    # The first point is after one query: of a round of two, nothing is played yet.
    first = exploitability(batch.table, log_mu, log_mu, 0.1).numpy()
    is_played = type(algorithm) is algorithms.SPPO
    assert np.allclose(played.curve[0, -number:], first) != is_played


def test_the_interval_holds_the_mean_of_as_many_other_seeds():
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        both = np.exp(rng.normal(-3, 1, (2, 5)))
        one, other = (
            summary(
                [Figure("m", "g", s, "exploitability", float(value)) for s, value in enumerate(row)]
            )
            for row in both
        )
        held += one.low <= other.mean <= one.high
    assert 0.96 < held / 300 < 1
    few = [Figure("m", "g", seed, "exploitability", value) for seed, value in enumerate((0.0, 1e9))]
    assert summary(few[:1]).mean == pytest.approx(FLOOR)
    assert summary(few, geometric=False).mean == 5e8
    wide = summary(few)
    assert (wide.low, wide.high) == (0, np.inf)  # of two seeds so far apart no number holds it


def test_a_run_that_left_the_numbers_is_infinitely_far_off(capsys):
    main([*SMALL, "--algorithm", f"{__name__}.Leaves", "--output", "one"])
    assert re.search(r"^\| Leaves \| inf ", capsys.readouterr().out, re.M)
    main(["bench", "--check", "one/results.json", "--allow_code"])
    assert "Leaves: all 40 hold" in capsys.readouterr().out


def test_a_submission_is_one_file_and_its_results(tmp_path, capsys, monkeypatch):
    (tmp_path / "submitted_here.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    given = ["--algorithm", "submitted_here.Mine", "--algorithm.weight", "0.3"]
    main([*SMALL, *given, "--output", "mine"])
    assert re.search(r"^\| Mine \| \d", capsys.readouterr().out, re.M)
    path = tmp_path / "mine/results.json"
    content = json.loads(path.read_text())
    assert content["methods"]["Mine"]["algorithm"]["init_args"] == {"weight": 0.3}
    assert ended(["bench", "--check", str(path)]) == 2
    assert "submitted_here.Mine'" in capsys.readouterr().err
    main(["bench", "--check", str(path), "--allow_code"])
    assert "Mine: all 40 hold" in capsys.readouterr().out

    wrong = {**content, "results": [[*row, 0.9 * value] for *row, value in content["results"]]}
    path.write_text(json.dumps(wrong))
    assert ended(["bench", "--check", str(path), "--allow_code"]) == 1
    assert re.search(r"Mine: \d+ of 40 do not hold", capsys.readouterr().out)
    path.write_text(json.dumps({**content, "results": content["results"][:-1]}))
    assert ended(["bench", "--check", str(path), "--allow_code"]) == 1
    path.write_text(json.dumps(content))
    (tmp_path / "submitted_here.py").write_text(OWN + "# another file\n")
    assert ended(["bench", "--check", str(path), "--allow_code"]) == 1
    assert (
        "Mine: the file of submitted_here is not the one that was measured"
        in capsys.readouterr().out
    )


def test_all_files_of_ones_own_are_in_the_checksum(tmp_path, monkeypatch):
    """What stands inside another, what its file has names from, and functions among arguments."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "inside_here.py").write_text(
        "from inside_helper import STEP as _\nimport re\n" + OWN
    )
    (tmp_path / "inside_helper.py").write_text("def STEP(): return 0.2\n")
    inner = {"class_path": "inside_here.Mine", "init_args": {"weight": 0.3}}
    before = made({"class_path": "nlhf_zoo.MovingMagnet", "init_args": {"inner": inner}}).sources
    assert before.keys() == {"inside_here", "inside_helper"}
    (tmp_path / "inside_helper.py").write_text("def STEP(): return 0.3\n")
    after = checksums({"init_args": {"inner": inner}})
    assert {name for name in before if before[name] != after[name]} == {"inside_helper"}
    assert checksums({"surrogate": "inside_helper.STEP", "eta": 1}).keys() == {"inside_helper"}
    assert checksums({"surrogate": "torch.nn.ReLU", "text": "no.such", "eta": None}) == {}


def test_the_held_out_figure_is_of_training_by_votes():
    """Of the batch, votes train and the table measures: as each would alone."""
    method = made("nlhf_zoo.EGPO")
    played = exact.play([method], [3], 40)[0]
    batch = next(b for b in games.batches([3]) if b.table.shape[-1] == 10)
    log_mu = batch.log_reference
    start = dict.fromkeys(("policy", *method.algorithm.players), log_mu)
    for measure, table in (("exploitability", batch.table), ("held-out", batch.estimate)):
        rounds = ClosedFormRounds(method.algorithm, 0.1, table, log_mu, start).run(0, 20)
        expected = exploitability(batch.table, rounds.log_policy[-1], log_mu, 0.1).tolist()
        found = [played.final[measure][name] for name in batch.names]
        assert found == pytest.approx(expected, rel=1e-6)


def test_votes_are_shares_of_independent_draws():
    table = games.games.uniform_random(2, 30, seed=1)
    votes = games.games.of_votes(table, 10, seed=2)
    assert torch.equal(votes, games.games.of_votes(table, 10, seed=2))
    assert torch.equal(votes + votes.mT, torch.ones_like(votes))
    pairs = torch.ones_like(table, dtype=torch.bool).tril(-1)
    assert torch.equal((10 * votes[pairs]).round(), 10 * votes[pairs])
    apart, p = (votes - table)[pairs], table[pairs]
    score = apart / (p * (1 - p) / 10).sqrt()  # of a binomial share: mean 0, variance 1
    assert score.mean().abs() < 4 / len(score) ** 0.5
    assert 0.8 < score.square().mean() < 1.2


def test_the_language_by_votes_answers_with_votes_and_is_measured_by_the_truth():
    voted, truth = VotedSmallLanguage(num_letters=4), SmallLanguage(num_letters=4).table
    assert torch.equal(voted.table, truth)
    assert not voted.answers_table
    words = voted.action_names
    blank = torch.zeros(2, len(words[0]), 1, dtype=torch.long)
    drawn = Responses(blank, blank.bool(), torch.ones(blank.shape[:2]), text=words)
    asked = voted(voted.prompts, drawn, drawn).preference
    assert torch.equal(asked, games.games.of_votes(truth, games.VOTES, 0))
    assert not torch.equal(asked, truth)


def test_the_rate_of_ones_own_is_trained_by_and_checked():
    assert language._optimizer(made("nlhf_zoo.EGPO", 0.5))["init_args"]["lr"] == 0.5
    assert language._optimizer(made("nlhf_zoo.REBEL"))["init_args"]["lr"] == rates.OTHERS
    able = {method.name for method in ours()}
    assert rates.LANGUAGE.keys() <= able


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no file of results"),
        ("{}", "its format is not 'nlhf bench 2'"),
        ('{"format": "nlhf bench 2", "part": "exact"}', "small is missing, or damaged"),
        (
            '{"format": "nlhf bench 2", "part": "no", "small": false, "seeds": [0], '
            '"queries": 20, "methods": {"EGPO": {"algorithm": {"class_path": "nlhf_zoo.EGPO"}, '
            '"sources": {}}}, "results": []}',
            "there is no part 'no'",
        ),
        (
            '{"format": "nlhf bench 2", "part": "exact", "small": false, "seeds": [0], '
            '"queries": 20, "methods": {"EGPO": {}}, "results": []}',
            "its methods or results are damaged",
        ),
        (submission({}), "it names no algorithm"),
        (submission({"EGPO": OURS}, ["Mine"]), "it has results of Mine, which its methods do not"),
        (submission({"EGPO": OURS}, ["EGPO", "EGPO"]), "a figure stands in it twice"),
    ],
)
def test_what_is_no_submission_is_refused(tmp_path, capsys, content, said):
    (tmp_path / "a.json").write_text(content)
    assert ended(["bench", "--check", "a.json"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--seeds", "[]"], "--seeds must be different whole numbers"),
        (["--seeds", "[1, 1]"], "--seeds must be different whole numbers"),
        (["--queries", "3"], "--queries must lie between 10 and 100,000, but it is 3"),
        (["--output", "none/there"], "the folder none does not exist"),
        (["--algorithm", "OnlineDPO"], "OnlineDPO has no closed form"),
        (["--algorithm", "NashXX"], "there is no class 'NashXX'"),
        (["--check", "none.json"], "is no file of results"),
        (["--beside", "[NashMp]"], "no algorithm 'NashMp', did you mean 'NashMP'"),
        (["--beside", "[]"], "--beside names none, and there is no --algorithm"),
        (["--rate", "0.1"], "--rate is that of the algorithm that --algorithm names"),
        (["--check", "none.json", "--seeds", "[5]"], "--check plays what its file says: leave --s"),
        (["--part", "language", "--rate", "0"], "--rate must be a finite number above 0"),
    ],
)
def test_what_cannot_be_played_is_refused(capsys, args, said):
    assert ended(["bench", *args]) == 2
    assert said in capsys.readouterr().err


def test_a_block_makes_the_algorithm_that_it_was_made_from():
    row = ZooRow(algorithms.EGPO, {"eta": 0.3})
    block = {"class_path": "nlhf_zoo.EGPO", "init_args": row.kwargs}
    method = made(made(block).block)
    assert method.algorithm.eta == 0.3
    assert method.sources == {}
    with pytest.raises(UserError):
        made({"class_path": "nlhf_zoo.EGPO", "init_args": {"eta": -1}})


@pytest.mark.slow
def test_the_language_part_trains_the_same_again(capsys, monkeypatch):
    few = [made("nlhf_zoo.NashMP"), made("nlhf_zoo.OnlineIPO")]
    monkeypatch.setattr(command, "ours", lambda: few)
    given = ["bench", "--part", "language", "--small", "--seeds", "[0, 1]", "--queries", "2048"]
    main([*given, "--output", "one"])
    first = capsys.readouterr().out
    assert {*re.findall(r"^\| ([A-Z]\w+) \|", first, re.M)} == {"NashMP", "OnlineIPO"}
    main(["bench", "--check", "one/results.json"])
    assert capsys.readouterr().out.count("all 8 hold") == 2  # prompts, seeds, measures
    for seed in (0, 1):
        history = read_history(Path(f"one/runs/4_letters/language/NashMP/seed_{seed}"))
        assert history["queries"][-1] <= 2048
        rows = json.loads(Path("one/results.json").read_text())["results"]
        first = ("NashMP", seed, "exploitability")
        said = [value for m, _, s, k, value in rows if (m, s, k) == first]
        assert said == history["exploitability"][-1].tolist()


def test_who_cannot_play_the_language_is_named(tmp_path, capsys):
    able = language._those_that_can([made("nlhf_zoo.EGPO"), _adaptive()], _base(tmp_path), 4)
    assert [*able] == ["EGPO"]
    assert "NashMP is left out: " in capsys.readouterr().err


def _adaptive():
    block = {"class_path": "nlhf_zoo.NashMP", "init_args": {"eta": "adaptive"}}
    return made(block)


def _base(folder):
    (folder / "base.yaml").write_text(dump({"model": language._model(4)}))
    return folder / "base.yaml"
