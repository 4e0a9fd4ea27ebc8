"""How often the intervals of `nlhf certify` hold the exact value, as docs/certify.md has it.

    python docs/figures/certify_coverage.py [--repetitions 1000] [--tables FILE] [--forms]

Nash-MP trains adapters of the small language at three temperatures, with the parts of
configs/language/nash_mp.yaml. At the start, in the middle and at the end the law over all 512 words
is known, and so is the exploitability. Samples are drawn from that law, and answers are looked up
in the oracle's table.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo import (
    Budget,
    CausalLMPolicy,
    GradientSteps,
    LoRA,
    NashMP,
    OnlineGame,
    Sample,
    SmallLanguage,
    SmallLanguageModel,
    TablePrompts,
)
from nlhf_zoo.metrics.figures.canvas import new_figure, pixels, save_png
from nlhf_zoo.metrics.figures.styles import BLUE, GREEN, ORANGE
from nlhf_zoo.solvers import exploitability, sampled_exploitability
from nlhf_zoo.solvers.sampled import known

BETAS = (0.3, 0.1, 0.03)
ROUNDS = 30
PHASES = {"start": 0, "middle": ROUNDS // 2, "end": ROUNDS}
ANSWERS, TEXTS = (1250, 2500, 5000, 10_000), (100, 200, 400)  # of the figure
SIZES = (300, 400, 500, 600, 800, 1000, 1200)  # texts that embeddings may read
COLOURS = {"start": ORANGE, "middle": BLUE, "end": GREEN}
CHUNK = 20  # repetitions at a time
# Form, N and M: at most 10,000 answers where a response has opponents of its own.
SETTINGS = {
    0.3: [("pairs", 1250, 8), ("embeddings", 200, 200)],
    0.1: [("pairs", 400, 25), ("embeddings", 200, 200)],
    0.03: [("pairs", 100, 100), ("embeddings", 200, 200)],
}


class Keep(L.Callback):
    """The policy's log-probabilities of all words, by rounds."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, game: Any) -> None:
        """Look at the start."""
        self.look(game)

    def on_train_batch_end(self, trainer: L.Trainer, game: Any, *_: Any) -> None:
        """Look between rounds."""
        self.look(game)

    def look(self, game: OnlineGame) -> None:
        """Keep those of the phases."""
        number = game.progress.round
        if number in PHASES.values() and number not in self.kept:
            self.kept[number] = game.log_policy().double().log_softmax(-1)


def trained(beta: float) -> dict[str, Tensor]:
    """Log-policies [4, 512] of the phases, and of the reference."""
    L.seed_everything(0, verbose=False)
    game = OnlineGame(
        CausalLMPolicy(SmallLanguageModel(), lora=LoRA(r=8, alpha=16), max_new_tokens=3),
        SmallLanguage(),
        NashMP(inner_steps=5),
        beta,
        rollout=Sample(64, 64),
        realisation=GradientSteps(),
        optimizer=partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0),
        lr_scheduler=partial(
            torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=300
        ),
    )
    keep = Keep()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep, Budget(rounds=ROUNDS)],
        max_epochs=-1,
    )
    trainer.fit(game, TablePrompts())
    reference = game.log_policy("reference").double().log_softmax(-1)
    found = {name: keep.kept[number] for name, number in PHASES.items()}
    return {**found, "reference": reference}


def draw(log_prob: Tensor, *shape: int, rng: torch.Generator) -> Tensor:
    """Independent words of a law [512]."""
    ends = log_prob.exp().cumsum(-1)
    points = torch.rand(*shape, generator=rng, dtype=torch.float64) * ends[-1]
    return torch.searchsorted(ends, points).clamp(max=len(ends) - 1)


