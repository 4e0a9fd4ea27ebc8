"""The reference is watched through a run: it must not move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.game.lightning_internals import trainer_of
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.probe import Probe, gap, random_tokens
from nlhf_zoo.metrics.processes import sum_over_processes
from nlhf_zoo.policies.language_model.capabilities import rounding
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.records import Prompts, Responses
from nlhf_zoo.records.shards import is_sharded, local

_PROMPTS = 2
_RESUMED = 1e-3  # a response: another machine, or other kernels, round otherwise
_COLUMNS = 1024  # of the matrix of integers that a tensor's bytes are read as
_ROW = 8 * _COLUMNS  # bytes
_ROWS = 4096  # that are looked at in one go
_SPREAD = 0x1E3779B97F4A7C15  # odd, and far from a power of two
_SHIFT = 29  # no distance between the signs of two entries, whatever their type


class ReferenceFingerprint(L.Callback):
    """Compare the reference's weights and log-probabilities with those at the start.

    Within a process no bit of either may change: a checksum of each weight sees what is too small
    for a log-probability, and a log-probability what is no weight. After a resume the
    log-probabilities must be those that the run began with, to 1e-3 (for a model of lower
    precision, to its rounding). They are of the first prompts and of responses of random tokens.
    Only a language model's reference is watched: a table's is never computed. Of several processes
    all must hold the same weights, of all players, but of what is sharded.

    Args:
        every: rounds between two looks; there is one at the end too.
    """

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise UserError(f"ReferenceFingerprint.every must be at least 1, but it is {every}")
        self.every = every
        self._probe: Probe | None = None
        self._stored: Tensor | None = None  # by the run's first process
        self._here: Tensor | None = None  # by this one
        self._checksums: dict[str, int] = {}  # of the reference's weights
        self._looked = -1

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew: a second fit of this callback is another run, unless it resumes."""
        self._here = None
        self._looked = -1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first step, say what the reference is; in a resumed run, look whether it is.

        Raises:
            DivergenceError: it is another one than the checkpoint's.
        """
        if self._here is not None or not isinstance(pl_module, OnlineGame):
            return
        if self._looked < 0:
            refuse_apart(pl_module)
            self._looked = pl_module.progress.round
        policy = pl_module.policy
        if not isinstance(policy, CausalLMPolicy):
            return
        if self._probe is None:
            prompts = policy.encode(batch)
            few = prompts.take(range(min(_PROMPTS, len(prompts))))
            self._probe = random_tokens(policy, few, num=1)
        self._probe = _to(self._probe, policy.device)
        self._here = self._log_prob(policy)
        self._checksums = _checksums(policy)
        if self._stored is None:
            self._stored = self._here.cpu()
            return
        limit = max(_RESUMED, self._rounding(policy))
        _refuse_gap(gap(self._here.cpu(), self._stored), limit, "since the run was begun")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look again, every so often."""
        if isinstance(pl_module, OnlineGame) and pl_module.between_rounds:
            number = pl_module.progress.round
            if number % self.every == 0 and number != self._looked:
                self._look(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look for the last time."""
        if isinstance(pl_module, OnlineGame):
            self._look(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The probe, and what the reference said of it."""
        if self._probe is None or self._stored is None:
            return {}
        probe = _to(self._probe, torch.device("cpu"))
        return {
            "ids": probe.prompts.ids,
            "prompts": probe.prompts.tokens,
            "mask": probe.prompts.mask,
            "responses": probe.responses.tokens,
            "log_prob": self._stored,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both from a checkpoint."""
        if not state_dict:
            return
        tokens = state_dict["responses"]
        prompts = Prompts(state_dict["ids"], state_dict["prompts"], state_dict["mask"])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        self._probe = Probe(prompts, Responses(tokens, mask, torch.ones(tokens.shape[:2])))
        self._stored = state_dict["log_prob"]

    def _look(self, game: OnlineGame) -> None:
        """Refuse to train on towards a reference that moved, by however little, or apart."""
        self._looked = game.progress.round
        refuse_apart(game)
        if self._here is None:
            return
        policy = game.policy
        assert isinstance(policy, CausalLMPolicy)
        now = _checksums(policy)
        moved = [name for name, number in self._checksums.items() if now.get(name) != number]
        if moved:
            what = f"{len(moved)} of its weights are not what they were, {moved[0]} among them"
            raise _moved("since training began", what)
        # A graph that is compiled again for another shape may round otherwise.
        limit = self._rounding(policy) if policy.compile_body else 0.0
        _refuse_gap(gap(self._log_prob(policy), self._here), limit, "since training began")

    @torch.no_grad()
    def _log_prob(self, policy: CausalLMPolicy) -> Tensor:
        assert self._probe is not None
        return self._probe.log_prob(policy, {"reference": 1.0})

    def _rounding(self, policy: CausalLMPolicy) -> float:
        """Of the log-probability of a whole response."""
        assert self._probe is not None
        return rounding(policy) * self._probe.responses.tokens.shape[-1]


def refuse_apart(game: OnlineGame) -> None:
    """Refuse to train where processes hold different weights that should be the same in all.

    All processes call this. Of what is sharded each has a part of its own, which is passed over.

    Raises:
        DivergenceError: which weight differs; in all processes.
    """
    trainer = trainer_of(game)
    if trainer is None or trainer.world_size == 1:
        return
    here = {
        name: checksum(tensor)
        for name, tensor in game.policy.state_dict().items()
        if tensor.numel() and not is_sharded(tensor)
    }
    first = trainer.strategy.broadcast(here)
    apart = sorted(name for name, number in here.items() if first.get(name) != number)
    if sum_over_processes(trainer, [bool(apart)])[0]:
        which = f": {apart[0]} is another one here than in the first" if apart else ""
        raise DivergenceError(
            f"the processes have not the same weights{which}, so that their gradients are of "
            "different policies: see to it that all load the same files, and that nothing moves "
            "weights in one of them alone"
        )


def _refuse_gap(found: float, limit: float, since: str) -> None:
    if not found <= limit:
        what = f"the log-probability of a response by {found:.3g}, where {limit:.3g} is allowed"
        raise _moved(since, what)


def _moved(since: str, what: str) -> DivergenceError:
    return DivergenceError(
        f"the reference has moved {since}: {what}; what the policy is regularised to must stay, so "
        "see to it that nothing writes to the base model"
    )


def _checksums(policy: CausalLMPolicy) -> dict[str, int]:
    return {name: checksum(local(weight)) for name, weight in policy.reference_weights().items()}


def _to(probe: Probe, device: torch.device) -> Probe:
    responses = probe.responses
    moved = {name: getattr(responses, name).to(device) for name in ("tokens", "mask", "weight")}
    return Probe(probe.prompts.to(device), replace(responses, **moved))


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    r"""A number in [0, 2^64) that tells the content of any tensor from every other in practice.

    The bytes are read as a matrix of integers w_ij of 64 bits, zeros behind their end, of which

    .. math:: \sum_{ij} (a_i + b_j) (w_{ij} \oplus \lfloor w_{ij} / 2^{29} \rfloor) \mod 2^{64}

    is computed, a_i odd and b_j even. Integers are summed without rounding, so that it depends
    neither on the device nor on the number of threads. A change of any one entry changes it.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    rest = len(data) % _ROW
    whole, last = data[: len(data) - rest], data.new_zeros(_ROW)
    last[:rest] = data[len(data) - rest :]
    if whole.storage_offset() % 8:  # where it lies it cannot be read as integers of eight bytes
        whole = whole.clone()
    row, total = 0, 0
    for part in (*whole.split(_ROWS * _ROW), last):
        total += _weighted_sum(part, row)
        row += len(part) // _ROW
    return total % 2**64


def _weighted_sum(data: Tensor, first_row: int) -> int:
    words = data.view(torch.int64).view(-1, _COLUMNS)
    # Of the highest bits alone, an even number of changes would cancel.
    words = words ^ ((words >> _SHIFT) & (2 ** (64 - _SHIFT) - 1))
    rows = torch.arange(first_row, first_row + len(words), device=words.device)
    columns = torch.arange(_COLUMNS, device=words.device)
    by_row = words.sum(1) * (2 * _SPREAD * rows + 1)  # products and sums wrap around
    by_column = words.sum(0) * (6 * _SPREAD * columns)
    return int(by_row.sum() + by_column.sum())
