"""People as judges: their questions and votes in one file, and the page on which they choose.

Nothing here imports torch or numpy.
"""

from nlhf_zoo.people.pairs import Choice, Found, Pair, Progress, Shown, Tally, Vote
from nlhf_zoo.people.store import VoteStore

__all__ = ["Choice", "Found", "Pair", "Progress", "Shown", "Tally", "Vote", "VoteStore"]
