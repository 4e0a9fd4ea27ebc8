r"""The preference game on a table: products, best responses, distance from the equilibrium.

Letters: N actions, C games, R rounds; "..." any batch shape. All functions compute in float64, take
log-policies that need not be normalised, and may meet actions that do not exist: there the
reference is -inf. Only the antisymmetric part of a preference enters the game, so a table is read
as :math:`P = 1/2 + A` with :math:`A = (P - P^T) / 2`, and :math:`\pi^T A \pi = 0` holds exactly.

**The factor, once:** exploitability is :math:`e(\pi) = \max_{\pi'} V(\pi', \pi) - 1/2`; the duality
gap is exactly :math:`2 e(\pi)`.

**Exact near the solution.** The textbook form

.. math:: e(\pi) = \beta \log \sum_y \mu(y) e^{(P \pi)(y) / \beta} + \beta KL(\pi \| \mu) - 1/2

subtracts numbers of order one, and so rounds at 1e-16. With
:math:`g = \log \pi - \log \mu - A \pi / \beta` and :math:`u = g - E_\pi g` it equals

.. math:: e(\pi) = \beta \log \Big( 1 + \sum_y \pi(y) \big( e^{-u(y)} - 1 + u(y) \big) \Big),

whose terms are all >= 0: small values keep their digits. A KL divergence is the same sum with
:math:`u = \log p - \log q`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# FLOOR stands for log 0: then 0 * log 0 = 0, its exp is 0, and two absent actions differ by 0.
FLOOR = -1e300
_ABSENT = 1e200  # logs that differ by more: exactly one of the two is of an absent action
_CHUNK = 1 << 17  # elements of log-policies measured at once: what stays in a core's cache
_FAR = 600.0  # beyond it exp(-u) could overflow, and is formed together with its probability


def win_rates(P: Tensor, log_policy: Tensor) -> Tensor:
    """The product (P pi)(y): the win rate of each action against a policy.

    Args:
        P: preference [..., N, N].
        log_policy: log pi [..., N].

    Returns:
        win rates [..., N].
    """
    return 0.5 + product(antisymmetric(P), normalise(log_policy).exp())


def win_rate(P: Tensor, log_policy: Tensor, log_opponent: Tensor) -> Tensor:
    """P(pi > pi'), the probability that a response of ``log_policy`` is preferred.

    Args:
        P: preference [..., N, N].
        log_policy: log pi [..., N].
        log_opponent: log pi' [..., N].

    Returns:
        win rate [...].
    """
    payoff = product(antisymmetric(P), normalise(log_opponent).exp())
    return 0.5 + (normalise(log_policy).exp() * payoff).sum(-1)


def exploitability(P: Tensor, log_policy: Tensor, log_reference: Tensor, beta: float) -> Tensor:
    """How much a best response gains, e(pi) = max_pi' V(pi', pi) - 1/2, in the game at ``beta``.

    Args:
        P: preference [..., N, N].
        log_policy: log pi [..., N].
        log_reference: log mu [..., N], -inf where an action does not exist.
        beta: temperature; 0 is the unregularised game, max_y (P pi)(y) - 1/2 over the existing
            actions.

    Returns:
        exploitability [...]; inf where beta > 0 and the policy plays what the reference does not.
    """
    log_policy, log_reference = column(log_policy), column(log_reference)
    policy = log_policy.exp()
    payoff = product(antisymmetric(P), policy[..., 0])[..., None]
    return _exploitability(payoff, policy, log_policy, log_reference, beta)[..., 0]


def duality_gap(P: Tensor, log_policy: Tensor, log_reference: Tensor, beta: float) -> Tensor:
    """Twice the exploitability: what both sides gain by best responses (arguments as there)."""
    return 2 * exploitability(P, log_policy, log_reference, beta)


def best_response(P: Tensor, log_policy: Tensor, log_reference: Tensor, beta: float) -> Tensor:
    """The policy that does best against ``log_policy``.

    Args:
        P: preference [..., N, N].
        log_policy: log pi [..., N].
        log_reference: log mu [..., N], -inf where an action does not exist.
        beta: temperature. At 0 the answer is the first of the existing actions that win most.

    Returns:
        log-policy [..., N].
    """
    log_reference = normalise(log_reference)
    payoff = product(antisymmetric(P), normalise(log_policy).exp())
    if beta > 0:
        return normalise(log_reference + payoff / beta)
    best = payoff.masked_fill(torch.isneginf(log_reference), -torch.inf).argmax(-1, keepdim=True)
    return torch.full_like(payoff, -torch.inf).scatter(-1, best, 0.0)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) >= 0, exact also where it is tiny; inf where p plays what q does not.

    Args:
        log_p: [..., N].
        log_q: [..., N].

    Returns:
        divergence [...].
    """
    log_p = column(log_p)
    return _kl(log_p.exp(), log_p, column(log_q))[..., 0]


