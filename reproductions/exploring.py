"""Whether XPO's bonus finds what the reference hardly ever writes, on tables, label by label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlhf_zoo.algorithms import XPO
from nlhf_zoo.data.tables.games import bradley_terry_scores
from nlhf_zoo.records import Batch
from reproductions.ledger import Figures

_BOOST = 5.0  # log odds of the response that a further start is about


@dataclass(frozen=True)
class Rare:
    """Scores r [C, N] and log mu [C, N] of games whose best response, the last, is rare.

    Labels are drawn from sigma(r - r'); the best policy is mu exp(r / beta), as in RLHF.
    """

    scores: Tensor
    log_mu: Tensor

    @classmethod
    def drawn(cls, games: int, actions: int, rare: float, best: float, seed: int) -> Rare:
        """Others have scores of standard deviation 1/2, and equal shares of what is left."""
        scores = bradley_terry_scores(games, actions, seed, 0.5)
        scores[:, -1] = best
        mu = torch.full_like(scores, (1 - rare) / (actions - 1))
        mu[:, -1] = rare
        return cls(scores, mu.log())

    def regret(self, log_policy: Tensor, beta: float) -> Tensor:
        """What E r - beta KL(pi || mu) lacks of its largest value: beta KL(pi || pi*) [C]."""
        best = (self.log_mu + self.scores / beta).log_softmax(-1)
        return beta * (log_policy.exp() * (log_policy - best)).sum(-1)


@dataclass(frozen=True)
class Learner:
    """How policies are fitted to all labels so far, and who draws the pairs.

    Attributes:
        beta: temperature.
        rounds: of drawing and fitting.
        pairs: that are drawn and labelled in a round, in each game.
        steps: of Adam in a round.
        lr: its learning rate.
        most: largest fall of log(pi / mu).
        whole: whether a fit also starts from policies that write one response nearly always, one
            for each response, and the least loss is taken: the bonus makes the loss have several
            minima. Without a bonus it is fitted in the same way, for the starts explore by
            themselves. Else a fit goes on from the policy alone.
    """

    beta: float
    rounds: int
    pairs: int
    steps: int
    lr: float
    most: float
    whole: bool

    def learn(self, game: Rare, alpha: float, against_reference: bool, seed: int) -> Tensor:
        """XPO's policy after all rounds [C, N]; with alpha = 0 online DPO's."""
        rng = torch.Generator().manual_seed(seed)
        log_mu, num = game.log_mu, game.log_mu.shape[-1]
        wins = log_mu.new_zeros(len(log_mu), num, num)
        log_policy = log_mu
        for _ in range(self.rounds):
            laws = (log_policy, log_mu if against_reference else log_policy)
            first, second = (
                torch.multinomial(law.exp(), self.pairs, True, generator=rng) for law in laws
            )
            rows = torch.arange(len(log_mu))[:, None].expand_as(first)
            chance = torch.sigmoid(game.scores.gather(1, first) - game.scores.gather(1, second))
            won = torch.rand(first.shape, generator=rng, dtype=chance.dtype) < chance
            better, worse = torch.where(won, first, second), torch.where(won, second, first)
            wins.index_put_((rows, better, worse), torch.ones_like(chance), accumulate=True)
            log_policy = self._fit(wins, log_mu, log_policy, alpha)
        return log_policy

    def _fit(self, wins: Tensor, log_mu: Tensor, log_policy: Tensor, alpha: float) -> Tensor:
        starts = [log_policy]
        if self.whole:
            one = _BOOST * torch.eye(log_mu.shape[-1], dtype=log_mu.dtype)
            starts += [row.expand_as(log_mu) for row in one]
        logits = torch.cat(starts).clone().requires_grad_()
        times = (len(starts), 1, 1)
        wins, reference = wins.repeat(times), log_mu.repeat(times[:2])
        method = XPO(alpha)
        (step,) = method.steps(self.beta, 0)
        optimizer = torch.optim.Adam([logits], self.lr)
        for last in range(self.steps + 1):
            log_prob = logits.log_softmax(-1)
            loss = method.loss(step, _batch(log_prob, reference, wins, self.beta))
            if last == self.steps:
                break
            (logits.grad,) = torch.autograd.grad(loss.sum(), logits)
            optimizer.step()
            with torch.no_grad():
                ratio = (logits - logits.logsumexp(-1, True) - reference).clamp_min(-self.most)
                logits.copy_((reference + ratio).log_softmax(-1))
        loss = loss.detach().view(len(starts), -1)
        loss[1:] += 1e-6  # a start that is no better is not taken
        which = loss.argmin(0)
        fitted = logits.detach().log_softmax(-1).view(len(starts), *log_mu.shape)
        return fitted[which, torch.arange(len(log_mu))]


def _batch(log_prob: Tensor, log_mu: Tensor, wins: Tensor, beta: float) -> Batch:
    """All labels so far as one batch of every pair of responses."""
    asked = wins + wins.mT
    weight = log_mu.exp()
    return Batch(
        log_prob=log_prob,
        centre_log_prob=log_mu,
        reference_log_prob=log_mu,
        payoff=torch.full_like(log_mu, 0.5),
        weight=weight,
        beta=beta,
        enumerated=True,
        self_play=True,
        preference=torch.where(asked > 0, wins / asked.clamp_min(1), 0.5),
        pair_weight=asked / asked.sum((-2, -1), keepdim=True),
        explored_log_prob=log_prob,
        explored_weight=weight,
    )


def rare_response(
    whole: bool,
    alphas: Sequence[float],
    beta: float,
    rare: float,
    best: float,
    actions: int,
    games: int,
    tuning_games: int,
    rounds: int,
    pairs: int,
    steps: int,
    lrs: Sequence[float],
    seed: int,
    z: float = 2.576,
) -> Figures:
    """XPO beside online DPO where the best response is rare, for the same labels.

    In each round pairs are drawn and labelled, and the policy is fitted to all labels so far by the
    method's loss. Learning rates, XPO's alpha, and whether the second response of a pair is the
    policy's or the reference's are those of the least mean regret on other games. `excess` is the
    mean regret of XPO over that of the reference, `rival_excess` that of online DPO, and `saved`
    the difference, with an interval of z standard errors over the games; `found` and `rival_found`
    are the shares of the games in which the policy writes the best response more often than not.
    `queries` are labels of a game.
    """
    game = Rare.drawn(games, actions, rare, best, seed)
    tuning = Rare.drawn(tuning_games, actions, rare, best, seed + 1)

    def learner(lr: float) -> Learner:
        return Learner(beta, rounds, pairs, steps, lr, 2 * best / beta, whole)

    def left(choice: tuple[float, float, bool], on: Rare, number: int) -> Tensor:
        alpha, lr, against_reference = choice
        return learner(lr).learn(on, alpha, against_reference, number)

    ends = []
    for tried in (alphas, [0.0]):
        choices = [(a, lr, to) for a in tried for lr in lrs for to in (False, True)]
        chosen = min(
            choices, key=lambda c: tuning.regret(left(c, tuning, seed + 1), beta).mean().item()
        )
        ends.append((left(chosen, game, seed), chosen))
    (ours, choice), (theirs, rival) = ends
    mine, other = game.regret(ours, beta), game.regret(theirs, beta)
    start = game.regret(game.log_mu, beta).mean()
    saved = (other - mine) / start
    mean, half = saved.mean().item(), z * (saved.std() / math.sqrt(games)).item()
    return {
        "saved": mean,
        "saved_low": mean - half,
        "saved_high": mean + half,
        "excess": (mine.mean() / start).item(),
        "rival_excess": (other.mean() / start).item(),
        "found": (ours[:, -1].exp() > 0.5).double().mean().item(),
        "rival_found": (theirs[:, -1].exp() > 0.5).double().mean().item(),
        "alpha": choice[0],
        "lr": choice[1],
        "against_reference": float(choice[2]),
        "rival_lr": rival[1],
        "rival_against_reference": float(rival[2]),
        "queries": float(rounds * pairs),
    }
