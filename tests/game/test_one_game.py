"""Two and four processes play the game of one: every algorithm, tables and language models."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rows
import torch
import zoo
from forked import in_ranks
from language_models import LORA, stream, tiny_folder
from tiny_models import scatter_adapters
from torch import Tensor, nn

from nlhf_zoo.callbacks import Budget
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.policies import CausalLMPolicy, NativeGenerator
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records import Comparison, Prompts, Responses

# Uneven shares, of two and three or of one and two; those of the first process end at once, and of
# the second of two there is no answer: one of four processes has none at all.
TEXTS = ("go on.", "a", "to be or not?", "be it so", "in")
SILENT = (1,)
AT_ONCE = (0, 1)
ROUNDS = 1
KINDS = {"enumerated": 1e-9, "sampled": 1e-9, "lora": 3e-6, "full": 3e-6}


class Sums(PreferenceOracle):
    """Prefers tokens of large numbers."""

    @property
    def prompts(self) -> Prompts:
        return Prompts(torch.arange(len(TEXTS)), text=list(TEXTS))

    @property
    def has_scores(self) -> bool:
        return True

    def score(self, prompts: Prompts, responses: Responses) -> tuple[Tensor, Tensor]:
        scores = (responses.tokens * responses.mask).sum(-1) / 20
        return scores, torch.ones_like(scores, dtype=torch.bool)

    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        one, other = (self.score(prompts, responses)[0] for responses in (first, second))
        preference = (one[:, :, None] - other[:, None, :]).sigmoid()
        return Comparison(preference, torch.ones_like(preference, dtype=torch.bool))


class ByPrompt(Sample):
    """Responses that depend on the prompt and on what was drawn before, and on no process."""

    drawn = 0

    def responses(
        self, policy: Policy, who: Any, prompts: Prompts, num: int, decoding: Any, rng: Any
    ) -> Responses:
        self.drawn += 1
        parts = []
        for row, number in enumerate(prompts.ids.tolist()):
            own = prompts.take([row]).trimmed(), num, decoding, stream(100 * self.drawn + number)
            parts.append(super().responses(policy, who, *own))
        joined = Responses.joined(parts)
        if joined.tokens.shape[-1] == 1:
            return joined
        mask = joined.mask.clone()
        for number in AT_ONCE:
            mask[prompts.ids == number, :, 1:] = False
        tokens = joined.tokens.masked_fill(~mask, policy.pad)
        return replace(joined, tokens=tokens, mask=mask, log_prob=None)


class Recorded(torch.optim.SGD):
    """Plain gradient descent that keeps each gradient that it goes along."""

    def __init__(self, parameters: Any, seen: list[Tensor]) -> None:
        super().__init__(parameters, lr=0.01)
        self.seen = seen

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        parameters: Sequence[nn.Parameter] = self.param_groups[0]["params"]
        self.seen.append(torch.cat([p.grad.flatten().clone() for p in parameters]))
        super().step()
        return loss


def make(kind: str, row: zoo.Row, folder: Path) -> OnlineGame:
    silent = partial(zoo.Silent, prompts=SILENT)
    rollout = Enumerate() if kind == "enumerated" else ByPrompt(4, 2)
    parts = {"rollout": rollout, "realisation": GradientSteps(), "max_invalid": 1}
    if kind in ("enumerated", "sampled"):
        game = zoo.small_game(row.make(), len(TEXTS), wrap=silent, **parts)
        zoo.scatter_players(game)
        return game
    lora = LORA if kind == "lora" else None
    policy = CausalLMPolicy(str(folder), lora, max_new_tokens=3, generator=NativeGenerator())
    game = OnlineGame(policy, silent(Sums()), row.make(), zoo.BETA, **parts)
    scatter_adapters(policy)
    for number, player in enumerate(policy.players):
        game.versions[player] = 100 + number
    return game


def gradients(kind: str, row: zoo.Row, folder: Path, batch_size: int | None, **trainer: Any) -> Any:
    """Each gradient of a run, and what it has counted."""
    seen: list[Tensor] = []
    game = make(kind, row, folder)
    game.optimizer = partial(Recorded, seen=seen)
    budget = [Budget(rounds=ROUNDS)]
    player = rows.trainer(limit_val_batches=0, callbacks=budget, **trainer)
    with quiet():
        player.fit(game, TablePrompts(batch_size))
    # An optimiser is tried on a small parameter, too, before it is used.
    return torch.stack([one for one in seen if len(one) == len(seen[-1])]), game.progress


def of_all_rows(kind: str, size: int, folder: Path, results: Path) -> None:
    found = [
        gradients(kind, row, folder, None, devices=size, strategy="ddp") for row in zoo.GRADIENT
    ]
    if torch.distributed.get_rank() == 0:
        torch.save([gradient for gradient, _ in found], results / "gradients.pt")
        torch.save([progress.unjudged for _, progress in found], results / "unjudged.pt")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_algorithm_are_those_of_one_process(
    kind: str, size: int, tmp_path: Path
):
    folder = tiny_folder("llama")
    runs = in_ranks(size, partial(of_all_rows, kind, size, folder, tmp_path), tmp_path, 420)
    assert all(run.code == 0 for run in runs), "\n".join(run.err for run in runs)
    unjudged, gaps = torch.load(tmp_path / "unjudged.pt"), {}
    for row, found, missing in zip(
        zoo.GRADIENT, torch.load(tmp_path / "gradients.pt"), unjudged, strict=True
    ):
        wanted, progress = gradients(kind, row, folder, None, devices=1)
        gaps[str(row)] = float((found - wanted).abs().max() / wanted.abs().max())
        assert missing == progress.unjudged == len(wanted)
        if kind != "enumerated":
            continue  # what is drawn depends on how often it is
        # Those of a batch of each prompt, accumulated.
        each, _ = gradients(kind, row, folder, 1, devices=1, accumulate_grad_batches=len(TEXTS))
        gaps[f"{row}, accumulated"] = float((each - wanted).abs().max() / wanted.abs().max())
    print(f"{kind}, {size} processes: {max(gaps.values()):.1e}")
    assert max(gaps.values()) <= KINDS[kind], gaps
