# Each target sets up what it needs; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.peers
TYPES := build/types

.PHONY: help setup demo test test-fast nightly bench study study-smoke lint types clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(INSTALLED)  ## create .venv with everything that tests, demo and benchmarks need

# torch first and alone, by its exact version: any other request may pull gigabytes of CUDA packages.
# deepspeed builds against the torch that is there, so without build isolation.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[pipeline,triton,test,dev]"
	$(BIN)/pip install --quiet --no-build-isolation deepspeed==0.19.8
	touch $@

demo: $(INSTALLED)  ## train a small model on Countdown with Dr.GRPO and MaxEnt-GRPO, on a CPU; results in runs/demo
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(INSTALLED)  ## the test suite
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --cov --cov-fail-under=95 $(ARGS)

test-fast: $(INSTALLED)  ## the tests that take no more than a few seconds each
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" $(ARGS)

nightly: $(INSTALLED)  ## what takes longer than a change should wait for: properties with 2,000 examples, the whole study
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/test_*.py tests/kernels tests/tasks
	$(BIN)/python benchmarks/compiled_kernels.py build/kernels-compiled.json
	for preset in cpu graph confirm graph_confirm graph_long single noted hard small large; do \
		$(BIN)/python -m benchmarks.diversity --preset $$preset || exit 1; \
	done

bench: $(PEERS)  ## time the kernels against their peers; JSON, table and chart in benchmarks/results
	$(BIN)/python benchmarks/kernels.py $(ARGS)

study: $(INSTALLED)  ## the diversity study, resumable (hours on 2 cores); tables in benchmarks/diversity/results
	$(BIN)/python -m benchmarks.diversity $(ARGS)

study-smoke: $(INSTALLED)  ## the same with 3 methods and one seed, in minutes
	$(BIN)/python -m benchmarks.diversity --preset smoke --results runs/diversity/smoke/results $(ARGS)

$(PEERS): $(INSTALLED)
	$(BIN)/pip install --quiet --editable ".[bench]"
	touch $@

lint: $(INSTALLED)  ## ruff, what breaks the house style, code that is written twice
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/tools/find_duplicates.py
	$(BIN)/python docs/tools/house_style.py

# mypy does not follow the import hook of an editable install, so it is shown the two source folders as the one
# package that they are when installed.
types: $(INSTALLED)  ## mypy --strict on the package and the adapters
	rm -rf $(TYPES) && mkdir -p $(TYPES)/maxent_grpo
	ln -s $(CURDIR)/maxent_grpo/* $(TYPES)/maxent_grpo/
	ln -s $(CURDIR)/adapters $(TYPES)/maxent_grpo/adapters
	MYPYPATH=$(TYPES) $(BIN)/mypy --config-file pyproject.toml -p maxent_grpo

clean:  ## remove the environment, builds and runs
	rm -rf $(VENV) build dist runs *.egg-info
