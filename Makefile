# Everything runs from .venv/, which each target completes first.

PYTHON ?= python3
EXTRAS ?= cma,deepspeed,postgres,test
RUNS ?= runs
BENCH_ARGS ?=
TEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

BIN := .venv/bin
REPLORA := $(BIN)/replora
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Named after the content of the two files and the extras, so that a second call costs nothing.
comma := ,
STAMP := .venv/.installed-$(shell cat pyproject.toml constraints.txt | cksum | tr ' ' -)-$(subst $(comma),-,$(EXTRAS))

# One thread a process, unless the caller says otherwise: on a CPU, trials run beside each other on a
# host per core, and a host sets its own number with torch.set_num_threads.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help env sweep test check bench clean

help: ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

env: $(STAMP) ## install what is missing into .venv

# Torch and torchvision come first, as the exact pair of constraints.txt: every torchvision wheel is a
# CUDA build and does not load beside another torch.
$(STAMP): | $(BIN)/python
	@echo "installing into .venv (about 7 GB with torch's CUDA libraries, which CPU machines need too)" >&2
	@$(PIP) install -c constraints.txt $$(grep -E '^(torch|torchvision)==' constraints.txt)
	@$(PIP) install -c constraints.txt -e '.[$(EXTRAS)]'
	@rm -f .venv/.installed-*
	@touch $@

# Debian's python3 comes without ensurepip; pip can then fill the environment from outside.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.11 ..." >&2; \
	  exit 3; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv .venv; \
	else $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip -q --python $(BIN)/python install pip; fi

# Each step goes on with what its folder holds, so giving the command again trains nothing again.
sweep: env ## the main job: grid, Optuna, choice, final run, adapter, check with stock PEFT
	@$(REPLORA) sweep sweeps/spaces/digits-grid.yaml --dir $(RUNS)/digits-grid
	@$(REPLORA) sweep sweeps/spaces/digits-optuna.yaml --dir $(RUNS)/digits-optuna
	@$(REPLORA) best $(RUNS)/digits-grid $(RUNS)/digits-optuna --out $(RUNS)/best.yaml
	@$(REPLORA) train $(RUNS)/best.yaml --dir $(RUNS)/final --test
	@rm -rf $(RUNS)/final-peft
	@$(REPLORA) export $(RUNS)/final --as peft-lora --out $(RUNS)/final-peft
	@$(BIN)/python examples/open_with_peft.py $(RUNS)/final $(RUNS)/final-peft

test: check ## lint, types, layers and the CPU test suite; TEST_ARGS= for one process
	@$(BIN)/python -m pytest $(TEST_ARGS)

check: env ## lint, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Status 3 is a benchmark that needs a GPU where there is none: it says so, and the others go on.
bench: env ## every benchmark; BENCH_ARGS=--quick for a short look
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file" >&2; \
	  $(BIN)/python $$file $(BENCH_ARGS) || test $$? -eq 3; done

clean: ## remove .venv and caches, but no result
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build ./*.egg-info
