r"""KL divergence and entropy of a player's law, token by token along its own responses.

With the law of a response y of T tokens a product of laws of tokens,

.. math:: KL(\pi \| \mu) = E_{y \sim \pi} \sum_{t \le T}
          KL\big(\pi(\cdot | y_{<t}) \| \mu(\cdot | y_{<t})\big), \quad
          H(\pi) = E_{y \sim \pi} \sum_{t \le T} H\big(\pi(\cdot | y_{<t})\big),

so that the sums along a response that was drawn are unbiased, and exact but for which tokens were
met: they are the conditional expectations of the sums of log pi(y_t) / mu(y_t) and of
-log pi(y_t), and have no larger a variance (Rao-Blackwell; Amini, Du and Cotterell, 2025, compare
the estimators). A KL along a response is never negative, but for rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nlhf_zoo.policies.language_model.row_chunks import Rows, chunked
from nlhf_zoo.policies.language_model.scoring import Scorer
from nlhf_zoo.records import PLAIN, Mixture, Prompts, Responses


def divergence(
    scorer: Scorer,
    who: Mixture,
    other: Mixture,
    prompts: Prompts,
    responses: Responses,
    max_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Unbiased estimates of KL(who || other) and of the entropy of ``who``, in nats [B, K] each.

    Args:
        scorer: of the players.
        who: players and their weights, whose plain law has drawn the responses.
        other: whom they are compared with.
        prompts: B prompts with tokens.
        responses: K responses a prompt.
        max_tokens: whose activations are held at a time, as for ``Scorer``.
    """
    assert prompts.tokens is not None
    assert prompts.mask is not None
    tokens, mask = responses.tokens.flatten(0, 1), responses.mask.flatten(0, 1)
    rows = Rows.following(prompts.tokens, prompts.mask, tokens, mask)
    chunks = [] if max_tokens is None else chunked(rows, max_tokens, scorer.players.most_calls)
    found = tokens.new_zeros((len(tokens), 2), dtype=torch.float32)
    for numbers in chunks or [list(range(len(tokens)))]:
        found[torch.tensor([*numbers])] = _of_rows(scorer, who, other, rows.packed(numbers))
    of_kl, of_entropy = found.view(*responses.weight.shape, 2).unbind(-1)
    return of_kl, of_entropy


def _of_rows(scorer: Scorer, who: Mixture, other: Mixture, rows: Rows) -> Tensor:
    """KL and entropy of the laws of all scored tokens, summed over each row [R, 2]."""
    start = rows.start()
    before = [part[:, :-1] for part in rows]
    ours, our_hidden = scorer.laws(who, PLAIN, start, *before)
    theirs, their_hidden = scorer.laws(other, PLAIN, start, *before)
    scored = rows.scored[:, start + 1 :]
    own, others = ([h[scored] for h in hidden] for hidden in (our_hidden, their_hidden))
    number = len(own[0])
    per_token = own[0].new_zeros((*scored.shape, 2), dtype=torch.float32)
    chunk, parts = scorer.softmax_chunk or max(number, 1), []
    for begin in range(0, number, chunk):
        end = begin + chunk
        log_p, log_q = (
            law(*(h[begin:end] for h in hidden)) for law, hidden in ((ours, own), (theirs, others))
        )
        probability = log_p.exp()
        ratio = torch.where(probability > 0, log_p - log_q, 0.0)
        kl = (probability * ratio).sum(-1)
        parts.append(torch.stack([kl, torch.special.entr(probability).sum(-1)], -1))
    if parts:
        per_token[scored] = torch.cat(parts)
    return per_token.sum(1)
