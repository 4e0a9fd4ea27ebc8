"""Causal language models as policies: several players on one base model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.language_model.exporting import Exported
from nlhf_zoo.policies.language_model.generation import (
    DecodedText,
    Generator,
    Request,
    TransformersGenerator,
    position_ids,
    warp,
)
from nlhf_zoo.policies.language_model.lora import LoRA
from nlhf_zoo.policies.language_model.players import AdapterPlayers, CopiedPlayers, Players, mix
from nlhf_zoo.policies.language_model.sources import ModelSource, Pretrained
from nlhf_zoo.policies.language_model.token_log_prob import token_log_prob
from nlhf_zoo.records import PLAIN, Decoding, Mixture, Prompts, Responses

_PROBE = 8  # tokens on which the output layer is compared with the model's own logits


class CausalLMPolicy(Policy):
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
        gradient_checkpointing: compute activations again in the backward, to save memory.
        dropout: leave the model's dropout on in the trained log-probability.
        length_normalised: divide a log-probability by the number of tokens, as some published code
            does; it is then no log-probability any more.
        compile: compile the model's body for scoring.
    """

    def __init__(
        self,
        model: str | ModelSource,
        lora: LoRA | None = LoRA(),  # noqa: B008  # frozen
        adapter: str | None = None,
        max_new_tokens: int = 64,
        generator: Generator | None = None,
        softmax_chunk: int = 1024,
        gradient_checkpointing: bool = False,
        dropout: bool = False,
        length_normalised: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if max_new_tokens < 1 or softmax_chunk < 0:
            raise UserError(
                "model.policy needs max_new_tokens of at least 1 and softmax_chunk of at least 0, "
                f"but they are {max_new_tokens} and {softmax_chunk}"
            )
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
        self.softmax_chunk = softmax_chunk
        self.gradient_checkpointing = gradient_checkpointing
        self.dropout = dropout
        self.length_normalised = length_normalised
        self.compile_body = compile
        self._players: Players
        self.tokenizer: Any = None
        self._names: Sequence[Sequence[str]] | None = None
        self._listed: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
        self._probed: set[str] = set()
        self._compiled: dict[int, Callable[..., Any]] = {}

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
        self._refuse_misfit(model)
        self.ends = _ends(model, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self.pad = pad if pad is not None else (self.ends[0] if self.ends else 0)
        self.loaded_generation_config = model.generation_config
        # The repository's defaults (a temperature, a repetition penalty) would be another policy.
        model.generation_config = GenerationConfig()
        if self.gradient_checkpointing:
            _checkpoint_activations(model)
        if self.lora is None:
            _refuse_low_precision(model)
            self._players = CopiedPlayers(model)
        else:
            self._players = AdapterPlayers(model, self.lora, self.adapter)
        for player in players:
            self._players.add(player, "reference" if player == "magnet" else "policy")
        if not self.dropout:  # now, for adapters have some too
            _switch_dropout_off(self._players)
        self.train(self.training)

    def _refuse_misfit(self, model: Any) -> None:
        rows = model.get_input_embeddings().weight.shape[0]
        if (largest := max(self.tokenizer.get_vocab().values())) >= rows:
            raise UserError(
                f"model.policy.model: the tokenizer has the token {largest}, but the model embeds "
                f"{rows} tokens only: give the tokenizer that belongs to the model"
            )

    @property
    def players(self) -> tuple[str, ...]:
        """All players, ``reference`` among them."""
        return self._players.names

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> CausalLMPolicy:
        """Leave the model in evaluation: only the trained log-probability may need otherwise."""
        super().train(mode)
        if hasattr(self, "_players"):
            self._players.eval()
        return self

    @contextmanager
    def _scoring(self, player: str) -> Iterator[None]:
        """Gradient for the policy alone, in training mode where checkpointing or dropout needs it.

        A checkpoint of another player would be computed again in the backward, when the policy's
        adapter is back in its place.
        """
        if player != "policy" or not torch.is_grad_enabled():
            with torch.no_grad():
                yield
            return
        if not (self.dropout or self.gradient_checkpointing):
            yield
            return
        self._players.module("policy").train()
        try:
            yield
        finally:
            self._players.eval()

    def copy_(self, source: str, target: str) -> None:
        """Copy parameters in place, bit for bit."""
        self._players.lerp_(source, target, 1.0)

    def lerp_(self, source: str, target: str, weight: float) -> None:
        """Move the parameters of ``target`` in place."""
        self._players.lerp_(source, target, weight)

    def snapshot(self) -> dict[str, Any]:
        """The policy's trained parameters, cloned."""
        trained = self._players.parameters_of("policy")
        return {name: p.detach().clone() for name, p in trained.items()}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Any]) -> None:
        """Put the policy's parameters back."""
        for name, parameter in self._players.parameters_of("policy").items():
            parameter.copy_(snapshot[name])

    def kept_names(self) -> set[str]:
        """The players' own parameters; the base model is loaded again from where it came."""
        return {f"_players.{name}" for name in self._players.kept_names()}

    def reference_weights(self) -> dict[str, Tensor]:
        """All tensors that the reference is computed from, by name; it never moves."""
        return self._players.reference_weights()

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

        Plain text gets the special tokens that the tokenizer adds by itself, a conversation its
        chat template and the opening of an answer.

        Raises:
            UserError: there is no chat template, no text, or no room for a response.
        """
        if prompts.tokens is None:  # whether it has room is asked when it is given again
            return self._tokenised(prompts).to(self.device)
        prompts = _padded_left(prompts)
        assert prompts.tokens is not None
        longest = _context(self._players.language_model("policy").config)
        if longest is not None and prompts.tokens.shape[1] + self.max_new_tokens > longest:
            raise UserError(
                f"a prompt of {prompts.tokens.shape[1]} tokens and a response of "
                f"{self.max_new_tokens} exceed the model's {longest} positions: lower "
                "model.policy.max_new_tokens or data.max_prompt_tokens"
            )
        return prompts.to(self.device)

    def _ready(self, prompts: Prompts) -> Prompts:
        """Encoded prompts that have room for a response."""
        return self.encode(prompts if prompts.tokens is not None else self.encode(prompts))

    def _tokenised(self, prompts: Prompts) -> Prompts:
        if prompts.conversations is not None:
            rows = [self._templated(list(c)) for c in prompts.conversations]
        elif prompts.text is not None:
            rows = [list(self.tokenizer(text)["input_ids"]) for text in prompts.text]
        else:
            raise UserError(
                "a language model needs prompts of text: use an oracle with texts such as "
                "SmallLanguage, or set data to TextPrompts"
            )
        if not all(rows):
            where = [not row for row in rows].index(True)
            raise UserError(f"the prompt number {int(prompts.ids[where])} has no tokens")
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), self.pad)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for number, row in enumerate(rows):
            tokens[number, width - len(row) :] = torch.tensor(row)
            mask[number, width - len(row) :] = True
        return Prompts(prompts.ids, tokens, mask, prompts.text, prompts.conversations)

    def _templated(self, conversation: list[Any]) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise UserError(
                "a prompt is a conversation, but the policy's tokenizer has no chat template: "
                "take an instruction-tuned model, or prompts of plain text"
            )
        from jinja2 import TemplateError

        try:
            tokens = self.tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_dict=False
            )
        except TemplateError as error:  # Gemma's refuses a system message, for instance
            raise UserError(f"the policy's chat template refuses a prompt: {error}") from error
        return [int(token) for token in tokens]

    @torch.no_grad()
    def sample(
        self,
        who: Mixture,
        prompts: Prompts,
        num: int,
        decoding: Decoding,
        rng: torch.Generator,
    ) -> Responses:
        """Independent draws, from the mixture formed token by token."""
        prompts = self._ready(prompts)
        assert prompts.tokens is not None
        assert prompts.mask is not None
        request = Request(
            who=who,
            tokens=prompts.tokens,
            mask=prompts.mask,
            num=num,
            decoding=decoding,
            max_new_tokens=self.max_new_tokens,
            ends=self.ends,
            pad=self.pad,
            rng=rng,
        )
        drawn = self.generator.draw(self._players, request)
        shape = (len(prompts), num)
        tokens = drawn.tokens.unflatten(0, shape)
        mask = drawn.mask.unflatten(0, shape)
        log_prob = drawn.log_prob.unflatten(0, shape)
        return Responses(
            tokens=tokens.masked_fill(~mask, self.pad),
            mask=mask,
            weight=torch.full(shape, 1 / num, device=tokens.device),
            text=DecodedText(self.tokenizer, tokens, mask),
            version=self.stamp(who),
            truncated=drawn.truncated.unflatten(0, shape) if self.ends else None,
            log_prob=log_prob / mask.sum(-1) if self.length_normalised else log_prob,
        )

    def enumerate(self, prompts: Prompts) -> Responses | None:
        """The oracle's listed responses, in its order; None where it lists none."""
        if self._names is None:
            return None
        listed = [self._tokens_of(tuple(self._names[int(i)])) for i in prompts.ids]
        width = max(tokens.shape[1] for tokens, _ in listed)
        tokens = torch.stack([_widen(t, width, self.pad) for t, _ in listed]).to(self.device)
        mask = torch.stack([_widen(m, width, False) for _, m in listed]).to(self.device)
        num = tokens.shape[1]
        weight = torch.full(tokens.shape[:2], 1 / num, device=tokens.device)
        texts = [self._names[int(i)] for i in prompts.ids]
        return Responses(tokens, mask, weight, True, texts, self.versions.get("policy", 0))

    def _tokens_of(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Tokens and mask [N, T] of listed responses, each with its end if the model has one."""
        if names not in self._listed:
            rows = [self.tokenizer(n, add_special_tokens=False)["input_ids"] for n in names]
            for name, row in zip(names, rows, strict=True):
                if self.tokenizer.decode(row) != name:
                    raise UserError(
                        f"the policy's tokenizer cannot write the response {name!r}: "
                        f"it reads it as {self.tokenizer.decode(row)!r}"
                    )
            rows = [[*row, *self.ends[:1]] for row in rows]
            width = max(map(len, rows))
            tokens = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
            lengths = torch.tensor([len(row) for row in rows])
            self._listed[names] = (tokens, torch.arange(width) < lengths[:, None])
        return self._listed[names]

    # Log-probabilities --------------------------------------------------------------------------

    def log_prob(
        self, who: Mixture, prompts: Prompts, responses: Responses, decoding: Decoding = PLAIN
    ) -> Tensor:
        """Log-probability of each response [B, K], float32; recomputed, never the generator's.

        Raises:
            UserError: all responses are listed, but the model gives others a probability too.
        """
        prompts = self._ready(prompts)
        if responses.enumerated and _are_the_same(responses):
            log_prob = self._by_prefixes(who, prompts, responses, decoding)
        else:
            log_prob = self._by_responses(who, prompts, responses, decoding)
        if responses.enumerated:
            _refuse_part_of_the_responses(log_prob)
        if self.length_normalised:
            return log_prob / responses.mask.sum(-1)
        return log_prob

    def _by_responses(
        self, who: Mixture, prompts: Prompts, responses: Responses, decoding: Decoding
    ) -> Tensor:
        """One row for each response."""
        tokens, mask = responses.tokens.flatten(0, 1), responses.mask.flatten(0, 1)
        law, hidden = self._laws(who, prompts, tokens[:, :-1], mask[:, :-1], decoding)
        found = token_log_prob(law, [h[mask] for h in hidden], tokens[mask], self._chunk)
        per_token: Tensor = found.new_zeros(mask.shape).masked_scatter(mask, found)
        return per_token.sum(-1).view(responses.weight.shape)

    def _by_prefixes(
        self, who: Mixture, prompts: Prompts, responses: Responses, decoding: Decoding
    ) -> Tensor:
        """One row for each beginning that responses share: all but their last token."""
        tokens, mask = responses.tokens[0], responses.mask[0]
        key = torch.where(mask, tokens, -1)[:, :-1]
        key = torch.nn.functional.pad(key, (1, 0))  # `unique` wants a column
        unique, which = torch.unique(key, dim=0, return_inverse=True)
        prefix, prefix_mask = unique[:, 1:].clamp(min=0), unique[:, 1:] >= 0
        num = len(prompts)
        law, hidden = self._laws(
            who, prompts, prefix.repeat(num, 1), prefix_mask.repeat(num, 1), decoding
        )
        inside = prefix_mask.repeat(num, 1)
        found = token_log_prob(
            law, [h[:, :-1][inside] for h in hidden], prefix.repeat(num, 1)[inside], self._chunk
        )
        path: Tensor = found.new_zeros(inside.shape).masked_scatter(inside, found).sum(-1)
        last = law(*(h[:, -1] for h in hidden)).unflatten(0, (num, -1))  # [B, U, V]
        ending: Tensor = last[:, which, tokens[:, -1]].masked_fill(~mask[:, -1], 0.0)
        return path.view(num, -1)[:, which] + ending

    @property
    def _chunk(self) -> int:
        return self.softmax_chunk or 2**62

    def _laws(
        self, who: Mixture, prompts: Prompts, tokens: Tensor, mask: Tensor, decoding: Decoding
    ) -> tuple[Callable[..., Tensor], list[Tensor]]:
        """The next-token law, and each player's hidden states [R, T + 1, H] that it takes.

        Args:
            who: the mixture.
            prompts: B prompts with tokens.
            tokens: what follows them [R, T]; R is a multiple of B, prompt by prompt.
            mask: where these count [R, T].
            decoding: of the law.
        """
        assert prompts.tokens is not None
        assert prompts.mask is not None
        each = len(tokens) // len(prompts)
        whole = torch.cat([prompts.tokens.repeat_interleave(each, 0), tokens], 1)
        whole_mask = torch.cat([prompts.mask.repeat_interleave(each, 0), mask], 1)
        start = prompts.tokens.shape[1] - 1
        players = [(player, weight) for player, weight in who.items() if weight]
        hidden = []
        for player, _ in players:
            self._probe(player, whole[:_PROBE], whole_mask[:_PROBE])
            with self._scoring(player):
                hidden.append(self._hidden(player, whole, whole_mask, start))
        heads = [self._head(player) for player, _ in players]
        weights = [weight for _, weight in players]
        warped = warp(decoding)

        def law(*hidden: Tensor) -> Tensor:
            logits = [head(h) for head, h in zip(heads, hidden, strict=True)]
            log_prob = mix(logits, weights)
            return log_prob if decoding.is_plain else warped(log_prob).log_softmax(-1)

        return law, hidden

    def _hidden(self, player: str, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        """Hidden states that the output layer takes, from position ``start`` on; or logits."""
        inputs = _inputs(tokens, mask)
        with self._players.playing([player], len(tokens)):
            if self.softmax_chunk:
                hidden: Tensor = self._body(player)(**inputs).last_hidden_state[:, start:]
            else:
                model: Any = self._players.module(player)
                hidden = model(**inputs, logits_to_keep=tokens.shape[1] - start).logits
        return hidden

    def _body(self, player: str) -> Callable[..., Any]:
        """The model without its output layer; compiled for scoring alone."""
        body: nn.Module = self._players.language_model(player).base_model
        if not self.compile_body:
            return body
        return self._compiled.setdefault(id(body), torch.compile(body, dynamic=True))

    def _head(self, player: str) -> Callable[[Tensor], Tensor]:
        """Logits in float32 from hidden states."""
        if not self.softmax_chunk:
            return Tensor.float
        model = self._players.language_model(player)
        layer: nn.Linear = model.get_output_embeddings()
        softcap = getattr(model.config, "final_logit_softcapping", None)

        def head(hidden: Tensor) -> Tensor:
            logits: Tensor = layer(hidden.to(layer.weight.dtype)).float()
            return logits if softcap is None else softcap * torch.tanh(logits / softcap)

        return head

    @torch.no_grad()
    def _probe(self, player: str, tokens: Tensor, mask: Tensor) -> None:
        """Compare the output layer with the model's own logits, once for each player.

        Raises:
            UserError: this architecture makes its logits otherwise.
        """
        if player in self._probed or not self.softmax_chunk:
            return
        model: Any = self._players.module(player)
        with self._players.playing([player], len(tokens)):
            theirs = model(**_inputs(tokens, mask), logits_to_keep=1).logits
        ours = self._head(player)(self._hidden(player, tokens, mask, -1))
        tolerance = 1e-4 if theirs.dtype == torch.float32 else 0.05
        theirs = theirs.float()
        if not torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance):
            kind = type(self._players.language_model(player)).__name__
            raise UserError(
                f"{kind} does not make its logits by its output layer alone "
                f"(they differ by {(ours - theirs).abs().max():.3g}): set "
                "model.policy.softmax_chunk to 0"
            )
        self._probed.add(player)


def _inputs(tokens: Tensor, mask: Tensor) -> dict[str, Any]:
    """What a model is called with to score rows [R, S]."""
    return {
        "input_ids": tokens,
        "attention_mask": mask.long(),
        "position_ids": position_ids(mask),
        "use_cache": False,
    }


def _widen(rows: Tensor, width: int, value: int) -> Tensor:
    return nn.functional.pad(rows, (0, width - rows.shape[1]), value=value)


def _refuse_low_precision(model: nn.Module) -> None:
    """Weights of 8 or fewer digits would swallow the steps of a usual learning rate.

    Raises:
        UserError: the weights are such.
    """
    for parameter in model.parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"model.policy.lora is null, so that all weights train, but they are "
                f"{str(parameter.dtype).removeprefix('torch.')}, which rounds small steps away: "
                "set the dtype of model.policy.model to float32"
            )


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a response: the model's own, and the tokenizer's."""
    of_model = model.generation_config.eos_token_id if model.generation_config else None
    found = [of_model] if isinstance(of_model, int) else list(of_model or [])
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in found:
        found.append(tokenizer.eos_token_id)
    return found


def _padded_left(prompts: Prompts) -> Prompts:
    """Prompts whose padding stands on the left, wherever it stood."""
    assert prompts.tokens is not None
    assert prompts.mask is not None
    mask = prompts.mask.bool()
    if bool((mask[:, 1:] >= mask[:, :-1]).all()):
        return prompts
    order = mask.long().argsort(dim=1, stable=True)
    return replace(prompts, tokens=prompts.tokens.gather(1, order), mask=mask.gather(1, order))


def _context(config: Any) -> int | None:
    """Positions that a model has, where its configuration says so."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def _checkpoint_activations(model: Any) -> None:
    """By the name that transformers has for it since 5.23, or by the one before."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _switch_dropout_off(model: nn.Module) -> None:
    """Dropout layers, and the numbers that models hand to the functional form."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def _are_the_same(responses: Responses) -> bool:
    """Whether all prompts have the same responses."""
    return all(bool((t == t[:1]).all()) for t in (responses.tokens, responses.mask))


def _refuse_part_of_the_responses(log_prob: Tensor) -> None:
    """Figures over listed responses are exact only if there are no others.

    Raises:
        UserError: there are others.
    """
    total = log_prob.detach().exp().sum(-1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-3):
        raise UserError(
            "the responses that the oracle lists have a probability of "
            f"{float(total.min()):.3g} only under this language model, so nothing exact can be "
            "said of them: choose the rollout Sample, and leave ExactMetrics out"
        )
