"""The files that the answers make: templates with comments, in which names are put in."""

from __future__ import annotations

import json
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from string import Template

from nlhf_zoo.cli.init.questions import OPTIONS, RECOMMEND, RECOMMENDED

_TEMPLATES = Path(__file__).parent / "templates"
_MANY = 64  # prompts from which on some are held out
_HELD_OUT = 16
_BATCH = 4


@dataclass(frozen=True, slots=True)
class Named:
    """What is named beside the four answers.

    Args:
        data: the file of votes, prompts or pairs.
        function: of a rule.
        judge: a model's name.
        judge_url: of its server.
    """

    data: str
    function: str
    judge: str
    judge_url: str


def files_of(answers: dict[str, str], named: Named, output: Path) -> dict[Path, str]:
    """The files by name, those to be run first first; two of pairs.

    Args:
        answers: to the questions.
        named: what else is named.
        output: the file that trains the policy.
    """
    have, save = answers["have"], Path(answers["save"])
    preference_file = output.with_name(f"{output.stem}_preference_model{output.suffix}")
    recommended, reason = RECOMMENDED[have]
    own = answers["algorithm"]
    algorithm = recommended if own == RECOMMEND else own
    why = f"Recommended: {reason}" if own == RECOMMEND else "Your own choice"
    options = OPTIONS.get((have, algorithm), {})
    indented = "".join(f"\n        {name}: {value}" for name, value in options.items())
    rows = _num_rows(Path(named.data))
    values = {
        "file": shlex.quote(str(output)),
        "preference_file": shlex.quote(str(preference_file)),
        "data_shell": shlex.quote(named.data),
        "algorithm": algorithm,
        "algorithm_args": f"\n      init_args:{indented}" if options else "",
        "why": textwrap.indent(textwrap.fill(f"{why} (docs/which_algorithm.md).", 94), "    # "),
        "rounds": answers["rounds"],
        "batch_size": str(min(_BATCH, rows or _BATCH)),
        "num_validation": str(_HELD_OUT) if rows >= _MANY else "null",
        "as_conversation": str(_has_chat_template(answers["model"])).lower(),
    }
    texts = {
        "model": answers["model"],
        "data": named.data,
        "function": named.function,
        "judge": named.judge,
        "judge_url": named.judge_url,
        "save_dir": str(save.parent),
        "name": save.name,
        "preference_name": f"{save.name}_preference_model",
        "preference_model": str(
            save.with_name(f"{save.name}_preference_model") / "version_0" / "preference_model"
        ),
    }
    # JSON's quotes are YAML's: whatever a name holds, it stays a text.
    values |= {name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()}
    if have == "votes":
        return {output: _filled("votes.yaml", values)}
    values |= {
        "head": _filled(f"{have}_head.txt", values).rstrip("\n"),
        "oracle": _filled(f"{have}.yaml", values).rstrip("\n"),
    }
    policy = {output: _filled("policy.yaml", values)}
    if have != "pairs":
        return policy
    return {preference_file: _filled("preference_model.yaml", values), **policy}


def _filled(name: str, values: dict[str, str]) -> str:
    return Template((_TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)


def _num_rows(path: Path) -> int:
    """How many lines a file has, 0 where it is not there yet, or is a list."""
    if not path.is_file() or path.suffix != ".jsonl":
        return 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _has_chat_template(model: str) -> bool:
    """Whether a folder's tokenizer has one; of a name on the hub it is taken for granted."""
    folder = Path(model)
    if not folder.is_dir():
        return True
    config = folder / "tokenizer_config.json"
    try:
        own = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except ValueError:
        own = {}
    has_file = any((folder / f"chat_template.{end}").is_file() for end in ("jinja", "json"))
    return has_file or (isinstance(own, dict) and bool(own.get("chat_template")))
