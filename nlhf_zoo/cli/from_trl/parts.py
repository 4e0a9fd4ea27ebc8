"""The policy, and who judges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nlhf_zoo.cli.from_trl.found import Function, Made
from nlhf_zoo.cli.from_trl.sheet import Noted, Sheet

MODEL, REWARD_MODEL = "MODEL", "REWARD_MODEL"  # which stand where nobody has said it
_ROUTER = "https://router.huggingface.co/v1"
_OF_PEFT = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False}  # its defaults
_NO_MATTER = {"task_type", "inference_mode", "base_model_name_or_path", "peft_type", "revision"}


def policy(sheet: Sheet) -> dict[str, Any]:
    """The block of the policy."""
    found = sheet.found
    if found.model is None:
        sheet.by_hand("the model", "set model.policy.model to a folder or hub name")
    if found.reference not in (None, found.model):
        sheet.problem(
            f"ref_model is {found.reference}, and the reference here is the model that training "
            "starts from"
        )
    length = sheet.whole("max_new_tokens", least=1)
    sheet.say("kept", "max_new_tokens", f"model.policy.max_new_tokens: {length}")
    init_args: dict[str, Any] = {
        "model": _source(sheet, found.model or MODEL),
        "lora": _lora(sheet),
        "max_new_tokens": length,
    }
    if sheet.get("gradient_checkpointing"):
        sheet.say("kept", "gradient_checkpointing", "model.policy.gradient_checkpointing: true")
        init_args["gradient_checkpointing"] = True
    if sheet.get("disable_dropout") is False:
        sheet.say("kept", "disable_dropout", "model.policy.dropout: true")
        init_args["dropout"] = True
        if "gradient_checkpointing" in init_args:
            sheet.problem(
                "disable_dropout is False with gradient_checkpointing, and what is computed again "
                "would drop other units: leave one of them out"
            )
    if sheet.get("torch_compile"):
        sheet.say("kept", "torch_compile", "model.policy.compile: true")
        init_args["compile"] = True
    return {"class_path": "nlhf_zoo.CausalLMPolicy", "init_args": init_args | _engine(sheet)}


def _source(sheet: Sheet, name: str) -> object:
    """The model's name, or a source with what it is loaded by."""
    given = dict(sheet.found.model_options)
    given |= sheet.options("model_init_kwargs")
    options: dict[str, Any] = {}
    dtype = given.pop("dtype", given.pop("torch_dtype", None))
    if dtype not in (None, "auto"):
        options["dtype"] = dtype
        if dtype not in ("float32", "bfloat16"):
            sheet.problem(f"the model's dtype is {dtype}, and it can be float32 or bfloat16 here")
    for theirs, ours in (("attn_implementation", "attention"), ("revision", "revision")):
        if (value := given.pop(theirs, None)) is not None:
            options[ours] = value
    if given.pop("load_in_4bit", False):
        options["four_bit"] = True
    for option, value in given.items():
        if value:
            sheet.problem(f"the model is loaded with {option}={value!r}, which is no option here")
    for option, value in options.items():
        sheet.note("kept", f"{option} of the model", f"Pretrained.{option}: {value}")
    if not options:
        return name
    return {"class_path": "nlhf_zoo.Pretrained", "init_args": {"name": name, **options}}


def _lora(sheet: Sheet) -> object:
    """The adapter's shape; None trains all weights."""
    given = sheet.found.lora
    if given is None:
        if not sheet.found.says_adapter:
            sheet.by_hand("peft_config", "all weights train: set model.policy.lora for an adapter")
            return Noted(None, "all weights train")
        sheet.note("kept", "no peft_config", "model.policy.lora: null, all weights train")
        return None
    options = _OF_PEFT | given
    lora = {
        "r": options["r"],
        "alpha": options["lora_alpha"],
        "dropout": options["lora_dropout"],
        "target_modules": options.get("target_modules"),
        "rslora": options["use_rslora"],
    }
    if lora["target_modules"] is None:
        lora["target_modules"] = Noted(
            ["q_proj", "v_proj"], "as peft has it for most architectures; a model may lack them"
        )
        sheet.by_hand(
            "target_modules of peft_config", "peft chooses by architecture: q_proj, v_proj"
        )
    for option, value in given.items():
        is_read = option in _OF_PEFT or option == "target_modules" or option in _NO_MATTER
        if not (is_read or value in (None, False, "none") or (option, value) == _INIT):
            sheet.problem(f"{option} of peft_config is {value!r}, which is no option of LoRA here")
    shape = f"r {lora['r']}, alpha {lora['alpha']}, dropout {lora['dropout']}"
    sheet.note("kept", "peft_config", f"model.policy.lora: {shape}")
    return lora


