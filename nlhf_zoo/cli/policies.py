"""Policies that are looked at: a run's checkpoint, an adapter of peft, a model.

Of a run its policy alone is built, from its own ``config.yaml``: not its oracle, and not its
data. Nothing of a checkpoint but its tensors is read. That a configuration is code is why this is
here and not in ``policies``: what it may name is a matter of the command line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.cli.files import read_config
from nlhf_zoo.cli.parser import SentenceParser, as_user_errors
from nlhf_zoo.cli.resuming import refuse_other_file
from nlhf_zoo.cli.trust import closed_environment, refuse_foreign_code
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.checkpointing import actions_digest
from nlhf_zoo.game.rollout import Rollout
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.policies import CausalLMPolicy, Policy
from nlhf_zoo.policies.loading import LoadedPlayer, from_adapter, from_model, load_tensors
from nlhf_zoo.text_models.peft_folder import CONFIG, WEIGHTS

_LAST = Path("checkpoints") / "last.ckpt"


def load_policy(
    source: str,
    player: str = "policy",
    oracle: PreferenceOracle | None = None,
    base: str | None = None,
    max_new_tokens: int | None = None,
    allow_code: bool = False,
    name: str | None = None,
) -> LoadedPlayer:
    """A player to look at, with its reference beside it.

    Args:
        source: a checkpoint, or the folder of a run, whose last checkpoint is taken; a folder of an
            adapter of peft; or a model's folder or its name on the hub.
        player: of a run, such as anchor; any source has policy and reference.
        oracle: who lists the responses, which a policy over a table needs.
        base: of an adapter, where it is not the model that the adapter names.
        max_new_tokens: of the longest response; a run has its own, others 64 if it is not given.
        allow_code: run code that a run's configuration names, besides that of nlhf_zoo.
        name: what it is called, ``source`` if not given.

    Raises:
        UserError: there is no such source, it cannot be loaded, or it has no such player.
    """
    path = Path(source)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(f"--max_new_tokens must be at least 1, but it is {max_new_tokens}")
    if (ckpt := checkpoint_of(path)) is not None:
        refuse_other_file(ckpt)
        policy = read_policy(config_of(ckpt), ckpt, allow_code, oracle, max_new_tokens)
    elif path.is_file():
        raise UserError(f"{source} is no policy: give a run, a checkpoint, an adapter or a model")
    else:
        with _in_other_words():
            limit = 64 if max_new_tokens is None else max_new_tokens
            is_adapter = (path / CONFIG).is_file()
            policy = from_adapter(path, base, limit) if is_adapter else from_model(source, limit)
    if player not in policy.players:
        known = ", ".join(policy.players)
        raise UserError(f"{source} has no player {player!r}: choose one of {known}")
    return LoadedPlayer(name or source, policy.eval(), player)


@contextmanager
def _in_other_words() -> Iterator[None]:
    """Name what is no option here as a user of this command knows it."""
    try:
        yield
    except UserError as error:
        said = re.sub(r"model\.policy\.(model|adapter) ", r"the \1 ", str(error))
        raise UserError(said) from error


def checkpoint_of(path: Path) -> Path | None:
    """The checkpoint that a source is or holds; None where it is no run's.

    Raises:
        UserError: it is a run's folder without a checkpoint.
    """
    if path.is_file():
        return path if path.suffix == ".ckpt" else None
    if (path / _LAST).is_file():
        return path / _LAST
    if (path / "last.ckpt").is_file():
        return path / "last.ckpt"
    if (path / "config.yaml").is_file():
        raise UserError(
            f"the run {path} has no {_LAST}: give its checkpoint's file, or train it with a "
            "GameCheckpoint"
        )
    return None


def config_of(
    ckpt: Path,
    config: Path | None = None,
    remedy: str = "a checkpoint is read by the config.yaml in the folder above its own",
) -> Path:
    """The configuration that a checkpoint's run was made from; the one that is given, if one is.

    Raises:
        UserError: it is not there.
    """
    path = ckpt.absolute().parent.parent / "config.yaml" if config is None else config
    if not path.is_file():
        raise UserError(f"there is no {path}: {remedy}")
    return path


def weights_digest(source: str) -> str:
    """By what the weights of a source are known again; of a model by its name alone."""
    path = Path(source)
    file = checkpoint_of(path) or path / WEIGHTS
    if not file.is_file():
        return source
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def run_options(source: str) -> dict[str, Any]:
    """What a run was made from, its ``config.yaml``; empty for a source that is no run."""
    ckpt = checkpoint_of(Path(source))
    return {} if ckpt is None else read_config(str(config_of(ckpt)), option="")


def model_options(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a configuration's model, however it names its class."""
    model = options.get("model") or {}
    parts = model.get("init_args", model) if isinstance(model, dict) else {}
    return parts if isinstance(parts, dict) else {}


