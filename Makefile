# make serve and make test set up all that they need; Python 3.11 or later, no docker, no GPU.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: serve test lint format export deploy-check image dist clean help

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

deploy-check: .venv-deploy/tools  ## validate images, compose, manifests, rules and workflows: no docker, no cluster
	PATH=$(CURDIR)/.venv-deploy/bin:$$PATH .venv-deploy/bin/pytest tests/deploy tests/test_compose.py

image:  ## build the gateway's image
	docker build --file gateway/Dockerfile --tag referent-gateway .

dist: .venv-deploy/tools  ## the wheel and the rendered manifests of a release into dist/
	.venv-deploy/bin/pip wheel --quiet --no-deps --wheel-dir dist .
	for overlay in cpu gpu; do \
		PATH=$(CURDIR)/.venv-deploy/bin:$$PATH kubectl kustomize deploy/kubernetes/overlays/$$overlay >dist/$$overlay.yaml || exit 1; \
	done

clean:  ## remove the virtual environment and caches
	rm -rf .venv .venv-deploy .mypy_cache .pytest_cache .ruff_cache .hypothesis

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

# checkov pins much, so it lives apart
.venv-deploy/tools: pyproject.toml deploy/tools.sh
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/pip install --quiet --editable '.[gateway,local,deploy]'
	$(PYTHON) -m venv .venv-deploy/checkov
	.venv-deploy/checkov/bin/pip install --quiet checkov==3.3.30
	ln -sf ../checkov/bin/checkov .venv-deploy/bin/checkov
	deploy/tools.sh .venv-deploy
	touch $@
