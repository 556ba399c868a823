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

.DEFAULT_GOAL := help
.PHONY: help gradcheck test lint clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'ARGS="…" is passed on, PYTHON= and VENV= choose the interpreter and the environment.'

gradcheck: $(ENVIRONMENT)  ## Check the gradients of every operation, in every configuration
	$(BIN)/python cli.py gradcheck $(ARGS)

test: $(ENVIRONMENT)  ## Run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(LINTERS)  ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:  ## Delete what the other targets made, the environment too
	@test ! -e $(ENVIRONMENT) || rm -rf $(VENV)
	rm -rf .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find gradcheck tinygrad_bn tests -name __pycache__ -prune -exec rm -rf {} +

$(ENVIRONMENT): pyproject.toml
	@for python in $(PYTHON); do \
	    if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Installing in $(VENV) with $$($$python --version); the first time this takes a minute or two." >&2; \
	        exec $$python -m venv $(VENV); \
	    fi; \
	done; \
	echo "No Python 3.11 or newer that has ensurepip (tried: $(PYTHON))." >&2; \
	echo "Install one (on Debian and Ubuntu python3 and python3-venv), or say: make PYTHON=/path/to/python" >&2; \
	exit 1
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --editable ".[data,report]" --group test
	@touch $@

$(LINTERS): $(ENVIRONMENT)
	@$(BIN)/python -m pip install --quiet --group lint
	@touch $@
