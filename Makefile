# The only commands to learn. `make demo` and `make test` set everything up by themselves.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := benchmarks/.peers
JOBS ?= 2

# Else each of the hundreds of processes that tests start compiles all our modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check format protos peers clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP) ## create .venv and install everything, with development tools

# torch comes first and by its exact version: where a build without CUDA lies on disk or is
# configured for pip, it is taken, and nothing after it pulls another.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV): about 2.8 GB, five to fifteen minutes, mostly without a word"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[full,demo,finetune,postgres,s3]" --group dev --group gen
	touch $(STAMP)

demo: $(STAMP) ## run a whole federation on this machine, measured (about five minutes)
	$(BIN)/tapestry demo

test: $(STAMP) ## run all tests, JOBS=2 at a time
	$(BIN)/python -m pytest --numprocesses $(JOBS)

check: $(STAMP) ## what CI runs before the tests: format, lint, types, imports, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/python protos/generate.py --check

format: $(STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

protos: $(STAMP) ## generate tapestry/v1 from protos/
	$(BIN)/python protos/generate.py

# The frameworks that we measure beside ours. Each has an environment of its own: what they pin
# (typer, rich, packaging, protobuf) conflicts with constraints.txt and with one another.
peers: $(PEERS)/flower/.installed $(PEERS)/flare/.installed ## install what benchmarks compare with

$(PEERS)/flower/.installed: PACKAGE := flwr==1.42.0
$(PEERS)/flare/.installed: PACKAGE := nvflare==2.9.0
$(PEERS)/%/.installed: Makefile
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet "$(PACKAGE)"
	touch $@

clean: ## remove the environment and caches
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist
