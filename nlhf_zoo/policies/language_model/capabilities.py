"""What a language model is capable of with its players, found by trying."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.policies.language_model.decoding.generator import NativeGenerator
from nlhf_zoo.policies.language_model.generation import (
    Drawing,
    Generator,
    Request,
    TransformersGenerator,
)
from nlhf_zoo.policies.language_model.modes import without_dropout
from nlhf_zoo.policies.language_model.players import AdapterPlayers, Players
from nlhf_zoo.policies.language_model.scoring import Scorer
from nlhf_zoo.policies.language_model.sharding import flat_gradient
from nlhf_zoo.policies.language_model.targets import kinds, kinds_without_gradient, layer_of
from nlhf_zoo.records import PLAIN, Mixture, Prompts, Responses
from nlhf_zoo.records.random_streams import random_stream

# Largest gap of a log-probability, for each token, that rounding makes: of the logits of a model of
# that precision, whose kernels depend on the shape of a batch.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
_PROMPTS = (8, 16)  # tokens of two prompts, one of which is padded beside the other
_RESPONSE = 4  # tokens of a response
_SPREAD = 0.4  # how far the policy is moved from the base, about, where a layer's output is 1
_APART = 10  # gaps of rounding by which players must differ, to be told apart
_DRAWN: list[Mixture] = [{"policy": 1.0}, {"policy": 0.5, "reference": 0.5}]
_UNMIXED: list[Mixture] = [{"policy": 1.0}, {"reference": 1.0}]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found of a model and its players.

    Gaps are of log-probabilities, for each token; infinite where something was raised.

    Args:
        drawing: the fastest way to draw responses whose law is the one that is scored.
        drawing_gap: between what was drawn that way and what is scored; None where none was tried.
        padding_gap: between a response in a padded batch and the same one alone.
        softmax_chunk: tokens whose logits are held at a time; 0 where the model does not make them
            by its output layer alone.
        rounding: the largest gap that is none.
        failure: what was raised in the last way to draw; empty where nothing was.
        fallback: why transformers' `generate` draws in place of our own decoder; empty where that
            draws, or was not asked for.
    """

    drawing: Drawing
    drawing_gap: float | None
    padding_gap: float
    softmax_chunk: int
    rounding: float
    failure: str = ""
    fallback: str = ""


def rounding(module: nn.Module) -> float:
    """Largest gap of a log-probability, for each token, that rounding makes in this module."""
    found = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
        found.add(torch.bfloat16)
    return max(_ROUNDING.get(dtype, 0.05) for dtype in found)


