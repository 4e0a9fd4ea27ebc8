"""Makes docs/architectures.md: what holds for small random models of many architectures.

python docs/architectures.py [--write] [NAME ...], from the root of the repository. Each model goes
the way of a user's: a folder, `CausalLMPolicy`, the checks of `nlhf doctor`. Beside them, what is
drawn and scored is compared with plain transformers, row by row, without padding, in float32.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from architectures import RECIPES, save  # noqa: E402
from tiny_models import scatter_adapters  # noqa: E402
from torch import Tensor  # noqa: E402

from nlhf_zoo.algorithms import NashMD  # noqa: E402
from nlhf_zoo.errors import UserError  # noqa: E402
from nlhf_zoo.game.online_game import OnlineGame  # noqa: E402
from nlhf_zoo.game.realisation import GradientSteps  # noqa: E402
from nlhf_zoo.game.rollout import Sample  # noqa: E402
from nlhf_zoo.health import Check, refuse_unhealthy, run_checks  # noqa: E402
from nlhf_zoo.oracles import RuleOracle  # noqa: E402
from nlhf_zoo.oracles.rules import shorter_wins  # noqa: E402
from nlhf_zoo.policies import CausalLMPolicy, LoRA  # noqa: E402
from nlhf_zoo.records import PLAIN, Mixture, Prompts, Responses  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
COLUMNS = (
    "padding", "cache", "K > 1", "mixtures", "checkpointing", "merged export", "adapters", "doctor",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "peft")
RIGHT = "right"
CUT = "responses end by themselves"  # a check of the doctor's: random models rarely end theirs
LIMIT = 1e-3  # of a log-probability, for each token, and of a gradient's largest entry
POLICY, REFERENCE = {"policy": 1.0}, {"reference": 1.0}
HALF = {"policy": 0.5, "reference": 0.5}
TEXTS = ["go on.", "a", "to be or not?"]


@dataclass
class Row:
    """What was found of an architecture."""

    name: str
    cells: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)  # sentences, by column
    faults: dict[str, str] = field(default_factory=dict)  # what is neither right nor refused

    def enter(self, column: str, look: Callable[[], str]) -> None:
        """Look, and take down what was found."""
        try:
            self.cells[column] = look()
        except UserError as error:
            self.cells[column] = "refused"
            self.refusals[column] = str(error)
        except Exception as error:  # whatever a user would have a traceback of
            self.cells[column] = "fault"
            self.faults[column] = f"{type(error).__name__}: {error}"
        if self.cells[column].startswith(("off by", "fails")):
            self.faults[column] = self.cells[column]


class Examined:
    """A small model of an architecture, as the policy of a game."""

    def __init__(self, folder: Path, target_modules: str = "all-linear", **options: Any) -> None:
        torch.manual_seed(0)
        self.folder = folder
        policy = CausalLMPolicy(
            str(folder), LoRA(r=4, alpha=8, target_modules=target_modules), max_new_tokens=5,
            **options,
        )  # fmt: skip
        self.game = OnlineGame(
            policy, RuleOracle(shorter_wins), NashMD(mixture=0.5),
            optimizer=partial(torch.optim.Adam, lr=0.01), rollout=Sample(2, 2),
            realisation=GradientSteps(),
        )  # fmt: skip
        self.game.eval()
        self.policy = policy
        scatter_adapters(policy)

    @cached_property
    def prompts(self) -> Prompts:
        """Of different lengths."""
        return self.policy.encode(Prompts(torch.arange(len(TEXTS)), text=TEXTS))

    def drawn(self, who: Mixture, num: int) -> Responses:
        """Responses to all prompts."""
        stream = torch.Generator().manual_seed(0)
        return self.policy.sample(who, self.prompts, num, PLAIN, stream)

    @torch.no_grad()
    def generator(self, who: Mixture, num: int) -> str:
        """What the generator says of its draws, against the same tokens scored row by row."""
        responses = self.drawn(who, num)
        assert responses.log_prob is not None
        alone = _row_by_row(partial(self._law, who), self.prompts, responses)
        again = self.policy.log_prob(who, self.prompts, responses)
        return max(
            _verdict(responses.log_prob, alone, responses),
            _verdict(again, alone, responses),
            key=len,
        )

    def _law(self, who: Mixture, tokens: Tensor) -> Tensor:
        """Next-token laws [S, V] of a mixture along one row, from all logits of each player."""
        players, total = self.policy._players, torch.zeros(())
        for player, weight in who.items():
            with players.playing([player], 1):
                logits = players.module(player)(input_ids=tokens[None], use_cache=False).logits[0]
            total = total + weight * logits.double().log_softmax(-1)
        return total.log_softmax(-1)

    @torch.no_grad()
    def padding(self) -> str:
        """The reference in a batch, against the plain model of the folder, row by row."""
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        responses = _random_responses(self.prompts)
        alone = _row_by_row(partial(_plain_law, plain), self.prompts, responses)
        found = self.policy.log_prob(REFERENCE, self.prompts, responses)
        return _verdict(found, alone, responses)

    def gradients(self) -> dict[str, Tensor]:
        """Of the policy's adapters, by the log-probability of fixed responses."""
        self.game.train()
        self.game.zero_grad()
        responses = _random_responses(self.prompts)
        self.policy.log_prob(POLICY, self.prompts, responses).sum().backward()
        parameters = self.policy.trained_parameters().items()
        return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters}

    def checkpointing(self) -> str:
        """Gradients with activations computed again in the backward, against those without."""
        checkpointed = Examined(self.folder, gradient_checkpointing=True)
        before, after = self.gradients(), checkpointed.gradients()
        self.game.eval()
        largest = max(float(g.abs().max()) for g in before.values())
        worst = max(float((g - after[n]).abs().max()) for n, g in before.items())
        return _share(worst / largest)

    @torch.no_grad()
    def merged(self) -> str:
        """The policy as a plain model of transformers."""
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as folder:
            self.policy.export(Path(folder) / "out", merged=True)
            plain = AutoModelForCausalLM.from_pretrained(Path(folder) / "out").eval()
        responses = _random_responses(self.prompts)
        alone = _row_by_row(partial(_plain_law, plain), self.prompts, responses)
        return _verdict(self.policy.log_prob(POLICY, self.prompts, responses), alone, responses)

    def coverage(self) -> str:
        """The share of linear weights with adapters; behind a slash with experts, where more."""
        found = self.policy.adapter_coverage()
        assert found is not None
        share = f"{found.share:.0%}"
        if found.share < 1:
            more = Examined(self.folder, "all-linear-and-experts").policy.adapter_coverage()
            assert more is not None
            share += f" / {more.share:.0%}" if more.share > found.share else ""
        return share

    def doctor(self) -> str:
        """The checks of `nlhf doctor`, without the rehearsal of a round."""
        checks: list[Check] = []
        with closing(run_checks(self.game, self.prompts)) as findings:
            for _, found in findings:
                checks += [finding for finding in found if isinstance(finding, Check)]
        checks = [check for check in checks if check.name != CUT]
        failed = [f"{c.name}: {c.figure}: {c.advice}" for c in checks if c.passed is False]
        if failed:
            raise UserError("; ".join(failed))
        return f"{sum(c.passed is True for c in checks)} pass"


