"""The game and its algorithm, and how many responses are drawn, and how."""

from __future__ import annotations

from typing import Any

from nlhf_zoo.cli.from_trl.sheet import Noted, Sheet

_OF_DECODING = ("temperature", "top_k", "top_p", "min_p")
_SAMPLED = 50  # top_k of transformers' `generate` where nobody gives one
_DIVIDED = "another beta is another game"


def algorithm(sheet: Sheet) -> dict[str, Any]:
    """The blocks beta, algorithm, rollout and realisation of a game."""
    beta = sheet.at_epoch("beta", _DIVIDED)
    if beta <= 0:
        sheet.problem(f"beta is {beta:g}, and a regularised game needs one above 0")
    sheet.say("kept", "beta", f"model.beta: {beta:g}")
    block = {"NashMD": _nash_md, "OnlineDPO": _online_dpo, "XPO": _xpo}[sheet.version.trainer](
        sheet
    )
    _loss_type(sheet, block)
    is_nash_md = sheet.version.trainer == "NashMD"
    drawn = {"num_responses": 1, "num_opponents": 1} if is_nash_md else {"num_responses": 2}
    return {
        "beta": beta,
        "algorithm": block,
        "rollout": {"class_path": "nlhf_zoo.Sample", "init_args": drawn},
        "realisation": {"class_path": "nlhf_zoo.GradientSteps"},
    }


def _nash_md(sheet: Sheet) -> dict[str, Any]:
    mixture = sheet.at_epoch("mixture_coef", "a run here has one mixture")
    if not 0 <= mixture <= 1:
        sheet.problem(f"mixture_coef is {mixture:g}, and a weight lies in [0, 1]")
    sheet.say(
        "kept",
        "mixture_coef",
        f"model.algorithm.mixture: {mixture:g}, the reference's weight in the opponent; weights "
        "above .125 solve another game than the stated one",
    )
    sheet.note(
        "differs",
        "the loss of NashMDTrainer",
        "the KL term counts the log-ratio of the whole response, where TRL's counts each token's "
        "own alone; the rest, (P - 1/2) log pi, is the same",
    )
    if sheet.found.lora is not None:
        sheet.note(
            "differs",
            "the reference with an adapter",
            "it is the base model, where TRL's mixture runs with the adapter on, and is the policy",
        )
    decoding = _decoding(sheet)
    if decoding:
        sheet.note(
            "differs",
            "the policy's own responses",
            "drawn from the policy itself, as its gradient needs; TRL tempers and truncates them "
            "too, and scores them as if it had not",
        )
    opponent = {"opponent": decoding} if decoding else {}
    return {"class_path": "nlhf_zoo.NashMD", "init_args": {"mixture": mixture, **opponent}}


def _online_dpo(sheet: Sheet) -> dict[str, Any]:
    decoding = _decoding(sheet)
    scored = {"scored": decoding} if decoding else {}
    hard = Noted(True, "TRL takes labels; false takes probabilities")
    sheet.note(
        "differs", "a tie", "a label of 1/2, where TRL takes the first of equal rewards for better"
    )
    return {"class_path": "nlhf_zoo.OnlineDPO", "init_args": {"hard": hard, **scored}}


def _xpo(sheet: Sheet) -> dict[str, Any]:
    alpha = sheet.at_epoch("alpha", "a run here has one alpha")
    sheet.say("kept", "alpha", f"model.algorithm.alpha: {alpha:g}")
    sheet.note(
        "differs",
        "the pairs of XPOTrainer",
        "two responses of the policy, where TRL compares one of the policy with one of the "
        "reference; the term alpha log pi is over responses of the reference in both",
    )
    block = _online_dpo(sheet)
    return {"class_path": "nlhf_zoo.XPO", "init_args": {"alpha": alpha, **block["init_args"]}}


def _loss_type(sheet: Sheet, block: dict[str, Any]) -> None:
    """DPO's loss, or IPO's: (D log(pi/mu) - (P - 1/2) / beta)^2 with P of 0 or 1."""
    if sheet.version.trainer == "NashMD":
        sheet.seen.add("loss_type")  # which that trainer does not read
        return
    kind = sheet.get("loss_type")
    if kind == "sigmoid":
        sheet.say("kept", "loss_type", "DPO's logistic loss, the algorithm's own")
    elif kind == "ipo" and sheet.version.trainer == "OnlineDPO":
        sheet.say(
            "translated",
            "loss_type",
            "model.algorithm: OnlineIPO, (D log(pi/mu) - (P - 1/2) / beta)^2 on labels by "
            "Transformed, which is TRL's (D log(pi/mu) -+ 1 / (2 beta))^2",
        )
        if "scored" in block["init_args"]:
            sheet.note(
                "differs",
                "responses under loss_type ipo",
                "drawn from the policy itself, neither tempered nor truncated, as self-play needs",
            )
        block |= {"class_path": "nlhf_zoo.OnlineIPO", "init_args": {"self_play": True}}
    else:
        sheet.problem(
            f"loss_type is {kind!r}, for which {sheet.version.trainer} has no loss here: take "
            "sigmoid"
        )


def _decoding(sheet: Sheet) -> dict[str, Any]:
    """How responses are drawn, without what draws from the policy itself."""
    given = sheet.options("generation_kwargs")
    for name in given:
        if name not in _OF_DECODING:
            sheet.problem(
                f"generation_kwargs has {name}, and responses are drawn by temperature, top_k, "
                "top_p and min_p alone"
            )
    penalty = sheet.get("repetition_penalty")
    if penalty not in (None, 1.0):
        sheet.problem(
            f"repetition_penalty is {penalty!r}, and what it draws has no probability that "
            "could be scored: leave it out"
        )
    own = {name: given.get(name, sheet.get(name)) for name in _OF_DECODING}
    for name, value in own.items():
        if not isinstance(value, int | float | None):
            sheet.problem(f"{name} is {value!r:.80}, and no number")
            return {}
    own["top_k"] = _top_k(sheet, own["top_k"])
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    found = {
        name: value for name, value in own.items() if value is not None and value != plain[name]
    }
    if "temperature" in found and not found["temperature"] > 0:
        sheet.problem(f"temperature is {found['temperature']!r}, and must be above 0")
    where = "opponent" if sheet.version.trainer == "NashMD" else "scored"
    for name in (one for one in _OF_DECODING if one in sheet.found.given or one in found):
        value = found.get(name, plain[name])
        kept = own[name] == sheet.get(name)
        sheet.say(
            "kept" if kept else "translated", name, f"{where}.{name}: {value}{_why(name, own)}"
        )
    return found


def _why(name: str, own: dict[str, Any]) -> str:
    is_hidden = name == "top_k" and own["top_k"] == _SAMPLED
    return ", to which `generate` of transformers truncates there" if is_hidden else ""


def _top_k(sheet: Sheet, value: Any) -> Any:
    """How many tokens TRL's trainer really draws from; 0 for all."""
    if sheet.version.number < (0, 14):
        return 0
    if sheet.version.number < (0, 23):
        return 0 if sheet.get("use_vllm") else _SAMPLED  # written into the trainer
    if value is None or value == -1:
        return 0 if sheet.get("use_vllm") or value == -1 else _SAMPLED
    return value
