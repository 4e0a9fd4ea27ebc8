"""`nlhf certify` against exact figures, what it keeps, and what it refuses."""

import json
import math
import re
import shutil

import pytest
import runs
import torch
import yaml
from oracles.test_general_preference import general
from rows import write
from text_models import prompts, responses
from tiny_models import make_policy, save_tiny, scatter_adapters

from nlhf_zoo import TabularPolicy, UniformRandom
from nlhf_zoo.cli.inputs import prompts_from
from nlhf_zoo.cli.main import main
from nlhf_zoo.data.texts import message
from nlhf_zoo.game.certifying import SamplePlan, sample_exploitability
from nlhf_zoo.oracles import GeneralPreferenceModelOracle
from nlhf_zoo.policies.loading import LoadedPlayer
from nlhf_zoo.text_models.heads import BradleyTerryHead

GAME = ("--oracle", "UniformRandom", "--oracle.num_games", "2", "--oracle.num_actions", "4")
SEED = ("--oracle.seed", "3")
SILENT = "def silent(prompt, first, second):\n    return float('nan')\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run on tables."""
    folder = tmp_path_factory.mktemp("certify")
    config = runs.configuration(
        algorithm=runs.part("NashMP"),
        oracle=runs.part("UniformRandom", num_games=2, num_actions=4, seed=3),
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", "config.yaml"])
    return folder / runs.RUN


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certified")
    save_tiny(folder / "llama", "llama", chat=True)
    save_tiny(folder / "other", "gpt2")
    make_policy(folder / "llama").export(folder / "adapter")
    write(folder / "prompts.jsonl", {"prompt": "go on."}, {"prompt": "a b"})
    (folder / "empty.jsonl").write_text("")
    (folder / "rule.py").write_text(SILENT)
    return folder


def test_of_a_table_the_exact_figure_stands_beside(run, tmp_path, capsys):
    """The fixed interval is doubled: it misses the exact value in 1e-4 of all seeds."""
    output = tmp_path / "found"
    options = ("--form", "pairs", "--responses", "64", "--output", str(output))
    main(["certify", str(run), *GAME, *SEED, *options])
    said = capsys.readouterr().out
    found = json.loads((output / "certificate.json").read_text())
    logged = runs.scalars(run.parents[2])  # by the run itself
    exact = {step: v for (tag, step), v in logged.items() if tag == "game/exploitability"}
    assert found["exact"] == pytest.approx(float.fromhex(exact[max(exact)]), rel=1e-5)
    assert found["beta"] == 0.1  # the run's
    assert abs(found["mean"] - found["exact"]) <= found["high"] - found["low"]
    assert found["answers"] == 2 * 64 * 25
    assert f"{found['mean']:.4f}" in said
    assert (output / "certificate.png").stat().st_size > 1000
    assert (output / "certificate.md").read_text().strip() == said.strip()


def test_the_title_names_the_player_of_a_run(run, capsys):
    options = ("--form", "pairs", "--responses", "16", "--player")
    main(["certify", str(run), *GAME, *SEED, *options, "reference"])
    assert f"reference of {run} at beta = 0.1" in capsys.readouterr().out


def test_a_certificate_that_was_interrupted_goes_on(run, tmp_path, capsys):
    output = tmp_path / "found"
    options = ("--form", "pairs", "--responses", "16", "--output", str(output))
    main(["certify", str(run), *GAME, *SEED, *options])
    whole = (output / "certificate.json").read_text()
    lines = (output / "prompts.jsonl").read_text().splitlines()
    (output / "prompts.jsonl").write_text("\n".join(lines[:2]) + "\n")  # one prompt is done
    main(["certify", str(run), *GAME, *SEED, *options])
    assert (output / "certificate.json").read_text() == whole
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["certify", str(run), *GAME, *SEED, *options, "--beta", "0.2"])
    assert "has figures with another beta: give another --output" in capsys.readouterr().err


def test_figures_of_other_weights_or_prompts_are_not_gone_on_with(models, tmp_path, refused):
    """The same names, and what they name has changed since."""
    for name in ("adapter", "prompts.jsonl"):
        path = models / name
        copied = tmp_path / name
        shutil.copytree(path, copied) if path.is_dir() else shutil.copy(path, copied)
    rule = ("--oracle", "RuleOracle", "--oracle.function", "nlhf_zoo.oracles.rules.shorter_wins")
    prompts = tmp_path / "prompts.jsonl"
    command = ["certify", str(tmp_path / "adapter"), *rule, "--prompts", str(prompts)]
    command += ["--beta", "1", "--responses", "8", "--max_new_tokens", "4"]
    command += ["--output", str(tmp_path / "found")]
    main(command)
    main(command)  # goes on
    kept = prompts.read_text()
    prompts.write_text(kept.replace("go on.", "go\u2028off"))
    assert "another prompts" in refused(*command)[1]
    prompts.write_text(kept)
    policy = make_policy(models / "llama")
    scatter_adapters(policy, seed=9)
    shutil.rmtree(tmp_path / "adapter")
    policy.export(tmp_path / "adapter")
    assert "another weights" in refused(*command)[1]