def repeated(
    table: Tensor, ours: Tensor, reference: Tensor, beta: float, how: tuple[str, int, int], num: int
) -> Tensor:
    """Estimate, variance, effective size of each repetition and prompt [3, num, 4]."""
    form, responses, opponents = how
    half, shared = responses // 2, form == "embeddings"
    rng = torch.Generator().manual_seed(0)
    of_prompts = []
    for P, log_pi, log_mu in zip(table, ours, reference, strict=True):
        parts = []
        for _ in range(num // CHUNK):
            mine = [
                draw(log_mu, CHUNK, half, rng=rng),
                draw(log_pi, CHUNK, responses - half, rng=rng),
            ]
            words = torch.cat(mine, 1)
            theirs = draw(log_pi, CHUNK, 1 if shared else responses, opponents, rng=rng)
            answers = P[words[..., None], theirs]
            found = sampled_exploitability(
                (log_pi - log_mu)[words], half, answers, beta, shared=shared
            )
            parts.append(torch.stack([found.value, found.variance, found.effective]))
        of_prompts.append(torch.cat(parts, 1))
    return torch.stack(of_prompts, -1)


def summary(found: Tensor, exact: Tensor) -> dict[str, float]:
    """Of repetitions [3, R, 4]: coverage, "cannot know", width, and the least effective size."""
    value, variance, effective = found
    error = variance.sum(-1).sqrt() / value.shape[1]
    away = value.mean(-1) - exact.mean()
    told = known(value, variance, effective).all(-1)
    return {
        "covered": (away.abs() <= 1.959964 * error).double().mean().item(),
        "cannot know": (~told).double().mean().item(),
        "width": 2 * 1.959964 * error[error.isfinite()].mean().item(),
        "bias": away[away.isfinite()].mean().item(),
        "ess": effective.amin(-1).median().item(),
    }


def study(tables: dict[float, dict[str, Tensor]], num: int) -> None:
    """Print the table of the page."""
    table = SmallLanguage().table.double()
    print("| beta | phase | exact | form | N x M | holds it | cannot know | width | bias | ESS |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for form, beta, phase in product(range(2), BETAS, PHASES):
        ours, reference = tables[beta][phase], tables[beta]["reference"]
        exact = exploitability(table, ours, reference, beta)
        how = SETTINGS[beta][form]
        s = summary(repeated(table, ours, reference, beta, how, num), exact)
        print(
            f"| {beta} | {phase} | {exact.mean():.4f} | {how[0]} | {how[1]} x {how[2]} | "
            f"{s['covered']:.3f} | {s['cannot know']:.3f} | {s['width']:.4f} | "
            f"{s['bias']:+.5f} | {s['ess']:.0f} |",
            flush=True,
        )


def widths(tables: dict[float, dict[str, Tensor]], num: int, path: Path) -> None:
    """Draw the width against answers, for both forms, at beta = .1 and .3."""
    table = SmallLanguage().table.double()
    with new_figure(10, 4.5) as figure:
        axes = figure.subplots(1, 2)
        for place, beta in zip(axes, (0.1, 0.3), strict=True):
            opponents = 25 if beta == 0.1 else 8
            pairs = [("pairs", answers // opponents, opponents) for answers in ANSWERS]
            embeddings = [("embeddings", texts // 2, texts // 2) for texts in TEXTS]
            for phase, (line, hows) in product(COLOURS, (("-o", pairs), ("--s", embeddings))):
                points = []
                for how in hows:
                    found = repeated(
                        table, tables[beta][phase], tables[beta]["reference"], beta, how, num
                    )
                    error = found[1].sum(-1).sqrt() / 4
                    width = 2 * 1.96 * error[error.isfinite()].mean().item()
                    is_pairs = how[0] == "pairs"
                    points.append((how[1] * how[2] if is_pairs else how[1] + how[2], width))
                label = f"{phase}, {'answers of pairs' if line == '-o' else 'texts embedded'}"
                place.loglog(*zip(*points, strict=True), line, color=COLOURS[phase], label=label)
            place.set_title(f"beta = {beta}")
            place.set_xlabel("answers of pairs, or texts embedded, a prompt")
            place.set_ylabel("width of the 95 % interval of the mean")
        named = axes[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=3, fontsize=8)
        save_png(pixels(figure), path)


def forms(tables: dict[float, dict[str, Tensor]], num: int) -> None:
    """Print what each form costs at the width that pairs have after 10,000 answers.

    Of opponents that are shared, asked about as pairs, that is the best of four splits; the widths
    fall with the root of the questions. Embeddings read as many texts as have that width or less.
    """
    table = SmallLanguage().table.double()
    print("| beta | phase | width | own opponents, of shared ones' questions | texts, of answers |")
    print("|---|---|---|---|---|")
    for beta, phase in product((0.1, 0.3), PHASES):
        ours, reference = tables[beta][phase], tables[beta]["reference"]

        def variance(
            how: tuple[str, int, int], laws: tuple[Any, ...] = (ours, reference, beta)
        ) -> float:
            return repeated(table, *laws, how, num)[1].sum(-1).nanmedian().item()

        own = variance(SETTINGS[beta][0])
        shared = min(variance(("embeddings", 10_000 // each, each)) for each in (25, 50, 100, 200))
        texts = next((n for n in SIZES if variance(("embeddings", n // 2, n // 2)) <= own), None)
        width = 2 * 1.959964 * own**0.5 / 4
        read = "above .12" if texts is None else f"{texts / 10_000:.3f}"
        print(f"| {beta} | {phase} | {width:.4f} | {own / shared:.2f} | {read} |", flush=True)


def main() -> None:
    """Train, or read, the policies; print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--tables", type=Path, help="keep what was trained here")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/certify.png"))
    parser.add_argument("--forms", action="store_true", help="compare what the forms cost, alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.tables is not None and given.tables.is_file():
        tables = torch.load(given.tables)
    else:
        tables = {beta: trained(beta) for beta in tqdm(BETAS, desc="train", unit=" runs")}
        if given.tables is not None:
            torch.save(tables, given.tables)
    if given.forms:
        forms(tables, 20)
        return
    study(tables, given.repetitions)
    widths(tables, 20, given.output)


if __name__ == "__main__":
    main()
