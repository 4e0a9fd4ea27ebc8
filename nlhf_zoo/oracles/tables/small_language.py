"""The oracle of the small language: a table that is read by text."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.data.tables import small_language
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.tables.base import TableOracle
from nlhf_zoo.records import Responses


class SmallLanguage(TableOracle):
    r"""Words of three letters, with a transitive part and a strong cycle.

    .. math:: P(y > y') = \sigma(u_x(y) - u_x(y') + c \sin(2\pi (\phi(y) - \phi(y')) / 3))

    512 responses to four prompts. A tabular policy meets them as actions, a language model as
    text.

    Args:
        quality: standard deviation of a letter's weight in u; 0 leaves the cycle alone.
        cycle: strength c of the cycle; 0 leaves a transitive preference.
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
        super().__init__(preference, names=[words for _ in prompts], texts=prompts)
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