_INIT = ("init_lora_weights", True)


def _engine(sheet: Sheet) -> dict[str, Any]:
    """The engine that draws, where it is vLLM."""
    if not sheet.get("use_vllm"):
        return {}
    mode = sheet.get("vllm_mode")
    if mode == "server":
        sheet.problem(
            "vllm_mode is server, and TRL's server is its own: start vLLM's as docs/vllm.md has "
            "it, set VLLMServerGenerator, and leave use_vllm out"
        )
        return {}
    if sheet.found.lora is None:
        sheet.problem(
            "use_vllm draws from adapters alone here: give a peft_config, or leave it out"
        )
    old = sheet.get("gpu_memory_utilization") is not None
    share = sheet.number("gpu_memory_utilization" if old else "vllm_gpu_memory_utilization")
    sheet.seen |= {"vllm_gpu_memory_utilization", "gpu_memory_utilization"}
    sheet.say("kept", "use_vllm", f"model.policy.generator: VLLMGenerator, gpu_memory: {share}")
    generator = {"class_path": "nlhf_zoo.VLLMGenerator", "init_args": {"gpu_memory": share}}
    return {"generator": generator}


# ---- who judges ----------------------------------------------------------------------------------


def oracle(sheet: Sheet) -> dict[str, Any]:
    """The block of the oracle."""
    found = sheet.found
    sheet.seen |= {"judge", "reward_model_path"}
    penalty = sheet.get("missing_eos_penalty")
    if found.judge is not None:
        if found.rewards:
            sheet.note("left out", "reward functions", "TRL takes the judge where both are given")
        if penalty is not None:
            sheet.say("left out", "missing_eos_penalty", "TRL applies it to rewards alone")
        _no_weights(sheet)
        made = _JUDGES.get(found.judge.name, _own_judge)
        return made(sheet, found.judge)
    if functions := [one for one in found.rewards if isinstance(one, Function)]:
        return _functions(sheet, functions)
    return _reward_models(sheet, [str(one) for one in found.rewards], penalty)


def _no_weights(sheet: Sheet) -> None:
    if sheet.get("reward_weights") is not None:
        sheet.say("left out", "reward_weights", "a judge has none")


def _weights(sheet: Sheet, num: int) -> list[float] | None:
    """Weights of several rewards, whose sum TRL takes."""
    given = sheet.get("reward_weights")
    numbers = isinstance(given, list) and all(isinstance(one, int | float) for one in given)
    if given is not None and not (numbers and len(given) == num):
        sheet.problem(f"reward_weights is {given!r:.80}, and no list of {num} numbers")
        given = None
    weights = [1.0] * num if given is None else [float(one) for one in given]
    if num > 1 or given is not None:
        sheet.say("kept", "reward_weights", f"weights: {weights}")
        return weights
    return None


def _reward_models(sheet: Sheet, names: list[str], penalty: Any) -> dict[str, Any]:
    if not names:
        sheet.by_hand("who judges", "set model.oracle, a reward model's name stands there")
    init_args: dict[str, Any] = {"model": names or REWARD_MODEL}
    if len(names) == 1:
        init_args["model"] = names[0]
    if names:
        place = "reward_model_path" if "reward_model_path" in sheet.found.given else "reward_funcs"
        label = "P = sigma(r - r')" if sheet.version.trainer == "NashMD" else "the larger r wins"
        sheet.note(
            "kept", f"{place}: {', '.join(names)}", f"model.oracle: RewardModelOracle, {label}"
        )
    weights = _weights(sheet, max(1, len(names)))
    if weights is not None:
        init_args["weights"] = weights
    if penalty is not None:
        sheet.say("kept", "missing_eos_penalty", f"model.oracle.penalty_without_end: {penalty}")
        init_args["penalty_without_end"] = sheet.number("missing_eos_penalty", least=0)
    return {"class_path": "nlhf_zoo.RewardModelOracle", "init_args": init_args}


