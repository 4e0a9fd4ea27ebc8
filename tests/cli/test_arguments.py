"""Files, options and flags: in which order they stand, and which class of a model is meant."""

import pytest
import runs

from nlhf_zoo.cli.arguments import flags, refuse_overridden, with_model
from nlhf_zoo.cli.parser import taken_out, with_values
from nlhf_zoo.errors import UserError

GAME_OF_ONE_S_OWN = """
from nlhf_zoo import OnlineGame
class Mine(OnlineGame):
    def __init__(self, *args, extra: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        print("extra", extra, "beta", self.beta)
"""


def test_a_game_of_one_s_own_takes_the_options_of_the_file(tmp_path):
    """jsonargparse hands a record, as that of LoRA, on to no other class."""
    (tmp_path / "own.py").write_text(GAME_OF_ONE_S_OWN)
    runs.write(tmp_path, runs.CASES["language-nash_mp"])
    options = ("--model", "own.Mine", "--model.extra", "3", "--model.policy.lora.r", "3")
    run = runs.fit(tmp_path, *options, "--trainer.fast_dev_run", "true")
    assert run.code == 0, run.err
    assert "extra 3 beta 0.1" in run.out


def test_only_a_class_of_one_s_own_goes_into_the_file(tmp_path):
    (tmp_path / "game.yaml").write_text("model: {class_path: OnlineGame, init_args: {beta: 1}}\n")
    config = ["--config", str(tmp_path / "game.yaml")]
    for model in ("PreferenceModel", "nlhf_zoo.OnlineGame", "null", "MyGame"):
        assert with_model([*config, "--model", model]) == [*config, "--model", model]
    assert with_model(config) == config
    for given in (config, [f"{config[0]}={config[1]}"]):
        *words, option, model = with_model(["fit", *given, "--x", "1", "--model", "own.Mine"])
        assert (option, model) == ("--model", "own.Mine")
        assert "class_path: own.Mine" in "".join(words)
        assert "beta: 1" in "".join(words)


@pytest.mark.parametrize(
    "option", ["--model.beta=2", "--model.init_args.beta=2", "--model=own.Mine"]
)
def test_a_file_replaces_no_option_before_it(option, tmp_path):
    path = tmp_path / "game.yaml"
    path.write_text(
        "model: {class_path: OnlineGame, init_args: {beta: 1}}\ntrainer: {max_steps: 2}\n"
    )
    flag = option.partition("=")[0]
    with pytest.raises(UserError, match=f"{flag} stands before --config .*, which sets it, too"):
        refuse_overridden([option, "--config", str(path)])
    refuse_overridden(["--config", str(path), option])
    refuse_overridden(["--model.eta=1", "--trainer.max_epochs", "3", f"--config={path}"])


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--overwrite"], True),
        (["--overwrite", "true"], True),
        (["--overwrite", "false"], False),
        (["--overwrite=false"], False),
        (["--overwrite", "--x"], True),
        ([], False),
    ],
    ids=str,
)
def test_a_flag_stands_alone_or_with_a_value(words, value):
    left = ["--y", "true", *(word for word in words if word == "--x")]
    assert taken_out(with_values(["--y", "true", *words], ["--overwrite"]), "--overwrite") == (
        left,
        value,
    )


def test_a_hyphen_stands_for_an_underscore():
    assert with_values(["--allow-code"], ["--allow_code"]) == ["--allow_code=true"]
    with pytest.raises(UserError, match="--allow_code: expected true or false, but got 'no'"):
        taken_out(with_values(["--allow-code=no"], ["--allow_code"]), "--allow_code")


def test_options_are_found_with_their_values():
    words = ["fit", "--a", "1", "-c", "x", "--b=2", "--d", "--e", "-1", "-2"]
    assert list(flags(words)) == [
        (1, "a", "1"), (3, "c", "x"), (5, "b", "2"), (6, "d", None), (7, "e", "-1"),
    ]  # fmt: skip
