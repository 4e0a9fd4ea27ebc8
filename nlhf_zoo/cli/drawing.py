"""Responses of a policy to prompts that are given, batch by batch, the same again with one seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.loading import LoadedPlayer
from nlhf_zoo.records import PLAIN, Decoding, Prompts, Responses
from nlhf_zoo.records.random_streams import random_stream


def drawn(
    player: LoadedPlayer,
    prompts: Prompts,
    num: int,
    seed: int = 0,
    batch_size: int = 8,
    decoding: Decoding = PLAIN,
    stream: int | None = None,
) -> Iterator[tuple[Prompts, Responses]]:
    """Draw ``num`` responses to each prompt; a progress bar shows what takes longer.

    Args:
        player: whose.
        prompts: of text, or of a table.
        num: responses to each, independent.
        seed: with it, and with one ``batch_size``, the same are drawn again; those to a batch
            depend on its number and not on how many were drawn before.
        batch_size: prompts at a time.
        decoding: how they are drawn.
        stream: of several who draw with one seed, which one: what two draw must be independent, or
            they would not be compared as two laws are.

    Yields:
        encoded prompts, and their responses.

    Raises:
        UserError: ``num`` or ``batch_size`` is below 1, or a prompt leaves no room for an answer.
    """
    for option, value in (("--num_responses", num), ("--batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{option} must be at least 1, but it is {value}")
    starts = range(0, len(prompts), batch_size)
    device = next(player.policy.parameters()).device
    with tqdm(total=len(prompts), desc=f"{player.name}: draw", unit=" prompts", delay=1) as bar:
        for number, start in enumerate(starts):
            rows = range(start, min(start + batch_size, len(prompts)))
            rng = random_stream(seed, 0, number, device, "sample", stream)
            with _in_other_words(player.name):
                batch = player.policy.encode(prompts.take(rows))
                responses = player.sample(batch, num, rng, decoding)
            yield batch, responses
            bar.update(len(rows))


@contextmanager
def _in_other_words(name: str) -> Iterator[None]:
    """Name what is no option here as a user of this command knows it."""
    try:
        yield
    except UserError as error:
        options = "model.policy.max_new_tokens or data.max_prompt_tokens"
        said = str(error).replace(options, "--max_new_tokens, or give shorter prompts")
        raise UserError(f"{name}: {said}") from error
