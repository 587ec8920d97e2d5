# Every target sets up what it needs. PYTHON chooses the interpreter that creates .venv (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# OpenMP threads that spin while they wait slow small matrices down several times on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: help install test test-quick test-gpu lint types figures figures-quick bounds bounds-quick notebooks bench bench-gpu clean

help:
	@echo "make figures        everything set up, every testbed run made, every figure drawn"
	@echo "make figures-quick  the same at a small scale"
	@echo "make figure-NAME    one figure, such as figure-4; make theory-NAME, make table-NAME: such as theory-mean, table-3"
	@echo "make table-editors  every editor on one stream, in numbers; make figure-editors: as curves, from the same runs"
	@echo "make diagnosis-NAME does the evidence survive its controls: factorial, frontier, transfer, noise, tracking, ..."
	@echo "make bounds         the theorems against exact oracles, one table (bounds-quick: under 90 seconds)"
	@echo "make test           everything set up, all tests"
	@echo "make test-gpu       the tests that need a CUDA device"
	@echo "make notebooks      notebooks/*.py as .ipynb, executed"
	@echo "make bench          speed against the released arithmetic, side by side (bench-gpu: CUDA, 8B size)"
	@echo "make lint types     style, import rules, types"
	@echo "make clean          remove runs and caches (not .venv)"

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,gpu,notebooks,parquet]"
	@touch $@

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

figures: $(READY)
	$(BIN)/python -m figures.build

figures-quick: $(READY)
	$(BIN)/python -m figures.build --quick

figure-%: $(READY)
	$(BIN)/python -m figures.build figure-$*

table-%: $(READY)
	$(BIN)/python -m figures.build table-$*

diagnosis-%: $(READY)
	$(BIN)/python -m figures.build diagnosis-$*

theory-%: $(READY)
	$(BIN)/python -m figures.build theory-$*

bounds: $(READY)
	$(BIN)/stablediag check

bounds-quick: $(READY)
	$(BIN)/stablediag check --quick

notebooks: $(READY)
	for source in notebooks/*.py; do $(BIN)/jupytext --to ipynb --execute $$source || exit 1; done

bench: $(READY)
	$(BIN)/python -m reproduce.bench.bench --size 100m --device cpu --out reproduce/bench/results/cpu.json
	$(BIN)/python -m reproduce.bench.locate --size layer --device cpu --out reproduce/bench/results/locate_cpu.json
	$(BIN)/python -m reproduce.bench.editors --out reproduce/bench/results/editors_cpu.json

bench-gpu: $(READY)
	$(BIN)/python -m reproduce.bench.bench --size 8b --device cuda --out reproduce/bench/results/cuda.json
	$(BIN)/python -m reproduce.bench.locate --size layer --device cuda --out reproduce/bench/results/locate_cuda.json

clean:
	rm -rf runs figures/out .pytest_cache .mypy_cache .ruff_cache build *.egg-info
