"""Seeded games from ``nlhf_zoo.data.tables.games``, and that of the small language.

``seed`` is the game's own; None takes the run's, the one that ``seed_everything`` set.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.data.tables import games, small_language
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.tables.base import DTYPES, Precision, TableOracle
from nlhf_zoo.records import Responses
from nlhf_zoo.records.random_streams import run_seed


@final
class UniformRandom(TableOracle):
    """Independent games whose preferences below the diagonal are uniform in [0, 1].

    Args:
        num_games: games, C.
        num_actions: actions of each, N.
        seed: of the draw; None takes the run's seed.
        dtype: precision of the answers.
    """

    def __init__(
        self,
        num_games: int = 10,
        num_actions: int = 10,
        seed: int | None = None,
        dtype: Precision = "float64",
    ) -> None:
        super().__init__(
            games.uniform_random(num_games, num_actions, run_seed(seed), DTYPES[dtype])
        )


@final
class BradleyTerry(TableOracle):
    """Independent transitive games: P(y > y') = sigmoid(scale (s - s')), s standard normal.

    Args:
        num_games: games, C.
        num_actions: actions of each, N.
        scale: how far scores lie apart.
        seed: of the draw; None takes the run's seed.
        dtype: precision of the answers.
    """

    def __init__(
        self,
        num_games: int = 10,
        num_actions: int = 10,
        scale: float = 1.0,
        seed: int | None = None,
        dtype: Precision = "float64",
    ) -> None:
        drawn = num_games, num_actions, run_seed(seed), scale, DTYPES[dtype]
        super().__init__(games.bradley_terry(*drawn), scores=games.bradley_terry_scores(*drawn))


@final
class Cyclic(TableOracle):
    """One regular tournament (rock, paper, scissors): each action beats the next (N - 1) / 2.

    Args:
        num_actions: actions, N; odd.
        strength: with which probability.
        dtype: precision of the answers.
    """

    def __init__(
        self, num_actions: int = 3, strength: float = 0.9, dtype: Precision = "float64"
    ) -> None:
        super().__init__(games.cyclic(num_actions, strength, DTYPES[dtype]))


@final
class CyclicBlocks(TableOracle):
    """One game of cycles under an order, its distinct actions cloned to as many as asked for.

    Args:
        num_actions: actions with their clones, N; at least num_blocks * block_size.
        num_blocks: blocks; each beats every later one.
        block_size: distinct actions of a block, a cycle; odd.
        strength: probability that an action beats those that follow it in its cycle.
        order: probability that an action of an earlier block beats one of a later block.
        dtype: precision of the answers.
    """

    def __init__(
        self,
        num_actions: int = 10,
        num_blocks: int = 2,
        block_size: int = 5,
        strength: float = 0.9,
        order: float = 0.8,
        dtype: Precision = "float64",
    ) -> None:
        super().__init__(
            games.cyclic_blocks(num_actions, num_blocks, block_size, strength, order, DTYPES[dtype])
        )


@final
class Comal(TableOracle):
    """The three-action game of COMAL (arXiv:2410.23223): b beats a, c beats b, a beats c.

    Args:
        dtype: precision of the answers.
    """

    def __init__(self, dtype: Precision = "float64") -> None:
        super().__init__(games.comal(DTYPES[dtype]), names=[["a", "b", "c"]])


@final
class SineGame(TableOracle):
    """One game of a cycle and a quality: P = 1/2 + 0.3 sin(a - a') + 0.2 (s - s').

    Args:
        num_actions: actions, N.
        seed: of the angles and qualities; None takes the run's seed.
        dtype: precision of the answers.
    """

    def __init__(
        self, num_actions: int = 10, seed: int | None = None, dtype: Precision = "float64"
    ) -> None:
        super().__init__(games.sine_game(num_actions, run_seed(seed), DTYPES[dtype]))


@final
class Annotators(TableOracle):
    """A population of annotators, each with a ranking; their majority is a cycle.

    Args:
        num_actions: actions, N.
        num_annotators: annotators.
        cycle: length of the majority's cycle among the first actions, odd; None for none.
        noise: share of annotators with a random ranking although there is a cycle.
        seed: of the rankings; None takes the run's seed.
        dtype: precision of the answers.
    """

    def __init__(
        self,
        num_actions: int = 5,
        num_annotators: int = 100,
        cycle: int | None = 3,
        noise: float = 0.1,
        seed: int | None = None,
        dtype: Precision = "float64",
    ) -> None:
        game = games.annotators(
            num_actions, num_annotators, cycle, run_seed(seed), noise, DTYPES[dtype]
        )
        super().__init__(game)


class SmallLanguage(TableOracle):
    r"""Words of three letters, with a transitive part and a strong cycle.

    .. math:: P(y > y') = \sigma(u_x(y) - u_x(y') + c \sin(2\pi (\phi(y) - \phi(y')) / 3))

    512 responses to four prompts. A tabular policy meets them as actions, a language model as
    text.

    Args:
        quality: standard deviation of a letter's weight in u; 0 leaves the cycle alone.
        cycle: strength c of the cycle; 0 leaves a transitive preference, whose scores are u.
        seed: of u.
        num_letters: letters of the language; fewer make a smaller one.
        length: letters of a word.
    """

    def __init__(
        self,
        quality: float = 1.0,
        cycle: float = 3.0,
        seed: int = 0,
        num_letters: int = len(small_language.LETTERS),
        length: int = small_language.LENGTH,
    ) -> None:
        small_language.refuse_size(num_letters, length)
        for name, value in (("quality", quality), ("cycle", cycle)):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} must be a finite number of at least 0, but it is {value}")
        words = small_language.words(num_letters, length)
        prompts = small_language.prompts(num_letters)
        preference = small_language.preference(quality, cycle, seed, num_letters, length)
        scores = None
        if cycle == 0:
            scores = small_language.utility(quality, seed, num_letters, length)
        super().__init__(preference, names=[words for _ in prompts], texts=prompts, scores=scores)
        self._index = {word: number for number, word in enumerate(words)}

    @override
    def actions(self, responses: Responses) -> Tensor:
        """Rows of the table; of text, by the word.

        Raises:
            UserError: a response is no word of the language.
        """
        if responses.text is None:  # of a tabular policy
            return super().actions(responses)
        try:
            rows = [[self._index[word] for word in row] for row in responses.text]
        except KeyError as error:
            example = next(iter(self._index))
            raise UserError(
                f"{error.args[0]!r} is no word of the small language, as {example!r} is: set "
                "model.policy.max_new_tokens to the length of its words"
            ) from error
        return torch.tensor(rows, device=responses.tokens.device)
