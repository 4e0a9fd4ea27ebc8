"""Language models: steps of the game against a plain loop, sampling K, and what a GPU does.

    python -m benchmarks.language [--tokens 64 128 256] [--repeats 3] [--threads 1]
    python -m benchmarks.language --gpu

The model is a random Llama of about 10 M parameters with LoRA of rank 16 on all linear layers. A
step of ``fit`` is all that the Trainer does for a batch: fetching it, sampling, judging, scoring,
loss, backward, optimiser step, the callbacks and the loggers of a run. Its floor is written by hand
on the same model and sizes: cached ``generate`` with the adapter active, one reference pass without
gradient, one forward and backward on those tokens, one optimiser step. A token of a mixture needs
both models, so its floor is ``generate`` with the adapter active and once more with it disabled;
beside it stands the ratio to a floor that leaves the latter out. Step and floor take turns in one
process; seconds are the process's CPU seconds, figures are medians, and a ratio is the median of
the turns' ratios.

Memory is measured by ``python -m benchmarks.language_memory``.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from torch.utils.data import DataLoader

from nlhf_zoo.algorithms import NashMD, OnlineDPO
from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.callbacks import QueryLog, TimeLog
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.game.micro_batches import PHASES
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.policies import CausalLMPolicy, LoRA
from nlhf_zoo.policies.language_model.generation import Generator, TransformersGenerator
from nlhf_zoo.policies.language_model.sources import Loaded, ModelSource
from nlhf_zoo.records import PLAIN, Comparison, Prompts, Responses

TEN_MILLION = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
# The shape of Qwen2.5-0.5B, from its published config.json.
HALF_BILLION = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
TINY = {
    "model_type": "qwen2",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
RANK, ALPHA, LEARNING_RATE, BETA, MIXTURE = 16, 32, 1e-5, 0.1, 0.125


class RandomModel(ModelSource):
    """A model with random weights and no end-of-sequence token: all responses are of one length.

    Args:
        shape: its configuration.
        dtype: of its weights.
    """

    def __init__(self, shape: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
        self.shape = shape
        self.dtype = dtype

    def load(self) -> Loaded:
        """Build model and tokenizer."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

        no_ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        config = AutoConfig.for_model(**(self.shape | no_ends))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()
        words = {str(number): number for number in range(config.vocab_size)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return Loaded(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer))


class LowestToken(PreferenceOracle):
    """Prefers the response with the lower last token: a judge that costs nothing."""

    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """Compare last tokens."""
        one, other = first.tokens[:, :, None, -1], second.tokens[:, None, :, -1]
        preference = 0.5 + 0.25 * (other - one).sign().float()
        return Comparison(preference, torch.ones_like(preference, dtype=torch.bool))


@dataclass(frozen=True)
class Size:
    """What is drawn in a step.

    Args:
        shape: configuration of the model.
        prompts: prompts of a batch.
        prompt_tokens: tokens of each.
        new_tokens: tokens of a response.
        num: responses to a prompt, of the policy and of an opponent alike.
        dtype: of the model's weights.
    """

    shape: dict[str, Any] = field(default_factory=lambda: TEN_MILLION)
    prompts: int = 8
    prompt_tokens: int = 32
    new_tokens: int = 64
    num: int = 2
    dtype: torch.dtype = torch.float32

    def batch(self) -> Prompts:
        """Random prompts."""
        stream = torch.Generator().manual_seed(0)
        shape = (self.prompts, self.prompt_tokens)
        tokens = torch.randint(self.shape["vocab_size"], shape, generator=stream)
        return Prompts(torch.arange(self.prompts), tokens, torch.ones_like(tokens).bool())


def make_game(
    algorithm: PolicyOptimizer,
    size: Size,
    generator: Generator | None = None,
    rollout: Sample | None = None,
) -> OnlineGame:
    """A game with an adapter that is not zero."""
    policy = CausalLMPolicy(
        RandomModel(size.shape, size.dtype),
        lora=LoRA(r=RANK, alpha=ALPHA),
        max_new_tokens=size.new_tokens,
        generator=generator,
    )
    game = OnlineGame(
        policy,
        LowestToken(),
        algorithm,
        beta=BETA,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE),
        rollout=rollout or Sample(size.num, size.num),
        realisation=GradientSteps(),
    )
    scatter(policy)
    return game


