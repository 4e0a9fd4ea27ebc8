"""What rows of an arena call the winner; without torch, for readers of text need none."""

# The share of the vote that model A then has.
WINNERS = {"model_a": 1.0, "model_b": 0.0}
WINNERS |= dict.fromkeys(("tie", "tie (bothbad)", "both_bad"), 0.5)