def test_prompts_have_the_form_of_the_run(tmp_path):
    """A run that made texts the messages of a user is certified on such."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    data = runs.part("TextPrompts", as_conversation=True, system="be brief")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    path = write(tmp_path / "prompts.jsonl", {"prompt": "go\u2028on"})
    found = prompts_from(path, policy=str(tmp_path))
    expected = [[message("system", "be brief"), message("user", "go\u2028on")]]
    assert found.conversations == expected
    assert prompts_from(path, as_conversation=False, policy=str(tmp_path)).conversations is None


def test_with_a_small_beta_it_cannot_know(run, capsys):
    options = ("--form", "pairs", "--responses", "32", "--beta", "0.02")
    main(["certify", str(run), *GAME, *SEED, *options])
    assert "Cannot know: for " in capsys.readouterr().out


def test_embeddings_give_what_pairs_of_questions_give():
    oracle = GeneralPreferenceModelOracle(general())
    asked = prompts("w9 w8", "w1")
    first = responses(["w1 w2", "w3"], ["w3", "w5 w6"])
    second = responses(["w3", "w4", "w7"], ["w5 w6", "w8", "w9 w9"])
    found, expected = oracle.compare_all(asked, first, second), oracle(asked, first, second)
    torch.testing.assert_close(found.preference.double(), expected.preference.double())
    assert torch.equal(found.valid, expected.valid)


def test_rewards_of_single_texts_compare_all_pairs():
    """Every response of one side with every one of the other, and not those of the same place."""
    head, rng = BradleyTerryHead(0.7), torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, num, 1, generator=rng) for num in (3, 4))
    found = head.preference(ours[:, :, None], theirs[:, None])
    expected = torch.sigmoid((ours - theirs.mT) / 0.7)
    torch.testing.assert_close(found, expected, check_dtype=False)


def test_responses_of_pairs_have_opponents_of_their_own():
    """Each is asked about with its M, and with no other's."""
    oracle = UniformRandom(2, 5, seed=0)
    seen = []

    class Spy(type(oracle).__mro__[2]):
        def forward(self, asked, first, second):
            seen.append((first.num, second.num, len(asked)))
            return oracle(asked, first, second)

    policy = TabularPolicy()
    policy.bind((), oracle.support)
    player = LoadedPlayer("p", policy)
    plan = SamplePlan(0.3, 6, 9)
    rng = torch.Generator().manual_seed(0)
    found = sample_exploitability(player, player.reference, Spy(), oracle.prompts, plan, rng)
    assert found is not None
    assert seen == [(1, 9, 12)]
    assert found.asked == 2 * 6 * 9
    assert found.estimates.judged.tolist() == [6, 6]
    assert not math.isnan(found.estimates.value.sum())


REFUSED = {
    "K = 1": (("--responses", "1"), "responses is 1: a certificate needs at least 4"),
    "few opponents": (("--opponents", "2"), "opponents is 2: at beta = 0.1 .* takes at least 13"),
    "beta 0": (("--beta", "0"), "--beta must be a finite number above 0"),
    "no beta": ((), "is no run, which would have a beta: give --beta"),
    "small budget": (("--budget", "40"), "--budget is 40, for 2 prompts"),
    "budget": (("--budget", "40", "--responses", "8"), "--budget is 40, but 8 responses"),
    "embeddings": (("--form", "embeddings"), "RuleOracle answers pairs, and has no embeddings"),
    "no prompts": (("--prompts", "empty.jsonl"), "empty.jsonl"),
    "no file": (("--prompts", "none.jsonl"), "none.jsonl is no file"),
    "tokens": (("--reference", "other"), "have tokenizers with another"),
    "no folder": (("--output", "a/b"), "the folder a does not exist"),
    "no answer": ((), "RuleOracle gave no answer to .* questions about prompt 1"),
    "misspelt training": (("--response.answrs", "5"), "answrs 5, did you mean 'answers'"),
    "unknown training": (
        ("--response.foo", "5"),
        "--response has no 'foo', but answers, batch_size",
    ),
    "no training": (("--best_response",), "--best_response trains in a folder: give --output"),
}


@pytest.mark.parametrize(("args", "message"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_one_sentence(models, monkeypatch, capsys, args, message, request):
    monkeypatch.chdir(models)
    monkeypatch.syspath_prepend(str(models))
    given = {"--prompts": "prompts.jsonl", "--beta": "0.1", "--responses": "4"}
    if "no beta" in request.node.name:
        del given["--beta"]
    if "budget" in request.node.name and "8" not in args:
        del given["--responses"]
    words = dict(zip(args[::2], args[1::2], strict=False))
    rest = [word for name, value in (given | words).items() for word in (name, value)]
    rest += [word for word in args if word == "--best_response"]
    options = ("--oracle", "RuleOracle", "--oracle.function", "rule.silent")
    with pytest.raises(SystemExit, match="2"):
        main(["certify", "adapter", *options, "--max_new_tokens", "4", *rest])
    assert re.search(message, capsys.readouterr().err)