def examine(name: str, columns: Sequence[str] = COLUMNS) -> Row:
    """What the table says of an architecture."""
    row = Row(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            it = Examined(save(name, Path(folder)))
            refuse_unhealthy(it.game, it.prompts)  # as `nlhf fit` does before its first step
        except UserError as error:
            row.cells = dict.fromkeys(columns, "refused")
            row.refusals["all"] = str(error)
            return row
        looks = (
            it.padding, partial(it.generator, POLICY, 1), partial(it.generator, POLICY, 3),
            partial(it.generator, HALF, 2), it.checkpointing, it.merged, it.coverage, it.doctor,
        )  # fmt: skip
        for column, look in zip(COLUMNS, looks, strict=True):
            if column in columns:
                row.enter(column, look)
    return row


def _random_responses(prompts: Prompts) -> Responses:
    """Two responses of 4 tokens to each prompt; none of the tokens is a special one."""
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 30, (len(prompts), 2, 4), generator=rng)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return Responses(tokens, mask, torch.full(tokens.shape[:2], 0.5))


def _plain_law(model: Any, tokens: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens[None], use_cache=False).logits[0]
    return logits.double().log_softmax(-1)


def _row_by_row(law: Callable[[Tensor], Tensor], prompts: Prompts, responses: Responses) -> Tensor:
    """Log-probabilities [B, K], one row at a time and without padding."""
    assert prompts.tokens is not None
    assert prompts.mask is not None
    found = torch.zeros(responses.weight.shape, dtype=torch.float64)
    for b, k in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        prompt = prompts.tokens[b][prompts.mask[b].bool()]
        response = responses.tokens[b, k][responses.mask[b, k]]
        laws = law(torch.cat([prompt, response]))[len(prompt) - 1 : -1]
        found[b, k] = laws.gather(-1, response[:, None]).sum()
    return found


