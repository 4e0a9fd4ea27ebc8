# ruff: noqa: E501  # tables
"""What is written is read again as what it was; what is not clear is refused, in `test_refusals`."""

import pytest
import yaml
from forked import nlhf
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import get_loader
from paths import CONFIGS

import nlhf_zoo.cli.parser  # noqa: F401  # which tells jsonargparse how to read
from nlhf_zoo.cli.files import read_config
from nlhf_zoo.cli.yaml_rules import dump, refuse_unclear
from nlhf_zoo.errors import UserError

# Texts that some reader of YAML takes for something else.
TEXTS = [
    "1e3", "-1E+3", "1.5e3", ".5e-3", "1.", "010", "-017", "0o17", "0x1f", "0b11", "1_000", "1:30",
    "190:20:30.15", "yes", "No", "ON", "off", "y", "n", "true", "null", "~", "", "=", "<<", "2020-01-01",
    "2001-12-14t21:59:43.10-05:00", ".inf", "-.INF", ".nan", "+1", "- a", "a: b", "# a", "{a}", "*a",
    "a\nb", " a ", "1e", "e3", "08",
]  # fmt: skip
NUMBERS = [0, -7, 10**20, 1e-5, 1e300, 0.1, -0.0, 1e16, float("inf"), True, False, None]


def read(text):
    """As jsonargparse reads a file."""
    refuse_unclear(text, "it")
    return get_loader("omegaconf+")(text)


@pytest.mark.parametrize("value", TEXTS + NUMBERS, ids=repr)
def test_what_is_written_is_read_again(value):
    data = {"a": value, "b": [value], "c": {"d": value}}
    text = dump(data)
    for read_back in (read(text), yaml.safe_load(text)):
        assert read_back == data
        assert type(read_back["a"]) is type(value)


@given(
    st.dictionaries(
        st.text("abc019.:eEoxy_-+ ", min_size=1), st.text() | st.floats(allow_nan=False)
    )
)
def test_whatever_is_written_is_read_again(data):
    assert read(dump({"all": data, "no": "1"})) == {"all": data, "no": "1"}


def test_print_config_reads_back_what_it_printed(tmp_path):
    config = CONFIGS / "tabular/nash_mp.yaml"
    options = ["--trainer.logger.name=1e3", "--trainer.logger.version=010", "--model.beta=1e-5"]
    printed = nlhf("fit", "--config", str(config), *options, "--print_config", folder=tmp_path)
    assert printed.code == 0, printed.err
    (tmp_path / "printed.yaml").write_text(printed.out)
    again = nlhf("fit", "--config", "printed.yaml", "--print_config", folder=tmp_path)
    assert again.code == 0, again.err
    assert again.out == printed.out
    logger = yaml.safe_load(again.out)["trainer"]["logger"]["init_args"]
    assert logger["name"] == "1e3"


def test_a_saved_file_is_read_by_the_rules_it_was_written_with(tmp_path):
    """PyYAML wrote the text 1e3 without quotes, which jsonargparse reads as a number."""
    saved = "# lightning.pytorch==2.6.6\nname: 1e3\nrate: 1.0e-05\nother: 'yes'\n"
    path = tmp_path / "config.yaml"
    path.write_text(saved)
    assert read_config(str(path)) == {"name": "1e3", "rate": 1e-5, "other": "yes"}
    assert get_loader("yaml")(saved)["name"] == "1e3"
    path.write_text(saved.partition("\n")[2])
    assert read_config(str(path))["name"] == 1000.0


@pytest.mark.parametrize("value", ["010", "-017", "1:30", "1:30.5", "0b11", "no", "Yes", "ON"])
def test_what_is_unclear_is_refused_in_a_saved_file_that_was_edited(value, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"# lightning.pytorch==2.6.6\ntrainer:\n  max_epochs: {value}\n")
    with pytest.raises(UserError, match=rf"config\.yaml, line 3: versions of YAML read {value} as"):
        read_config(str(path))


@pytest.mark.parametrize("value", TEXTS + NUMBERS, ids=repr)
def test_whatever_any_version_has_saved_is_read(value, tmp_path):
    """Version 0.1 wrote as PyYAML does, which leaves 08 and 0o17 without quotes."""
    path = tmp_path / "config.yaml"
    for written in (dump, yaml.safe_dump):
        path.write_text("# lightning.pytorch==2.6.6\n" + written({"a": value}))
        assert read_config(str(path)) == {"a": value}


@pytest.mark.parametrize(
    "text", ["a: y", "a: 1_000", "a: 0x1f", "a: 2020-01-01", "a: True", "a: '010'"]
)
def test_what_all_take_alike_is_taken(text):
    refuse_unclear(text, "it")


def test_a_long_list_of_aliases_is_no_bomb():
    refuse_unclear("a: &a {b: 1}\nc: [" + ", ".join(1000 * ["*a"]) + "]", "it")
    with pytest.raises(UserError, match="it, line 2 has a key that is no plain name"):
        refuse_unclear("a: 1\n? [b]\n: 2", "it")
