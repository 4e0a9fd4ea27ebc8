"""What is known of a policy's exploitability, prompt by prompt, and kept while more is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo.errors import UserError
from nlhf_zoo.files import naming, written
from nlhf_zoo.game.certifying import SampledPrompts, SamplePlan
from nlhf_zoo.metrics import SampledExploitability

_FILE = "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class PromptFigures:
    """Figures of one prompt.

    Args:
        prompt: its text, where it has one.
        value: the estimate.
        variance: of the estimate.
        ess: effective sample size of exp(r / beta).
        kl: KL(policy || reference) in nats.
        known: whether samples can tell.
        judged: responses with an answer.
        asked: answers that were asked for.
        invalid: those that could not be had.
        exact: the exact figure, where all responses are listed.
    """

    prompt: str | None
    value: float
    variance: float
    ess: float
    kl: float
    known: bool
    judged: int
    asked: int
    invalid: int
    exact: float | None = None

    @classmethod
    def of(cls, prompt: str | None, found: SampledPrompts, exact: float | None) -> PromptFigures:
        """Figures of one prompt that was sampled."""
        of = found.estimates
        parts = (of.value, of.variance, of.effective, of.kl)
        value, variance, ess, kl = (part.item() for part in parts)
        counts = int(of.judged), found.asked, found.invalid
        return cls(prompt, value, variance, ess, kl, bool(of.known), *counts, exact)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Exploitability of a policy from samples.

    Args:
        name: of the policy.
        plan: how it was sampled.
        prompts: figures of each.
    """

    name: str
    plan: SamplePlan
    prompts: Sequence[PromptFigures]

    @property
    def figures(self) -> dict[str, float]:
        """Those of all prompts together, as `nlhf_zoo.metrics.SampledExploitability` has them."""
        metric = SampledExploitability()
        columns = (
            torch.tensor([getattr(row, name) for row in self.prompts], dtype=torch.float64)
            for name in ("value", "variance", "ess", "kl")
        )
        metric.update(*columns)
        return {name: figure.item() for name, figure in metric.compute().items()}

    @property
    def known(self) -> bool:
        """Whether samples can tell the exploitability of each prompt."""
        return all(row.known for row in self.prompts)

    @property
    def asked(self) -> int:
        """Answers that were asked for."""
        return sum(row.asked for row in self.prompts)

    @property
    def invalid(self) -> int:
        """Answers that could not be had."""
        return sum(row.invalid for row in self.prompts)

    @property
    def exact(self) -> float | None:
        """The exact mean, where all responses are listed."""
        values = [row.exact for row in self.prompts if row.exact is not None]
        return sum(values) / len(values) if values and len(values) == len(self.prompts) else None


@dataclass
class Kept:
    """Prompts that are done, in a file of a folder where there is one.

    Args:
        folder: of the output; None keeps nothing.
        settings: what the figures depend on.
        rows: figures of prompts by their number.
    """

    folder: Path | None
    settings: Mapping[str, Any]
    rows: dict[int, PromptFigures] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, settings: Mapping[str, Any]) -> Kept:
        """Go on from a folder, or begin a new one.

        Raises:
            UserError: it cannot be made, or holds figures of something else.
        """
        kept = cls(folder, settings)
        if folder is None:
            return kept
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output {folder} is no folder")
        if not folder.parent.is_dir():
            raise UserError(f"--output {folder}: the folder {folder.parent} does not exist")
        with naming(folder):
            folder.mkdir(exist_ok=True)
        path = folder / _FILE
        if not path.is_file():
            return kept
        try:
            # Not splitlines: a text may hold what that takes for the end of a line, as U+2028.
            head, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            found = json.loads(head)
            rows = [json.loads(line) for line in lines]
            kept.rows = {row.pop("number"): PromptFigures(**row) for row in rows}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is no file of `nlhf certify`: give another --output"
            ) from error
        if found != dict(settings):
            other = sorted(name for name in settings if found.get(name) != settings[name])
            raise UserError(
                f"{path} has figures with another {other[0] if other else 'setting'}: give another "
                "--output"
            )
        return kept

    def add(self, number: int, row: PromptFigures) -> None:
        """Keep the figures of a prompt; they are on the disk when this returns."""
        self.rows[number] = row
        if self.folder is None:
            return
        rows = [{"number": n, **asdict(each)} for n, each in sorted(self.rows.items())]
        with written(self.folder / _FILE) as beside:
            lines = [json.dumps(each, ensure_ascii=False) for each in (self.settings, *rows)]
            beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
