"""Causal language models as policies: several players on one base model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.base import Draw, lerp_tensors_
from nlhf_zoo.policies.language_model.capabilities import (
    Capabilities,
    find_capabilities,
    layers_without_gradient,
)
from nlhf_zoo.policies.language_model.chunk_size import ChunkSize
from nlhf_zoo.policies.language_model.exporting import Exported
from nlhf_zoo.policies.language_model.generation import (
    Drawn,
    Generator,
    Request,
    TransformersGenerator,
)
from nlhf_zoo.policies.language_model.modes import checkpoint_activations, switch_dropout_off
from nlhf_zoo.policies.language_model.players import AdapterPlayers, CopiedPlayers, LoRA, Players
from nlhf_zoo.policies.language_model.prompts import PromptEncoder
from nlhf_zoo.policies.language_model.responses import responses_of
from nlhf_zoo.policies.language_model.scored_policy import ScoredPolicy
from nlhf_zoo.policies.language_model.scoring import Scorer
from nlhf_zoo.policies.language_model.sources import (
    ModelSource,
    Pretrained,
    refuse_low_precision,
    refuse_misfit,
)
from nlhf_zoo.policies.language_model.stops import find_stops, refuse_ends
from nlhf_zoo.policies.language_model.targets import Coverage
from nlhf_zoo.records import Decoding, Mixture, Prompts, Responses, starts_as


class CausalLMPolicy(ScoredPolicy):
    """A causal language model of transformers, with LoRA adapters of peft or whole copies.

    log pi(y | x) is summed over the tokens of the response, the end-of-sequence token among them
    where it was drawn. Responses are scored as the tokens that were drawn, never decoded and
    encoded again. Dropout is off everywhere unless it is asked for. A mixture of players is formed
    token by token, for sampling and for scoring alike.

    Args:
        model: hub name, local folder, or a source of models.
        lora: shape of the adapters; null trains all weights, and players are copies.
        adapter: folder of a PEFT adapter that policy and reference start from; its shape replaces
            that of `lora`.
        max_new_tokens: longest response.
        generator: engine that draws responses.
        softmax_chunk: tokens whose logits over the vocabulary are held at a time; 0 holds all, for
            architectures that make their logits in an unusual way.
        max_tokens_per_chunk: tokens of prompts and responses, padding included, whose activations
            are held at a time: a larger batch is scored in chunks of rows, and the backward
            computes each again; one row at least is a chunk. None holds all. "auto" is 2048, and
            on a GPU, from the first trained batch of more on, what fits into half of its memory
            that is free then; a checkpoint holds that number, and a resumed run takes it.
        gradient_checkpointing: compute activations again in the backward, to save memory.
        dropout: leave the model's dropout on in the trained log-probability.
        length_normalised: divide a log-probability by the number of tokens, as some published code
            does; it is then no log-probability any more.
        compile: compile the model's body for scoring.
        chat_template_kwargs: values of variables of the tokenizer's chat template, such as
            `{enable_thinking: false}`.
        min_new_tokens: tokens of a response before which none that ends it is drawn; the other
            tokens then have the whole probability, in every player's law.
        stop_strings: texts that end a response, as a token does that ends it: with the token that
            completes one. They stay part of the response and of its text.
    """

    # Figures are the same but for rounding, and a run that found no room goes on with less.
    may_change_on_resume: ClassVar[frozenset[str]] = frozenset({"max_tokens_per_chunk"})

    def __init__(
        self,
        model: str | ModelSource,
        lora: LoRA | None = LoRA(),  # noqa: B008  # frozen
        adapter: str | None = None,
        max_new_tokens: int = 64,
        generator: Generator | None = None,
        softmax_chunk: int = 1024,
        max_tokens_per_chunk: int | Literal["auto"] | None = None,
        gradient_checkpointing: bool = False,
        dropout: bool = False,
        length_normalised: bool = False,
        compile: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        min_new_tokens: int = 0,
        stop_strings: list[str] | None = None,
    ) -> None:
        super().__init__()
        if max_new_tokens < 1 or softmax_chunk < 0:
            raise UserError(
                "model.policy needs max_new_tokens of at least 1 and softmax_chunk of at least 0, "
                f"but they are {max_new_tokens} and {softmax_chunk}"
            )
        refuse_ends(min_new_tokens, max_new_tokens, stop_strings or ())
        if dropout and gradient_checkpointing:
            raise UserError(
                "model.policy.dropout and gradient_checkpointing do not go together: what is "
                "computed again in the backward would drop other units"
            )
        if lora is None and adapter is not None:
            raise UserError("model.policy.adapter is a LoRA adapter: do not set lora to null")
        self.source = Pretrained(model) if isinstance(model, str) else model
        self.lora = lora
        self.adapter = adapter
        self.max_new_tokens = max_new_tokens
        self.generator = generator or TransformersGenerator()
        self.draws_apart = self.generator.draws_apart
        self.generator.attach(self.source, lora, adapter)
        self.softmax_chunk = softmax_chunk
        self._chunk_size = ChunkSize(max_tokens_per_chunk)
        self.gradient_checkpointing = gradient_checkpointing
        self.dropout = dropout
        self.length_normalised = length_normalised
        self.compile_body = compile
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.min_new_tokens = min_new_tokens
        self.stop_strings = stop_strings or []
        self.tokenizer: Any = None
        self._encoder: PromptEncoder
        self._score: Scorer
        self._names: Sequence[Sequence[str]] | None = None
        self._capabilities: Capabilities | None = None
        self._base_is_reference = False  # whatever adapter training starts from
        self.left_out: Sequence[str] = ()  # of LoRA's layers, those that no gradient reaches

    # The model and its players ------------------------------------------------------------------

    def bind(
        self,
        players: tuple[str, ...],
        support: Tensor | None,
        names: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Load the model and make the players.

        Raises:
            UserError: it cannot be loaded, or does not fit its tokenizer.
        """
        from transformers import GenerationConfig

        loaded = self.source.load()
        model, self.tokenizer = loaded.model, loaded.tokenizer
        self._names = names if support is None or bool(support.all()) else None
        refuse_misfit(self.tokenizer, model)
        self.ends = loaded.ends()
        pad = self.tokenizer.pad_token_id
        self.pad = pad if pad is not None else (self.ends[0] if self.ends else 0)
        self.loaded_generation_config = model.generation_config
        # The repository's defaults (a temperature, a repetition penalty) would be another policy.
        model.generation_config = GenerationConfig()
        if self.gradient_checkpointing:
            checkpoint_activations(model)
        self._players = self._made_of(model)
        if self._base_is_reference:
            self.let_base_be_reference()
        for player in players:
            self._players.add(player, starts_as(player))
        if not self.dropout:  # now, for adapters have some too
            switch_dropout_off(self._players)
        self._encoder = PromptEncoder(
            self.tokenizer,
            self.pad,
            self.ends,
            self.max_new_tokens,
            loaded.positions(),
            self.chat_template_kwargs,
        )
        trained_mode = self.dropout or self.gradient_checkpointing
        self._score = Scorer(
            self._players,
            self.softmax_chunk,
            self.compile_body,
            trained_mode,
            self.ends,
            self.min_new_tokens,
        )
        num_tokens = model.get_input_embeddings().weight.shape[0]
        self._stops = (
            find_stops(self.tokenizer, self.stop_strings, num_tokens) if self.stop_strings else None
        )
        self._capabilities = None
        self.train(self.training)

    def _made_of(self, model: Any) -> Players:
        """Policy and reference; layers that no gradient reaches get no adapter."""
        if self.lora is None:
            refuse_low_precision(model)
            return CopiedPlayers(model)
        players = AdapterPlayers(model, self.lora, self.adapter)
        if self.adapter is not None:
            return players
        self.left_out = layers_without_gradient(players, self.plain_tokens())
        if not self.left_out:
            return players
        return AdapterPlayers(players.base_model(), self.lora, without=self.left_out)

    def plain_tokens(self) -> list[int]:
        """Tokens that stand for text: none is special or ends a response."""
        tokens = {*self.tokenizer.get_vocab().values()} - {*self.ends}
        return sorted(tokens - {*self.tokenizer.all_special_ids} or tokens)

    @property
    def language_model(self) -> Any:
        """The transformers model of the policy, with its adapters."""
        return self._players.language_model("policy")

    @property
    def capabilities(self) -> Capabilities:
        """What the model is capable of with its players: tried at the first use, where it lies."""
        if self._capabilities is None:
            self._try()
        assert self._capabilities is not None
        return self._capabilities

    def _try(self) -> None:
        """Find the capabilities, and score as they say."""
        self._capabilities = find_capabilities(
            self._players, self._score, self.generator, self.plain_tokens()
        )
        self._score.softmax_chunk = self._capabilities.softmax_chunk
        if why := self._capabilities.fallback:
            model = type(self.language_model).__name__
            said = f"nlhf: {model} is decoded by transformers, not by NativeGenerator: {why}"
            print(said, file=sys.stderr)

    @property
    def players(self) -> tuple[str, ...]:
        """All players, ``reference`` among them."""
        return self._players.names

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> CausalLMPolicy:
        """Leave the model in evaluation: only the trained log-probability may need otherwise."""
        super().train(mode)
        if hasattr(self, "_players"):
            self._players.eval()
        return self

    @override
    def lerp_(self, source: str, target: str, weight: float) -> None:
        if target == "reference":
            raise ValueError("the reference never moves")
        parameters_of = self._players.parameters_of
        lerp_tensors_(parameters_of(source), parameters_of(target), weight)

    @override
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return self._players.parameters_of("policy")

    def checkpoint_keys(self) -> set[str]:
        """The players' own parameters; the base model is loaded again from where it came."""
        return {f"_players.{name}" for name in self._players.checkpoint_keys()}

    @override
    def optional_checkpoint_keys(self) -> set[str]:
        return {f"_chunk_size.{name}" for name in self._chunk_size.state_dict()}

    def let_base_be_reference(self) -> None:
        """Take the bare base for ``reference``, where training would start from an adapter.

        It is so too where the policy is bound anew.
        """
        self._base_is_reference = True
        if isinstance(self._players, AdapterPlayers):
            self._players.let_base_be_reference()

    def reference_weights(self) -> dict[str, Tensor]:
        """All tensors that the reference is computed from, by name; it never moves."""
        return self._players.reference_weights()

    def adapter_coverage(self) -> Coverage | None:
        """What part of the model has adapters; None where all weights train."""
        return self._players.coverage() if isinstance(self._players, AdapterPlayers) else None

    def export(self, folder: Path, player: str = "policy", merged: bool = False) -> None:
        """Write a player with its tokenizer and chat template: an adapter, or a whole model.

        Args:
            folder: to be made; it is there when all of it is written, or not at all.
            player: whose weights.
            merged: a model of plain transformers, in place of an adapter of peft.

        Raises:
            UserError: there is no such player, no such form of it, or the folder is taken.
        """
        exported = Exported(self.source, self.tokenizer, self.loaded_generation_config)
        exported.write(self._players, player, folder, merged)

    # Prompts and responses ----------------------------------------------------------------------

    def encode(self, prompts: Prompts) -> Prompts:
        """Prompts with tokens, padded on the left; those that have tokens keep them.

        Plain text begins as the tokenizer begins every text, once, and ends as it was written. A
        conversation gets the chat template and the opening of an answer.

        Raises:
            UserError: there is no chat template, no text, or no room for a response.
        """
        return self._encoder(prompts).to(self.device)

    def _ready(self, prompts: Prompts) -> Prompts:
        """Encoded prompts that have room for a response; what the model is capable of is known."""
        if self._capabilities is None:  # not in an assertion, which `python -O` leaves out
            self._try()
        return self.encode(prompts if prompts.tokens is not None else self.encode(prompts))

    @torch.no_grad()
    def sample(
        self, who: Mixture, prompts: Prompts, num: int, decoding: Decoding, rng: torch.Generator
    ) -> Responses:
        """Independent draws, from the mixture formed token by token."""
        request = self._request(who, prompts, num, decoding, rng)
        own = [] if self.generator.holds_base else [p for p, weight in who.items() if weight]
        with self._players.gathered(own):
            drawn = self.generator.draw(self._players, request)
        return self._responses(request, drawn, self.stamp(who))

    @torch.no_grad()
    @override
    def sample_together(
        self, draws: Sequence[Draw], prompts: Prompts, rng: torch.Generator
    ) -> list[Responses] | None:
        if not self.generator.holds_base:  # whose players are gathered one after the other
            return None
        requests = [self._request(who, prompts, num, how, rng) for who, num, how in draws]
        found = zip(requests, self.generator.draw_each(self._players, requests), strict=True)
        return [self._responses(one, drawn, self.stamp(one.who)) for one, drawn in found]

    @override
    def refuse_drawing(self, who: Mixture, decoding: Decoding) -> None:
        self.generator.refuse_drawing(who, decoding)

    @torch.no_grad()
    @override
    def begin_sample(
        self, who: Mixture, prompts: Prompts, num: int, decoding: Decoding, rng: torch.Generator
    ) -> Callable[[], Responses]:
        request = self._request(who, prompts, num, decoding, rng)
        draw, version = self.generator.begin(self._players, request), self.stamp(who)
        return lambda: self._responses(request, draw(), version)

    def _request(
        self, who: Mixture, prompts: Prompts, num: int, decoding: Decoding, rng: torch.Generator
    ) -> Request:
        prompts = self._ready(prompts)
        assert prompts.tokens is not None
        assert prompts.mask is not None
        return Request(
            who=who,
            tokens=prompts.tokens,
            mask=prompts.mask,
            num=num,
            decoding=decoding,
            max_new_tokens=self.max_new_tokens,
            ends=self.ends,
            pad=self.pad,
            rng=rng,
            drawing=self.capabilities.drawing,
            min_new_tokens=self.min_new_tokens,
            stops=self._stops,
        )

    def _responses(self, request: Request, drawn: Drawn, version: int) -> Responses:
        may_end, divided = bool(self.ends) or self._stops is not None, self.length_normalised
        return responses_of(request, drawn, self.tokenizer, version, may_end, divided)

    def enumerate(self, prompts: Prompts) -> Responses | None:
        """The oracle's listed responses, in its order; None where it lists none."""
        if self._names is None:
            return None
        texts = [self._names[int(i)] for i in prompts.ids]
        tokens, mask = (part.to(self.device) for part in self._encoder.listed(texts))
        num = tokens.shape[1]
        weight = torch.full(tokens.shape[:2], 1 / num, device=tokens.device)
        return Responses(tokens, mask, weight, True, texts, self.versions.get("policy", 0))