@torch.no_grad()
def scatter(module: torch.nn.Module) -> None:
    """Give the trained adapter random weights."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.normal_(std=0.02)


class PlainLoop:
    """What a step costs at least, written by hand.

    Args:
        size: of model and batch.
        device: where it runs.
    """

    def __init__(self, size: Size, device: str = "cpu") -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import GenerationConfig

        self.size = size
        model = RandomModel(size.shape, size.dtype).load().model.to(device)
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
        self.model: Any = get_peft_model(model, lora).eval()
        scatter(self.model)
        self.config = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=size.new_tokens, pad_token_id=0, use_cache=True
        )
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
        prompts = size.batch()
        assert prompts.tokens is not None
        self.prompts = prompts.tokens.to(device).repeat_interleave(size.num, 0)
        self.mask = torch.ones_like(self.prompts)
        self.parts: list[dict[str, float]] = []

    @torch.no_grad()
    def decode(self, **options: Any) -> Tensor:
        """Prompts and responses of whichever adapter is active."""
        tokens: Tensor = self.model.generate(
            input_ids=self.prompts,
            attention_mask=self.mask,
            generation_config=self.config,
            **options,
        )
        return tokens

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Of the responses [B K]."""
        new = self.size.new_tokens
        output = self.model(input_ids=tokens, logits_to_keep=new + 1, use_cache=False)
        logits = output.logits[:, :-1].float()
        losses = cross_entropy(logits.flatten(0, 1), tokens[:, -new:].flatten(), reduction="none")
        return -losses.view(len(tokens), new).sum(-1)

    def update(self, tokens: Tensor) -> None:
        """Score, and take an optimiser step on DPO's loss; the first response is the better."""
        with torch.no_grad(), self.model.disable_adapter():
            reference = self.log_prob(tokens)
        ratio = (self.log_prob(tokens) - reference).view(-1, self.size.num)
        loss = -logsigmoid(BETA * (ratio[:, 0] - ratio[:, 1])).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def step(self, mixture: bool) -> None:
        """One step of the floor, the CPU seconds of its parts kept.

        Args:
            mixture: decode by the reference too.
        """
        now = time.process_time
        begin = now()
        tokens = self.decode()
        decoded = now()
        if mixture:
            with self.model.disable_adapter():
                self.decode()
        decoded_too = now()
        self.update(tokens)
        self.parts.append(
            {
                "decode": decoded - begin,
                "reference": decoded_too - decoded,
                "update": now() - decoded_too,
            }
        )


class Turns(L.Callback):
    """Times each training step, and lets a floor take its turn after it.

    Args:
        floor: what takes turns with the step.
        now: clock.
    """

    def __init__(self, floor: Callable[[], None], now: Callable[[], float]) -> None:
        self.floor = floor
        self.now = now
        self.seconds: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin."""
        self.began = self.now()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop the clock while the floor runs; fetching the next batch is part of the next step."""
        self.seconds.append(self.now() - self.began)
        self.floor()
        self.began = self.now()


