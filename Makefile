# Two commands: `make train` and `make test`. Both set up .venv first if it is missing. `make help` lists the rest.
# CPU by default; `make setup EXTRA=gpu` installs the CUDA builds instead.

SHELL := /bin/bash
.DEFAULT_GOAL := help
EXTRA ?= $(if $(wildcard .venv/ready-gpu),gpu,cpu)
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
CONFIG ?= configs/quickstart.yaml

.PHONY: help setup train test fast docs lint clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: setup ## set up, then train the quickstart policy; ends with what was learned (ARGS='trainer.steps=10' to override)
	$(BIN)/dynframe train $(CONFIG) $(ARGS)

test: setup ## set up, then the whole CPU suite: fast, cli, ray, vllm, deepspeed, browser and real_data lanes
	$(BIN)/python -m pytest $(ARGS)

fast: setup ## the fast lane only: no Ray, no vLLM, no DeepSpeed
	$(BIN)/python -m pytest -m "not cli and not ray and not vllm and not deepspeed and not real_data and not browser and not gpu" $(ARGS)

docs: setup ## build the documentation strictly into build/site
	$(BIN)/python docs/build.py $(ARGS)

lint: setup ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

setup: $(VENV)/ready-$(EXTRA) ## install the pinned dependencies into .venv

$(VENV)/ready-$(EXTRA): cluster/requirements-cpu.txt pyproject.toml cluster/setup.sh
	bash cluster/setup.sh $(VENV) $(EXTRA) $(TORCH) $(PYTHON)
	@touch $@

clean: ## remove the environment and the caches (runs are kept)
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
