"""The benchmark's part on a model that nobody can list: figures are of what is kept alone."""

import json
import math
from pathlib import Path

import pytest
import torch

from nlhf_zoo.cli.bench import command
from nlhf_zoo.cli.bench.methods import made, ours
from nlhf_zoo.cli.bench.rates import TEN_MILLION
from nlhf_zoo.cli.bench.ten_million import making, measuring, part, setting, world
from nlhf_zoo.cli.main import main
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.models.response import ResponseTextModelOracle
from nlhf_zoo.solvers import sampled_exploitability
from nlhf_zoo.text_models.heads import BradleyTerryHead

OWN = """
from nlhf_zoo.algorithms import OnlineIPO
class Mine(OnlineIPO):
    pass
"""


class Words(ResponseTextModelOracle):
    """The more words, the better: P(y > y') = sigma((n - n') / temperature)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.head = BradleyTerryHead(temperature)

    def _outputs(self, texts):
        return torch.tensor([[float(len(text.split()))] for _, text in texts])

    @property
    def fingerprint(self):
        return "words"

    def beats(self, first, second):
        gap = (len(first.split()) - len(second.split())) / self.head.temperature
        return 1 / (1 + math.exp(-gap))


def rows(seed, prompts=2, num=16):
    rng = torch.Generator().manual_seed(seed)

    def texts():
        lengths = torch.randint(1, 9, (num,), generator=rng).tolist()
        return [["so " * length, False] for length in lengths]

    return [
        {
            "responses": texts(),
            "log_ratio": (0.3 * torch.randn(num, generator=rng)).tolist(),
            "from_reference": num // 2,
            "opponents": texts(),
        }
        for _ in range(prompts)
    ]


def written(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def test_figures_are_those_of_the_kept_responses(tmp_path):
    """By sums over all pairs, and the estimator's formula on answers that are written out here."""
    kept = {name: rows(seed) for seed, name in enumerate(("one", "other"))}
    read = {
        name: measuring.read(written(tmp_path / name, content), setting.SMALL)
        for name, content in kept.items()
    }
    oracles = {making.TRAINING: Words(30.0), making.HELD_OUT: Words(50.0)}
    found = measuring.figures({**read, "gone": None}, oracles, setting.SMALL)
    held_out, met = oracles[making.HELD_OUT], setting.SMALL.met

    def mean(pairs):
        answers = [held_out.beats(first, second) for first, second in pairs]
        return sum(answers) / len(answers)

    def first(name, key):
        return [[text for text, _ in row[key][:met]] for row in kept[name]]

    over = [
        (a, b)
        for ours_, theirs in zip(
            first("one", "opponents"), first("other", "opponents"), strict=True
        )
        for a in ours_
        for b in theirs
    ]
    assert found["one"][measuring.OF_OTHERS] == pytest.approx(mean(over))
    assert found["other"][measuring.OF_OTHERS] == pytest.approx(1 - mean(over))
    against = [
        (a, b)
        for ours_, theirs in zip(first("one", "opponents"), first("one", "responses"), strict=True)
        for a in ours_
        for b in theirs
    ]
    assert found["one"][measuring.OF_REFERENCE] == pytest.approx(mean(against))
    least = []
    for measure, oracle in zip(measuring.MEASURES[:2], oracles.values(), strict=True):
        answers = [
            [[oracle.beats(a, b) for b, _ in row["opponents"]] for a, _ in row["responses"]]
            for row in kept["one"]
        ]
        ratio = torch.tensor([row["log_ratio"] for row in kept["one"]], dtype=torch.float64)
        expected = sampled_exploitability(ratio, 8, torch.tensor(answers).double(), 0.1, None, True)
        assert found["one"][measure] == pytest.approx(expected.value.mean().item(), rel=1e-4)
        least.append(expected.effective.min().item())
    assert found["one"][measuring.EFFECTIVE] == pytest.approx(min(least), rel=1e-4)
    assert found["gone"]["exploitability"] == math.inf
    assert math.isnan(found["gone"][measuring.OF_OTHERS])