def find_capabilities(
    players: Players, score: Scorer, generator: Generator, tokens: Sequence[int]
) -> Capabilities:
    """Try the model where it lies: padded and alone, players together and apart, drawn and scored.

    Of a policy that is moved away from the base meanwhile, for adapters that are zero would make
    all players one. Weights, gradients and random streams are left as they were.

    Args:
        players: policy and reference among them.
        score: as the policy scores; a copy is tried.
        generator: as the policy draws.
        tokens: of which prompts and responses are made: none ends a response or means something
            to the model that is no text.

    Raises:
        UserError: the model cannot be scored at all, or trains another function than it plays.
    """
    device = next(players.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.random.fork_rng(devices), moved_policy(players):
        rows, rounds = _rows(tokens, device), rounding(players)
        trial = _Trial(players, score, generator, tokens, rows, rounds)
        return trial.run()


@contextmanager
def moved_policy(players: Players) -> Iterator[None]:
    """Add noise to the policy's adapters inside; their bits come back.

    Copies stay as they are: a second copy of the whole model may find no room.
    """
    moved = {}
    if isinstance(players, AdapterPlayers):
        scale = players.scale_of_policy()
        rng = random_stream(0, 0, 0, torch.device("cpu"), "capabilities")
        for name, parameter in players.parameters_of("policy").items():
            if "lora_B" in name or "lora_embedding_B" in name:
                moved[parameter] = parameter.detach().clone()
                noise = torch.randn(parameter.shape, generator=rng)
                with torch.no_grad():
                    parameter.add_((_SPREAD * scale * noise).to(parameter))
    torch.clear_autocast_cache()  # which holds casts of the weights
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in moved.items():
                parameter.copy_(value)
        torch.clear_autocast_cache()


def layers_without_gradient(players: AdapterPlayers, tokens: Sequence[int]) -> list[str]:
    """Names of the layers whose adapters no gradient reaches: they would never be trained.

    Such a layer chooses what another one reads, as those of an index for sparse attention do.
    Experts that no token of this trial came to have no gradient either: a layer counts only where
    all layers of its kind have none, those whose names differ in numbers alone.

    Raises:
        UserError: the model does not run with these adapters.
    """
    device = next(players.parameters()).device
    rows = _rows(tokens, device)
    parameters = players.parameters_of("policy")
    with moved_policy(players), torch.enable_grad(), players.playing(["policy"], 2):
        try:
            output = players.module("policy")(input_ids=rows.tokens, use_cache=False)
        except Exception as error:
            raise UserError(
                f"{type(players.language_model('policy')).__name__} does not run with adapters on "
                f"these layers ({cause(error)}): name others in model.policy.lora.target_modules"
            ) from error
        law = output.logits.float().log_softmax(-1)
        found = torch.autograd.grad(law[..., 0].sum(), [*parameters.values()], allow_unused=True)
    without = kinds_without_gradient(parameters, found)
    return sorted({layer for layer in map(layer_of, parameters) if kinds([layer])[0] in without})


@dataclass(frozen=True, slots=True)
class _Rows:
    """Two prompts of different length, padded on the left, and a response to each."""

    tokens: Tensor  # of the prompts [2, S]
    mask: Tensor  # bool [2, S]
    response: Tensor  # [2, T]
    response_mask: Tensor  # bool [2, T]; one response is shorter than the other

    def prompts(self) -> Prompts:
        """The prompts as a policy encodes them."""
        return Prompts(torch.arange(len(self.tokens)), self.tokens, self.mask)

    def responses(self) -> Responses:
        """One response a prompt."""
        weight = torch.ones(len(self.tokens), 1, device=self.tokens.device)
        return Responses(self.response[:, None], self.response_mask[:, None], weight)


def _rows(tokens: Sequence[int], device: torch.device) -> _Rows:
    rng = random_stream(0, 0, 1, torch.device("cpu"), "capabilities")

    def draw(*shape: int) -> Tensor:
        drawn = torch.randint(len(tokens), shape, generator=rng)
        return torch.tensor(tokens)[drawn].to(device)

    width = max(_PROMPTS)
    padding = width - torch.tensor(_PROMPTS, device=device)
    inside = torch.arange(width, device=device) >= padding[:, None]
    response = draw(2, _RESPONSE)
    kept = torch.ones_like(response, dtype=torch.bool)
    kept[1, -1] = False
    return _Rows(draw(2, width), inside, response, kept)


@dataclass(slots=True)
class _Trial:
    """One model, tried step by step; what was found enters the next step."""

    players: Players
    given: Scorer
    generator: Generator
    tokens: Sequence[int]
    rows: _Rows
    rounding: float

    def run(self) -> Capabilities:
        trained_mode = self.given.trained_mode
        score = replace(
            self.given, compiled=False, trained_mode=False, min_new_tokens=0, _bodies={}
        )
        score.softmax_chunk = self._softmax_chunk(score)
        padding_gap = self._padding_gap(score)
        if trained_mode:
            self._refuse_another_function(score)
        drawing, gap, *why = self._drawing(score)
        return Capabilities(drawing, gap, padding_gap, score.softmax_chunk, self.rounding, *why)

    @torch.no_grad()
    def _softmax_chunk(self, score: Scorer) -> int:
        if not score.softmax_chunk:
            return 0
        try:
            gap = score.gap_of_output_layer("policy", self.rows.tokens, self.rows.mask)
        except Exception:  # a model whose body or output layer stands elsewhere
            return 0
        return score.softmax_chunk if gap <= self.rounding else 0

    @torch.no_grad()
    def _padding_gap(self, score: Scorer) -> float:
        """Against each row alone, unpadded, by the model's own logits."""
        rows = self.rows
        try:
            ours = score({"policy": 1.0}, rows.prompts(), rows.responses(), PLAIN)
        except Exception as error:
            # Of sharded weights, another process may have gone.
            if isinstance(error, UserError) or self.players.sharding is not None:
                raise
            kind = type(self.players.language_model("policy")).__name__
            raise UserError(
                f"model.policy.model: {kind} cannot score a batch of two prompts of different "
                f"length ({cause(error)}): choose a model of another architecture"
            ) from error
        worst = 0.0
        for number in range(len(rows.tokens)):
            theirs = self._alone(number)
            gap = (ours[number, 0].double() - theirs.sum()).abs() / len(theirs)
            worst = max(worst, _finite(float(gap)))
        return worst

    def _alone(self, number: int) -> Tensor:
        """Log-probabilities [T] of one response from a call without padding."""
        rows = self.rows
        prompt = rows.tokens[number][rows.mask[number]]
        response = rows.response[number][rows.response_mask[number]]
        with self.players.playing(["policy"], 1):
            row = torch.cat([prompt, response])[None]
            law = self.players.module("policy")(input_ids=row, use_cache=False).logits[0]
        before = law[len(prompt) - 1 : -1].double().log_softmax(-1)
        found: Tensor = before.gather(-1, response[:, None])[:, 0]
        return found

    def _refuse_another_function(self, score: Scorer) -> None:
        """Refuse training mode where its gradient is not that of what is played.

        In layers that look at their mode, or that are computed again in another way; dropout is
        off meanwhile.
        """
        kind = type(self.players.language_model("policy")).__name__
        remedy = "set model.policy.gradient_checkpointing and dropout to false"
        parameters = _some(self.players.parameters_of("policy").values())
        with without_dropout(self.players):
            played = self._gradient(score, parameters)
            before = _random_state(self.rows.tokens.device)
            try:
                trained = self._gradient(replace(score, trained_mode=True), parameters)
            except Exception as error:
                raise UserError(
                    f"{kind} does not train in training mode ({cause(error)}): {remedy}"
                ) from error
        if not torch.equal(before, _random_state(self.rows.tokens.device)):
            raise UserError(
                f"{kind} draws random numbers in training mode, though dropout is off: {remedy}"
            )
        gap = torch.linalg.vector_norm(played - trained) / torch.linalg.vector_norm(played)
        if not float(gap) <= (1e-3 if self.rounding <= 1e-4 else 0.1):
            raise UserError(
                f"{kind} is another function in training mode than the one that is played (its "
                f"gradient is off by {float(gap):.0%}): {remedy}"
            )

    def _gradient(self, score: Scorer, parameters: Sequence[nn.Parameter]) -> Tensor:
        prompts, responses = self.rows.prompts(), self.rows.responses()
        trained = self.players.parameters_of("policy").values()
        with torch.enable_grad():
            log_prob = score({"policy": 1.0}, prompts, responses, PLAIN).sum()
            return flat_gradient(log_prob, parameters, trained)

    @torch.no_grad()
    def _drawing(self, score: Scorer) -> tuple[Drawing, float | None, str, str]:
        """The first way whose draws have the log-probability that is scored."""
        one_call = self._one_call()
        fastest = Drawing(one_call)
        engine, fallback = self.generator, ""
        if type(engine) is NativeGenerator:
            native = replace(fastest, native=True)
            ways = [native, replace(native, one_call=False)] if one_call else [native]
            way, gap, failure = self._first_right(score, engine, ways)
            if gap <= self.rounding:
                return way, gap, "", ""
            fallback = f"it does not run with a static cache ({failure})"
            if not failure:
                fallback = f"a log-probability would be off by {gap:.2g} a token"
            engine = engine.fallback
        if engine.is_tried:
            return fastest, self._drawing_gap(score, engine, fastest), "", ""
        if type(engine) is not TransformersGenerator:
            return fastest, None, "", ""
        shares = engine.share_prompt and engine.cache == "dynamic"
        ways = [fastest, replace(fastest, shared_prompt="reordered")] if shares else []
        ways += [replace(fastest, shared_prompt=None)]
        ways += [replace(fastest, shared_prompt=None, cached=False)]
        return *self._first_right(score, engine, ways), fallback

    def _first_right(
        self, score: Scorer, engine: Generator, ways: Sequence[Drawing]
    ) -> tuple[Drawing, float, str]:
        """The first of these ways that is right, or the last; its gap, and what it raised."""
        gap, failure = math.inf, ""
        for way in ways:
            try:
                gap, failure = self._drawing_gap(score, engine, way), ""
            except Exception as error:  # of an architecture that knows nothing of this way
                gap, failure = math.inf, cause(error)
            if gap <= self.rounding:
                break
        return way, gap, failure

    def _drawing_gap(self, score: Scorer, engine: Generator, way: Drawing) -> float:
        worst, rows, device = 0.0, self.rows, self.rows.tokens.device
        for number, who in enumerate(_DRAWN if engine.mixes else _UNMIXED):
            request = Request(
                who=who,
                tokens=rows.tokens,
                mask=rows.mask,
                num=2,
                decoding=PLAIN,
                max_new_tokens=_RESPONSE,
                ends=self.tokens[::2] if way.native else (),  # so that rows are dropped
                pad=int(rows.tokens[0, -1]),
                rng=random_stream(0, 0, number + 2, device, "capabilities"),
                drawing=way,
            )
            with self.players.gathered([*who]):
                drawn = engine.draw(self.players, request)
            tokens, mask = (part.unflatten(0, (2, 2)) for part in (drawn.tokens, drawn.mask))
            responses = Responses(tokens, mask, torch.full((2, 2), 0.5, device=device))
            again = score(who, rows.prompts(), responses, PLAIN)
            gap = (drawn.log_prob.view_as(again) - again).abs().max() / _RESPONSE
            worst = max(worst, _finite(float(gap)))
        return worst

    def _one_call(self) -> bool:
        """Whether one call with rows of two players gives what a call of each gives."""
        if not self.players.one_call:
            return False
        names = ["policy", "reference"]
        inputs = {"attention_mask": self.rows.mask.long(), "input_ids": self.rows.tokens}
        apart = []
        for name in names:
            with self.players.playing([name], 2):
                apart.append(self._last_law(inputs))
        try:
            with self.players.playing(names, 2) as arguments:
                twice = {name: value.repeat(2, 1) for name, value in inputs.items()}
                together = self._last_law(twice, **arguments)
        except Exception:  # of layers that cannot switch by rows
            return False
        gap = _finite(float((together - torch.cat(apart)).abs().max()))
        differ = float((apart[0] - apart[1]).abs().max())
        return gap <= self.rounding and differ > _APART * self.rounding

    def _last_law(self, inputs: dict[str, Tensor], **arguments: list[str]) -> Tensor:
        output = self.players.module("policy")(**inputs, use_cache=False, **arguments)
        law: Tensor = output.logits[:, -1].float().log_softmax(-1)
        return law


def _random_state(device: torch.device) -> Tensor:
    """Of the random numbers that a layer would draw there."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _finite(gap: float) -> float:  # what is no number is infinite
    return gap if math.isfinite(gap) else math.inf


def _some(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The smallest, in all layers, of at most 2**24 numbers: a whole gradient may find no room."""
    kept: list[nn.Parameter] = []
    left = 2**24
    for parameter in sorted(parameters, key=torch.numel):
        left -= parameter.numel()
        if kept and left < 0:
            break
        kept.append(parameter)
    return kept
