"""What is exported is what was trained: plain peft and transformers load it with equal logits.

Every adapter is random and not zero. What is loaded is never loaded by the code that wrote it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT
from rows import write
from runs import differences
from tiny_models import TURN, make_policy, save_tiny, scatter_adapters

from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.policies import read_policy
from nlhf_zoo.errors import UserError
from nlhf_zoo.policies import LoRA, SmallLanguageModel

TOKENS = torch.tensor([[5, 6, 7, 4, 7, 6], [7, 7, 4, 5, 6, 5]])
DEFAULTS = {"do_sample": True, "temperature": 0.7, "top_k": 5, "repetition_penalty": 1.3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models with generation defaults of their own, as the hub's have."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("gpt2", "llama", "gemma2"):
        save_tiny(folder / kind, kind, chat=True)
        path = folder / kind / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | DEFAULTS))
    return {path.name: path for path in folder.iterdir()}


@torch.no_grad()
def played(policy, player):
    """Logits of a player as the policy itself plays it."""
    with policy._players.playing([player], len(TOKENS)):
        return policy._players.module(player)(input_ids=TOKENS).logits


@torch.no_grad()
def with_peft(base, folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(model, folder).eval()(input_ids=TOKENS).logits


@torch.no_grad()
def with_transformers(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=TOKENS).logits


def weights(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


def adapter_config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


# Adapters and models ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("player", ["policy", "anchor"])
def test_an_adapter_is_loaded_by_peft(folders, tmp_path, kind, player):
    policy = make_policy(folders[kind])
    before, logits = weights(policy), played(policy, player)
    policy.export(tmp_path / "out", player)
    assert differences(weights(policy), before) == []
    torch.testing.assert_close(
        with_peft(folders[kind], tmp_path / "out"), logits, atol=1e-6, rtol=0
    )
    assert (logits - played(policy, "reference")).abs().max() > 0.1  # the adapter says something
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert adapter_config(tmp_path / "out")["base_model_name_or_path"] == str(folders[kind])
    assert adapter_config(tmp_path / "out")["inference_mode"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("player", ["policy", "anchor", "reference"])
def test_a_merged_model_is_loaded_by_transformers(folders, tmp_path, kind, player):
    policy = make_policy(folders[kind])
    before, logits = weights(policy), {p: played(policy, p) for p in policy.players}
    policy.export(tmp_path / "out", player, merged=True)
    again = with_transformers(tmp_path / "out")
    torch.testing.assert_close(again, logits[player], atol=1e-4, rtol=0)
    assert player != "reference" or torch.equal(again, logits[player])
    # The policy goes on as it was: its base is not a merged one that was unmerged.
    assert differences(weights(policy), before) == []
    assert all(torch.equal(played(policy, p), logits[p]) for p in policy.players)
    written = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert {key: written[key] for key in DEFAULTS} == DEFAULTS
    config, given = (
        json.loads((path / "config.json").read_text()) for path in (tmp_path / "out", folders[kind])
    )
    assert config == given


def test_the_base_is_found_from_anywhere(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders["llama"].parent)
    make_policy(Path("llama"), players=()).export(tmp_path / "out")
    assert adapter_config(tmp_path / "out")["base_model_name_or_path"] == str(folders["llama"])


def test_the_tokenizer_comes_along(folders, tmp_path):
    from transformers import AutoTokenizer

    make_policy(folders["llama"]).export(tmp_path / "out")
    ours, theirs = (AutoTokenizer.from_pretrained(p) for p in (tmp_path / "out", folders["llama"]))
    talk = [{"role": "user", "content": "go on."}]
    assert ours.chat_template == theirs.chat_template
    assert TURN in ours.apply_chat_template(talk, tokenize=False)
    assert ours("go on.")["input_ids"] == theirs("go on.")["input_ids"]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("player", ["policy", "anchor", "reference"])
def test_full_fine_tuning_is_a_model(folders, tmp_path, merged, player):
    policy = make_policy(folders["gpt2"], lora=None)
    before = weights(policy)
    policy.export(tmp_path / "out", player, merged)
    assert torch.equal(with_transformers(tmp_path / "out"), played(policy, player))
    assert differences(weights(policy), before) == []
    assert not (tmp_path / "out/adapter_config.json").exists()


@pytest.mark.parametrize("player", ["policy", "reference"])
def test_an_adapter_that_was_continued(folders, tmp_path, player):
    """Of supervised fine-tuning, say: policy and reference start from it."""
    start = make_policy(folders["llama"], players=())
    start.export(tmp_path / "start")
    policy = make_policy(folders["llama"], adapter=str(tmp_path / "start"), scatter=False)
    sft = played(start, "policy")
    torch.testing.assert_close(played(policy, "reference"), sft, atol=1e-4, rtol=0)
    with torch.no_grad():
        for parameter in policy._players.parameters_of("policy").values():
            parameter += 0.1
    policy.export(tmp_path / "out", player)
    policy.export(tmp_path / "whole", player, merged=True)
    logits = played(policy, player)
    assert ((logits - sft).abs().max() > 0.1) == (player == "policy")
    again = with_peft(folders["llama"], tmp_path / "out")
    torch.testing.assert_close(again, logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(with_transformers(tmp_path / "whole"), logits, atol=1e-4, rtol=0)
    assert adapter_config(tmp_path / "out")["base_model_name_or_path"] == str(folders["llama"])


def test_a_model_without_a_folder_is_written_beside_its_adapter(tmp_path):
    from transformers import AutoTokenizer

    policy = make_policy(SmallLanguageModel(), max_new_tokens=3)
    before, logits = weights(policy), played(policy, "policy")
    policy.export(tmp_path / "out")
    base = adapter_config(tmp_path / "out")["base_model_name_or_path"]
    assert Path(base) == tmp_path / "out/base"
    torch.testing.assert_close(with_peft(base, tmp_path / "out"), logits, atol=1e-4, rtol=0)
    assert torch.equal(with_transformers(base), played(policy, "reference"))
    assert AutoTokenizer.from_pretrained(base)("abc")["input_ids"] == [0, 1, 2]
    assert differences(weights(policy), before) == []
    policy.export(tmp_path / "whole", merged=True)
    torch.testing.assert_close(with_transformers(tmp_path / "whole"), logits, atol=1e-4, rtol=0)


def test_scaled_and_partial_adapters(folders, tmp_path):
    lora = LoRA(r=3, alpha=5.5, target_modules=["q_proj", "embed_tokens"], rslora=True)
    policy = make_policy(folders["llama"], lora=lora)
    logits = played(policy, "policy")
    policy.export(tmp_path / "out")
    policy.export(tmp_path / "whole", merged=True)
    again = with_peft(folders["llama"], tmp_path / "out")
    torch.testing.assert_close(again, logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(with_transformers(tmp_path / "whole"), logits, atol=1e-4, rtol=0)


# Refusals ---------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_refused(folders, tmp_path):
    policy = make_policy(folders["llama"])
    with pytest.raises(UserError, match=r"'reference' is the base model itself.*export it merged"):
        policy.export(tmp_path / "out", "reference")
    with pytest.raises(
        UserError, match="no player 'magnet': choose one of policy, reference, anch"
    ):
        policy.export(tmp_path / "out", "magnet")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="full is not empty"):
        policy.export(tmp_path / "full")
    with pytest.raises(UserError, match=r"notes\.txt is a file"):
        policy.export(tmp_path / "full/notes.txt")
    with pytest.raises(UserError, match="missing does not exist"):
        policy.export(tmp_path / "missing/out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]


def test_a_folder_is_whole_or_not_there(folders, tmp_path, monkeypatch):
    policy = make_policy(folders["llama"])
    before = weights(policy)

    def fails(model, folder):
        (folder / "model.safetensors").write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(type(policy._players.language_model("policy")), "save_pretrained", fails)
    with pytest.raises(OSError, match="no space"):
        policy.export(tmp_path / "out", merged=True)
    assert [*tmp_path.iterdir()] == []
    assert differences(weights(policy), before) == []


def test_an_empty_folder_is_taken(folders, tmp_path):
    (tmp_path / "out").mkdir()
    make_policy(folders["llama"]).export(tmp_path / "out")
    assert (tmp_path / "out/adapter_config.json").is_file()


def test_weights_in_4_bits_are_not_merged(folders, tmp_path):
    policy = make_policy(folders["llama"])
    policy._players.language_model("policy").is_quantized = True
    with pytest.raises(UserError, match="four_bit to false"):
        policy.export(tmp_path / "out", merged=True)


# The command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """A short run on a local model, by the command line."""
    folder = tmp_path_factory.mktemp("run")
    prompts = write(folder / "prompts.jsonl", *({"prompt": x} for x in ("go on.", "a", "b c d.")))
    main(
        [
            *("fit", "--config", str(ROOT / "configs/language/nash_mp.yaml")),
            *("--model.policy.model", str(folders["llama"])),
            *("--model.oracle", "RuleOracle"),
            *("--model.oracle.function", "nlhf_zoo.oracles.rules.shorter_wins"),
            *("--model.rollout.num_responses", "2", "--model.rollout.num_opponents", "2"),
            *("--model.optimizer.lr", "0.1"),
            *("--data", "TextPrompts", "--data.path", prompts, "--data.batch_size", "2"),
            *("--trainer.callbacks", "Budget", "--trainer.callbacks.rounds", "2"),
            *("--trainer.callbacks+", "GameCheckpoint"),
            *("--trainer.logger.save_dir", str(folder)),
        ]
    )
    return folder / "language/nash_mp/version_0"


def test_a_run_is_exported(folders, run, tmp_path):
    ckpt = run / "checkpoints/last.ckpt"
    main(["export", "--ckpt", str(ckpt), "--output", str(tmp_path / "out")])
    options = ("--player", "lookahead", "--merged")
    main(["export", "--ckpt", str(ckpt), "--output", str(tmp_path / "whole"), *options])
    # In a process that knows nothing of us, from the folder alone.
    code = f"""
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
for load, name in [(AutoPeftModelForCausalLM, "out"), (AutoModelForCausalLM, "whole")]:
    with torch.no_grad():
        logits = load.from_pretrained(name).eval()(input_ids=torch.tensor({TOKENS.tolist()})).logits
    torch.save(logits, name + ".pt")
    assert AutoTokenizer.from_pretrained(name).chat_template