def kl_to_nash(log_nash: Tensor, log_policy: Tensor) -> Tensor:
    """KL(pi* || pi): the direction that the theory of Nash learning bounds.

    Args:
        log_nash: log pi* [..., N].
        log_policy: log pi [..., N].

    Returns:
        divergence [...].
    """
    return kl(log_nash, log_policy)


def span(log_policy: Tensor, log_nash: Tensor) -> Tensor:
    """max_y d(y) - min_y d(y) of d = log pi - log pi*, over the actions that either of them plays.

    Args:
        log_policy: log pi [..., N].
        log_nash: log pi* [..., N].

    Returns:
        span [...]; inf where one plays an action that the other does not.
    """
    return _span(column(log_policy), column(log_nash))[..., 0]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedGame:
    """What measuring policies in C games needs, computed once by `prepare_game`.

    Args:
        table: A = (P - P^T) / 2 [C, N, N].
        beta: temperature.
        log_reference: log mu as a column [C, N, 1].
        reference_payoff: A mu as a row [C, 1, N].
        log_nash: log pi* as a column [C, N, 1], None where it is not known.
    """

    table: Tensor
    beta: float
    log_reference: Tensor
    reference_payoff: Tensor
    log_nash: Tensor | None

    def measure(self, log_policies: Tensor) -> dict[str, Tensor]:
        """All exact metrics of many policies, with one matrix product a game.

        Args:
            log_policies: log pi of R rounds [R, C, N]; they need not be normalised.

        Returns:
            by name [R, C]: ``exploitability``, ``exploitability_unregularised``,
            ``kl_to_reference`` = KL(pi || mu), ``win_rate_vs_reference`` = P(pi > mu) and, where
            the equilibrium is known, ``kl_to_nash`` = KL(pi* || pi) and ``span``.
        """
        size = max(1, _CHUNK // max(1, self.table.shape[-2:-1].numel() * self.table.shape[0]))
        shape = (2, *self.log_reference.shape[:2], min(size, len(log_policies)))
        scratch = self.table.new_empty(shape)
        chunks = log_policies.split(size)
        parts = [self._measure(chunk, scratch[..., : len(chunk)]) for chunk in chunks]
        return {name: torch.cat([part[name] for part in parts], -1).mT for name in parts[0]}

    def _measure(self, log_policies: Tensor, scratch: Tensor) -> dict[str, Tensor]:
        columns = log_policies.double().movedim(0, -1).contiguous()  # [C, N, R]
        log_policy = columns.log_softmax(-2).clamp_min_(FLOOR)
        policy = log_policy.exp()
        game = (self.table @ policy, policy, log_policy, self.log_reference)
        metrics = {
            "exploitability": _exploitability(*game, self.beta, scratch),
            "exploitability_unregularised": _exploitability(*game, 0.0),
            "kl_to_reference": _kl(policy, log_policy, self.log_reference, scratch),
            "win_rate_vs_reference": 0.5 + (self.reference_payoff @ policy)[..., 0, :],
        }
        if self.log_nash is not None:
            metrics["kl_to_nash"] = _kl(self.log_nash.exp(), self.log_nash, log_policy, scratch)
            metrics["span"] = _span(log_policy, self.log_nash, scratch)
        return metrics


def prepare_game(
    P: Tensor, log_reference: Tensor, beta: float, log_nash: Tensor | None = None
) -> PreparedGame:
    """Prepare C games for `PreparedGame.measure`.

    Args:
        P: preference [C, N, N].
        log_reference: log mu [C, N], -inf where an action does not exist.
        beta: temperature, >= 0.
        log_nash: log pi* [C, N], where it is known.
    """
    table, reference = antisymmetric(P), column(log_reference)
    nash = None if log_nash is None else column(log_nash)
    return PreparedGame(table, beta, reference, (table @ reference.exp()).mT, nash)


def trajectory_metrics(
    P: Tensor,
    log_policies: Tensor,
    log_reference: Tensor,
    beta: float,
    log_nash: Tensor | None = None,
) -> dict[str, Tensor]:
    """All exact metrics of R rounds of C games: `prepare_game`, then `PreparedGame.measure`.

    Arguments and result are as there: log-policies [R, C, N], metrics by name [R, C].
    """
    return prepare_game(P, log_reference, beta, log_nash).measure(log_policies)


def antisymmetric(P: Tensor) -> Tensor:
    """A = (P - P^T) / 2 in float64 [..., N, N]: exactly antisymmetric, P = 1/2 + A."""
    P = P.double()
    return (P - P.mT) / 2


def normalise(log_policy: Tensor) -> Tensor:
    """Log-probabilities that sum to 1, in float64 [..., N]."""
    return torch.log_softmax(log_policy.double(), -1)


def product(table: Tensor, policy: Tensor) -> Tensor:
    """A pi [..., N]; leading dimensions that the table lacks share one matrix product a game."""
    extra = policy.dim() + 1 - table.dim()
    if extra <= 0:
        return (table @ policy[..., None])[..., 0]
    rounds, rest = policy.shape[:extra], policy.shape[extra:]
    rows = policy.reshape(-1, *rest).movedim(0, -2)  # [..., R, N]
    shape = (*rounds, *torch.broadcast_shapes(rest, table.shape[:-1]))
    return (rows @ table.mT).movedim(-2, 0).reshape(shape)


# Below, policies are columns: [..., N, R], actions along dim -2, which is far quicker than dim -1
# where N is small. Logs are at least FLOOR. `scratch` [2, ..., N, R] takes intermediate results;
# fresh memory costs more than the arithmetic done in it.

_Scratch = Tensor | tuple[None, None]


def column(log_policy: Tensor) -> Tensor:
    """Normalised log-policy with its -inf replaced by FLOOR: [..., N] -> [..., N, 1]."""
    return normalise(log_policy).clamp_min_(FLOOR)[..., None]


def _exploitability(
    payoff: Tensor,
    policy: Tensor,
    log_policy: Tensor,
    log_reference: Tensor,
    beta: float,
    scratch: _Scratch = (None, None),
) -> Tensor:
    """Exploitability [..., R] from A pi, pi, log pi and log mu."""
    if beta == 0:
        return (payoff + log_reference.clamp_max(-_ABSENT).add(_ABSENT)).amax(-2)
    return gain(policy, log_policy, log_reference, payoff / beta, scratch).mul_(beta)


def gain(
    policy: Tensor,
    log_policy: Tensor,
    log_reference: Tensor,
    payoff: Tensor,
    scratch: _Scratch = (None, None),
) -> Tensor:
    """Exploitability / beta [..., R] from pi, log pi, log mu and A pi / beta."""
    u = torch.sub(log_policy, log_reference, out=scratch[0])
    escapes = u.amax(-2) > _ABSENT
    u.sub_(payoff)
    mean = torch.mul(policy, u, out=scratch[1]).sum(-2, keepdim=True)
    terms = _terms(policy, u.sub_(mean), scratch[1])
    if u.amin() >= -_FAR:
        total = terms.sum(-2).log1p_()
    else:
        log_weight = log_reference + payoff + mean  # log pi - u, without its rounding
        total = torch.where(u < -_FAR, log_weight.exp(), terms).sum(-2).log1p_()
        total = torch.where(log_weight.amax(-2) > _FAR, log_weight.logsumexp(-2), total)
    return total.masked_fill_(escapes, torch.inf)


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor, scratch: _Scratch = (None, None)) -> Tensor:
    """KL [..., R] from p, log p and log q."""
    u = torch.sub(log_p, log_q, out=scratch[0])
    escapes = u.amax(-2) > _ABSENT
    terms = _terms(p, u, scratch[1])
    if u.amin() < -_FAR:
        terms = torch.where(u < -_FAR, log_q.exp(), terms)
    return terms.sum(-2).masked_fill_(escapes, torch.inf)


def _terms(p: Tensor, u: Tensor, out: Tensor | None) -> Tensor:
    """Terms p (exp(-u) - 1 + u) >= 0; callers put p exp(-u) where exp(-u) may overflow."""
    return torch.neg(u, out=out).expm1_().add_(u).mul_(p)


def _span(log_policy: Tensor, log_nash: Tensor, scratch: _Scratch = (None, None)) -> Tensor:
    """Span [..., R]; d = 0, where both are absent, always lies between min d and max d."""
    difference = torch.sub(log_policy, log_nash, out=scratch[0])
    width = difference.amax(-2) - difference.amin(-2)
    return width.masked_fill_(width > _ABSENT, torch.inf)