def _functions(sheet: Sheet, functions: list[Function]) -> dict[str, Any]:
    if len(functions) < len(sheet.found.rewards):
        sheet.problem(
            "reward_funcs has reward models and functions, and one oracle sums one kind of them: "
            "load the model within a function"
        )
    if sheet.get("missing_eos_penalty") is not None:
        sheet.problem(
            "missing_eos_penalty is for reward models here, and functions do not see whether a "
            "response has ended: leave it out"
        )
    paths = []
    for one in functions:
        top = (one.module or "").partition(".")[0]
        if top in ("", "trl"):
            paths.append(f"MY_MODULE.{one.name}")
            sheet.by_hand(
                f"the reward function {one.name}",
                "put it into a module of your own, and that module's name for MY_MODULE",
            )
        else:
            paths.append(f"{one.module}.{one.name}")
    is_nash_md = sheet.version.trainer == "NashMD"
    preference = "sigmoid" if is_nash_md else "comparison"
    said = (
        "sigma(r - r')" if is_nash_md else "1 for the larger sum of rewards, and 1/2 for equal ones"
    )
    sheet.note(
        "translated", f"reward_funcs: {', '.join(one.name for one in functions)}",
        f"model.oracle: RewardFunctionOracle, P = {said}",
    )  # fmt: skip
    sheet.by_hand("columns of the prompts' rows", "set model.oracle.rows where functions take any")
    weights = _weights(sheet, len(functions))
    init_args: dict[str, Any] = {"functions": paths, "preference": preference}
    init_args |= {} if weights is None else {"weights": weights}
    return {"class_path": "nlhf_zoo.RewardFunctionOracle", "init_args": init_args}


def _served(sheet: Sheet, judge: Made, model: str, url: str, key: str) -> dict[str, Any]:
    """A language model behind an endpoint."""
    name = judge.given.get("model", model)
    sheet.note(
        "translated",
        f"judge: {judge.name}",
        f"model.oracle: JudgeOracle, {name} at {url}, the key in {key}; one request a pair in a "
        "random order, as TRL's, with a message and a verdict of its own",
    )
    if judge.given.get("system_prompt"):
        sheet.by_hand("system_prompt of the judge", "write it as a file for model.oracle.template")
    if sheet.version.trainer == "NashMD":
        sheet.note(
            "differs", "Nash-MD with that judge", "TRL's trainer asks it for scores, and fails"
        )
    init_args = {"model": name, "base_url": url, "api_key_env": key, "order": "random"}
    init_args["temperature"] = Noted(None, "left to the server, as TRL leaves it")
    return {"class_path": "nlhf_zoo.JudgeOracle", "init_args": init_args}


def _hf(sheet: Sheet, judge: Made) -> dict[str, Any]:
    if judge.given.get("token"):
        sheet.by_hand("token of the judge", "a key is never in a file: put it into HF_TOKEN")
    model = "meta-llama/Meta-Llama-3-70B-Instruct"
    return _served(sheet, judge, model, _ROUTER, "HF_TOKEN")


def _openai(sheet: Sheet, judge: Made) -> dict[str, Any]:
    url = "https://api.openai.com/v1"
    inner = _served(sheet, judge, "gpt-4-turbo-preview", url, "OPENAI_API_KEY")
    limit = judge.given.get("max_requests", 1000)
    if limit is None:
        return inner
    sheet.note(
        "translated",
        f"max_requests of the judge: {limit}",
        "BudgetedOracle.max_requests: the run ends there with a checkpoint, where TRL goes on and "
        "takes the second response for better",
    )
    init_args = {"oracle": inner, "max_requests": limit}
    return {"class_path": "nlhf_zoo.BudgetedOracle", "init_args": init_args}


def _pair_rm(sheet: Sheet, judge: Made) -> dict[str, Any]:
    sheet.by_hand(
        "judge: PairRMJudge",
        "llm-blender loads it, in a class of your own, as docs/oracles/own.md has it",
    )
    return _of_class("my_judges.PairRM", scores=True)


def _own_judge(sheet: Sheet, judge: Made) -> dict[str, Any]:
    if judge.name in ("AllTrueJudge", "BaseBinaryJudge"):
        sheet.problem(f"{judge.name} judges single responses, and an oracle compares two")
    sheet.by_hand(
        f"judge: {judge.name}",
        "put its class into a module of your own, and that module's name for MY_MODULE",
    )
    return _of_class(f"MY_MODULE.{judge.name}", scores=sheet.version.trainer == "NashMD")


def _of_class(path: str, scores: bool) -> dict[str, Any]:
    init_args = {"judge": {"class_path": path}, "scores": scores, "order": "random"}
    return {"class_path": "nlhf_zoo.PairwiseJudgeOracle", "init_args": init_args}


_JUDGES: dict[str, Callable[[Sheet, Made], dict[str, Any]]] = {
    "HfPairwiseJudge": _hf,
    "OpenAIPairwiseJudge": _openai,
    "PairRMJudge": _pair_rm,
}