assert not [name for name in sys.modules if name.startswith("nlhf_zoo")]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    # What was trained, as Lightning's checkpoint has it, in a model of peft's own making.
    state = torch.load(ckpt, weights_only=True)["state_dict"]
    policy = make_policy(folders["llama"], ("anchor", "lookahead"), lora=LoRA(r=8, alpha=16))
    for player in ("policy", "lookahead"):
        for name, parameter in policy._players.named_parameters():
            if f".{player}." in name:
                parameter.data.copy_(state[f"policy._players.{name}"])
    ours = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(ours, played(policy, "policy"), atol=1e-4, rtol=0)
    assert (ours - played(policy, "reference")).abs().max() > 0.1
    whole = torch.load(tmp_path / "whole.pt")
    torch.testing.assert_close(whole, played(policy, "lookahead"), atol=1e-4, rtol=0)


def test_misuse_is_one_sentence(run, tmp_path, refused):
    ckpt, out = run / "checkpoints/last.ckpt", tmp_path / "out"
    lone, half, empty = (tmp_path / name for name in ("last.ckpt", "half.ckpt", "empty.yaml"))
    lone.write_bytes(ckpt.read_bytes())
    half.write_bytes(ckpt.read_bytes()[:-100])
    empty.touch()
    good, config = ("--ckpt", ckpt, "--output", out), ("--config", run / "config.yaml")
    table = ("--config", ROOT / "configs/tabular/nash_mp.yaml")
    for args, message in [
        (("--ckpt", "none.ckpt", "--output", out), "none.ckpt is no file"),
        (("--output", out), "ckpt"),
        ((*good, "--player", "magnet"), "no player 'magnet'"),
        (("--ckpt", ckpt, "--output", run), "not empty"),
        ((*good, "--player", "reference"), "export it merged"),
        (("--ckpt", lone, "--output", out), "the configuration that the run was made from as --co"),
        (("--ckpt", half, "--output", out, *config), "not as it was written"),
        ((*good, *table), "only a language model can be exported"),
        ((*good, "--config", empty), "empty.yaml holds no options"),
    ]:
        assert message in refused("export", *args)[1]
    assert not out.exists()


def test_a_checkpoint_of_another_model_is_refused(run, tmp_path):
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    state = content["state_dict"]
    name = next(name for name in state if ".policy." in name)
    torch.save({"state_dict": {k: v for k, v in state.items() if k != name}}, tmp_path / "less")
    with pytest.raises(UserError, match="it lacks 1 parameters"):
        read_policy(run / "config.yaml", tmp_path / "less")
    torch.save({"state_dict": state | {"policy.more": state[name]}}, tmp_path / "more")
    with pytest.raises(UserError, match=r"it has also 1 parameters, more among them"):
        read_policy(run / "config.yaml", tmp_path / "more")
    torch.save({"state_dict": state | {name: state[name][:1]}}, tmp_path / "other")
    with pytest.raises(UserError, match="is no checkpoint of"):
        read_policy(run / "config.yaml", tmp_path / "other")


def test_scattering_is_seen(folders):
    """The figures above would be small for zero adapters."""
    policy = make_policy(folders["llama"], scatter=False)
    assert torch.equal(played(policy, "policy"), played(policy, "reference"))
    scatter_adapters(policy)
    assert not torch.equal(played(policy, "policy"), played(policy, "anchor"))
    assert not policy._players.is_base("anchor")
