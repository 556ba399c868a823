# `make` lists the targets. They need make and Python 3.11 or newer; everything else is installed in $(VENV).

VENV ?= .venv
# The first of these that is new enough makes the environment.
PYTHON ?= python3.13 python3.12 python3.11 python3 python

# Compiled kernels are kept here between runs.
NUMBA_CACHE_DIR ?= $(CURDIR)/.cache/numba
export NUMBA_CACHE_DIR

BIN := $(VENV)/bin
ENVIRONMENT := $(VENV)/.made-for-tests
LINTERS := $(VENV)/.made-for-lint
SIMULATOR := $(VENV)/.made-for-cuda-sim
# An environment of its own: about 1 GB, and numba-cuda takes the place of numba's own CUDA in it.
ASSEMBLER := $(VENV)-ptx/.made-for-cuda-ptx

.DEFAULT_GOAL := help
.PHONY: help gradcheck test test-cuda-sim test-cuda-ptx lint clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'ARGS="…" is passed on, PYTHON= and VENV= choose the interpreter and the environment.'

gradcheck: $(ENVIRONMENT)  ## Check the gradients of every operation, in every configuration
	$(BIN)/python cli.py gradcheck $(ARGS)

test: $(ENVIRONMENT)  ## Run the tests
	$(BIN)/python -m pytest $(ARGS)

test-cuda-sim: $(SIMULATOR)  ## Run the CUDA kernels in numba's simulator, without a GPU
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest -m cuda_sim tests $(ARGS)

test-cuda-ptx: $(ASSEMBLER)  ## Compile the CUDA kernels and look at their machine code, without a GPU
	$(VENV)-ptx/bin/python -m pytest -m cuda_ptx tests $(ARGS)

lint: $(LINTERS)  ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:  ## Delete what the other targets made, the environment too
	@test ! -e $(ENVIRONMENT) || rm -rf $(VENV)
	@test ! -e $(ASSEMBLER) || rm -rf $(VENV)-ptx
	rm -rf .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find gradcheck tinygrad_bn tests -name __pycache__ -prune -exec rm -rf {} +

.PRECIOUS: %/.made-for-tests
%/.made-for-tests: pyproject.toml
	@for python in $(PYTHON); do \
	    if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Installing in $* with $$($$python --version); the first time this takes a minute or two." >&2; \
	        exec $$python -m venv $*; \
	    fi; \
	done; \
	echo "No Python 3.11 or newer that has ensurepip (tried: $(PYTHON))." >&2; \
	echo "Install one (on Debian and Ubuntu python3 and python3-venv), or say: make PYTHON=/path/to/python" >&2; \
	exit 1
	@$*/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	@$*/bin/python -m pip install --quiet --editable ".[data,report]" --group test
	@touch $@

$(LINTERS): $(ENVIRONMENT)
	@$(BIN)/python -m pip install --quiet --group lint
	@touch $@

$(SIMULATOR): $(ENVIRONMENT)
	@$(BIN)/python -m pip install --quiet --editable ".[cuda-sim]"
	@touch $@

%/.made-for-cuda-ptx: %/.made-for-tests
	@$*/bin/python -m pip install --quiet --group ptx
	@touch $@
