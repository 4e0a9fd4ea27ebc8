"""What the doctor says of adapters: which weights have some, and which have no gradient."""

from language_models import refused, tiny_folder

from health.test_doctor import PROMPTS, game_of
from nlhf_zoo.health import Check, Note, probe, scatter
from nlhf_zoo.health.adapters import gradient_everywhere, weights_with_adapters
from nlhf_zoo.policies import LoRA

GRADIENT = "all adapters have gradient"
SHARE = "linear weights with adapters"


def findings(game):
    game.eval()
    scatter(game.policy)
    tried = probe.drawn(game.policy, PROMPTS)
    found = [*weights_with_adapters(game), gradient_everywhere(game, tried)]
    return {finding.name: finding for finding in found}


def test_the_share_of_the_weights_is_said():
    """Of a layer q, k, v, o have 2 x 32 x 32 + 2 x 32 x 16 weights, the others 3 x 32 x 48."""
    every = findings(game_of(tiny_folder("llama")))
    assert every[SHARE] == Note(SHARE, "100%")
    assert every[GRADIENT].passed
    few = findings(game_of(tiny_folder("llama"), lora=LoRA(r=4, target_modules=["q_proj"])))
    share = 32 * 32 / (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert few[SHARE].figure.startswith(f"{share:.0%}; none on model.layers.*.self_attn.k_proj, ")
    assert few[SHARE].figure.endswith(" and 2 more kinds")
    none = findings(game_of(tiny_folder("llama"), lora=None))
    assert none[GRADIENT].passed is None
    assert SHARE not in none


def test_an_adapter_that_nothing_trains_fails():
    """A kind of layer whose adapters the model passes by."""
    game = game_of(tiny_folder("llama"))
    for name, module in game.policy._players.named_modules():
        if name.endswith("mlp.up_proj"):
            module.forward = module.base_layer.forward
    check = findings(game)[GRADIENT]
    assert isinstance(check, Check)
    assert check.passed is False
    assert check.figure == "4 of 28 tensors have none"
    assert "nothing trains model.layers.*.mlp.up_proj: leave them out" in check.advice


def test_experts_that_no_token_is_routed_to_are_no_fault():
    game = game_of(tiny_folder("llama"))
    layer = game.policy._players.get_submodule("_model.base_model.model.model.layers.1.mlp.up_proj")
    layer.forward = layer.base_layer.forward
    check = findings(game)[GRADIENT]
    assert check.passed
    assert check.figure == "2 of 28 tensors have none"


def test_a_checkpoint_with_more_adapters_is_refused():
    """As of 0.1, which had some on layers that it never called."""
    games = [
        game_of(tiny_folder("llama"), lora=LoRA(r=4, target_modules=targets))
        for targets in (["q_proj", "k_proj"], ["q_proj"])
    ]
    checkpoint = {"state_dict": games[0].state_dict()}
    games[0].on_save_checkpoint(checkpoint)
    games[0].on_load_checkpoint(checkpoint)
    match = (
        "has also 4 parameters that are not trained here, policy.*k_proj.* among them: go on with"
    )
    refused(match, games[1].on_load_checkpoint, checkpoint)
