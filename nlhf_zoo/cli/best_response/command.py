"""What ``nlhf certify --best_response`` does beside its estimate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nlhf_zoo.cli.best_response.plan import TrainingOptions, split_prompts
from nlhf_zoo.cli.best_response.report import SampledFigure, table, write_report
from nlhf_zoo.cli.best_response.training import train_best_response
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.policies.loading import LoadedPlayer
from nlhf_zoo.records import Prompts


def respond(
    player: LoadedPlayer,
    reference: LoadedPlayer,
    oracle: PreferenceOracle,
    prompts: Prompts,
    beta: float,
    options: TrainingOptions,
    folder: Path,
    estimated: Callable[[Prompts], SampledFigure] | None = None,
) -> str:
    """Train a best response to a policy, measure it, write what was found, and say it as a table.

    Args:
        player: whose exploitability is bounded; the policy that holds it is trained on afterwards.
        reference: whom it is held to.
        oracle: who judges.
        prompts: all there are.
        beta: temperature of the game.
        options: how it is trained.
        folder: for the training, the curve and the figures.
        estimated: the estimate from samples for some prompts, made before anything is trained.

    Raises:
        UserError: the reference is not the policy's own, or training is refused.
    """
    if reference.policy is not player.policy or reference.player != "reference":
        raise UserError(
            f"a best response is trained on the base of {player.name}, whose KL is taken to that "
            f"base: {reference.name} is another reference, so leave --reference out, or "
            "--best_response"
        )
    if player.player == "reference":
        raise UserError(
            f"--player reference of {player.name} is a model without an adapter to be trained: "
            "give that model itself as the policy"
        )
    split = split_prompts(prompts, options.prompts == "split", options.seed)
    options.rounds(split)  # before anything is asked
    estimate = None if estimated is None else estimated(split.measurement)
    if player.player != "policy":
        player.policy.copy_(player.player, "policy")
    found = train_best_response(
        player.policy, oracle, beta, split, options, folder, shown=True, source=player.name
    )
    write_report(found, folder, estimate)
    return f"{table(found, estimate)}\nCurve and figures: {folder}/"
