"""Whatever a policy was saved as, what is loaded has the law of what was trained."""

import json

import pytest
import torch
from forked import nlhf
from rows import write
from runs import CLOSED, ENUMERATED, RUN, configuration, part
from tiny_models import make_policy, save_tiny, tiny_prompts
from yaml import safe_dump

from nlhf_zoo.cli.inputs import prompts_from
from nlhf_zoo.cli.policies import load_policy
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import UniformRandom
from nlhf_zoo.policies.loading import LoadedPlayer, refuse_other_tokens
from nlhf_zoo.records import PLAIN


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A policy with random adapters, and the folder of its adapter."""
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny(folder / "llama", "llama")
    policy = make_policy(base)
    policy.export(folder / "adapter")
    policy.export(folder / "merged", merged=True)
    return folder, policy


@torch.no_grad()
def laws(policy, player, responses):
    return policy.log_prob({player: 1.0}, tiny_prompts(policy), responses)


@pytest.mark.parametrize(("saved", "references"), [("adapter", "reference"), ("merged", "policy")])
def test_policy_and_reference_are_those_that_were_saved(exported, saved, references):
    folder, policy = exported
    rng = torch.Generator().manual_seed(0)
    responses = policy.sample({"policy": 1.0}, tiny_prompts(policy), 3, PLAIN, rng)
    loaded = load_policy(str(folder / saved), max_new_tokens=policy.max_new_tokens)
    ours = laws(policy, "policy", responses)
    torch.testing.assert_close(laws(loaded.policy, "policy", responses), ours, atol=1e-4, rtol=0)
    theirs = laws(policy, references, responses)
    torch.testing.assert_close(
        laws(loaded.policy, "reference", responses), theirs, atol=1e-4, rtol=0
    )
    assert (laws(policy, "reference", responses) - ours).abs().max() > 0.1
    again = loaded.sample(tiny_prompts(policy), 3, torch.Generator().manual_seed(0))
    assert saved == "merged" or torch.equal(again.tokens, responses.tokens)


def test_the_base_of_an_adapter_may_lie_elsewhere(exported, tmp_path):
    folder, _ = exported
    moved = tmp_path / "adapter"
    moved.mkdir()
    for path in (folder / "adapter").iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    config = json.loads((moved / "adapter_config.json").read_text())
    gone = config | {"base_model_name_or_path": str(tmp_path / "gone")}
    (moved / "adapter_config.json").write_text(json.dumps(gone))
    with pytest.raises(UserError, match="gone"):
        load_policy(str(moved))
    loaded = load_policy(str(moved), base=str(folder / "llama"))
    assert loaded.policy.players == ("policy", "reference")


def test_a_table_needs_the_table_of_its_run(tmp_path):
    config = tmp_path / "config.yaml"
    table = part("UniformRandom", num_games=2, num_actions=4)
    model = {**ENUMERATED, "oracle": table, "algorithm": CLOSED["egpo"]}
    config.write_text(safe_dump(configuration(**model)))
    done = nlhf("fit", "--config", str(config), "--trainer.max_steps", "2", folder=tmp_path)
    assert done.code == 0, done.err
    run = tmp_path / RUN
    with pytest.raises(UserError, match="give the --oracle that lists its responses"):
        load_policy(str(run))
    loaded = load_policy(str(run), oracle=UniformRandom(2, 4, seed=3))
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ours = {f"policy.{name}": value for name, value in loaded.policy.state_dict().items()}
    assert all(torch.equal(ours[name], state[name]) for name in ours)


def test_misuse_is_one_sentence(exported, tmp_path):
    folder, _ = exported
    (tmp_path / "config.yaml").write_text("model: {}")
    (tmp_path / "empty.jsonl").touch()
    one = write(tmp_path / "one.jsonl", {"prompt": "a"})
    for call, message in [
        (lambda: load_policy(str(tmp_path)), "has no checkpoints/last.ckpt"),
        (lambda: load_policy(str(tmp_path / "config.yaml")), "is no policy"),
        (lambda: load_policy(str(tmp_path / "nothing")), "there is no folder"),
        (lambda: load_policy(str(folder / "adapter"), "anchor"), "has no player 'anchor'"),
        (lambda: prompts_from(str(tmp_path / "empty.jsonl")), "has no rows"),
        (lambda: prompts_from(str(tmp_path / "none.jsonl")), "is no file"),
        (lambda: prompts_from(one, 2), "has 1 prompts only"),
        (lambda: prompts_from(one, 0), "at least 1"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_models_of_other_tokens_do_not_score_each_other(exported, tmp_path):
    folder, _ = exported
    ours = load_policy(str(folder / "adapter"))
    refuse_other_tokens(ours, ours.reference)
    refuse_other_tokens(ours, load_policy(str(folder / "merged")))
    other = make_policy(save_tiny(tmp_path / "chat", "llama", chat=True))
    with pytest.raises(UserError, match="chat template"):
        refuse_other_tokens(ours, LoadedPlayer("other", other))
