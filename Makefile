# make serve and make test set up all that they need; Python 3.11 or later, no docker, no GPU.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: serve test lint format export bench perf-analyzer clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

serve: .venv/serving  ## run Triton and the gateway with the models of model_repository/
	$(BIN)/referent serve

test: .venv/development  ## all tests, with the real Triton
	$(BIN)/pytest

lint: .venv/development  ## formatting, rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/development  ## put the sources into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

export: .venv/development  ## publish CHECKPOINT=directory as NAME=mini into model_repository/
	$(BIN)/python -m export $(CHECKPOINT) --name $(or $(NAME),mini)

bench: .venv/benchmarks  ## measure every goal of the design in a short run; BENCH='--checkpoint DIR' for trained peers
	$(BIN)/python -m benchmarks.goals $(BENCH)

perf-analyzer: .venv/benchmarks  ## install Triton's load tester for python -m benchmarks.perf_analyzer
	$(BIN)/python -m benchmarks.perf_analyzer --install

clean:  ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serving: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[gateway,local]'
	touch $@

# torch first: the version pinned here is the one that the tests were run with
.venv/development: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[gateway,local,export,train,dev]'
	touch $@ .venv/serving

.venv/benchmarks: .venv/development
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@
