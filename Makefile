# Every habit is one word; CI runs the same words. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=

.PHONY: help
help:  ## This list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 16

$(INSTALLED): services/training/pyproject.toml services/training/constraints.txt
	@echo "Setting up $(VENV): a few minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar off -c services/training/constraints.txt -e 'services/training[dev]'
	@touch $@

.PHONY: setup
setup: $(INSTALLED)  ## Make .venv with everything, pinned by constraints.txt

.PHONY: train
train: $(INSTALLED)  ## Train the localization network on simulated recordings (ARGS="--epochs 5 …")
	$(BIN)/heimdall train localization --config examples/quick.toml $(ARGS)

.PHONY: lint
lint: $(INSTALLED)  ## ruff, mypy strict, import walls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(INSTALLED)  ## Put the code into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test
test: lint  ## lint, then all tests with a real PostgreSQL and a real S3 server
	$(BIN)/pytest -n 2 --dist loadgroup -m "not stack and not benchmark" $(ARGS)

.PHONY: bench
bench: $(INSTALLED)  ## All measurements, as ratios side by side
	$(BIN)/pytest -m benchmark tests/benchmarks -s $(ARGS)

.PHONY: ui
ui: $(INSTALLED)  ## The MLflow UI on the runs kept here
	$(BIN)/heimdall ui
