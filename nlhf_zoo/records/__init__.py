"""What the parts of a game hand to each other: frozen records of tensors, shapes checked.

Letters: B prompts, K responses, L opponents, T tokens, N actions.
"""

from nlhf_zoo.records.played import Comparison, Conversation, Prompts, Responses
from nlhf_zoo.records.steps import GREEDY, PLAIN, Batch, Decoding, Mixture, ProximalStep, starts_as

__all__ = [
    "GREEDY",
    "PLAIN",
    "Batch",
    "Comparison",
    "Conversation",
    "Decoding",
    "Mixture",
    "Prompts",
    "ProximalStep",
    "Responses",
    "starts_as",
]
