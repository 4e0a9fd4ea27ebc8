"""``nlhf export``: a trained language model as a folder that plain peft or transformers loads.

The parts are built from the run's own ``config.yaml``, and nothing of the checkpoint but its
tensors is read. The oracle is not built: no judge is needed to export what it judged.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nlhf_zoo.cli.parser import SentenceParser, with_values
from nlhf_zoo.cli.policies import config_of, read_policy
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.cli.resuming import refuse_other_file
from nlhf_zoo.errors import UserError
from nlhf_zoo.policies import CausalLMPolicy
from nlhf_zoo.policies.language_model.exporting import refuse_folder


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
    path = config_of(ckpt, config, "give the configuration that the run was made from as --config")
    try:
        refuse_folder(output)
    except UserError as error:
        raise UserError(f"--output: {error}") from error
    refuse_other_file(ckpt)
    policy = read_policy(path, ckpt, allow_code, only_texts=True)
    assert isinstance(policy, CausalLMPolicy)
    policy.export(output, player, merged)
    print(f"Exported to {output}", file=sys.stderr)
