# Everything a clone needs, without root, Docker or a GPU. `make help` lists the commands.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

STATE ?= $(or $(REMARQUE_STATE),.remarque)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := $(STATE)/venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export REMARQUE_STATE := $(STATE)
# Tests that wait for services more than they compute; the rest takes every core by itself, and prints what it reached.
SIDE_BY_SIDE := -n 2 --dist loadfile

.PHONY: help demo staging staging-report triton test unit lint bench bench-styles bench-sd15 lock sbom clean
help:  ## This page
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo $(STATE)/.services $(STATE)/models/.built  ## From a message in the queue to a signed picture and its webhooks
	@$(BIN)/python -m demo.run

triton: $(VENV)/.demo $(STATE)/.services $(STATE)/models/.built  ## Triton with the demo checkpoint, until Ctrl-C
	@$(BIN)/python -m local.triton --models $(STATE)/models

staging: $(VENV)/.staging $(STATE)/.services $(STATE)/rooms/.built  ## An empty room in, a furnished room out, by networks of our own
	@$(BIN)/python -m demo.rooms.run

staging-report: $(VENV)/.staging $(STATE)/.services $(STATE)/rooms/.built  ## Thirty rooms staged and scored: report/index.html, minutes
	@$(BIN)/python -m demo.rooms.run --report report

test: $(VENV)/.test $(STATE)/.services $(STATE)/.promtool  ## Lint, types and every test
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest --hypothesis-profile=many $(SIDE_BY_SIDE) tests/unit tests/contract tests/golden tests/integration
	@$(BIN)/python -m pytest --hypothesis-profile=many tests/parity tests/acceptance

unit: $(VENV)/.test  ## The tests that need no service, in seconds
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/unit

lint: $(VENV)/.test  ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(VENV)/.bench $(STATE)/.services $(STATE)/models/.built  ## Every claim as a ratio, in minutes: benchmarks/results
	@$(BIN)/python -m benchmarks.run

bench-styles: $(VENV)/.bench $(STATE)/.services $(STATE)/models/.built  ## Ten styles at once, against one and against diffusers
	@$(BIN)/python -m benchmarks.run --suite styles

bench-sd15: $(VENV)/.bench $(STATE)/.services  ## SD 1.5's full size, random weights: on a machine with 24 GB, in minutes
	@$(BIN)/python -m benchmarks.run --suite sd15

lock: $(VENV)/.test  ## Pin the worker image's libraries again, with their hashes
	@$(PIP) install uv && $(BIN)/uv pip compile -q pyproject.toml --extra traces --extra staging -c constraints.txt --generate-hashes \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --custom-compile-command "make lock" \
	  -o deploy/docker/requirements.txt

sbom: $(VENV)/.test  ## What is in the worker's image, as CycloneDX JSON on stdout
	@$(BIN)/cyclonedx-py requirements deploy/docker/requirements.txt

clean:  ## Forget everything that was installed or built here
	rm -rf $(STATE)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python %d.%d is too old; Remarque needs 3.11 or later: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the orchestrator into $(VENV) ..."
	@$(PIP) install -c constraints.txt -e '.[demo]' && touch $@

$(VENV)/.staging: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the orchestrator with what staging needs into $(VENV) ..."
	@$(PIP) install -c constraints.txt -e '.[demo,staging]' && touch $@ $(VENV)/.demo

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the test and export tools into $(VENV) (torch among them: minutes on a first run) ..."
	@$(PIP) install -c constraints.txt torch==2.13.0 && $(PIP) install -c constraints.txt -e '.[test]' && touch $@ $(VENV)/.demo $(VENV)/.staging

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing diffusers, torch and matplotlib into $(VENV) ..."
	@$(PIP) install -c constraints.txt torch==2.13.0 && $(PIP) install -c constraints.txt -e '.[bench]' && touch $@

$(STATE)/.services: local/environment.py | $(BIN)/python
	@$(BIN)/python -m local.environment && touch $@

$(STATE)/.promtool: local/promtool.py | $(BIN)/python
	@$(BIN)/python -m local.promtool && touch $@

$(STATE)/rooms/.built: $(VENV)/.staging $(shell find demo/rooms/checkpoint demo/rooms/depth demo/rooms/upscaler demo/graphs export model_repository/model.py -type f -not -name '*.pyc' 2>/dev/null)
	@$(BIN)/python export/build_engines.py --checkpoint demo/rooms/checkpoint --runtime onnx --out $(STATE)/rooms \
	  --controlnet depth=demo/rooms/checkpoint/controlnet_depth --controlnet canny=demo/rooms/checkpoint/controlnet_canny \
	  --depth demo/rooms/depth --upscaler demo/rooms/upscaler && touch $@

$(STATE)/models/.built: $(VENV)/.demo $(shell find demo/checkpoint demo/graphs export model_repository/model.py -type f -not -name '*.pyc' 2>/dev/null)
	@$(BIN)/python export/build_engines.py --checkpoint demo/checkpoint --runtime onnx --out $(STATE)/models && touch $@