@pytest.mark.parametrize(
    "content",
    [[], rows(0, prompts=3), rows(0, num=8), [{**row, "log_ratio": ["a"] * 16} for row in rows(0)]],
)
def test_damaged_responses_are_refused(tmp_path, content):
    with pytest.raises(UserError, match="is no file of responses of nlhf bench"):
        measuring.read(written(tmp_path / "a.jsonl", content), setting.SMALL)


def test_a_submission_names_no_files_elsewhere(tmp_path):
    folder = tmp_path / "o"
    folder.mkdir()
    written(tmp_path / "secret.jsonl", rows(0))
    names = {"file": "../secret.jsonl", "sha256": "", "weights": ""}
    with pytest.raises(UserError, match="there is no file"):
        part.check_evidence({"Mine, seed 0": names}, ["Mine"], [0], folder, small=True)
    with pytest.raises(UserError, match="there are no responses of Mine, seed 0"):
        part.check_evidence({}, ["Mine"], [0], folder, small=True)


def test_both_oracles_have_pairs_and_prompts_of_their_own():
    every = world.prompts()
    trained = every[making.NUM_HELD_OUT :]
    assert not {*setting.WHOLE.asked().text} & {*trained}
    one, other = (world.pairs(200, trained, seed) for _, seed in making.ORACLES.values())
    assert one != other
    assert len({kind for kind, _ in making.ORACLES.values()}) == 2
    assert TEN_MILLION.keys() <= {method.name for method in ours()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_part_is_played_resumed_and_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_ten.py").write_text(OWN)
    monkeypatch.setattr(
        command, "ours", lambda: [made("nlhf_zoo.EGPO"), made("nlhf_zoo.OnlineDPO")]
    )
    given = ["bench", "--part", "ten_million", "--small", "--queries", "128", "--output", "o"]
    given += ["--algorithm", "mine_ten.Mine"]
    main(given)
    table = capsys.readouterr().out
    assert table.count("\n| ") == 4  # the head and three algorithms
    assert Path("o/figure.png").read_bytes().startswith(b"\x89PNG")
    weights = {path: path.stat().st_mtime_ns for path in Path("o").rglob("*.ckpt")}
    content = json.loads(Path("o/results.json").read_text())
    assert {measure for *_, measure, _ in content["results"]} == {*measuring.MEASURES}
    asked = {name: (Path("o") / own["file"]) for name, own in content["evidence"].items()}
    assert asked.keys() == {f"{name}, seed 0" for name in ("EGPO", "OnlineDPO", "Mine")}

    asked["Mine, seed 0"].unlink()  # as where it was interrupted before it was measured
    Path("o/results.json").unlink()
    main(given)
    assert capsys.readouterr().out == table
    assert {path: path.stat().st_mtime_ns for path in Path("o").rglob("*.ckpt")} == weights

    main(["bench", "--check", "o/results.json", "--allow_code"])
    assert capsys.readouterr().out.count("all 5 hold") == 3
    changed = [[m, g, s, k, v + (k == "held-out")] for m, g, s, k, v in content["results"]]
    Path("o/results.json").write_text(json.dumps({**content, "results": changed}))
    with pytest.raises(SystemExit):
        main(["bench", "--check", "o/results.json", "--allow_code"])
    assert capsys.readouterr().out.count("1 of 5 do not hold") == 3
    kept = asked["EGPO, seed 0"]
    kept.write_text(kept.read_text().replace("{", "{ ", 1))
    Path("o/results.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        main(["bench", "--check", "o/results.json", "--allow_code"])
    said = capsys.readouterr().out
    assert "responses.jsonl is not the file that was measured" in said
    assert said.count("all 5 hold") == 3

    Path("o/results.json").unlink()
    with pytest.raises(SystemExit):
        main([*given, "--rate", "0.5"])
    assert "holds another run" in capsys.readouterr().err