def fit(game: OnlineGame, size: Size, steps: int, turns: Turns, accelerator: str = "cpu") -> None:
    """Train as ``nlhf fit`` does, with its callbacks and a logger, but without a progress bar."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            logger=TensorBoardLogger(folder, default_hp_metric=False),
            callbacks=[QueryLog(), TimeLog(), turns],
        )
        trainer.fit(game, DataLoader([size.batch()] * steps, batch_size=None))


def median(values: Iterable[float]) -> float:
    """Without the first, which warms up."""
    return statistics.median([*values][1:])


class Turn:
    """Steps of the game and its floor in turn; the first of either is short, to warm up.

    Args:
        name: of the algorithm.
        size: of model and batch.
        repeats: turns that count.
        generator: of the game; None takes the default.
    """

    def __init__(
        self, name: str, size: Size, repeats: int, generator: Generator | None = None
    ) -> None:
        self.mixture, self.size = name == "Nash-MD", size
        self.plain = PlainLoop(size)
        algorithm = NashMD(eta=MIXTURE / BETA) if self.mixture else OnlineDPO()
        self.game = make_game(algorithm, size, generator)
        self._set_new_tokens(4)
        turns = Turns(self.floor, time.process_time)
        fit(self.game, size, repeats + 1, turns)
        self.seconds = turns.seconds

    def _set_new_tokens(self, number: int) -> None:
        self.game.policy.max_new_tokens = self.plain.config.max_new_tokens = number
        self.plain.size = replace(self.size, new_tokens=number)

    def floor(self) -> None:
        """Let the floor take its turn."""
        self.plain.step(self.mixture)
        self._set_new_tokens(self.size.new_tokens)

    def floors(self) -> tuple[list[float], list[float]]:
        """Seconds of each turn of the floor, and without decoding by the reference.

        The responses of the policy and the policy's share of the opponents' are the same work: it
        is done once and counted twice.
        """
        decodes = 2 if self.mixture else 1
        fewer = [decodes * p["decode"] + p["update"] for p in self.plain.parts]
        both = [f + p["reference"] for f, p in zip(fewer, self.plain.parts, strict=True)]
        return both, fewer


def steps(lengths: list[int], repeats: int) -> None:
    """Print how a step compares with its floor."""
    print("| step | new tokens | seconds | floor | ratio | target | two decodes only | growth |")
    print("|---|---|---|---|---|---|---|---|")
    for name, target in (("online DPO", 1.10), ("Nash-MD", 1.15)):
        last = None
        for length in lengths:
            turn = Turn(name, Size(new_tokens=length), repeats)
            both, fewer = turn.floors()
            ours, floor = median(turn.seconds), median(both)
            ratio, other = (
                median(a / b for a, b in zip(turn.seconds, floors, strict=True))
                for floors in (both, fewer)
            )
            figures = f"{ours:.2f} | {floor:.2f} | {ratio:.2f} | {target:.2f}"
            beside = f"{other:.2f}" if turn.mixture else ""
            growth = f"{ours / last:.2f}" if last else ""
            print(f"| {name} | {length} | {figures} | {beside} | {growth} |", flush=True)
            last = ours
    print()


def sampling(repeats: int) -> None:
    """Print what K responses cost, with the prompt's cache shared and without."""
    counts = (1, 2, 4, 8)
    seconds: dict[tuple[int, bool], list[float]] = {}
    size = Size(prompt_tokens=128, new_tokens=48)
    game, prompts = make_game(OnlineDPO(), size), size.batch()
    for repeat in range(repeats + 1):
        for num in counts:
            for shared in (True, False) if num > 1 else (True,):
                game.policy.generator = TransformersGenerator(share_prompt=shared)
                stream = torch.Generator().manual_seed(repeat)
                began = time.process_time()
                game.policy.sample({"policy": 1.0}, prompts, num, PLAIN, stream)
                seconds.setdefault((num, shared), []).append(time.process_time() - began)
    one = median(seconds[1, True])
    print("| K, prompt of 128, 48 new | seconds | over K times one | prompt not shared |")
    print("|---|---|---|---|")
    for num in counts:
        ours = median(seconds[num, True])
        other = f"{median(seconds[num, False]):.2f}" if num > 1 else ""
        print(f"| {num} | {ours:.2f} | {ours / (num * one):.2f} | {other} |", flush=True)
    print()


# A GPU ------------------------------------------------------------------------------------------


def gpu_now() -> float:
    """Seconds, when all that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], Any], repeats: int = 3) -> float:
    """Median seconds, after one run to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        began = gpu_now()
        work()
        seconds.append(gpu_now() - began)
    return median(seconds)


def copy_bandwidth(device: str, numbers: int) -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.empty(numbers, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source))


def matmul_rate(device: str, width: int) -> float:
    """Floating point operations a second of a large product in bfloat16."""
    a = torch.randn(width, width, dtype=torch.bfloat16, device=device)
    return 2 * width**3 / timed(lambda: a @ a)


def peak_memory() -> str:
    """GiB that torch has allocated at most since this was asked last."""
    gc.collect()  # the game before this one
    if not torch.cuda.is_available():
        return "-"
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f"{peak:.1f}"


