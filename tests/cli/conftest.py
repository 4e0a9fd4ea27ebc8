import re
from collections.abc import Callable

import pytest

from nlhf_zoo.cli.main import main


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs a command that ends with exit code 2 and one sentence; gives output and sentence."""

    def run(*args: object) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([*map(str, args)])
        out, err = capsys.readouterr()
        before, start, sentence = err.partition("nlhf: error: ")  # on a slow machine behind bars
        assert end.value.code == 2
        assert start
        assert re.fullmatch(r"[^\n]{1,599}\n", sentence)
        said = before + sentence
        assert not re.search(r"Traceback|usage:|Union subtypes|Namespace|<class|NestedArg", said)
        return out, sentence.strip()

    return run