def read_policy(
    config: Path,
    ckpt: Path,
    allow_code: bool = False,
    oracle: PreferenceOracle | None = None,
    max_new_tokens: int | None = None,
    only_texts: bool = False,
) -> Policy:
    """The policy of a run's configuration, with the weights of a checkpoint.

    Args:
        config: the run's.
        ckpt: of it.
        allow_code: run code that the configuration names.
        oracle: lists the responses of a policy over a table.
        max_new_tokens: of the longest response, in the place of the run's.
        only_texts: refuse whatever is no language model, as what cannot be exported.

    Raises:
        UserError: the two do not belong together, or the table has other actions than the run's.
    """
    file = read_config(str(config), option="")
    parts = model_options(file)
    blocks = {key: parts.get(key) for key in ("policy", "algorithm")}
    if not all(blocks.values()):
        raise UserError(f"{config} has no model.policy and model.algorithm: is it of `nlhf fit`?")
    blocks |= {"rollout": parts["rollout"]} if parts.get("rollout") else {}
    refuse_foreign_code({"model": blocks}, config, allow_code)
    L.seed_everything(int(file.get("seed_everything") or 0), verbose=False)
    parser = SentenceParser(parser_mode="omegaconf+", prog="nlhf")
    parser.add_argument("--model.policy", type=Policy)
    parser.add_argument("--model.algorithm", type=PolicyOptimizer)
    parser.add_argument("--model.rollout", type=Rollout | None)  # has players, too
    with closed_environment(allow_code), as_user_errors(f"{config}: "):
        made = parser.instantiate(parser.parse_object({"model": blocks})).model
    policy: Policy = made.policy
    if only_texts and not isinstance(policy, CausalLMPolicy):
        raise UserError(
            f"{config}: model.policy is a {type(policy).__name__}, and only a language model can "
            "be exported: `nlhf predict` prints the probabilities of a table"
        )
    if max_new_tokens is not None and isinstance(policy, CausalLMPolicy):
        policy.max_new_tokens = max_new_tokens
    of_rollout = () if made.rollout is None else made.rollout.players
    _bind(policy, (*made.algorithm.players, *of_rollout), config, ckpt, oracle)
    load_tensors(policy, ckpt, config)
    return policy


def _bind(
    policy: Policy,
    players: tuple[str, ...],
    config: Path,
    ckpt: Path,
    oracle: PreferenceOracle | None,
) -> None:
    names = None if oracle is None else oracle.action_names
    if isinstance(policy, CausalLMPolicy):
        policy.bind(players, None if oracle is None else oracle.support, names)
        return
    kind = type(policy).__name__
    if oracle is None or oracle.support is None:
        raise UserError(
            f"{config}: model.policy is a {kind}, and only a language model can be read without "
            "its table: give the --oracle that lists its responses"
        )
    content = torch.load(ckpt, map_location="cpu", weights_only=True, mmap=True)
    policy.bind(players, oracle.support, names)
    kept = content.get("online_game", {}).get("actions", "")
    if kept != actions_digest(policy, names):
        raise UserError(
            f"the oracle lists other actions than the run of {ckpt}, or in another order: give "
            "one of the same table"
        )
