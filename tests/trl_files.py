"""Files of TRL's, and the configurations that they become."""

import json
from pathlib import Path

import pytest
import yaml

from nlhf_zoo.cli.from_trl.command import from_trl
from nlhf_zoo.errors import UserError

DUMPS = Path(__file__).parent / "cli/trl_dumps"


def write_prompts():
    """Eight rows in the working folder."""
    rows = [{"prompt": f"w{n} w{n + 1}"} for n in range(8)]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))


def translated(file, **options):
    """The configuration that a file becomes."""
    from_trl(str(file), "config.yaml", overwrite=True, **options)
    return yaml.safe_load(Path("config.yaml").read_text())


def dumped(name):
    return json.loads((DUMPS / f"{name}.json").read_text())


def of(given, **options):
    """The configuration that arguments become."""
    Path("given.json").write_text(json.dumps(given))
    return translated("given.json", **options)


def model_of(config):
    return config["model"]["init_args"]


def refusal(given, **options):
    Path("config.yaml").unlink(missing_ok=True)
    with pytest.raises(UserError) as error:
        of(given, **options)
    assert not Path("config.yaml").exists()
    return str(error.value)
