"""A batch that is played and judged part by part, the judge behind the generator."""

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CASES, RUN, differences, fit, load, whole_run, write

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.game.micro_batches import MicroBatches, StepTimer
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.records import Prompts, Responses


def drawn(num: int, length: int, value: int) -> Responses:
    """Two responses to each of ``num`` prompts, of so many tokens."""
    tokens = torch.full((num, 2, length), value)
    return Responses(
        tokens, torch.ones_like(tokens, dtype=torch.bool), torch.full((num, 2), 0.5),
        text=[[f"{value}a", f"{value}b"] for _ in range(num)], version=3,
        truncated=torch.tensor([[True, False]] * num),
        log_prob=torch.full((num, 2), -float(length)),
    )  # fmt: skip


def payoffs(prompts: Prompts) -> Payoffs:
    payoff = prompts.ids[:, None] + torch.tensor([0.0, 0.5])
    return Payoffs(payoff, payoff > 0, 2, 2, int((payoff == 0).sum()))


@pytest.mark.parametrize("overlap", [False, True])
def test_parts_are_put_together_in_order(overlap: bool):
    """Parts of 1, 2 and 2 prompts, whose responses have 1, 2 and 3 tokens."""
    lengths = iter((1, 2, 3))

    def play(part: Prompts) -> Any:
        ours = drawn(len(part), next(lengths), int(part.ids[0]) + 1)
        return ours, [ours, drawn(len(part), 1, 9)]

    prompts = Prompts(torch.arange(5), text=[*"abcde"])
    responses, opponents, said = MicroBatches(3, overlap)(
        prompts, play, lambda part, *_: payoffs(part), StepTimer()
    )
    assert responses.tokens[:, 0].tolist() == [[1, 0, 0], [2, 2, 0], [2, 2, 0], [4] * 3, [4] * 3]
    assert responses.mask.sum(-1)[:, 0].tolist() == [1, 2, 2, 3, 3]
    assert responses.text == [[f"{n}a", f"{n}b"] for n in (1, 2, 2, 4, 4)]
    assert responses.version == 3
    assert responses.truncated is not None
    assert responses.truncated.tolist() == [[True, False]] * 5
    assert responses.log_prob is not None
    assert responses.log_prob[:, 1].tolist() == [-1.0, -2, -2, -3, -3]
    assert opponents[0] is responses  # self-play stays self-play
    assert opponents[1].tokens.tolist() == [[[9], [9]]] * 5
    assert said.payoff.tolist() == [[n, n + 0.5] for n in range(5)]
    assert said.valid.tolist() == [[False, True], *[[True, True]] * 4]
    assert (said.queries, said.invalid, said.preference) == (2, 1, None)


def test_the_judge_works_while_the_next_part_is_drawn():
    """The first judgement ends only when the second part is being drawn: never in turn."""

    def run(overlap: bool, patience: float) -> None:
        second = threading.Event()

        def play(part: Prompts) -> Any:
            if part.ids[0] == 1:
                second.set()
            return drawn(len(part), 1, 0), []

        def judge(part: Prompts, *_: Any) -> Payoffs:
            if not second.wait(patience):
                raise TimeoutError
            return payoffs(part)

        MicroBatches(2, overlap)(Prompts(torch.arange(2)), play, judge, StepTimer())

    run(overlap=True, patience=20)
    with pytest.raises(TimeoutError):
        run(overlap=False, patience=0)


def test_a_judge_that_has_stopped_is_not_asked_about_later_parts():
    asked = []
    all_drawn = threading.Event()

    def play(part: Prompts) -> Any:
        if part.ids[-1] == 7:
            all_drawn.set()
        return drawn(len(part), 1, 0), []

    def judge(part: Prompts, *_: Any) -> Payoffs:
        all_drawn.wait(20)
        asked.append(int(part.ids[0]))
        raise OracleStoppedError("closed for today")

    with pytest.raises(OracleStoppedError, match="closed for today"):
        MicroBatches(8, overlap=True)(Prompts(torch.arange(8)), play, judge, StepTimer())
    assert asked == [0]


@pytest.mark.parametrize(
    ("parts", "overlap", "sentence"),
    [(0, False, "model.micro_batches must be at least 1"), (1, True, "needs a next part to draw")],
)
def test_what_cannot_overlap_is_refused(parts: int, overlap: bool, sentence: str):
    with pytest.raises(UserError, match=sentence):
        MicroBatches(parts, overlap)


# Sampled labels: their stream would move on in another order if the judge were asked in another.
@pytest.mark.parametrize(
    "name",
    [pytest.param("sampled-optimistic_mirror_descent", marks=pytest.mark.slow), "language-nash_mp"],
)
def test_overlapping_changes_nothing(name: str, tmp_path: Path):
    for overlap in (False, True):
        config = copy.deepcopy(CASES[name])
        config["model"]["init_args"] |= {"micro_batches": 2, "overlap_judging": overlap}
        whole_run(tmp_path / str(overlap), config)
    one, other = load(tmp_path / "False"), load(tmp_path / "True")
    assert differences(one, other) == []
    history = [(tmp_path / str(o) / RUN / "history.bin").read_bytes() for o in (False, True)]
    assert history[0] == history[1]


def test_listed_responses_have_no_parts(tmp_path: Path):
    config = copy.deepcopy(CASES["enumerated-optimistic"])
    config["model"]["init_args"]["micro_batches"] = 2
    write(tmp_path, config)
    run = fit(tmp_path)
    assert run.code == 2
    assert "responses that are listed are not drawn: leave it at 1" in run.sentence
