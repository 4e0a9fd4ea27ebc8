"""What a policy says to held-out prompts, and how it does against the reference."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from nlhf_zoo.metrics.validation import SampledMean, SampledWinRate
from nlhf_zoo.records import PLAIN, Comparison, Prompts, Responses
from nlhf_zoo.records.random_streams import random_stream

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame

POLICY, REFERENCE = {"policy": 1.0}, {"reference": 1.0}
_MEANS = ("kl", "entropy", "length", "truncated", "invalid")  # the last of answers, not responses


class Validation(nn.Module):
    """Figures of the policy on held-out prompts, by responses that are drawn for this alone.

    Each is a metric whose states are sums: processes may have different numbers of prompts, and the
    figures are those of one that has them all.

    `kl` and `entropy` are means of `Policy.divergence`: unbiased, and of a language model exact
    token by token along what was drawn.

    Args:
        payoff_bound: of the game's oracle; the win rate is a mean of its answers.
    """

    def __init__(self, payoff_bound: float = 0.5) -> None:
        super().__init__()
        self.win_rate = SampledWinRate(payoff_bound)
        for name in _MEANS:
            self.add_module(name, SampledMean())
        self.vs_reference = MeanMetric()  # the win rate by its tag of before
        self.questions = 0  # pairs that this process has asked about

    @property
    def means(self) -> dict[str, SampledMean]:
        """Metrics that are means, by name."""
        return {name: getattr(self, name) for name in _MEANS}

    def step(self, game: OnlineGame, prompts: Prompts, number: int) -> None:
        """Take in a batch; the first one begins anew.

        Nothing is asked about a prompt that stands in for one, and nothing of it counts.

        Args:
            game: nothing of it is changed.
            prompts: B prompts.
            number: of the batch in this process, by which responses are drawn.

        Raises:
            OracleStoppedError: the oracle cannot be asked any more, here or in another process.
        """
        if number == 0:
            self._begin()
        with game.timer.failing_in("validation"):
            won = game.accounts.unless_stopped(partial(self._step, game, prompts, number))
        self.win_rate.update(won)
        self.vs_reference.update(won)
        game.log("win_rate/vs_reference", self.vs_reference, batch_size=len(prompts))

    def _begin(self) -> None:
        """Forget what was measured before."""
        self.questions = 0
        for metric in (self.win_rate, *self.means.values()):
            metric.reset()

    def _step(self, game: OnlineGame, prompts: Prompts, number: int) -> Tensor:
        """P(policy > reference) of those prompts that the oracle answers [n]."""
        rng = random_stream(0, game.global_rank, number, game.device, "validation")
        draw, rollout = partial(game.rollout.responses, game.policy), game.rollout
        ours = draw(POLICY, prompts, rollout.num_responses, PLAIN, rng)
        theirs = draw(REFERENCE, prompts, rollout.num_opponents, PLAIN, rng)
        kl, entropy = game.policy.divergence(POLICY, REFERENCE, prompts, ours)
        stands_in = bool((prompts.ids < 0).any())
        num = 0 if stands_in else len(prompts)
        of_responses = {"kl": (kl, ours.weight), "entropy": (entropy, ours.weight)}
        if not ours.enumerated and ours.log_prob is not None:  # of several tokens
            of_responses["length"] = ours.mask.sum(-1), ours.weight
        if ours.truncated is not None:
            of_responses["truncated"] = ours.truncated, ours.weight
        for name, (values, weight) in of_responses.items():
            self.means[name].update(values[:num], weight[:num])
        if stands_in:
            nothing = ours.weight.new_zeros(0)
            self.means["invalid"].update(nothing)
            return nothing
        return self._compare(game, prompts, ours, theirs)

    def _compare(
        self, game: OnlineGame, prompts: Prompts, ours: Responses, theirs: Responses
    ) -> Tensor:
        if ours.enumerated:
            payoff, valid = game.oracle.expected(prompts, ours, theirs)
            self.questions += len(prompts)
            self.means["invalid"].update(~valid, ours.weight)
        else:
            comparison: Comparison = game.oracle(prompts, ours, theirs)
            payoff, valid = comparison.average(theirs.weight)
            self.questions += comparison.valid.numel()
            self.means["invalid"].update(~comparison.valid)
        weight = ours.weight * valid
        answered = weight.sum(-1) > 0
        won = torch.where(valid, weight * payoff, 0.0).sum(-1)
        return won[answered] / weight.sum(-1)[answered]

    def ask(self, game: OnlineGame, given: tuple[Prompts, Responses, Responses] | None) -> None:
        """Let the oracle compare what a callback has drawn; it counts as validation's.

        All processes call this; ``given`` is None in those that have nothing to ask.

        Raises:
            OracleStoppedError: the oracle cannot be asked any more, here or in another process.
        """
        if given is not None:
            _, ours, theirs = given
            self.questions += ours.num * theirs.weight.numel()
        with game.timer.failing_in("validation"):
            game.accounts.unless_stopped(lambda: given and game.oracle(*given))

    def log(self, game: OnlineGame) -> None:
        """Log the figures of all processes, against rounds; all of them call this.

        What there is nothing to say of is left out: the length of a table's responses, the interval
        of one prompt.
        """
        of_win_rate = self.win_rate.compute()
        figures = {"win_rate": of_win_rate.pop("mean")}
        figures |= {f"win_rate_{name}": end for name, end in of_win_rate.items()}
        updated = {name: one for name, one in self.means.items() if one.update_called}
        figures |= {name: metric.compute() for name, metric in updated.items()}
        figures = {f"val/{name}": f for name, f in figures.items() if not f.isnan()}
        (asked,) = game.accounts.reduce([self.questions])
        figures["val/queries"] = torch.tensor(float(asked))
        # Lightning would log against its own steps; a metric of this name takes their place. All
        # processes have the same; Lightning warns of each that is not averaged.
        axis = {"step": float(game.progress.round)}
        game.log_dict({**figures, **axis}, sync_dist=True, batch_size=1)
