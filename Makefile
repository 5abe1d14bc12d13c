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
	HEIMDALL_BENCH=full $(BIN)/pytest -m benchmark tests/benchmarks -s --timeout 900 $(ARGS)

.PHONY: bench-short
bench-short: $(INSTALLED)  ## Each measurement once and small: shows that it works, not how fast
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m benchmark tests/benchmarks -q --timeout 300 $(ARGS)

.PHONY: docs
docs: $(INSTALLED)  ## Write the configuration reference from the declarations
	$(BIN)/python -m heimdall.training.reference

.PHONY: test-stack
test-stack: $(INSTALLED)  ## Bring the real stack up in Docker and try everything on it
	@docker info >/dev/null 2>&1 || { echo "test-stack: no Docker engine answers; start Docker, or set DOCKER_HOST." >&2; exit 69; }
	scripts/install-chromium
	$(BIN)/pytest -m stack tests/stack $(ARGS)

.PHONY: env
env:  ## Write .env with random secrets
	@scripts/make-env

.PHONY: up
up:  ## Start the stack and a training job (with the GPU where there is one)
	@scripts/up $(ARGS)

.PHONY: down
down:  ## Stop the stack; what it kept stays in its volumes
	docker compose down $(ARGS)

.PHONY: logs
logs:  ## Follow the training job (ARGS=mlflow for another service)
	docker compose logs --follow $(or $(ARGS),training)

.PHONY: psql
psql:  ## A PostgreSQL prompt in the stack's database
	docker compose exec postgres sh -c 'PGPASSWORD=$$POSTGRES_PASSWORD exec psql -h 127.0.0.1 -U "$$POSTGRES_USER" "$$POSTGRES_DB"'

.PHONY: ui
ui:  ## The MLflow UI: the stack's where it runs, else on the runs kept here
	@address=$$(docker compose port mlflow 5000 2>/dev/null); \
	if [ -n "$$address" ]; then echo "The stack's MLflow: http://$$address"; \
	else $(MAKE) --no-print-directory $(INSTALLED) && $(BIN)/heimdall ui; fi
