"""Training a preference model: pairs of responses in, an oracle out."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, get_args

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.algorithms import torch_optimizers as optimizers
from nlhf_zoo.data.pairs import Pairs, PreferencePairs
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.losses.preference import cross_entropy
from nlhf_zoo.metrics.processes import Mean, StepMean, run_folder
from nlhf_zoo.policies.language_model.players import LoRA
from nlhf_zoo.preference_models.backbones import Backbone, PretrainedBackbone, with_adapters
from nlhf_zoo.preference_models.folder import NAME, write_folder
from nlhf_zoo.preference_models.held_out import HeldOut
from nlhf_zoo.preference_models.progress import TrainingBar
from nlhf_zoo.preference_models.reader import Reader, Shown, Unreadable, look_through
from nlhf_zoo.records.finite import not_finite, refuse_diverged
from nlhf_zoo.records.random_streams import random_stream, training_seed
from nlhf_zoo.text_models.encoding import refuse_template
from nlhf_zoo.text_models.heads import PreferenceHead
from nlhf_zoo.text_models.loading import ORACLES, ModelSettings

# The loss of each pair [B], of log-odds [B] and labels [B].
Loss = Callable[[Tensor, Tensor], Tensor]


class PreferenceModel(L.LightningModule):
    """A preference model in training; what it writes is read by an oracle.

    At the end of the training, and with each checkpoint, it writes the folder `preference_model`
    into that of the run: weights, tokenizer and settings, from which RewardModelOracle,
    PairModelOracle or GeneralPreferenceModelOracle is made, as the head has it.

    Args:
        backbone: hub name or folder of a model of transformers with its tokenizer; or a Backbone.
        head: what the network reads and what its outputs say.
        loss: of log-odds and labels, a pair at a time; nlhf_zoo.losses.preference has others.
        optimizer: called on the trained parameters. Adam if it is not given.
        lr_scheduler: stepped with the optimiser.
        lora: adapters, so that the backbone's own weights stay; null trains all weights.
        template: text with the fields {prompt} and {response}, or of a head that reads pairs
            {prompt}, {first} and {second}; null takes the chat template of the tokenizer.
        max_tokens: of the longest text; null takes the model's own limit.
        unreadable: refuse, or drop, pairs that are too long or, for a head that reads pairs, hold a
            special token of the tokenizer; nothing is cut.
        dropout: use the backbone's dropout in training.
        eval_batch_size: texts of a forward pass in evaluation.
        chat_template_kwargs: values of variables of the chat template.

    Raises:
        UserError: the parts do not fit each other.
    """

    def __init__(
        self,
        backbone: str | Backbone,
        head: PreferenceHead,
        loss: Loss = cross_entropy,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lora: LoRA | None = None,
        template: str | None = None,
        max_tokens: int | None = None,
        unreadable: Unreadable = "refuse",
        dropout: bool = False,
        eval_batch_size: int = 16,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if template is not None:
            refuse_template(template, head.reads, "PreferenceModel.template")
        if unreadable not in get_args(Unreadable):
            raise UserError(
                f"model.unreadable is one of {get_args(Unreadable)}, not {unreadable!r}"
            )
        _refuse_loss(loss)
        source = PretrainedBackbone(backbone) if isinstance(backbone, str) else backbone
        loaded = source.load(head)
        self.head = head
        self.loss = loss
        self.optimizer = optimizer or torch.optim.Adam
        self.lr_scheduler = lr_scheduler
        self.unreadable: Unreadable = unreadable
        self.dropout = dropout
        self._config = copy.deepcopy(loaded.network.config)  # a batch changes its padding
        variables = chat_template_kwargs or {}
        self.reader = Reader(loaded, head, template, max_tokens, eval_batch_size, variables)
        if lora is not None:
            self.reader.network = with_adapters(loaded.network, lora, loaded.where)
        elif loaded.network.dtype != torch.float32:
            raise UserError(
                f"the weights of {loaded.where} are {loaded.network.dtype}, which would round what "
                "is trained: set model.lora, or the backbone's dtype to float32"
            )
        self.settings = ModelSettings(
            head.kind, template, self.reader.max_tokens, float(head.temperature), variables
        )
        self.held_out = HeldOut()
        self.strict_loading = False  # `on_load_checkpoint` sees to it that nothing is missing
        self.batches = 0  # that this process has trained on
        self.mean = StepMean()
        self._accumulates = False  # gradients wait for an optimiser step
        self._notices: set[str] = set()
        self._written_at = -1
        self.train(self.training)

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.reader.network.train(mode and self.dropout)  # off unless it is asked for
        return self

    def forward(self, pairs: Pairs) -> Tensor:
        """P(first > second) of the pairs as they are shown, float64 [B]; NaN where unreadable."""
        return self.reader.preferences(_shown(pairs))

    def training_step(self, pairs: Pairs, batch_idx: int) -> Tensor:
        """The loss of the pairs that can be read, so that its gradients are those of `StepMean`.

        Raises:
            UserError: a pair cannot be read, and is not to be dropped.
            DivergenceError: the loss is not finite.
        """
        pairs = self._in_drawn_order(pairs)
        texts = self.reader.encode(_shown(pairs))
        is_read = [self.reader.is_read(one, "a pair", self.unreadable) for one in texts]
        readable = [number for number, one in enumerate(is_read) if one]
        if readable:
            log_odds = self.reader.log_odds([texts[number] for number in readable])
            total = self.loss(log_odds, pairs.probability[readable]).sum()
        else:  # a zero with a gradient: other processes wait for one
            total = torch.stack([p.sum() * 0 for p in self._trained().values()]).sum()
        own, begins = Mean(total, len(readable)), not self._accumulates
        loss, figures = self.mean.take(self._trainer, own, {}, begins)  # None without one
        self._accumulates = True
        mean = figures["train/loss"]
        if not mean.isfinite():
            raise DivergenceError(
                f"training diverged: the loss is {mean.item()} in step {self.trainer.global_step}, "
                "so lower the learning rate"
            )
        self.log("train/loss", mean, prog_bar=True, batch_size=len(pairs))
        return loss

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.mean.complete(optimizer, self.trainer.accumulate_grad_batches)
        self._accumulates = False

    def _in_drawn_order(self, pairs: Pairs) -> Pairs:
        """The pairs in the order in which they are shown: where it can matter, coins are tossed.

        The coins come from a random stream of their own, keyed by seed, process and batch.
        """
        seed = training_seed()
        rng = random_stream(seed, self.global_rank, self.batches, torch.device("cpu"))
        self.batches += 1
        if self.head.reads == "response":
            return pairs
        turned = torch.rand(len(pairs), generator=rng) < 0.5
        other = pairs.swapped()
        return Pairs(
            pairs.conversations,
            [o if t else p for p, o, t in zip(pairs.first, other.first, turned, strict=True)],
            [o if t else p for p, o, t in zip(pairs.second, other.second, turned, strict=True)],
            torch.where(turned.to(pairs.probability.device), other.probability, pairs.probability),
        )

    # Evaluation ---------------------------------------------------------------------------------

    @override
    def on_validation_epoch_start(self) -> None:
        self.held_out.begin()

    def validation_step(self, pairs: Pairs, batch_idx: int) -> None:
        """Collect pairs: they are read together, each text once."""
        self.held_out.add(pairs)

    @override
    def on_validation_epoch_end(self) -> None:
        area = "test" if self.trainer.testing else "val"
        figures = self.held_out.figures(self.reader.preferences, self.device)
        if self.held_out.unread:
            self._say_once(
                f"{self.held_out.unread} held-out pairs of this process cannot be read, or have an "
                f"output that is not finite: the {area} figures are without them"
            )
        if figures["cyclic_triples"].isnan():
            del figures["cyclic_triples"]
            self._say_once(
                f"{area}/cyclic_triples is left out: no held-out prompt has three different "
                "responses, all of whose pairs have a winner"
            )
        for name, value in figures.items():
            # equal in all processes: this says so, and changes nothing
            self.log(f"{area}/{name}", value.float(), batch_size=1, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._notices and self.trainer.is_global_zero:
            print(sentence, file=sys.stderr)
        self._notices.add(sentence)

    # Lightning ----------------------------------------------------------------------------------

    @override
    def configure_optimizers(self) -> Any:
        parameters = list(self._trained().values())
        return optimizers.configure(parameters, self.optimizer, self.lr_scheduler)

    @override
    def configure_callbacks(self) -> list[L.Callback]:
        return [TrainingBar()]

    @override
    def on_fit_start(self) -> None:
        trainer = self.trainer
        if str(trainer.precision) in ("16-true", "bf16-true"):
            raise UserError(
                f"trainer.precision {trainer.precision} would round what is trained: set it to "
                "32-true or bf16-mixed"
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # lightning sets it elsewhere
        self.reader.refuse_dependence()  # here, where it is on its device
        if isinstance(data, PreferencePairs):
            look_through(data, self.reader, self.unreadable, trainer.is_global_zero)
            if not data.validation_pairs:
                self._say_once(
                    "no pairs are held out, so nothing will tell how good the model is: set "
                    "data.num_validation or data.validation_path"
                )

    @override
    def on_train_batch_start(self, batch: Pairs, batch_idx: int) -> None:
        """Count this epoch as begun.

        Lightning 2.6.6 does not where a run goes on from the last batch of the epoch before; if it
        is interrupted and goes on once more, it would train on some batches twice.
        """
        progress: Any = self.trainer.fit_loop.epoch_progress
        for counts in (progress.current, progress.total):
            counts.ready = max(counts.ready, counts.completed + 1)
            counts.started = max(counts.started, counts.ready)

    @override
    def on_train_end(self) -> None:
        """Write the model, unless the last checkpoint has done so, and say where it lies."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # likewise
            return
        place = self._write()
        if self.trainer.is_global_zero:
            print(f"Preference model: {place}, for {ORACLES[self.head.kind]}")

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the model as a folder beside it; leave out weights that files have anyhow."""
        keys, state = self._checkpoint_keys(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in keys}
        checkpoint["preference_model"] = {"batches": self.batches}
        self._write()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "preference_model" not in checkpoint:
            raise UserError(
                "the checkpoint holds no preference model: give one that `nlhf fit` of a "
                "PreferenceModel has written"
            )
        missing = sorted(self._checkpoint_keys() - checkpoint["state_dict"].keys())
        if missing:  # loading is not strict, for the sake of the weights that were left out
            raise UserError(
                f"the checkpoint does not fit the model: it lacks {len(missing)} of its "
                f"parameters, {missing[0]} among them"
            )
        state = checkpoint["state_dict"]
        refuse_diverged({name: state[name] for name in self._trained()})
        self.batches = checkpoint["preference_model"]["batches"]

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def _checkpoint_keys(self) -> set[str]:
        """Names in ``state_dict`` that a checkpoint holds: all but frozen parameters."""
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        return self.state_dict().keys() - frozen

    def _write(self) -> Path:
        """Write the folder, once a step.

        Raises:
            DivergenceError: what was trained is not finite.
        """
        if name := not_finite(self._trained()):
            raise DivergenceError(
                f"training diverged: after optimiser step {self.trainer.global_step} {name} is not "
                "finite, so lower the learning rate"
            )
        place = Path(run_folder(self.trainer) or self.trainer.default_root_dir) / NAME
        step = self.trainer.global_step
        if self.trainer.is_global_zero and step != self._written_at:
            network, tokenizer = self.reader.network, self.reader.encoder.tokenizer
            write_folder(place, network, self._config, tokenizer, self.settings)
        self._written_at = step
        return place


def _refuse_loss(loss: Loss) -> None:
    """Refuse what is no loss of a pair: its mean would be another, or none."""
    value: object = loss(torch.zeros(1), torch.full((1,), 0.5))
    if not isinstance(value, Tensor) or value.shape != (1,):
        made = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"
        raise UserError(f"model.loss must give a tensor [1] of one pair, but it gives {made}")


def _shown(pairs: Pairs) -> list[Shown]:
    return list(zip(pairs.conversations, pairs.first, pairs.second, strict=True))
