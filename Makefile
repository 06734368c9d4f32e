# make serve and make test set up all that they need; Python 3.11 to 3.13, no docker, no GPU.
PYTHON ?= python3
BIN := .venv/bin
PAGE := web/dist/index.html
PLACEHOLDER := registry.example.com/referent-gateway:0.1.0
IMAGE ?= $(PLACEHOLDER)
# the repository's URL, for the wheel's metadata: only the release knows where it is hosted
SOURCE ?=

# three processes, 2 GB of memory each: on two cores, since tests also wait; one runs all tests of a file
# (tests/conftest.py)
WORKERS ?= 3
PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: serve test test-fast test-web lint format docs export bench perf-analyzer deploy-check image-check containers constraints audit image dist pin clean help page chromium web/openapi.json

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

serve: .venv/serving page  ## run Triton, the gateway and the web page with the models of model_repository/
	$(BIN)/referent serve

test: .venv/development  ## all tests, with the real Triton
	$(BIN)/pytest $(PARALLEL)

test-fast: .venv/development  ## the quick tests: no Triton, no export, no training
	$(BIN)/pytest $(PARALLEL) -m "not triton and not slow"

test-web: .venv/development web/node_modules/.testing web/openapi.json chromium $(PAGE)  ## the web page in a real Chromium
	npm --prefix web run --silent check
	npm --prefix web test --silent

lint: .venv/development  ## formatting, rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/development  ## format the sources
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

export: .venv/development  ## publish CHECKPOINT=directory as NAME=mini into model_repository/
	$(BIN)/python -m export $(CHECKPOINT) --name $(or $(NAME),mini)

bench: .venv/benchmarks  ## measure every goal of the design in a short run; BENCH='--checkpoint DIR' for trained peers
	$(BIN)/python -m benchmarks.goals $(BENCH)

perf-analyzer: .venv/benchmarks  ## install Triton's load tester for python -m benchmarks.perf_analyzer
	$(BIN)/python -m benchmarks.perf_analyzer --install

docs: .venv-docs/tools  ## build the documentation into site/; a broken link or a warning fails
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR) .venv-docs/bin/mkdocs build --quiet

deploy-check: .venv-deploy/tools  ## validate images, compose, manifests, rules and workflows: no docker, no cluster
	PATH=$(CURDIR)/.venv-deploy/bin:$$PATH .venv-deploy/bin/pytest tests/deploy tests/system/test_compose.py

image-check: .venv-deploy/tools  ## run images, compose's CPU profile and the pods with podman, as root; CHECK="-k 'not export'" leaves out 5 GB of torch
	deploy/podman.sh
	PATH=$(CURDIR)/.venv-deploy/bin:$$PATH .venv-deploy/bin/pytest tests/containers $(CHECK)

containers:  ## image-check, if podman can be installed, without the export image
	@if deploy/podman.sh; then $(MAKE) image-check CHECK="-k 'not export'" && echo "skipped: the export image and its job"; \
	else echo "skipped: images are not built and no container is run"; fi

constraints: .venv/development  ## write the versions that are installed into constraints.txt
	{ echo "# Versions that make lint and make test last passed with; make constraints writes the file anew."; \
	$(BIN)/pip freeze --exclude-editable | grep -v '^torch==\| @ ' | sed 's/+.*//' | sort -f; } >constraints.txt.new
	mv constraints.txt.new constraints.txt

audit: .venv-audit/bin/pip-audit  ## known vulnerabilities of the packages in the images; asks PyPI
	.venv-audit/bin/pip-audit --requirement gateway/constraints.txt --require-hashes --disable-pip
	.venv-audit/bin/pip-audit --requirement export/constraints.txt --require-hashes --disable-pip

image:  ## build the gateway's image
	docker build --file gateway/Dockerfile --tag referent-gateway .

dist: .venv-deploy/tools  ## the wheel and the rendered manifests of a release into dist/
	rm -rf dist && mkdir -p dist/source
	cp -r LICENSE README.md pyproject.toml referent dist/source
	$(if $(SOURCE),printf '\n[project.urls]\nSource = "%s"\n' '$(SOURCE)' >>dist/source/pyproject.toml)
	.venv-deploy/bin/pip wheel --quiet --no-deps --wheel-dir dist dist/source
	rm -r dist/source
	for overlay in cpu gpu; do \
		PATH=$(CURDIR)/.venv-deploy/bin:$$PATH kubectl kustomize deploy/kubernetes/overlays/$$overlay | sed 's#$(PLACEHOLDER)#$(IMAGE)#' >dist/$$overlay.yaml || exit 1; \
	done

pin:  ## write the digests of the vendors' images beside their tags; asks their registries with docker
	$(PYTHON) deploy/pin.py $(PINNED)

clean:  ## remove the virtual environment and caches
	rm -rf .venv .venv-deploy .venv-docs .venv-audit dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis web/dist web/node_modules web/test-results

# the API works without the page
page:
	@if ! command -v npm >/dev/null; then echo "no npm here: the web page is left out, the API works without it"; \
	else $(MAKE) --silent --no-print-directory $(PAGE) || echo "the web page could not be built: the API works without it"; fi

$(PAGE): web/index.html web/vite.config.ts web/package-lock.json $(wildcard web/src/* tests/samples/*) | web/node_modules/.building
	@echo "building the web page"
	npm --prefix web run --silent build

web/node_modules/.building: web/package-lock.json
	@echo "installing what the web page is built with; the first time takes minutes where the registry is far"
	npm --prefix web ci --silent --omit=dev
	touch $@

web/node_modules/.testing: web/package-lock.json
	npm --prefix web ci --silent
	touch $@ web/node_modules/.building

# what web/src/api.ts is generated from, with npm --prefix web run types
web/openapi.json: .venv/development
	$(BIN)/python -c "import json; from gateway.app import create_app; from gateway.settings import Settings; \
	print(json.dumps(create_app(Settings()).openapi()))" > $@

chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium fonts-inter; } || \
	{ echo "test-web needs a Chromium on the PATH: apt-get install chromium"; exit 1; }

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serving: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[gateway,local]'
	touch $@

# torch first: the version pinned here is the one that the tests were run with
.venv/development: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gateway,local,export,train,demo,dev]'
	touch $@ .venv/serving

.venv-docs/tools: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --editable '.[gateway,triton,docs]'
	touch $@

# checkov pins many packages, so it has a virtual environment of its own
.venv-deploy/tools: pyproject.toml deploy/tools.sh
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/pip install --quiet --editable '.[gateway,local,deploy]'
	$(PYTHON) -m venv .venv-deploy/checkov
	.venv-deploy/checkov/bin/pip install --quiet checkov==3.3.30
	ln -sf ../checkov/bin/checkov .venv-deploy/bin/checkov
	deploy/tools.sh .venv-deploy
	touch $@

.venv-audit/bin/pip-audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit

.venv/benchmarks: .venv/development
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@
