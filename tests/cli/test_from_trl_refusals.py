"""What of TRL's configurations judges, and what is refused."""

import json
from contextlib import suppress
from pathlib import Path

import jsonargparse
import pytest
from slow import slow_unless
from trl_files import dumped, model_of, refusal, translated, write_prompts

from nlhf_zoo.cli.from_trl.command import from_trl
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import BudgetedOracle, PreferenceOracle, RewardModelOracle


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_prompts()


# ---- who judges ----------------------------------------------------------------------------------


def oracle_of(judge, trainer="OnlineDPO", first="from trl import *"):
    Path("train.py").write_text(
        f"{first}\n"
        f"args = {trainer}Config(max_steps=3)\n"
        f"trainer = {trainer}Trainer(model='m', args=args, {judge})\n"
    )
    return model_of(translated("train.py"))["oracle"]


def test_judges_become_oracles(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setenv("HF_TOKEN", "key")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--oracle", type=PreferenceOracle)

    def made(judge):
        return parser.instantiate(parser.parse_object({"oracle": oracle_of(judge)})).oracle

    openai = made("judge=OpenAIPairwiseJudge(model='x', max_requests=7)")
    assert isinstance(openai, BudgetedOracle)
    assert openai.oracle.request == {"model": "x", "max_tokens": 256}
    assert openai.oracle.order == "random"
    served = made("judge=HfPairwiseJudge()")
    assert served.client.endpoint.base_url == "https://router.huggingface.co/v1"
    assert oracle_of("judge=PairRMJudge()", "NashMD")["init_args"] == {
        "judge": {"class_path": "my_judges.PairRM"},
        "scores": True,
        "order": "random",
    }
    assert oracle_of("judge=Mine()")["init_args"]["judge"] == {"class_path": "MY_MODULE.Mine"}


def test_rewards_become_oracles():
    found = oracle_of("reward_funcs=['first', 'second']")
    assert found["class_path"] == f"nlhf_zoo.{RewardModelOracle.__name__}"
    assert found["init_args"] == {"model": ["first", "second"], "weights": [1.0, 1.0]}
    with pytest.raises(UserError, match="reward models and functions, and one oracle sums one"):
        oracle_of("reward_funcs=['first', own]", "OnlineDPO", "def own(): ...")


# ---- what is refused -----------------------------------------------------------------------------


def test_what_has_no_counterpart_is_refused_at_once():
    given = {"mixture_coef": 0.5, "max_steps": 1, "deepspeed": "zero3.json", "optim": "adafactor"}
    given |= {"neftune_noise_alpha": 5.0, "repetition_penalty": 1.2, "num_generations": 8}
    given |= {
        "learning_rte": 0.1,
        "use_vllm": True,
        "vllm_mode": "server",
        "hub_token": "hf_secret",
    }
    said = refusal(given)
    assert "7 things have no counterpart" in said
    for text in (
        "deepspeed is 'zero3.json', and DeepSpeed is none of the strategies",
        "optim is 'adafactor', which has no counterpart",
        "neftune_noise_alpha is 5.0, and noise",
        "repetition_penalty is 1.2, and",
        "num_generations is no argument of NashMDConfig: here it is model.rollout.num_responses",
        "learning_rte is no argument of NashMDConfig, did you mean 'learning_rate'?",
        "vllm_mode is server, and TRL's server is its own",
    ):
        assert text in said
    assert "secret" not in said


REFUSED = {
    "no configuration": ("x.py", "print(1)", "x.py has no call of NashMDConfig"),
    "two configurations": ("x.py", "XPOConfig()\nXPOConfig()", "2 configurations, in lines 1, 2"),
    "no Python": ("x.py", "def", "is no Python that can be read"),
    "a pickle": ("training_args.bin", "x", "is a pickle, and to read one is to run what it holds"),
    "a list": ("x.json", "[1]", "holds no options by name"),
    "no JSON": ("x.json", "{", "cannot be read"),
    "no YAML": ("x.yaml", "a: [", "cannot be read"),
    "endless": ("x.yaml", "beta: 0.1", "give --num_prompts N, the number of its rows"),
    "beta of text": ("x.yaml", "beta: much\nmax_steps: 1", "beta is 'much', and no number"),
    "no file": ("", "", "there is no file"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused(case):
    name, text, sentence = case
    if name:
        Path(name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        translated(name or "nothing.json")
    assert not Path("config.yaml").exists()


MADE = "config = NashMDConfig(max_steps=1, beta=0.2)\n"


@pytest.mark.parametrize(
    ("script", "beta", "by_hand"),
    [
        (MADE + "config.beta = 0.3\nconfig.beta = 0.4", 0.4, 0),
        (MADE + "args = config\nargs.beta = 0.4", 0.4, 0),
        (MADE + "tokenizer = AutoTokenizer.from_pretrained('m')\ntokenizer.max_length = 3", 0.2, 0),
        (MADE + "if strong:\n    config.beta = 0.9", 0.2, 1),
        (MADE + "config.beta = 0.4\ndef late():\n    config.beta = 0.9", 0.4, 1),
        (MADE + "config.beta, config.alpha = 0.9, 0.1", 0.2, 2),
        (MADE + "config = replace(config, beta=0.9)", 0.2, 1),
        (MADE + "def setup(args):\n    args.beta = 0.9\nsetup(config)", 0.2, 1),
        (MADE + "trainer = NashMDTrainer(args=config)\ntrainer.args.beta = 0.9", 0.2, 1),
        (f"def make():\n    {MADE}    return config\nargs = make()\nargs.beta = 0.9", 0.2, 1),
        ("try:\n    from own import B\nexcept ImportError:\n    B = 0.2\n"
         "config = NashMDConfig(max_steps=1, beta=B)", 0.1, 1),
    ],
)  # fmt: skip
def test_what_a_script_may_change_later_is_left_to_the_user(script, beta, by_hand):
    """Where nobody can see whether a line is run, no value is guessed."""
    Path("x.py").write_text(script)
    config = translated("x.py")
    assert model_of(config)["beta"] == beta
    assert len(config.get("SET_BY_HAND", [])) == by_hand


def test_an_adapter_that_changes_later_is_left_to_the_user():
    Path("x.py").write_text(
        MADE + "lora = LoraConfig(r=8)\nlora.r = 64\n"
        "NashMDTrainer(model='m', args=config, peft_config=lora)"
    )
    assert translated("x.py")["SET_BY_HAND"] == ["a change: lora.r, line 3"]


@pytest.mark.parametrize(
    ("part", "unread"),
    [
        ("peft_config=get_peft_config(args)", "peft_config: get_peft_config(args)"),
        ("peft_config=LoraConfig(r=rank)", "r of peft_config: rank"),
        ("reward_funcs=['one', own()]", "reward model: own()"),
    ],
)
def test_a_part_that_is_not_read_keeps_the_file_from_being_run(part, unread):
    Path("x.py").write_text(f"{MADE}NashMDTrainer(model='m', args=config, {part})")
    assert translated("x.py")["SET_BY_HAND"] == [unread]


@pytest.mark.parametrize(("split", "path"), [("train", "prompts.jsonl"), ("train[:50%]", None)])
def test_a_part_of_a_file_is_not_the_file(split, path):
    Path("x.py").write_text(
        "config = NashMDConfig(num_train_epochs=1)\n"
        f"data = load_dataset('json', data_files='prompts.jsonl', split='{split}')\n"
        "NashMDTrainer(model='m', args=config, train_dataset=data)"
    )
    given = {} if path else {"num_prompts": 4}
    config = translated("x.py", **given)
    assert config["data"]["init_args"]["path"] == (path or "PROMPTS.jsonl")
    if path is None:  # its rows are not counted either
        Path("config.yaml").unlink()
        with pytest.raises(UserError, match="a data set of unknown length"):
            translated("x.py")


def test_another_trainer_than_the_scripts_is_refused():
    Path("x.py").write_text("XPOConfig(max_steps=1)")
    with pytest.raises(UserError, match=r"--trainer is NashMD, but x\.py makes a XPOConfig"):
        translated("x.py", trainer="NashMD")


def test_a_file_is_not_replaced_unasked():
    Path("given.json").write_text(json.dumps(dumped("nash_md_0.16")))
    Path("config.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"config\.yaml exists: give another name, or --overwrite"):
        from_trl("given.json")
    assert Path("config.yaml").read_text() == "mine"


@slow_unless("part", lambda part: part == 0, range(12))
def test_any_value_of_any_argument_is_translated_or_refused(part):
    """Never a traceback."""
    whole = dumped("xpo_1.13") | {"beta": 0.1, "alpha": 0.1, "max_steps": 2}
    junk = [None, True, -1, 0.5, 7, 1e30, float("nan"), "", "x", [], [0.1, 0.2], {"a": 1}]
    for number, name in enumerate(whole):
        Path("given.json").write_text(json.dumps(whole | {name: junk[(number + part) % 12]}))
        if (number + number // 12) % 12 == part:
            with suppress(UserError):
                from_trl("given.json", "config.yaml", overwrite=True)
