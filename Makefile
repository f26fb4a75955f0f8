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

nightly: $(INSTALLED)  ## what takes longer than a change should wait for: properties with 2,000 examples, all of ModeBench
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/test_*.py tests/kernels tests/tasks
	$(BIN)/python -m benchmarks.diversity --arms all
	$(BIN)/python benchmarks/compiled_kernels.py build/kernels-compiled.json
	for preset in graph small large hard countdown4 confirm single; do \
		$(BIN)/python -m benchmarks.diversity --preset $$preset || exit 1; \
	done
	$(BIN)/python -m benchmarks.diversity --preset noted --arms dr_grpo raft none_0 full_0 answer_keys
	$(BIN)/python -m benchmarks.diversity --preset graph_confirm \
		--arms grpo dr_grpo entropy_low raft maxrl tpo xdr xdr_mild full_0 full_0_fast passes_2 raft_full
	$(BIN)/python -m benchmarks.diversity --preset graph_long --arms dr_grpo full_0
	$(BIN)/python -m benchmarks.diversity.across

bench: $(PEERS)  ## time the kernels against their peers; JSON, table and chart in benchmarks/results
	$(BIN)/python benchmarks/kernels.py $(ARGS)

study: $(INSTALLED)  ## ModeBench's core study, resumable (about 100 minutes on 2 cores); tables in benchmarks/diversity/results
	$(BIN)/python -m benchmarks.diversity $(ARGS)

study-smoke: $(INSTALLED)  ## ModeBench with 3 methods and one seed, in minutes
	$(BIN)/python -m benchmarks.diversity --preset smoke --arms dr_grpo maxent full_0 \
		--results runs/diversity/smoke/results $(ARGS)

$(PEERS): $(INSTALLED)
	$(BIN)/pip install --quiet --editable ".[bench]"
	touch $@

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the import hook of an editable install, so it is shown the two source folders as the one
# package that they are when installed.
types: $(INSTALLED)  ## mypy --strict on the package and the adapters
	rm -rf $(TYPES) && mkdir -p $(TYPES)/maxent_grpo
	ln -s $(CURDIR)/maxent_grpo/* $(TYPES)/maxent_grpo/
	ln -s $(CURDIR)/adapters $(TYPES)/maxent_grpo/adapters
	MYPYPATH=$(TYPES) $(BIN)/mypy --config-file pyproject.toml -p maxent_grpo

clean:  ## remove the environment, builds and runs
	rm -rf $(VENV) build dist runs *.egg-info