def _verdict(found: Tensor, right: Tensor, responses: Responses) -> str:
    tokens = responses.mask.sum(-1).clamp(min=1)
    return _share(float(((found.detach().double() - right).abs() / tokens).max()))


def _share(gap: float) -> str:
    return RIGHT if gap <= LIMIT else f"off by {gap:.2g}"


# The page ---------------------------------------------------------------------------------------


def page(rows: Sequence[Row]) -> str:
    """The text of docs/architectures.md."""
    return "\n".join([*_head(rows), *_table(rows), *_refusals(rows)]) + "\n"


INTRODUCTION = (
    "What holds for small random models of {number} architectures of transformers and their "
    "variants (`@`), with {packages}, on a CPU in float32. {whole} are right in every column; what "
    "is not is refused in one sentence. `python docs/architectures.py --write` made this page: it "
    "loads each model as `nlhf fit` does. Windows, chunks and indices of these small models are "
    "four to eight tokens long, so that a large one may be right where its small one is refused: "
    "for your own model, `nlhf doctor` says the same."
)
LEGEND = """
| column | what is compared; right is at most 0.001, of a log-probability for each token |
|---|---|
| padding | log-probabilities in a batch of different lengths, with plain transformers row by row |
| cache | the generator's log-probabilities of its draws, with the same row by row |
| K > 1 | the same of three responses a prompt |
| mixtures | the same of half policy and half reference, formed token by token |
| checkpointing | gradients with activations computed again, with those without; of the largest |
| merged export | the exported model, loaded by plain transformers, with the policy |
| adapters | weights that have some under "all-linear"; / under "all-linear-and-experts", if more |
| doctor | checks of `nlhf doctor` that pass; none fails unless it is refused |

A number in brackets is that of the sentence below the table.
"""


def _head(rows: Sequence[Row]) -> Iterator[str]:
    versions = {name: version(name).partition("+")[0] for name in PACKAGES}
    introduction = INTRODUCTION.format(
        number=len(rows),
        packages=", ".join(f"{name} {number}" for name, number in versions.items()),
        whole=sum(not row.refusals for row in rows),
    )
    yield from ("# Model architectures", "", *_wrapped(introduction), LEGEND)


def _numbers(rows: Sequence[Row]) -> dict[str, int]:
    """Numbers of the sentences, each once."""
    said = [_general(row, text) for row in rows for text in row.refusals.values()]
    return {text: number for number, text in enumerate(dict.fromkeys(said), 1)}


def _general(row: Row, sentence: str) -> str:
    """A sentence without what differs from one small model to the next."""
    return re.sub(r"\d+\.\d+(?:e-?\d+)?|\d+e-?\d+", "X", sentence)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    numbers = _numbers(rows)
    yield "| architecture | " + " | ".join(COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for row in rows:
        cells = []
        for column in COLUMNS:
            sentence = row.refusals.get(column) or row.refusals.get("all")
            mark = f" [{numbers[_general(row, sentence)]}]" if sentence else ""
            cells.append(f"{row.cells[column]}{mark}")
        yield f"| {row.name} | " + " | ".join(cells) + " |"


def _refusals(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("", "## What is refused", "", "X stands for a figure.", "")
    for text, number in _numbers(rows).items():
        yield from _wrapped(f"{number}. {text}", "   ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of Markdown, as all pages have them."""
    text = text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")
    return textwrap.wrap(
        text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def main() -> None:
    """Examine, print and write; the exit code is 1 if anything is neither right nor refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all if none is given")
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--kept", type=Path, help="a file of rows that an earlier call found")
    given = parser.parse_args()
    torch.set_num_threads(1)  # of such small products several threads only wait for each other
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    kept = {}
    if given.kept and given.kept.is_file():
        lines = map(json.loads, given.kept.read_text().splitlines())
        kept = {line["name"]: Row(**line) for line in lines}
    rows = []
    for name in given.names or RECIPES:
        row = kept.get(name) or examine(name)
        rows.append(row)
        print(row.name, row.cells, row.refusals or "", row.faults or "", flush=True)
        if given.kept and name not in kept:
            with given.kept.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    if given.write:
        PAGE.write_text(page(rows))
    if faults := [row.name for row in rows if row.faults]:
        raise SystemExit(f"neither right nor refused: {', '.join(faults)}")


if __name__ == "__main__":
    main()