def gpu(tiny: bool, repeats: int) -> None:
    """Print step time, its shares, and what bounds them; then the kinds of decoding."""
    device = "cpu" if tiny else "cuda"
    size = Size(HALF_BILLION, prompts=64, new_tokens=256, dtype=torch.bfloat16)
    if tiny:
        size = Size(TINY, prompts=4, prompt_tokens=8, new_tokens=8, dtype=torch.bfloat16)
    rates = (
        copy_bandwidth(device, 10**5 if tiny else 2**30),
        matmul_rate(device, 128 if tiny else 8192),
    )
    print(f"copy {rates[0] / 1e9:.0f} GB/s, product of matrices {rates[1] / 1e12:.1f} TFLOP/s\n")
    print("| step | cache | seconds | generate | judge | score | update | tokens/s | peak, GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    bounds = []
    for name, cache in (
        ("online DPO", "dynamic"),
        ("online DPO", "static"),
        ("Nash-MD", "dynamic"),
        ("Nash-MD", "static"),
    ):
        bounds.append(gpu_step(name, cache, size, repeats, device))
    print("\n| step | cache | decode, GB/s | of copy | score and update, TFLOP/s | of product |")
    print("|---|---|---|---|---|---|")
    for name, cache, bandwidth, flops in bounds:
        shares = f"{bandwidth / rates[0]:.0%}", f"{flops / rates[1]:.0%}"
        print(
            f"| {name} | {cache} | {bandwidth / 1e9:.0f} | {shares[0]} "
            f"| {flops / 1e12:.1f} | {shares[1]} |"
        )
    print()
    decoding(size, device, repeats)


def gpu_step(
    name: str, cache: str, size: Size, repeats: int, device: str
) -> tuple[str, str, float, float]:
    """Print a row; the bytes and operations a second that were reached are returned."""
    mixture = name == "Nash-MD"
    algorithm = NashMD(eta=MIXTURE / BETA) if mixture else OnlineDPO()
    kind: Any = cache
    game = make_game(algorithm, size, TransformersGenerator(kind))
    phases = PhaseTurns(game)
    peak_memory()
    fit(game, size, repeats + 1, phases, "cpu" if device == "cpu" else "gpu")
    spent = {phase: median(seconds) for phase, seconds in phases.of.items()}
    total = median(phases.seconds)
    rows = size.prompts * size.num
    drawn = rows * size.new_tokens * (2 if mixture else 1)
    shares = " | ".join(f"{spent[phase] / total:.0%}" for phase in PHASES)
    print(
        f"| {name} | {cache} | {total:.2f} | {shares} | {drawn / total:,.0f} | {peak_memory()} |",
        flush=True,
    )
    # A new token reads all weights once, and the keys and values of all rows: on the average those
    # of the prompt and of half the response. The mixture's rows are of two players, in one call.
    language_model = game.policy._players.language_model("policy")
    config = language_model.config
    head = config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 2
    cached = per_token * (size.prompt_tokens + size.new_tokens / 2)
    weights = sum(p.nbytes for p in language_model.parameters())
    decodes = [rows, 2 * rows] if mixture else [rows]
    moved = sum(size.new_tokens * (weights + n * cached) for n in decodes)
    # Reference, policy, and the backward to the activations alone: two operations a weight each;
    # the output layer for the new tokens only.
    output = config.hidden_size * config.vocab_size
    body = sum(p.numel() for p in language_model.base_model.layers.parameters())
    tokens = rows * (size.prompt_tokens + size.new_tokens)
    operations = 3 * 2 * (body * tokens + output * rows * size.new_tokens)
    work = spent["score"] + spent["update"]
    return name, cache, moved / spent["generate"], operations / work


class PhaseTurns(Turns):
    """Keeps the seconds of each phase of each step.

    Args:
        game: whose.
    """

    def __init__(self, game: OnlineGame) -> None:
        self.of: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.game = game
        self.before = dict.fromkeys(PHASES, 0.0)
        super().__init__(self.keep, gpu_now)

    def keep(self) -> None:
        """Take the differences of the totals."""
        for phase, total in self.game.timer.total.items():
            self.of[phase].append(total - self.before[phase])
            self.before[phase] = total


def decoding(size: Size, device: str, repeats: int) -> None:
    """Print what transformers' own kinds of decoding cost, beside ours."""
    plain = PlainLoop(size, device)
    rows = size.prompts * size.num
    kinds: dict[str, dict[str, Any]] = {
        "dynamic": {},
        "static": {"cache_implementation": "static", "disable_compile": True},
        "static, compiled": {"cache_implementation": "static"},
    }
    print("| `generate` | seconds, adapter active | tokens/s | seconds, adapter off |")
    print("|---|---|---|---|")
    for kind, options in kinds.items():
        seconds = []
        for active in (True, False):
            context: AbstractContextManager[Any] = nullcontext()
            if not active:
                context = plain.model.disable_adapter()
            with context:
                seconds.append(timed(lambda: plain.decode(**options), repeats))  # noqa: B023
        speed = rows * size.new_tokens / seconds[0]
        print(f"| {kind} | {seconds[0]:.2f} | {speed:,.0f} | {seconds[1]:.2f} |", flush=True)


def main() -> None:
    """Print the tables."""
    import peft
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="the part for a GPU, and that alone")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # of short runs, without validation: not the tables' reader's
    transformers.logging.set_verbosity_error()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, peft {peft.__version__}, lightning {L.__version__}")
    if not arguments.gpu:
        print(f"{arguments.threads} thread(s), median of {arguments.repeats}\n")
        steps(arguments.tokens, arguments.repeats)
        sampling(arguments.repeats)
        return
    if not (arguments.tiny or torch.cuda.is_available()):
        raise SystemExit("--gpu needs a GPU, and torch sees none here")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
    gpu(arguments.tiny, arguments.repeats)


if __name__ == "__main__":
    main()
