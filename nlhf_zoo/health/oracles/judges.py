"""What a judge's server says of itself, without a question that costs anything."""

from __future__ import annotations

from nlhf_zoo.health.check import Note
from nlhf_zoo.oracles import JudgeOracle, PreferenceOracle
from nlhf_zoo.oracles.judge.client import Failure

_NAMED = 5  # models, of those that a server lists


def models_of(oracle: PreferenceOracle) -> list[Note]:
    """For each judge of an oracle, whether its server lists the model.

    No more than a note: some servers take names that they do not list, such as folders.
    """
    return [models_listed(part) for part in oracle.modules() if isinstance(part, JudgeOracle)]


def models_listed(judge: JudgeOracle) -> Note:
    """What GET /models of a judge's server says of its model."""
    model, listed = judge.request["model"], judge.client.models()
    if isinstance(listed, Failure):
        figure = f"GET /models: {listed.message}"
    elif model in listed:
        figure = f"lists {model}"
    else:
        names = judge.client.presentable(", ".join(listed[:_NAMED]))
        figure = f"does not list {model}, but {names or 'nothing'}"
        figure += f" and {len(listed) - _NAMED} others" * (len(listed) > _NAMED)
    return Note("the judge's server", figure)
