"""People as judges: their questions and votes in one file, and the page on which they choose.

Nothing here imports torch or numpy, nor anything else that does not come with Python.
"""

from nlhf_zoo.people.agreement import Agreement, agreement, krippendorff_alpha
from nlhf_zoo.people.pairs import (
    Choice,
    Found,
    Pair,
    Progress,
    Shown,
    Tally,
    Vote,
    VoteRefusedError,
)
from nlhf_zoo.people.store import VoteStore

__all__ = [
    "Agreement",
    "Choice",
    "Found",
    "Pair",
    "Progress",
    "Shown",
    "Tally",
    "Vote",
    "VoteRefusedError",
    "VoteStore",
    "agreement",
    "krippendorff_alpha",
]
