# Two targets to begin with: make demo, make test. `make help` lists the rest.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_UPDATE_DOWNLOAD_COUNTS := false
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION := false
export PREFECT_RESULTS_DEFAULT_SERIALIZER := json
# dvc and the stages it runs must find this environment's python
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install demo test faults lint bench up down mlflow report clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-9s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv and install the pinned lock

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## raw text to a registered model in minutes, on a CPU, offline
	@$(BIN)/phasewise demo

test: $(INSTALLED) ## the whole test suite
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: $(INSTALLED) ## what takes minutes: fifty random kills, a server gone for good, a queue
	$(BIN)/python -m pytest -m faults

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(INSTALLED) ## speed and memory beside other libraries, as ratios (a quarter of an hour)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev,bench]'
	$(BIN)/python -m bench

up: $(INSTALLED) ## Prefect server and worker on localhost, with the recipe's deployments
	@$(BIN)/python -m flows.up

down: $(INSTALLED) ## stop just these two
	@$(BIN)/python -m flows.down

mlflow: $(INSTALLED) ## the MLflow UI on localhost:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 \
		--workers 1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

clean: ## remove what the pipeline made (DVC's cache and the registry stay)
	rm -rf data runs checkpoints metrics exports evaluation reports dvc_plots
