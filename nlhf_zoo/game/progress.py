"""Where the game stands, and how far it may go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Where the game stands; all of it survives a resume.

    Args:
        round: rounds that are finished.
        step: proximal steps that are finished in this round.
        gradient_step: gradient steps that are finished in this proximal step.
        batches: training steps that this process has played.
        queries: preference queries of all processes.
        queries_per_prompt: preference queries for each prompt of a batch, as algorithms are
            compared by.
        invalid: answers of the oracle that could not be had.
        unjudged: prompts that left the loss because none of their answers was valid.
        tokens: tokens that all processes have drawn, of scored responses and of opponents.
    """

    round: int = 0
    step: int = 0
    gradient_step: int = 0
    batches: int = 0
    queries: int = 0
    queries_per_prompt: int = 0
    invalid: int = 0
    unjudged: int = 0
    tokens: int = 0

    def rounds_left(
        self, max_rounds: int | None, max_queries: int | None, queries_per_round: int
    ) -> int | None:
        """Whole rounds that a budget still allows; None where there is no limit.

        Args:
            max_rounds: rounds of the game, at most.
            max_queries: preference queries for each prompt, at most.
            queries_per_round: of these, what a round costs.
        """
        left = [] if max_rounds is None else [max_rounds - self.round]
        if max_queries is not None:
            left.append((max_queries - self.queries_per_prompt) // queries_per_round)
        return max(0, min(left)) if left else None
