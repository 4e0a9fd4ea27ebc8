"""``nlhf sample``: what a policy says to prompts that are given."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo.cli.drawing import drawn
from nlhf_zoo.cli.files import refuse_output
from nlhf_zoo.cli.inputs import arguments_of, as_the_run, move, prompts_from, with_source
from nlhf_zoo.cli.policies import load_policy
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.policies import CausalLMPolicy
from nlhf_zoo.records import Decoding, Prompts, Responses

_HELP = """usage: nlhf sample POLICY --prompts FILE [options]
       nlhf sample POLICY --prompt TEXT [options]

What a policy says: its answers to prompts that are given, with their length in tokens, and whether
they were cut at the limit. POLICY is a run's folder or checkpoint, the folder of an adapter of
peft, or a model's folder or its name on the hub.

  --prompts FILE         a .jsonl file, of lines such as {"prompt": "..."}
  --prompt TEXT          one prompt, in its place
  --num_prompts N        the first of the file (default: all)
  --num_responses K      answers to each (default: 1)
  --player NAME          of a run: policy, reference, anchor, ... (default: policy)
  --as_conversation BOOL make each text the message of a user, for the chat template (default: what
                         the run did; false for what is no run)
  --max_new_tokens N     of the longest answer (default: the run's; 64 for what is no run)
  --temperature T        divides the logits (default: 1, the policy itself)
  --top_k K, --top_p P   leave out less probable tokens (default: none)
  --output FILE          a .jsonl file of the answers; with one answer each it is an entrant of
                         `nlhf tournament`
  --base MODEL           of an adapter whose base lies elsewhere
  --batch_size N         prompts at a time (default: 8)
  --device DEVICE        cpu, cuda, ... (default: auto, a GPU where there is one)
  --seed_everything N    the same seed draws the same answers (default: 0)
  --allow_code           run code that the run's configuration names, besides that of nlhf_zoo
"""


def main(args: list[str]) -> None:
    """Run ``nlhf sample`` with what stands behind it on the command line."""
    if not args or {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    with quiet():
        sample(**arguments_of(sample, with_source(args, "policy"), "nlhf sample", oracle=False))


def sample(
    policy: str,
    prompts: str | None = None,
    prompt: str | None = None,
    num_prompts: int | None = None,
    num_responses: int = 1,
    player: str = "policy",
    as_conversation: bool | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    output: Path | None = None,
    base: str | None = None,
    batch_size: int = 8,
    device: str = "auto",
    seed_everything: int = 0,
    allow_code: bool = False,
) -> None:
    """Print answers of a policy, or write them.

    Args:
        policy: a run's folder or checkpoint, an adapter of peft, or a model.
        prompts: a .jsonl file.
        prompt: one, in its place.
        num_prompts: the first of the file.
        num_responses: answers to each.
        player: of a run.
        as_conversation: make each text the message of a user.
        max_new_tokens: of the longest answer.
        temperature: divides the logits.
        top_k: tokens that are left, 0 for all.
        top_p: share of the probability that is left.
        output: a .jsonl file.
        base: of an adapter.
        batch_size: prompts at a time.
        device: where the model lies.
        seed_everything: seed.
        allow_code: run code that the run's configuration names.
    """
    refuse_output("--output", output, [Path(prompts) if prompts else None])
    if (prompts is None) == (prompt is None):
        raise UserError("give --prompts FILE, or --prompt TEXT, and not both")
    try:
        decoding = Decoding(temperature, top_k, top_p)
    except ValueError as error:
        raise UserError(f"nlhf sample: {error}") from error
    asked = _asked(policy, prompts, prompt, num_prompts, as_conversation)
    loaded = load_policy(
        policy, player, base=base, max_new_tokens=max_new_tokens, allow_code=allow_code
    )
    assert isinstance(loaded.policy, CausalLMPolicy)  # a table needs an oracle, and is refused
    move(loaded.policy, device)
    rows: list[dict[str, Any]] = []
    for batch, responses in drawn(
        loaded, asked, num_responses, seed_everything, batch_size, decoding
    ):
        found = [*_rows(batch, responses)]
        rows += found
        if output is None:
            for row in found:
                print(_shown(row))
    if output is not None:
        with written(output) as beside:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            beside.write_text("".join(lines), encoding="utf-8")
    cut = sum(row["truncated"] for row in rows)
    if cut:
        limit = loaded.policy.max_new_tokens
        said = f"nlhf: {cut} of {len(rows)} answers were cut at --max_new_tokens, {limit}"
        print(said, file=sys.stderr)


def _asked(
    policy: str, path: str | None, text: str | None, num: int | None, as_conversation: bool | None
) -> Prompts:
    """The prompts, in the form that the run's own had where nothing else is said."""
    if path is not None:
        return prompts_from(path, num, as_conversation=as_conversation, policy=policy)
    if not text:
        raise UserError("--prompt is empty: give a text")
    one = Prompts(torch.tensor([0]), text=[text])
    return as_the_run(one, "--prompt", as_conversation, policy)


def _rows(prompts: Prompts, responses: Responses) -> Iterator[dict[str, Any]]:
    assert prompts.text is not None
    assert responses.text is not None
    lengths = responses.mask.sum(-1).tolist()
    cut = responses.truncated
    for i, texts in enumerate(responses.text):
        asked = prompts.text[i] if prompts.conversations is None else prompts.conversations[i]
        for k, text in enumerate(texts):
            truncated = False if cut is None else bool(cut[i, k])
            yield {
                "prompt": asked,
                "response": text,
                "tokens": lengths[i][k],
                "truncated": truncated,
            }


def _shown(row: dict[str, Any]) -> str:
    """An answer for a terminal."""
    asked = row["prompt"]
    if not isinstance(asked, str):
        asked = "\n".join(f"{turn['role']}: {turn['content']}" for turn in asked)
    tokens, cut = row["tokens"], ", cut at the limit" if row["truncated"] else ""
    return f"> {asked}\n{row['response']}\n[{tokens} tokens{cut}]\n"
