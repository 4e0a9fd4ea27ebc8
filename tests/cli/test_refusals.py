"""A mistake of the user's ends with exit code 2 and one sentence, before anything is written."""

# ruff: noqa: E501  # tables of one row a line

import re
from pathlib import Path

import numpy as np
import pytest
from forked import nlhf
from paths import ROOT

FIT = ["fit", "--config", str(ROOT / "configs/tabular/nash_mp.yaml")]
DPO = ["fit", "--config", str(ROOT / "configs/tabular/online_dpo.yaml")]
MATRIX = [*FIT, "--model.oracle", "MatrixOracle", "--model.oracle.path"]
VOTES = [*FIT, "--model.oracle", "VotesOracle", "--model.oracle.path"]
REFERENCE = [*FIT, "--model.policy.reference"]
TRANSFORMED = [*FIT, "--model.oracle", "Transformed", "--model.oracle.oracle", "Comal"]
RULE = [*DPO, "--model.oracle", "RuleOracle", "--model.oracle.function"]
MKDIR = "{class_path: os.mkdir, init_args: {path: made}}"  # which would be seen
GRADIENT = ["--model.realisation", "GradientSteps"]
SAMPLE = ["--model.rollout", "Sample"]
CALLBACK = "--trainer.callbacks"

# Functions of the user's own, which may say what they return, and return something else.
OWN = """
import torch
def mean(step, batch) -> torch.Tensor: return batch.log_prob.mean()
def nothing(parameters): open("made", "w")
def no_optimizer(parameters) -> torch.optim.Optimizer: return None
def no_schedule(optimizer) -> torch.optim.lr_scheduler.LRScheduler: return 0
"""

