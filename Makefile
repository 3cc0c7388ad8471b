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
LANES := cli or ray or vllm or deepspeed or browser or real_data or gpu or thorough or soak

.PHONY: help setup train test fast soak docs lint sbom audit schemas clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: setup ## set up, then train the quickstart policy; ends with what was learned (ARGS='trainer.steps=10' to override)
	$(BIN)/dynframe train $(CONFIG) $(ARGS)

test: setup ## set up, then the whole CPU suite; names each test as it starts and the slowest 15 in the end (ARGS='-k resume')
	$(BIN)/python -m pytest -v -n 2 --durations=15 -m "not soak" $(ARGS)

fast: setup ## the fast lane only, in seconds: no Ray, no vLLM, no DeepSpeed, no browser
	$(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist loadfile -m "not ($(LANES))" $(ARGS)

soak: setup ## the longer campaigns: random faults by the minute, coverage-guided fuzzing, texts of a million characters
	$(BIN)/python -m pytest -v --durations=15 -m soak $(ARGS)

docs: setup ## build the documentation strictly into build/site
	$(BIN)/python docs/build.py $(ARGS)

lint: setup ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

sbom: setup ## a bill of materials of the environment (CycloneDX) into build/sbom.json
	$(BIN)/python -m cluster.sbom build/sbom.json

audit: setup ## known vulnerabilities of the pinned packages, from PyPI's advisories; says so where these are out of reach
	bash cluster/audit.sh build/audit $(BIN)/python

schemas: setup ## cluster/'s files as SkyPilot and Kubernetes read them; says so where these cannot be installed
	bash cluster/schemas.sh build/schemas $(PYTHON)

setup: $(VENV)/ready-$(EXTRA) ## install the pinned dependencies into .venv

$(VENV)/ready-$(EXTRA): cluster/requirements-cpu.txt pyproject.toml cluster/setup.sh
	bash cluster/setup.sh $(VENV) $(EXTRA) $(TORCH) $(PYTHON)
	@touch $@

clean: ## remove the environment and the caches (runs are kept)
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
