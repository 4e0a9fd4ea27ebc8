"""What is misspelt is refused before torch is imported, in the parser's own words."""

import re
import sys

import pytest
from forked import nlhf
from paths import CONFIGS

from nlhf_zoo.cli.early import _OWN, refuse_early
from nlhf_zoo.cli.main import _COMMANDS, main
from nlhf_zoo.errors import UserError

FIT = ["--config", str(CONFIGS / "tabular/nash_mp.yaml")]
LM = ["--config", str(CONFIGS / "lm/own_model.yaml")]

MISTAKES = {
    "no file": ["--config", "nowhere.yaml"],
    "option of the algorithm": [*FIT, "--model.algorithm.etta", "0.3"],
    "option of the game": [*FIT, "--model.betta", "0.3"],
    "option of a part of a part": [*FIT, "--model.policy.reference.scales", "2"],
    "option of the data": [*FIT, "--data.batchsize=3"],
    "no option": [*FIT, "--modle.beta", "3"],
    "option of the trainer": [*FIT, "--trainer.maxsteps", "3"],
    "algorithm": [*FIT, "--model.algorithm", "NashMDD"],
    "oracle": [*FIT, "--model.oracle=UniformRandm"],
    "reference": [*FIT, "--model.policy.reference", "UniformRefrence"],
    "data": [*FIT, "--data", "TablePrompt"],
    "model": [*FIT, "--model", "MyGame"],
    "callback": [*FIT, "--trainer.callbacks+", "Budgett"],
    "public path": [*FIT, "--model.algorithm", "nlhf_zoo.NashMDD"],
    "path of a folder": [*FIT, "--model.algorithm", "nlhf_zoo.algorithms.NashMDD"],
    "module": [*FIT, "--model.algorithm", "no_such_module.NashMDD"],
    "class after another": [*FIT, "--model.algorithm", "NashMD", "--model.algorithm.kappa", "1"],
    # What is replaced in the file, and by what.
    "file: option of the game": ("beta:", "betax:"),
    "file: option of the oracle": ("num_games:", "num_gamesx:"),
    "file: option of the trainer": ("accelerator:", "acceleratorx:"),
    "file: algorithm": ("nlhf_zoo.NashMP", "nlhf_zoo.NashMPP"),
    "file: callback": ("nlhf_zoo.Budget", "Budgett"),
}
VALID = [
    [*FIT, "--model.algorithm", "nlhf_zoo.algorithms.NashMD", "--model.algorithm.eta", "0.3"],
    [*FIT, "--model.algorithm", "NashMD", "--model.algorithm.mixture", "0.1"],
    [*FIT, "--model.algorithm.opponent.temperature", "0.9", "--model.optimizer", "torch.optim.SGD"],
    [*FIT, "--model", "json.MyGame", "--model.mine", "3", "--model.algorithm", "MyAlgorithm"],
    [*FIT, "--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "x"],
    [*FIT, "--trainer.callbacks+=Budget", "--trainer.callbacks.rounds=3", "--print_config"],
    [*FIT, "--model.oracle", "EnsembleOracle", "--model.oracle.oracles+", "Cyclic"],
    [*FIT, "--model.algorithm.surrogate", "nlhf_zoo.algorithms.surrogates.policy_gradient"],
    [*FIT, "--model.algorithm.help", "NashMP"],
    [*FIT, "--model.policy.reference", "null", "--data.batch_size", "null"],
    [*FIT, "--model", "nlhf_zoo.online_game.OnlineGame", "--model.beta", "0.2"],
    [*LM, "--model.policy.model", "my_model", "--model.policy.lora.r", "4"],
    [*LM, "--model.policy.model", "Pretrained", "--model.policy.model.name", "my_model"],
    [*LM, "--model.policy.lora", "null", "--model.oracle.function", "my_rules.shorter_wins"],
    [*LM, "--model.oracle", "CachedOracle", "--model.oracle.oracle", "JudgeOracle",
     "--model.oracle.oracle.model", "m", "--model.oracle.path", "a.sqlite"],
    [*FIT, "--model.oracle", "oracle.yaml", "--model.oracle.num_games", "3"],
    [*FIT, "--model", "game.yaml", "--trainer", "trainer.yaml"],  # files in the place of a part
    [*FIT, "--config", "{seed_everything: 1}"],
    [*LM, "--model.policy.model", "Qwen2.5-1.5B"],  # a folder
    [*LM, "--model.policy.model", "my.model", "--model.policy.max_new_tokens", "3"],
    [*FIT, "--trainer.callbacks+", "json.Mine", "--trainer.callbacks+", "MyOther"],
]  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_it_says_what_the_parser_says(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = MISTAKES[case]
    if isinstance(args, tuple):
        text = (CONFIGS / "tabular/nash_mp.yaml").read_text()
        (tmp_path / "changed.yaml").write_text(text.replace(*args))
        args = ["--config", "changed.yaml"]
    with pytest.raises(UserError) as caught:
        refuse_early(args)
    # There lightning is loaded, so that the parser alone looks at what it is given.
    run = nlhf("fit", *args, folder=tmp_path)
    assert run.code == 2
    words = str(caught.value).partition(", did you mean")[0]  # the parser knows fewer names
    assert run.sentence.removeprefix("nlhf: error: ").startswith(words[:200])


NEAREST = {
    "--model.algorithm.etta": ("3", "'etta' is not accepted, did you mean 'eta'?"),
    "--model.betta": ("3", "did you mean 'beta'?"),
    "--model.policy.reference.scales": ("2", "did you mean 'scale'?"),
    "--modle.beta": ("3", "did you mean 'model'?"),
    "--trainer.maxsteps": ("3", "did you mean 'max_steps'?"),
    "--trainer.callbacks+": ("Budgett", "did you mean 'Budget'?"),
    "--model": ("OnlinGame", "did you mean 'OnlineGame'?"),
}


@pytest.mark.parametrize("option", NEAREST)
def test_it_says_what_was_meant(option):
    value, sentence = NEAREST[option]
    with pytest.raises(UserError, match=re.escape(sentence)):
        refuse_early([*FIT, option, value])


COMMANDS = {
    "solve --bta 0.3": "unrecognized arguments: --bta 0.3, did you mean 'beta'?",
    "solve --arguments {}": "unrecognized arguments: --arguments {}",
    "solve --algorithm NashMDD": "--algorithm: there is no class 'NashMDD': choose one of DNO, ",
    "solve --algorithm EGPO --algorithm.etta 1": "'etta' is not accepted, did you mean 'eta'?",
    "compare --config a.yaml --bettas [1]": "--bettas [1], did you mean 'betas'?",
    "compare --config a.yaml --games.a.oracle A": "unrecognized arguments: --games.a.oracle A",
    "compare --budget.querys 3": "Option 'querys' is not accepted, did you mean 'queries'?",
    "compare --target.gap 3": "--target: Option 'gap' is not accepted",
    "oracle --oracle RuleOracl": "--oracle: there is no class 'RuleOracl': choose one of ",
    "oracle --oracle RuleOracle --oracle.functin f": "'functin' is not accepted, did you mean 'fu",
    "oracle --num_promts 3": "unrecognized arguments: --num_promts 3, did you mean 'num_prompts'?",
    "oracle --config {seed_everything: 1} --model.betta 1": "did you mean 'beta'?",
    "certify --oracle SmallLangage": "--oracle: there is no class 'SmallLangage'",
    "certify --respons 3": "unrecognized arguments: --respons 3, did you mean 'response'?",
    "export --ouput y": "unrecognized arguments: --ouput y, did you mean 'output'?",
    "doctor --no_rehersal": "unrecognized arguments: --no_rehersal, did you mean 'no_rehearsal'?",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_says_what_was_meant(line):
    command, *args = re.findall(r"\{.*?\}|\S+", line)
    with pytest.raises(UserError) as caught:
        refuse_early(args, command)
    assert COMMANDS[line] in str(caught.value)


RIGHT = [
    "solve --votes v.csv --beta=0.1 --prior 1 --format arena --unranked below --updates 3",
    "solve --matrix p.npy --reference m.npy --start s.npy --output o.npz --algorithm json.Mine",
    "solve --matrix p.npy --algorithm EGPO --algorithm.eta 0.2 --help",
    "compare -c a.yaml --budget.queries 3 --budget.rounds=4 --target.duality_gap 1 --overwrite",
    "compare --config a.yaml --output o --seeds [0,1] --betas [1] --queries_axis log",
    "oracle --oracle o.yaml --oracle.anything 1 --responses s.jsonl --max_queries 3 --figure f.png",
    "oracle --oracle OrderSwap --oracle.oracle RuleOracle --oracle.oracle.function f.g --probe",
    "oracle --config {seed_everything: 1} --oracle RuleOracle",  # of which more is said later
    "oracle --config {seed_everything: 1} --num_prompts 3 --num_responses 2 --model.beta 1",
    "export --ckpt a --output b --player p --merged true --config c --allow-code",
    "export --allow_code --ckpt=a",
    "doctor --num_prompts 3 --no-rehearsal",
    "certify --oracle SmallLanguage --oracle.seed 1 --beta 0.1 --response.answers 9 --output o",
]


@pytest.mark.parametrize("line", RIGHT)
def test_of_every_command_what_may_be_right_is_left_to_the_parser(line):
    command, *args = re.findall(r"\{.*?\}|\S+", line)
    refuse_early(args, command)


@pytest.mark.parametrize("command", _COMMANDS)
def test_no_command_is_taken_for_one_of_the_trainer(command):
    """One whose options nobody has told of was refused in a new process, and there alone."""
    assert command == "doctor" or command in _OWN


def test_of_a_record_it_says_more_than_the_parser():
    with pytest.raises(UserError, match=r"algorithm\.opponent: Option 'temprature' is not"):
        refuse_early([*FIT, "--model.algorithm.opponent.temprature", "2"])


@pytest.mark.parametrize("args", VALID, ids=lambda args: " ".join(args[2:])[:60])
def test_what_may_be_right_is_left_to_the_parser(args):
    refuse_early(args)


def test_a_file_may_name_classes_and_files_without_arguments(tmp_path):
    (tmp_path / "model.yaml").write_text("model: PreferenceModel\n")
    refuse_early(["--config", str(tmp_path / "model.yaml"), "--model.backbone", "LettersBackbone"])
    (tmp_path / "part.yaml").write_text("model: {init_args: {oracle: oracle.yaml}}\n")
    refuse_early(["--config", str(tmp_path / "part.yaml"), "--model.oracle.num_games", "3"])


def test_the_sentence_names_the_command(tmp_path):
    (tmp_path / "trainer.yaml").write_text("trainer: {acceleratorx: cpu}\n")
    with pytest.raises(UserError, match="Subcommand 'validate' does not accept"):
        refuse_early(["--config", str(tmp_path / "trainer.yaml")], command="validate")


def test_once_torch_is_imported_the_parser_alone_knows_the_classes(monkeypatch):
    # A notebook's algorithm, which needs torch and no lightning, is known by its name alone.
    ran = []
    monkeypatch.setattr("nlhf_zoo.cli.trainer.run", ran.append)
    monkeypatch.delitem(sys.modules, "lightning")
    main(["fit", *FIT, "--model.algorithm", "OfANotebook"])
    assert ran


@pytest.mark.parametrize(
    "path", sorted((CONFIGS).rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS))
)
def test_no_configuration_is_refused(path):
    if path.parent.name != "compare":
        refuse_early(["--config", str(path)])