# What is given, and what is said.
FITS = {
    "no command": (["fitt"], "'fitt' is no command of nlhf: choose one of fit, validate"),
    "no arguments": (["fit"], "required: policy, oracle, algorithm"),
    "unknown option": ([*FIT, "--nonsense", "1"], "nonsense"),
    "no value": ([*FIT, "--model.beta"], "--model: expected one argument"),
    "misspelt argument": ([*FIT, "--model.algorithm.etaa", "1"], r"--model\.algorithm: .*'etaa'"),
    "unknown algorithm": (
        [*FIT, "--model.algorithm", "NashXX"],
        r"--model\.algorithm: there is no class 'NashXX': choose one of .*EGPO, .*SPPO, XPO$",
    ),
    "unknown oracle": ([*FIT, "--model.oracle", "Oracle"], "no class 'Oracle': .*VotesOracle"),
    "unknown policy": ([*FIT, "--model.policy", "P"], "choose one of CausalLMPolicy, MLPPolicy, TabularPolicy$"),
    "unknown optimizer": ([*DPO, "--model.optimizer", "Adm"], r"--model\.optimizer: .*'Adm'"),
    "unknown model": ([*FIT, "--model", "NoGame"], "--model: there is no class 'NoGame'"),
    "unknown data": ([*FIT, "--data", "Nothing"], "--data: there is no class 'Nothing'"),
    "unknown logger": ([*FIT, "--trainer.logger", "Nil"], r"--trainer\.logger: .*'Nil'"),
    "unknown callback": ([*FIT, CALLBACK, "No"], r"--trainer\.callbacks: .*'No'"),
    "missing argument": ([*FIT, "--model.algorithm", "MovingMagnet"], "required: inner"),
    "a payoff without a bound": (
        [*TRANSFORMED, "--model.oracle.payoff", "log_odds"],
        r"log_odds is infinite .*: set Transformed\.bound$",
    ),
    "eta negative": ([*FIT, "--model.algorithm.eta=-1"], "eta must be .* above 0, but it is -1"),
    "eta adaptive by gradients": (
        [*FIT, *GRADIENT, "--model.algorithm.eta", "adaptive"],
        r'NashMP with eta "adaptive" .*set model\.realisation to ClosedForm.* a number or null$',
    ),
    "eta adaptive with an average": (
        [*FIT, "--model.algorithm.eta", "adaptive", "--model.algorithm.kappa", "0.5"],
        "leave kappa at 1, not 0.5",
    ),
    "eta adaptive of others": (
        [*FIT, "--model.algorithm", "NashMD", "--model.algorithm.eta", "adaptive"],
        "eta: expected a number or null, but got 'adaptive'",
    ),
    "eta adaptive on two queries": (
        [*FIT, "--model.algorithm.eta", "adaptive", CALLBACK, "Budget", f"{CALLBACK}.queries", "2"],
        "the budget is of 2 queries for each prompt, but a round takes 3",
    ),
    "eta text": ([*FIT, "--model.algorithm.eta", "much"], r"eta: expected a number or 'adaptive' or null.*'much'"),
    "eta beta above 1": (
        [*FIT, "--model.algorithm", "NashMD", "--model.algorithm.eta", "50"],
        r"eta \* beta <= 1, but eta is 50.0 and beta is 0.1",
    ),
    "inner steps 0": ([*FIT, "--model.algorithm.inner_steps", "0"], "inner_steps .* least 1"),
    "kappa above 1": ([*FIT, "--model.algorithm.kappa", "2"], "kappa must lie between 0 and 1"),
    "beta 0": ([*FIT, "--model.beta", "0"], r"beta must be .* above 0, but model\.beta is 0"),
    "beta negative": ([*FIT, "--model.beta=-1"], r"beta must be .* above 0"),
    "beta nan": ([*FIT, "--model.beta", ".nan"], r"beta must be a finite number.* nan"),
    "beta infinite": ([*FIT, "--model.beta", ".inf"], "beta must be a finite number.* inf"),
    "beta text": ([*FIT, "--model.beta", "warm"], r"--model\.beta: expected a number.* 'warm'"),
    "closed form of MLP": ([*FIT, "--model.policy", "MLPPolicy"], "needs a TabularPolicy, not MLP"),
    "closed form of DPO": ([*FIT, "--model.algorithm", "OnlineDPO"], "OnlineDPO has no closed form"),
    "closed form of samples": ([*FIT, *SAMPLE], "closed form has no samples: set model.rollout"),
    "closed form of embeddings": ([*FIT, "--model.oracle", "EmbeddingOracle"], "EmbeddingOracle"),
    "closed form of labels": (
        [*FIT, "--model.oracle", "BernoulliLabels", "--model.oracle.oracle", "Comal"],
        "BernoulliLabels does not: set model.realisation to GradientSteps",
    ),
    "closed form in part": ([*FIT, "--data.batch_size", "5"], "all prompts at once: set data.batch"),
    "closed form in two": ([*FIT, "--trainer.devices", "2"], "one process, not in 2: set trainer.de"),
    "no tokens of a chunk": (
        [*DPO, *SAMPLE, "--model.policy", "CausalLMPolicy", "--model.policy.model", "m", "--model.policy.max_tokens_per_chunk", "0"],
        'max_tokens_per_chunk is null, "auto" or a number of tokens from 1 on, but it is 0',
    ),
    "pairs of one": (
        [*DPO, *SAMPLE, "--model.rollout.num_responses", "1"],
        "OnlineDPO compares responses with each other: set model.rollout.num_responses to 2",
    ),
    "no responses": ([*DPO, *SAMPLE, "--model.rollout.num_responses", "0"], "must be at least 1"),
    "a sampler that is no player": (
        [*DPO, *SAMPLE, "--model.rollout.sampler", "anchor"],
        r"model\.rollout\.sampler names the player 'anchor', but OnlineDPO has policy, reference",
    ),
    "a sampler that sums to .5": (
        [*DPO, *SAMPLE, "--model.rollout.sampler", "{policy: 0.5}"],
        "whose weights are not negative and sum to 1, but it is {'policy': 0.5}",
    ),
    "a greedy response alone": (
        [*DPO, *SAMPLE, "--model.rollout.greedy", "true", "--model.rollout.num_responses", "1"],
        "a greedy response alone leaves all others without support",
    ),
    "a policy gradient on the reference's": (
        [*FIT, *GRADIENT, *SAMPLE, "--model.rollout.sampler", "reference"],
        "NashMP: the policy gradient needs responses of the policy itself.*`sampler`",
    ),
    "no such design": ([*DPO, *SAMPLE, "--model.rollout.pairs", "ring"], "pairs must be all, circle, or regular"),
    "a design misfits": (
        [*DPO, *SAMPLE, "--model.rollout.pairs", "regular(4)"],
        r"does not fit OnlineDPO: each of 4 responses has 3 others.*cannot be regular\(4\)",
    ),
    "an oracle without scores": (
        [*FIT, "--model.algorithm", "REBEL"],
        "REBEL takes scores of single responses, and UniformRandom gives none: set model.oracle",
    ),
    "pairs of scores": (
        [*FIT, *GRADIENT, *SAMPLE, "--model.oracle", "BradleyTerry", "--model.algorithm", "REBEL",
         "--model.rollout.pairs", "circle"],
        "REBEL takes scores .* model.rollout.pairs circle says which pairs are compared",
    ),
    "surrogate misfits": (
        [*FIT, *GRADIENT, "--model.algorithm", "SPPO", "--model.algorithm.surrogate",
         "nlhf_zoo.algorithms.surrogates.policy_gradient"],
        "SPPO: the policy gradient needs responses of the policy itself",
    ),
    "surrogate without pairs": (
        [*FIT, *GRADIENT, "--model.algorithm.surrogate", "nlhf_zoo.algorithms.surrogates.logistic"],
        "NashMP: the logistic loss compares responses with each other",
    ),
    "surrogate unknown": ([*FIT, "--model.algorithm.surrogate", "nlhf_zoo.none"], "surrogate"),
    "surrogate of another kind": (
        [*FIT, "--model.algorithm.surrogate", "os.getcwd"],
        r"algorithm\.surrogate: os.getcwd must be a class below Tensor, or a function that is annota",
    ),
    "surrogate with options": (
        [*FIT, "--model.algorithm.surrogate", MKDIR],
        "surrogate: os.mkdir is a function, which takes no options: give its name alone",
    ),
    "surrogate of no tensor": (
        [*FIT, *GRADIENT, "--model.algorithm.surrogate", "own.mean"],
        r"NashMP: the loss of one prompt must be a tensor \[1\], but it is shape \[\]",
    ),
    "optimizer with options": (
        [*DPO, "--model.optimizer", MKDIR], "optimizer: os.mkdir is a function, which takes no opt",
    ),
    "optimizer of another kind": (
        [*DPO, "--model.optimizer", "own.nothing"],
        "own.nothing must be a class below Optimizer, or a function that is annotated to return one",
    ),
    "optimizer of no stub": ([*DPO, "--model.optimizer", "builtins.print"], r"model\.optimizer: "),
    "optimizer that is none": (
        [*DPO, "--model.optimizer", "own.no_optimizer"],
        "model.optimizer made None, and not a torch.optim.Optimizer",
    ),
    "optimizer of several calls": (
        [*DPO, "--model.optimizer", "LBFGS"], "computes the loss several times in a step",
    ),
    "optimizer of sparse gradients": (
        [*DPO, "--model.optimizer", "SparseAdam"], "model.optimizer cannot take a step: SparseAdam",
    ),
    "schedule with options": (
        [*DPO, "--model.lr_scheduler", MKDIR], "lr_scheduler: os.mkdir is a function",
    ),
    "schedule that is none": (
        [*DPO, "--model.lr_scheduler", "own.no_schedule"],
        "model.lr_scheduler made 0, and not a schedule",
    ),
    "factors of a schedule": (
        [*DPO, "--model.lr_scheduler", "LambdaLR", "--model.lr_scheduler.lr_lambda", "os.getpid"],
        "lr_lambda: .*getpid must be a function that is annotated to return float",
    ),
    "rule of another kind": (
        [*RULE, "os.execl"], "function: os.execl must be a function that is annotated to return flo",
    ),
    "rule with options": ([*RULE, MKDIR], "function: os.mkdir is a function, which takes no opt"),
    "temperature 0": ([*FIT, "--model.algorithm.opponent.temperature", "0"], "temperature .* above 0"),
    "top_p 2": ([*FIT, "--model.algorithm.opponent.top_p", "2"], "0 < top_p <= 1"),
    "learning rate": ([*DPO, "--model.optimizer.lr=-1"], "optimizer.*[Ii]nvalid learning rate: -1"),
    "rounds_per_step 0": ([*FIT, "--model.realisation.rounds_per_step", "0"], "at least 1, but .* 0"),
    "budget negative": ([*FIT, f"{CALLBACK}+", "Budget", f"{CALLBACK}.rounds=-1"], "budget of rounds"),
    "no end": ([*FIT, CALLBACK, "ExactMetrics"], "nothing would end this run: give it a budget"),
    "empty budget": ([*FIT, CALLBACK, "Budget"], "nothing would end this run"),
    "endless epoch": ([*FIT, CALLBACK, "ExactMetrics", "--trainer.max_epochs", "3"], "nothing would"),
    "every 0": ([*FIT, CALLBACK, "GameCheckpoint", f"{CALLBACK}.every_n_train_steps", "0"], "least 1"),
    "metrics every 0": ([*FIT, CALLBACK, "ExactMetrics", f"{CALLBACK}.every", "0"], "least 1, not 0"),
    "metrics without a table": (
        [*DPO, "--model.oracle", "EmbeddingOracle", *SAMPLE],
        "ExactMetrics needs an oracle that holds its table, and EmbeddingOracle does not",
    ),
    "batch_size 0": ([*FIT, "--data.batch_size", "0"], "batch_size must be at least 1, but it is 0"),
    "batch_size 99": ([*DPO, "--data.batch_size", "99"], "is 99, but the game has 10 prompts only"),
    "unshareable": ([*DPO, "--trainer.devices", "11"], "10 prompts cannot be shared .* 11 processes"),
    "devices 0": ([*FIT, "--trainer.devices", "0"], "devices"),
    "no such accelerator": ([*FIT, "--trainer.accelerator", "abacus"], "abacus"),
    "max_steps": ([*FIT, "--trainer.max_steps=-5"], "max_steps"),
    "precision": ([*FIT, "--trainer.precision", "17"], r"--trainer\.precision: expected .*'17'"),
    "half precision": (
        [*FIT, "--trainer.precision", "bf16-true"],
        "bf16-true would round what is trained: leave it at 32-true, and set the dtype",
    ),
    "seed text": ([*FIT, "--seed_everything", "x"], "--seed_everything: expected .* 'x'"),
    "seed negative": ([*FIT, "--seed_everything=-3"], "--seed_everything: -3 is not in bounds"),
    "dtype of the policy": ([*FIT, "--model.policy.dtype", "float16"], "float16"),
    "dtype of the oracle": ([*FIT, "--model.oracle.dtype", "float16"], r"dtype: .*'float16'"),
    "no games": ([*FIT, "--model.oracle.num_games", "0"], "num_games must be at least 1"),
    "even cycle": ([*FIT, "--model.oracle", "Cyclic", "--model.oracle.num_actions", "4"], "num_actions must be odd"),
    "too large": ([*FIT, "--model.oracle.num_actions", "1000000"], "will not fit in memory"),
    "config missing": (["fit", "--config", "no.yaml"], "--config: File does not exist: .*no.yaml"),
    "config a folder": (["fit", "--config", "folder"], "--config: Path is not a file"),
    "config empty": (["fit", "--config", "empty.yaml"], "--config empty.yaml holds no options"),
    "config a list": (["fit", "--config=list.yaml"], "--config list.yaml holds no options"),
    "config not YAML": (["fit", "--config", "bad.yaml"], "bad.yaml is not YAML: .* in line 2"),
    "config not text": (["fit", "--config", "half.npy"], "half.npy is not text"),
    "accumulate 0": ([*DPO, "--trainer.accumulate_grad_batches", "0"], r"trainer\.accumulate_grad_batches must be at least 1, but it is 0"),
    "accumulate negative": ([*DPO, "--trainer.accumulate_grad_batches=-1"], "must be at least 1, but it is -1"),
    "validate every 0 epochs": ([*DPO, "--trainer.check_val_every_n_epoch", "0"], "check_val_every_n_epoch must be at le"),
    "validate every 0 batches": ([*DPO, "--trainer.val_check_interval", "0"], "val_check_interval must be above 0, but it is 0"),
    "clip negative": ([*DPO, "--trainer.gradient_clip_val=-1"], r"gradient_clip_val must be at least 0, but it is -1"),
    "clip nan": ([*DPO, "--trainer.gradient_clip_val=.nan"], "gradient_clip_val must be at least 0, but it is nan"),
    "batches negative": ([*DPO, "--trainer.limit_val_batches=-1"], "limit_val_batches must be at least 0"),
    "log every negative": ([*DPO, "--trainer.log_every_n_steps=-1"], "log_every_n_steps must be at least 0"),
    "a billion devices": ([*DPO, "--trainer.devices", "1000000000"], "devices must be at most 4096"),
    "no nodes": ([*DPO, "--trainer.num_nodes", "0"], "num_nodes must be at least 1"),
    "two nodes": ([*DPO, "--trainer.num_nodes", "2"], "num_nodes is 2, but nothing says where the others are: set MASTER_ADDR"),
    "max_steps 0": ([*FIT, "--trainer.max_steps", "0"], r"trainer\.max_steps is 0, so that nothing would be played"),
    "max_epochs 0": ([*FIT, "--trainer.max_epochs", "0"], r"max_epochs is 0, so that nothing would be played"),
    "no batches": ([*FIT, "--trainer.limit_train_batches", "0"], "limit_train_batches is 0, so that nothing"),
    "budget of no rounds": ([*FIT, CALLBACK, "Budget", f"{CALLBACK}.rounds", "0"], "budget is of 0 rounds, so that nothing would be"),
    "budget below a round": ([*FIT, CALLBACK, "Budget", f"{CALLBACK}.queries", "1"], "1 queries for each prompt, but a round takes 2, so"),
    "learning rate 0": ([*DPO, "--model.optimizer.lr", "0"], "learning rate of model.optimizer is 0: nothing would be learnt"),
    "schedule that ends": (
        [*DPO, "--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr=1", "--model.lr_scheduler.total_steps=10"],
        r"model\.lr_scheduler fails in step \d+ of the run: Tried to step 11 times",
    ),
    "schedule of steps of 0": (
        [*DPO, "--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "0"],
        r"model\.lr_scheduler fails in step 1 of the run: integer modulo by zero",
    ),
    "inner steps without end": ([*FIT, "--model.algorithm.inner_steps", "1000000000"], "inner_steps must be at most 1,000,000"),
    "a billion responses": ([*DPO, *SAMPLE, "--model.rollout.num_responses", "1000000000"], "must be at most 4096"),
    "name outside": ([*FIT, "--trainer.logger.name", "../../x"], r"logger\.name '../../x' leads out of save_dir"),
    "name absolute": ([*FIT, "--trainer.logger.name", "/tmp/x"], r"logger\.name '/tmp/x' leads out of save_dir"),
    "version outside": ([*FIT, "--trainer.logger.version", "../../../x"], r"logger\.version .* leads out of save_dir"),
    "name of a NUL": ([*FIT, "--trainer.logger.name", "a\0b"], "a name of a file holds a NUL character: write it without"),
    "name too long": ([*FIT, "--trainer.logger.name", 300 * "a"], "cannot be the name of a folder: give a shorter"),
    "ckpt_path empty": ([*FIT, "--ckpt_path="], "ckpt_path is empty: give a checkpoint"),
    "null for a number": ([*FIT, "--model.beta", "null"], "beta is null, but must be a number: leave it out"),
    "null for a whole number": ([*DPO, *SAMPLE, "--model.rollout.num_opponents", "null"], "num_opponents is null, but must be a whole number"),
    "null for arguments": ([*FIT, "--model.rollout", "{class_path: Sample, init_args: null}"], "rollout: expected the name of a class, or a mapping"),
    "a truth for a part": ([*FIT, "--config", "truth.yaml"], r"model\.algorithm: expected the name of a class, or a mapping"),
    "beta too small": ([*FIT, "--model.beta", "1e-300"], "beta must lie between 1e-09 and 1e.09"),
    "option before its file": (["fit", "--model.beta", "0.2", *FIT[1:]], r"--model\.beta stands before --config .*, which sets it, too"),
    "model before its file": (["fit", "--model", "own.Mine", *FIT[1:]], "--model stands before --config .*: give it behind"),
    "word like an option": ([*FIT, "--modle.beta", "1"], "unrecognized arguments: --modle.*, did you mean 'model'"),
    "matrix of a long name": ([*MATRIX, 300 * "a"], "aaa: File name too long$"),
    "config of an octal number": (["fit", "--config", "octal.yaml"], r"octal\.yaml, line 2: versions of YAML read 010 as different things: write a number without the zero"),
    "config of a base of 60": (["fit", "--config", "sixty.yaml"], r"line 1: versions of YAML read 1:30 as .*write a decimal number, or .1:30. in quotes"),
    "config of a word": (["fit", "--config", "word.yaml"], "line 2: versions of YAML read off as different things: write false, or"),
    "config of a word as a key": (["fit", "--config", "on.yaml"], "line 1: versions of YAML read on as"),
    "config of a key twice": (["fit", "--config", "twice.yaml"], r"twice\.yaml: 'beta' stands twice, again in line 3"),
    "config within itself": (["fit", "--config", "within.yaml"], "a value within itself, by an alias, from line 1 on"),
    "config of a billion": (["fit", "--config", "billion.yaml"], r"holds 2,345,\d+ values, which its aliases repeat"),
    "config too deep": (["fit", "--config", "deep.yaml"], "deep.yaml is nested too deeply"),
    "config that never ends": (["fit", "--config", "/dev/zero"], "--config /dev/zero is a device and no file"),
    "config too large": (["fit", "--config", "large.yaml"], "large.yaml is too large for a configuration"),
    "part of an octal number": ([*FIT, "--model.oracle", "octal.yaml"], r"octal\.yaml, line 2: .*010"),
    "config of a long name": (["fit", "--config", 300 * "a"], "File does not exist|too long"),
    "config unknown key": ([*FIT, "--config", "key.yaml"], "modell"),
    "interpolation": ([*FIT, "--config", "interpolation.yaml"], "interpolation .*nowhere"),
    "ckpt_path missing": ([*FIT, "--ckpt_path", "no.ckpt"], "no.ckpt is no file: give a checkpoint"),
    "ckpt_path a folder": ([*FIT, "--ckpt_path", "folder"], "folder is no file"),
    "ckpt_path last": ([*FIT, "--ckpt_path", "last"], "no run in runs/tabular/nash_mp has a check"),
    "ckpt_path last, no logger": ([*FIT, "--trainer.logger", "false", "--ckpt_path", "last"], "ckpt_path last needs trainer.logger"),
    "ckpt_path no checkpoint": ([*FIT, "--ckpt_path", "key.yaml"], "key.yaml is no checkpoint"),
    "ckpt_path other pickle": ([*FIT, "--ckpt_path", "pickle.npy"], "pickle.npy is no checkpoint"),
    "save_dir a file": ([*FIT, "--trainer.logger.save_dir", "key.yaml"], "key.yaml cannot be written"),
    "save_dir in a file": ([*FIT, "--trainer.logger.save_dir", "key.yaml/x"], "key.yaml/x cannot be w"),
    "save_dir nowhere": ([*FIT, "--trainer.logger.save_dir", "/proc/nlhf"], "/proc/nlhf"),
    "matrix missing": ([*MATRIX, "no.npy"], "matrix no.npy does not exist"),
    "matrix not given": (MATRIX[:-1], "MatrixOracle reads a file: give its path"),
    "matrix a folder": ([*MATRIX, "folder"], "folder is not a file"),
    "matrix without an end": ([*MATRIX, "/dev/zero"], "matrix /dev/zero is not a file"),
    "ckpt_path without an end": ([*FIT, "--ckpt_path", "/dev/zero"], "ckpt_path /dev/zero is no file"),
    "two checkpoints": ([*FIT, CALLBACK + "+", "GameCheckpoint", CALLBACK + ".dirpath", "key.yaml"], "key.yaml cannot be written to"),
    "votes missing": ([*VOTES, "no.csv"], "votes no.csv does not exist"),
    "votes prior": ([*VOTES, "gap.csv", "--model.oracle.prior", "0"], "nobody compared 'a' with 'c'"),
    "reference length": (
        [*REFERENCE, "GivenReference", "--model.policy.reference.probabilities", "[0.5, 0.5]"],
        r"shape \[2\], but the game has 10 prompts of 10 actions",
    ),
    "reference sum": (
        [*FIT, "--model.oracle", "Comal", "--model.policy.reference", "GivenReference",
         "--model.policy.reference.probabilities", "[0.5, 0.4, 0.05]"],
        "must sum to 1 over the actions, but sums to 0.95",
    ),
    "reference zero": (
        [*FIT, "--model.oracle", "Comal", "--model.policy.reference", "GivenReference",
         "--model.policy.reference.probabilities", "[0.5, 0.5, 0.0]"],
        "must be above 0 for every action",
    ),
    "reference file": ([*REFERENCE, "FileReference", "--model.policy.reference.path", "no.npy"], "reference no.npy does not exist"),
    "strategy that shards a table": ([*FIT, *GRADIENT, "--trainer.strategy", "fsdp2"], "a TabularPolicy is none: set trainer.strategy to ddp$"),
    "strategy fsdp": ([*FIT, "--trainer.strategy", "fsdp"], "strategy fsdp keeps .* set it to fsdp2, which shards them too, or to ddp$"),
    "strategy deepspeed": ([*FIT, "--trainer.strategy", "deepspeed_stage_3"], "strategy deepspeed_stage_3 keeps .* to fsdp2"),
    "strategy that shards nothing": ([*FIT, "--trainer.strategy", "lightning.pytorch.strategies.ModelParallelStrategy"], "strategy ModelParallelStrategy keeps .* to fsdp2"),
    "validate, unknown option": (["validate", *FIT[1:], "--nonsense", "1"], "nonsense"),
    "from-trl of no file": (["from-trl", "no.json"], r"there is no file no\.json$"),
    "init, nobody to ask": (["init"], "--have is missing, and there is no terminal to ask at"),
    "init over a file": (["init", "--have", "votes", "--output", "key.yaml"], "key.yaml is there already: give another"),
    "responses without an oracle": (["solve", "--responses", "own.py"], "give --oracle CLASS|own.py"),
    "responses and no such oracle": (["solve", "--responses", "a", "--oracle", "RuleOracel"], "no class 'RuleOracel': choose one of"),
    "report of no run": (["report", "folder"], "folder has no config.yaml, which every run has: give the folder that"),
    "validate, no checkpoint": (["validate", *FIT[1:], "--ckpt_path", "last"], "no run in runs/"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with every fault."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "folder").mkdir()
    texts = {
        "empty.yaml": "",
        "list.yaml": "- 1\n- 2\n",
        "bad.yaml": "a: [1,\n b: }\n",
        "key.yaml": "modell: 1\n",
        "interpolation.yaml": "model:\n  init_args:\n    beta: ${nowhere.x}\n",
        "own.py": OWN,
        "truth.yaml": "model: {init_args: {algorithm: true}}\n",
        "octal.yaml": "class_path: UniformRandom\ninit_args: {num_games: 010}\n",
        "sixty.yaml": "trainer: {max_time: 1:30}\n",
        "word.yaml": "trainer:\n  logger: off\n",
        "on.yaml": "trainer: {on: 1}\n",
        "twice.yaml": "model:\n  beta: 1\n  beta: 2\n",
        "within.yaml": "a: &a [*a]\n",
        "billion.yaml": "a0: &a0 [x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, 7)),
        "deep.yaml": 2000 * "[" + 2000 * "]",
        "large.yaml": "a: " + 10_000_000 * "x",
        "gap.csv": "winner,loser\na,b\nc,d\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    np.save(folder / "half.npy", np.full((2, 2), 0.5))
    np.save(folder / "pickle.npy", np.array([{}, "x"], dtype=object))
    return folder


@pytest.mark.parametrize("kind", FITS)
def test_one_sentence_on_standard_error_and_nothing_written(kind: str, folder: Path):
    args, sentence = FITS[kind]
    before = sorted(folder.rglob("*"))
    run = nlhf(*args, folder=folder)
    assert run.code == 2, run
    assert run.out == ""
    assert re.fullmatch(r"nlhf: error: [^\n]+\n", run.err), run.err
    assert len(run.err) < 600  # which lists all oracles
    assert not re.search(r"Traceback|usage:|Union subtypes|Namespace|<class|NestedArg", run.err)
    assert re.search(sentence, run.err.strip()), run.err
    assert sorted(folder.rglob("*")) == before


def test_what_is_refused_is_only_what_is_wrong(folder: Path):
    """The file that the refusals start from is a good one."""
    run = nlhf(*FIT, "--trainer.fast_dev_run", "true", folder=folder)
    assert run.code == 0, run.err
