"""The reference is watched through a run: it must not move."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.checksum import checksum
from nlhf_zoo.health.probe import Probe, gap, random_tokens, rounding
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.records import Prompts, Responses

_PROMPTS = 2
_RESUMED = 1e-3  # a response: another machine, or other kernels, round otherwise


class ReferenceFingerprint(L.Callback):
    """Compare the reference's weights and log-probabilities with those at the start.

    Within a process no bit of either may change: a checksum of each weight sees what is too small
    for a log-probability, and a log-probability what is no weight. After a resume the
    log-probabilities must be those that the run began with, to 1e-3 (for a model of lower
    precision, to its rounding). They are of the first prompts and of responses of random tokens.
    Only a language model's reference is watched: a table's is never computed.

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
        """A second fit of this callback begins anew, unless it resumes."""
        self._here = None
        self._looked = -1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first step, say what the reference is; in a resumed run, look whether it is.

        Raises:
            DivergenceError: it is another one than the checkpoint's.
        """
        if self._here is not None or not self._watches(pl_module):
            return
        assert isinstance(pl_module, OnlineGame)
        policy = pl_module.policy
        assert isinstance(policy, CausalLMPolicy)
        if self._probe is None:
            prompts = policy.encode(batch)
            few = prompts.take(range(min(_PROMPTS, len(prompts))))
            self._probe = random_tokens(policy, few, num=1)
        self._probe = _to(self._probe, policy.device)
        self._here = self._log_prob(pl_module)
        self._checksums = _checksums(policy)
        self._looked = pl_module.progress.round
        if self._stored is None:
            self._stored = self._here.cpu()
            return
        limit = max(_RESUMED, rounding(policy) * self._probe.responses.tokens.shape[-1])
        self._refuse(gap(self._here.cpu(), self._stored), limit, "since the run was begun")

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
        prompts, responses = self._probe.prompts, self._probe.responses
        return {
            "ids": prompts.ids.cpu(),
            "prompts": None if prompts.tokens is None else prompts.tokens.cpu(),
            "mask": None if prompts.mask is None else prompts.mask.cpu(),
            "responses": responses.tokens.cpu(),
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

    @staticmethod
    def _watches(module: L.LightningModule) -> bool:
        return isinstance(module, OnlineGame) and isinstance(module.policy, CausalLMPolicy)

    def _look(self, game: OnlineGame) -> None:
        if self._here is None:
            return
        self._looked = game.progress.round
        policy = game.policy
        assert isinstance(policy, CausalLMPolicy)
        self._refuse_other_weights(policy)
        # A graph that is compiled again for another shape may round otherwise.
        assert self._probe is not None
        length = self._probe.responses.tokens.shape[-1]
        limit = rounding(policy) * length if policy.compile_body else 0.0
        self._refuse(gap(self._log_prob(game), self._here), limit, "since training began")

    @torch.no_grad()
    def _log_prob(self, game: OnlineGame) -> Tensor:
        assert self._probe is not None
        return game.policy.log_prob({"reference": 1.0}, self._probe.prompts, self._probe.responses)

    def _refuse_other_weights(self, policy: CausalLMPolicy) -> None:
        """Refuse to train towards a reference whose weights moved, by however little."""
        now = _checksums(policy)
        moved = [name for name, number in self._checksums.items() if now.get(name) != number]
        if moved:
            raise DivergenceError(
                f"the reference has moved since training began: {len(moved)} of its weights are "
                f"not what they were, {moved[0]} among them; what the policy is regularised to "
                "must stay, so see to it that nothing writes to the base model"
            )

    @staticmethod
    def _refuse(moved: float, limit: float, since: str) -> None:
        """Refuse to train towards a reference that moved."""
        if not moved <= limit:
            raise DivergenceError(
                f"the reference has moved {since}: the log-probability of a response by "
                f"{moved:.3g}, where {limit:.3g} is allowed; what the policy is regularised to "
                "must stay, so see to it that nothing writes to the base model"
            )


def _checksums(policy: CausalLMPolicy) -> dict[str, int]:
    return {name: checksum(weight) for name, weight in policy.reference_weights().items()}


def _to(probe: Probe, device: torch.device) -> Probe:
    responses = probe.responses
    return Probe(
        probe.prompts.to(device),
        Responses(
            responses.tokens.to(device), responses.mask.to(device), responses.weight.to(device)
        ),
    )
