"""The loss of a preference model is the mean over all pairs that can be read, wherever they lie."""

import pytest
import torch
from together import together, trainer

from preference_models.test_preference_model import model, pairs

LONG = "ab" * 20  # which cannot be read
PAIRS = [("a", LONG, "b"), ("b", "aa", "ab"), ("ab", "b", "a"), ("h", "ba", LONG), ("a", "h", "b")]


def gradient(made, batches, process):
    """Of an optimiser step, as a Trainer accumulates it."""
    made._trainer, made.log = process, lambda *_, **__: None
    process.accumulate_grad_batches = len(batches)
    optimizer = torch.optim.SGD(made._trained().values(), lr=1.0)
    for batch in batches:
        (made.training_step(pairs(*batch), 0) / len(batches)).backward()
    made.on_before_optimizer_step(optimizer)
    return torch.cat([p.grad.flatten() for p in made._trained().values()])


def made():
    torch.manual_seed(3)
    return model("reward", max_tokens=8, unreadable="drop")


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3, 4]], [[0], [1, 2], [3], [4]]])
def test_gradients_are_those_of_one_process(shares):
    expected = gradient(made(), [PAIRS], trainer(0, 1))
    batches = [[PAIRS[i] for i in share] for share in shares]

    def of_process(process):
        return gradient(copies[process.global_rank], [batches[process.global_rank]], process)

    copies = [made() for _ in shares]
    atol = 3e-6 * float(expected.abs().max())
    mean = sum(together(len(shares), of_process)) / len(shares)
    torch.testing.assert_close(mean, expected, atol=atol, rtol=0)
    torch.testing.assert_close(
        gradient(made(), batches, trainer(0, 1)), expected, atol=atol, rtol=0
    )
