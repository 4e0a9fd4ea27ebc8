"""``nlhf export``: a trained language model as a folder that plain peft or transformers loads.

The parts are built from the run's own ``config.yaml``, and nothing of the checkpoint but its
tensors is read. The oracle is not built: no judge is needed to export what it judged.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.cli.files import read_config
from nlhf_zoo.cli.parser import SentenceParser, as_user_errors, shorten, with_values
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.cli.resuming import refuse_other_file
from nlhf_zoo.cli.trust import closed_environment, refuse_foreign_code
from nlhf_zoo.errors import UserError
from nlhf_zoo.policies import CausalLMPolicy, Policy
from nlhf_zoo.policies.language_model.exporting import refuse_folder
from nlhf_zoo.records.finite import refuse_diverged

_POLICY = "policy."  # in the names of a game's checkpoint


def main(args: list[str]) -> None:
    """Run ``nlhf export`` with what stands behind it."""
    parser = SentenceParser(
        prog="nlhf export",
        description="A PEFT adapter folder, or a merged model, with its tokenizer.",
    )
    parser.add_function_arguments(export)
    config = parser.parse_args(with_values(args, ("--merged", "--allow_code")))
    with quiet():
        export(**vars(parser.instantiate(config)))


def export(
    ckpt: Path,
    output: Path,
    player: str = "policy",
    merged: bool = False,
    config: Path | None = None,
    allow_code: bool = False,
) -> None:
    """Write a player of a checkpoint to a folder.

    Args:
        ckpt: a checkpoint of `nlhf fit`, such as runs/.../checkpoints/last.ckpt.
        output: the folder to write, with tokenizer and chat template; it must not exist, or be
            empty.
        player: whose weights: policy, or another one that the algorithm has, such as anchor.
        merged: a whole model that transformers loads, in place of an adapter that peft loads; with
            full fine-tuning it is one anyway.
        config: the run's config.yaml; the one beside the checkpoint's folder if not given.
        allow_code: run code that the configuration names, besides that of nlhf_zoo and torch.optim.
    """
    if not ckpt.is_file():
        raise UserError(f"--ckpt {ckpt} is no file: give a run's checkpoints/last.ckpt")
    path = ckpt.absolute().parent.parent / "config.yaml" if config is None else config
    if not path.is_file():
        raise UserError(
            f"there is no {path}: give the configuration that the run was made from as --config"
        )
    try:
        refuse_folder(output)
    except UserError as error:
        raise UserError(f"--output: {error}") from error
    refuse_other_file(ckpt)
    policy = read_policy(path, ckpt, allow_code)
    policy.export(output, player, merged)
    print(f"Exported to {output}", file=sys.stderr)


def read_policy(config: Path, ckpt: Path, allow_code: bool = False) -> CausalLMPolicy:
    """The policy of a run's configuration, a language model, with the weights of a checkpoint."""
    file = read_config(str(config), option="")
    model = file.get("model") or {}
    parts = model.get("init_args", model) if isinstance(model, dict) else {}
    blocks = {key: parts.get(key) for key in ("policy", "algorithm")}
    if not all(blocks.values()):
        raise UserError(f"{config} has no model.policy and model.algorithm: is it of `nlhf fit`?")
    refuse_foreign_code({"model": blocks}, config, allow_code)
    L.seed_everything(int(file.get("seed_everything") or 0), verbose=False)
    parser = SentenceParser(parser_mode="omegaconf+", prog="nlhf export")
    parser.add_argument("--model.policy", type=Policy)
    parser.add_argument("--model.algorithm", type=PolicyOptimizer)
    with closed_environment(allow_code), as_user_errors(f"{config}: "):
        made = parser.instantiate(parser.parse_object({"model": blocks})).model
    policy = made.policy
    if not isinstance(policy, CausalLMPolicy):
        raise UserError(
            f"{config}: model.policy is a {type(policy).__name__}, and only a language model can "
            "be exported: `nlhf predict` prints the probabilities of a table"
        )
    policy.bind(made.algorithm.players, None)
    _load(policy, ckpt, config)
    return policy


def _load(policy: CausalLMPolicy, ckpt: Path, config: Path) -> None:
    """Load a player's weights; none may be missing, and none left over."""
    content = torch.load(ckpt, map_location="cpu", weights_only=True, mmap=True)
    state = {
        name.removeprefix(_POLICY): value
        for name, value in content["state_dict"].items()
        if name.startswith(_POLICY)
    }
    kept = policy.checkpoint_keys()
    more = state.keys() - kept - policy.optional_checkpoint_keys()
    for what, names in (("lacks", kept - state.keys()), ("has also", more)):
        if names:
            raise UserError(
                f"{ckpt} is no checkpoint of {config}: it {what} {len(names)} parameters, "
                f"{min(names)} among them"
            )
    refuse_diverged(state)
    try:
        policy.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{ckpt} is no checkpoint of {config}: {shorten(str(error))}") from error
