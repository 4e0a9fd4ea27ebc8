"""A trained best response to a policy, and the lower bound of its exploitability that it gives."""

from nlhf_zoo.cli.best_response.plan import Split, TrainingOptions, split_prompts
from nlhf_zoo.cli.best_response.report import SampledFigure, table, write_report
from nlhf_zoo.cli.best_response.training import BestResponseBound, train_best_response

__all__ = [
    "BestResponseBound",
    "SampledFigure",
    "Split",
    "TrainingOptions",
    "split_prompts",
    "table",
    "train_best_response",
    "write_report",
]
