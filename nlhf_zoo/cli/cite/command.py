"""``nlhf cite``: BibTeX of what a configuration runs, or of what a run has run.

Nothing that a file names is imported, neither ours nor the user's: what a class declares is read
off its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nlhf_zoo import __version__
from nlhf_zoo.cli.cite.bibliography import OWN, entries
from nlhf_zoo.cli.cite.mentions import Mention, mentions, merged
from nlhf_zoo.cli.files import read_config
from nlhf_zoo.cli.parser import SentenceParser
from nlhf_zoo.cli.run_folders import find_runs
from nlhf_zoo.errors import UserError


def main(args: list[str]) -> None:
    """Run ``nlhf cite`` with what stands behind it on the command line."""
    parser = SentenceParser(prog="nlhf cite", description="BibTeX of what was run, or will be.")
    parser.add_argument(
        "configs",
        nargs="*",
        type=str,
        help="configurations of nlhf fit or nlhf compare, in the order in which they are stacked, "
        "or the folder of a run",
    )
    cite(parser.parse_args(args).configs or ())


def cite(configs: Sequence[str]) -> None:
    """Print BibTeX entries, of the algorithm and what is in it first.

    Args:
        configs: configurations, each stacked on those before it, or folders of runs.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    if not configs:
        raise UserError(
            "there is nothing to cite: give a configuration or a run's folder, as in nlhf cite "
            "configs/tabular/nash_mp.yaml"
        )
    content: dict[str, object] = {}
    for name in configs:
        path = Path(name)
        is_run = path.is_dir() or path.suffix == ".ckpt"
        file = find_runs([path])[0] / "config.yaml" if is_run else path
        content = merged(content, read_config(str(file), option=""))
    print(_text(list(mentions(content, file))))


def _text(found: list[Mention]) -> str:
    """The entries of what was found, each once, after comments that say what they belong to."""
    known, wanted, comments = entries(), dict.fromkeys([OWN]), []
    for mention in found:
        numbers = [number for number in mention.papers if number in known]
        wanted |= dict.fromkeys(numbers)
        rest = [paper for paper in mention.papers if paper not in known]
        comments.append(_comment(mention, [known[number].key for number in numbers], rest))
    shown = [known[each].text.replace("{VERSION}", f"{{{__version__}}}") for each in wanted]
    return "\n\n".join(["\n".join(dict.fromkeys(comments)), *shown]).strip()


def _comment(mention: Mention, keys: list[str], rest: list[str]) -> str:
    """What a part is cited by."""
    said = ", ".join([*keys, *(f"no entry here, but its paper is {paper!r}" for paper in rest)])
    if not mention.found:
        said = "its source is not here: cite it by hand"
    elif not said:
        said = "a class of your own that declares no paper: cite it by hand"
    return f"% {mention.name}: {said}"
