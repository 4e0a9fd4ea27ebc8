r"""Drawing the next rollout while this one is trained on, by an engine with weights of its own.

Or by the one that trains, before it goes on, where people answer the next one meanwhile.

A rollout is then drawn by the policy one rollout behind, which is a player of its own. Losses that
learn from it take their proximal step whoever drew, but the opponent of the step is the present
policy, and not the one that drew: the answers among its responses are weighted by o / behind, as
`reweighed` has it, with a bias of order 1/K.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.held_rollout import FrozenLogProbs, reweighed
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.game.rollout import BEHIND
from nlhf_zoo.game.rollout_files import tokens_of
from nlhf_zoo.game.worker import Worker
from nlhf_zoo.records import Prompts, ProximalStep, Responses
from nlhf_zoo.records.random_streams import random_stream, training_seed

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame


def trained(step: ProximalStep) -> ProximalStep:
    """The step, on responses that the policy one rollout behind drew."""
    return replace(step, sampler={BEHIND: 1.0}, self_play=False)


def halves(prompts: Prompts) -> tuple[Prompts, Prompts]:
    """The prompts of this rollout, and those of the next.

    Raises:
        UserError: they are no two rollouts.
    """
    half, rest = divmod(len(prompts), 2)
    if rest or not half:
        raise UserError(
            f"model.rollout.ahead draws for the next round too, but a batch has {len(prompts)} "
            "prompts: train with TextPrompts or TablePrompts, or hand over the prompts of this "
            "round and then as many of the next"
        )
    return prompts.take(range(half)), prompts.take(range(half, 2 * half))


def weighted(
    step: ProximalStep, payoffs: Payoffs, log_probs: FrozenLogProbs
) -> tuple[Payoffs, Tensor]:
    """Payoffs against the step's opponent, and the effective sample size of the weights [N].

    Args:
        step: as the algorithm has it.
        payoffs: of responses of the policy one rollout behind, compared among themselves.
        log_probs: of them, under the opponent too.
    """
    ((opponent, _),) = step.payoff[0][1].items()
    return reweighed(payoffs, log_probs.sampler, log_probs.players[opponent])


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A part that was drawn, and whether the oracle has answered what it was asked about it."""

    responses: Responses
    is_answered: Callable[[], bool]


def refuse_asking_ahead(game: OnlineGame) -> None:
    """Refuse an oracle that has people answer the next rollout meanwhile, where none is drawn.

    Raises:
        UserError: what to set.
    """
    oracle, rollout = game.oracle, game.rollout
    asks = [type(m).__name__ for m in oracle.modules() if getattr(m, "asks_ahead", False)]
    if asks and not oracle.asks_ahead:
        raise UserError(
            f"{asks[0]} with wait false is to be asked while this rollout is trained on, and "
            f"{type(oracle).__name__} around it asks when it is asked itself: set wait to true, or "
            f"make {asks[0]} the oracle of the game"
        )
    if asks and not rollout.ahead:
        raise UserError(
            f"{asks[-1]} with wait false has the next rollout answered while this one is passed "
            "over: set model.rollout.epochs and ahead, or wait to true"
        )
    if rollout.max_epochs is not None and not asks:
        raise UserError(
            "model.rollout.max_epochs limits the passes over a rollout while people answer the "
            f"next, and {type(oracle).__name__} has nobody to wait for: leave it out"
        )


class Ahead:
    """Draws rollouts by the policy one rollout behind: the next one in a thread of its own.

    Where the oracle ``asks_ahead`` its questions are put as soon as a part is drawn.
    """

    def __init__(self) -> None:
        self._number: int | None = None  # of the rollout that is being drawn
        self._prompts: list[list[list[int]]] = []  # of each part, as the policy reads them
        self._parts: list[Future[_Drawn]] = []
        self._worker: Worker[_Drawn] | None = None

    def begin(self, game: OnlineGame, prompts: Prompts) -> None:
        """Begin to draw the next rollout, unless that was begun or the budget has none.

        Args:
            game: within a proximal step, whose rollout is there.
            prompts: N prompts of the next round.
        """
        number = game.progress.rollouts
        if self._number == number or not _another_round(game):
            return
        self.close()
        parts = game.policy.encode(prompts).split(game.micro_batches.number(len(prompts)))
        tasks = [_asked(game, part, number, place) for place, part in enumerate(parts)]
        self._number, self._prompts = number, [*map(tokens_of, parts)]
        if game.policy.draws_apart:
            self._worker = Worker("ahead")
            self._parts = [*map(self._worker.begin, tasks)]
        else:
            self._parts = [_done(task()) for task in tasks]

    @property
    def is_answered(self) -> bool:
        """Whether nobody need be waited for: all is answered that was asked about, if anything.

        An engine that draws still is waited for. What has failed says so where it is wanted.
        """
        return all(part.exception() or part.result().is_answered() for part in self._parts)

    def part(self, game: OnlineGame, prompts: Prompts, number: int, part: int) -> Responses:
        """Responses of a part of a rollout; what was not drawn meanwhile is drawn now.

        Raises:
            UserError: others were drawn to than these prompts.
        """
        if self._number == number:
            if self._prompts[part] != tokens_of(prompts):
                raise UserError(
                    "model.rollout.ahead has drawn responses to other prompts than those that "
                    "came: train with TextPrompts or TablePrompts, or let the second half of a "
                    "round's prompts be the first half of the next round's"
                )
            return self._parts[part].result().responses
        return _begun(game, prompts, number, part)()

    def close(self) -> None:
        """Wait for what is being drawn, and let it go."""
        if self._worker is not None:
            self._worker.end()
        self._number, self._prompts, self._parts, self._worker = None, [], [], None


def _another_round(game: OnlineGame) -> bool:
    """Whether the budget has a round behind the present one, whose queries are counted."""
    progress, needed = game.progress, game.queries_per_round()
    rounds = game.max_rounds is None or progress.round + 1 < game.max_rounds
    queries = game.max_queries is None or progress.queries_per_prompt + needed <= game.max_queries
    return rounds and queries


def _asked(game: OnlineGame, prompts: Prompts, number: int, part: int) -> Callable[[], _Drawn]:
    """The drawing of a part and, of an oracle that ``asks_ahead``, the asking about all pairs."""
    draw, oracle = _begun(game, prompts, number, part), game.oracle

    def drawn() -> _Drawn:
        responses = draw()
        if not oracle.asks_ahead:
            return _Drawn(responses, lambda: True)
        return _Drawn(responses, oracle.ask_ahead(prompts, responses, responses))

    return drawn


def _done(drawn: _Drawn) -> Future[_Drawn]:
    """What was drawn already, as of a thread."""
    done = Future[_Drawn]()
    done.set_result(drawn)
    return done


def _begun(game: OnlineGame, prompts: Prompts, number: int, part: int) -> Callable[[], Responses]:
    """The drawing of a part, whose players were handed over."""
    place = training_seed(), game.global_rank, number
    rng = random_stream(*place, game.device, "rollout", part=part)
    scored, num = game.step.scored, game.rollout.num_responses
    return game.policy.begin_sample({BEHIND: 1.0}, prompts, num, scored, rng)
