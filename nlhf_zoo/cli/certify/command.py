"""``nlhf certify``: what a policy loses at most to a best response, with its interval."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from nlhf_zoo.cli.best_response import SampledFigure, TrainingOptions
from nlhf_zoo.cli.best_response.command import respond
from nlhf_zoo.cli.certify.records import Certificate, Kept, PromptFigures
from nlhf_zoo.cli.certify.report import as_table, write_report
from nlhf_zoo.cli.inputs import arguments_of, move, prompts_digest, prompts_from, with_source
from nlhf_zoo.cli.policies import load_policy, model_options, run_options, weights_digest
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.certifying import Form, SamplePlan, embeds, sample_exploitability
from nlhf_zoo.game.log_probs import log_prob_of_all
from nlhf_zoo.oracles import CachedOracle, PreferenceOracle, Transformed
from nlhf_zoo.oracles.text_oracle import TextOracle, last_words
from nlhf_zoo.policies.loading import LoadedPlayer, refuse_other_tokens
from nlhf_zoo.records import Prompts
from nlhf_zoo.records.random_streams import random_stream
from nlhf_zoo.solvers import exploitability, least_opponents

_HELP = """usage: nlhf certify POLICY --oracle CLASS|FILE --prompts FILE [options]

How exploitable a policy is: what a best response to it wins beyond 1/2, in the game at beta, from
samples and without training one. POLICY is a run's folder or checkpoint, the folder of an adapter
of peft, or a model's folder or its name on the hub. The interval is for the mean over these
prompts; where they are a sample, a second one has the error between prompts, too. Where samples
cannot tell, it says so.

  --oracle CLASS|FILE    who judges; it need not be the oracle that trained the policy
  --prompts FILE         a .jsonl file of prompts that were held out; of a table all are taken
  --reference R          of the game: a model, an adapter or a run (default: the policy's own)
  --beta B               temperature of the game (default: the run's)
  --responses N          that are scored to each prompt, half of them the reference's (default: 256,
                         or what --budget allows)
  --opponents M          that each of them meets (default: 1 / (4 beta^2), and what beta needs;
                         N with embeddings)
  --form FORM            pairs: opponents of their own, N M answers a prompt; embeddings: the same
                         for all, for an oracle that reads single texts (default: what it can)
  --budget ANSWERS       of the oracle, for all prompts
  --output FOLDER        for figures of each prompt; the same command goes on from what is there
  --best_response        train a best response, too, whose win is a lower bound
  --response.OPTION      how, such as --response.answers 200000
  --num_prompts N        the first of the file (default: all)
  --as_conversation BOOL make each text the message of a user (default: what the run did)
  --player NAME          of a run: policy, reference, anchor, ... (default: policy)
  --max_new_tokens N     of the longest response (default: the run's; 64 for what is no run)
  --base MODEL           of an adapter whose base lies elsewhere
  --device DEVICE        cpu, cuda, ... (default: auto, a GPU where there is one)
  --seed_everything N    the same seed draws the same responses (default: 0)
  --allow_code           run code that a run's configuration names, besides that of nlhf_zoo
"""
_RESPONSES = 256
_MOST_OPPONENTS = 100  # by default: with a smaller beta responses are needed more


def main(args: list[str]) -> None:
    """Run ``nlhf certify`` with what stands behind it on the command line."""
    if not args or {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    flags = ("--allow_code", "--best_response")
    with quiet():
        certify(**arguments_of(certify, with_source(args, "policy"), "nlhf certify", flags))


def certify(
    policy: str,
    oracle: PreferenceOracle,
    prompts: str | None = None,
    reference: str | None = None,
    beta: float | None = None,
    responses: int | None = None,
    opponents: int | None = None,
    form: Form | None = None,
    budget: int | None = None,
    output: Path | None = None,
    best_response: bool = False,
    response: TrainingOptions = TrainingOptions(),  # noqa: B008  # frozen
    num_prompts: int | None = None,
    as_conversation: bool | None = None,
    player: str = "policy",
    max_new_tokens: int | None = None,
    base: str | None = None,
    device: str = "auto",
    seed_everything: int = 0,
    allow_code: bool = False,
) -> None:
    """Print a certificate, and write it where an output is given.

    Args:
        policy: a run's folder or checkpoint, an adapter of peft, or a model.
        oracle: who judges.
        prompts: a .jsonl file.
        reference: of the game.
        beta: temperature.
        responses: N.
        opponents: M.
        form: pairs or embeddings.
        budget: answers for all prompts.
        output: a folder.
        best_response: train one, too.
        response: how.
        num_prompts: the first of the file.
        as_conversation: make each text the message of a user; what a run did if not given.
        player: of a run.
        max_new_tokens: of the longest response.
        base: of an adapter.
        device: where models lie.
        seed_everything: seed.
        allow_code: run code that a run's configuration names.
    """
    if best_response and output is None:
        raise UserError("--best_response trains in a folder: give --output FOLDER")
    asked = _prompts(oracle, prompts, num_prompts, as_conversation, policy)
    chosen = form or ("embeddings" if embeds(oracle) else "pairs")
    temperature = _beta(policy) if beta is None else beta
    bound = oracle.payoff_bound
    plan = _plan(temperature, responses, opponents, chosen, budget, len(asked), bound)
    ours = load_policy(policy, player, oracle, base, max_new_tokens, allow_code)
    theirs = ours.reference
    if reference is not None:
        longest = getattr(ours.policy, "max_new_tokens", max_new_tokens)
        theirs = load_policy(reference, "policy", oracle, None, longest, allow_code)
        refuse_other_tokens(ours, theirs)
    for part in (ours.policy, theirs.policy, oracle):
        where = move(part, device)
    settings = {
        "policy": policy,
        "weights": weights_digest(policy),
        "player": player,
        "reference": reference if reference is None else [reference, weights_digest(reference)],
        "oracle": _fingerprint(oracle),
        "beta": plan.beta,
        "responses": plan.num_responses,
        "opponents": plan.num_opponents,
        "form": plan.form,
        "seed": seed_everything,
        "prompts": [len(asked), prompts_digest(asked)],
        "max_new_tokens": getattr(ours.policy, "max_new_tokens", None),
    }
    kept = Kept.open(output, settings)
    judge = _cached(oracle, output, plan)
    found = certificate(ours, theirs, judge, asked.to(where), plan, seed_everything, kept)
    print(as_table(found))
    if output is not None:
        write_report(found, output, settings)
    if best_response and output is not None:

        def estimated(some: Prompts) -> SampledFigure:
            part = certificate(ours, theirs, judge, some, plan, seed_everything, Kept(None, {}))
            figures = part.figures
            ends = figures["mean"], figures["low"], figures["high"]
            return SampledFigure(*ends, part.asked, part.known)

        print()
        folder = output / "best_response"
        folder.mkdir(exist_ok=True)
        said = respond(ours, theirs, judge, asked.to(where), plan.beta, response, folder, estimated)
        print(said)


def certificate(
    player: LoadedPlayer,
    reference: LoadedPlayer,
    oracle: PreferenceOracle,
    prompts: Prompts,
    plan: SamplePlan,
    seed: int,
    kept: Kept,
) -> Certificate:
    """Certify a policy, prompt by prompt.

    Args:
        player: whose exploitability it is.
        reference: of the game.
        oracle: who judges.
        prompts: not encoded.
        plan: how many responses and opponents.
        seed: of what is drawn; each prompt has draws of its own.
        kept: what is known of some prompts, and where others are kept.

    Raises:
        UserError: the oracle gives no answer at all.
    """
    device = prompts.ids.device
    exact = _exact(player, reference, oracle, prompts, plan.beta)
    with tqdm(total=len(prompts), desc="certify", unit=" prompts", file=sys.stderr) as bar:
        for number in range(len(prompts)):
            if number not in kept.rows:
                rng = random_stream(seed, 0, number, device, "certificate")
                with _in_other_words():
                    one = player.policy.encode(prompts.take([number]))
                found = sample_exploitability(player, reference, oracle, one, plan, rng)
                assert found is not None
                if found.invalid == found.asked:
                    raise UserError(
                        f"{_name(oracle)} gave no answer to {found.asked} questions about prompt "
                        f"{number + 1}{last_words(oracle)}"
                    )
                text = None if prompts.text is None else prompts.text[number]
                of_table = None if exact is None else exact[number]
                kept.add(number, PromptFigures.of(text, found, of_table))
            bar.set_postfix(answers=f"{sum(row.asked for row in kept.rows.values()):,}")
            bar.update()
    name = player.name if player.player == "policy" else f"{player.player} of {player.name}"
    return Certificate(name, plan, [kept.rows[i] for i in range(len(prompts))])


def _fingerprint(oracle: PreferenceOracle) -> str:
    """By what an oracle is known again: its name, and of texts what its answers depend on."""
    if isinstance(oracle, Transformed):
        return f"{oracle.payoff_name} of at most {oracle.bound} of {_fingerprint(oracle.oracle)}"
    if isinstance(oracle, TextOracle):
        with suppress(UserError):  # of one whose answers are drawn anew each time
            return f"{_name(oracle)} {oracle.fingerprint}"
    return _name(oracle)


def _prompts(
    oracle: PreferenceOracle,
    path: str | None,
    num: int | None,
    as_conversation: bool | None,
    policy: str,
) -> Prompts:
    own = oracle.prompts
    if own is None:
        if path is None:
            raise UserError("give --prompts FILE: lines of prompts that were held out")
        return prompts_from(path, num, as_conversation=as_conversation, policy=policy)
    if path is not None:
        raise UserError(f"{_name(oracle)} is a table with prompts of its own: leave --prompts out")
    if num is not None and not 1 <= num <= len(own):
        raise UserError(f"--num_prompts is {num}, but {_name(oracle)} has {len(own)} prompts")
    return own if num is None else own.take(range(num))


def _beta(policy: str) -> float:
    found = model_options(run_options(policy)).get("beta")
    if not isinstance(found, int | float):
        raise UserError(f"{policy} is no run, which would have a beta: give --beta")
    return float(found)


def _plan(
    beta: float,
    responses: int | None,
    opponents: int | None,
    form: Form,
    budget: int | None,
    prompts: int,
    payoff_bound: float = 0.5,
) -> SamplePlan:
    """What is asked for, and within the budget.

    Raises:
        UserError: the budget is too small.
    """
    if not 0 < beta < float("inf"):
        raise UserError(f"--beta must be a finite number above 0, not {beta:g}")
    scaled = beta / (2 * payoff_bound)  # where payoffs lie in [0, 1]
    least = max(least_opponents(scaled), 8)
    usual = max(least, min(_MOST_OPPONENTS, round(0.25 / scaled**2)))
    if responses is None:
        responses = _RESPONSES
        if budget is not None:
            each = budget // prompts
            square = form == "embeddings" and opponents is None
            responses = int(each**0.5) if square else each // (opponents or usual)
            if responses < 4:
                raise UserError(
                    f"--budget is {budget}, for {prompts} prompts with 4 responses and "
                    f"{opponents or usual} opponents of each at least: raise it, or give fewer "
                    "prompts"
                )
    if opponents is None:
        opponents = max(responses, least) if form == "embeddings" else usual
    needed = responses * opponents * prompts
    if budget is not None and needed > budget:
        raise UserError(
            f"--budget is {budget}, but {responses} responses with {opponents} opponents to "
            f"{prompts} prompts take {needed} answers: lower --responses or --opponents"
        )
    return SamplePlan(beta, responses, opponents, form, payoff_bound)


def _cached(oracle: PreferenceOracle, output: Path | None, plan: SamplePlan) -> PreferenceOracle:
    """The oracle with its answers kept in the output, where it can have them remembered."""
    is_cached = any(isinstance(part, CachedOracle) for part in oracle.modules())
    if output is None or plan.form != "pairs" or is_cached or not isinstance(oracle, TextOracle):
        return oracle
    try:
        return CachedOracle(oracle, output / "answers.sqlite")
    except UserError:  # of answers that are drawn anew each time
        return oracle


def _exact(
    player: LoadedPlayer,
    reference: LoadedPlayer,
    oracle: PreferenceOracle,
    prompts: Prompts,
    beta: float,
) -> list[float] | None:
    """The exact figure of each prompt, where all responses and answers are listed."""
    table = oracle.table if oracle.answers_table else None
    if table is None or player.policy.enumerate(player.policy.encode(prompts)) is None:
        return None
    ours, theirs = (
        log_prob_of_all(each.policy, each.player, each.policy.encode(prompts)).detach()
        for each in (player, reference)
    )
    found: list[float] = exploitability(table[prompts.ids], ours, theirs, beta).tolist()
    return found


def _name(oracle: torch.nn.Module) -> str:
    return type(oracle).__name__


@contextmanager
def _in_other_words() -> Iterator[None]:
    """Name what is no option here as a user of this command knows it."""
    try:
        yield
    except UserError as error:
        options = "model.policy.max_new_tokens or data.max_prompt_tokens"
        said = str(error).replace(options, "--max_new_tokens, or give shorter prompts")
        raise UserError(said) from error
