# `make demo` and `make test` on a fresh machine: Python 3.11, 3.12 or 3.13 and nothing else.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' 2>/dev/null \
	&& echo "$$python" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# The CUDA build of torch weighs gigabytes: without an NVIDIA GPU the CPU build is taken.
GPU := $(shell command -v nvidia-smi)
CPU_TORCH := torch==2.13.0+cpu
CPU_INDEX := https://download.pytorch.org/whl/cpu
DEMO_OUTPUT ?= runs/demo
DEMO_FLAGS ?=
TESTS ?=
FAULTS ?= 60
SEED ?= 1
WORLDS ?= 1
KINDS ?=
# Threads that spin at barriers slow each other down tenfold where tests start several processes.
export OMP_WAIT_POLICY ?= passive

.PHONY: help demo test test-cluster test-gpu faults lint clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(BIN)/.installed ## render manifests/demo.parquet with the model that ships with the project
	$(BIN)/python -m pipeline submit manifests/demo.parquet --cluster local --output $(DEMO_OUTPUT) $(DEMO_FLAGS)

# A process per core, so one thread each; a process that is done takes tests over from the others.
test: export OMP_NUM_THREADS ?= 1
test: $(BIN)/.installed-for-tests ## every test that runs on this machine alone; TESTS=tests/pab for some
	$(BIN)/python -m pytest -m "not cluster and not gpu" --numprocesses auto --maxprocesses 8 --dist worksteal $(TESTS)

# Two processes, each with a SLURM and an S3 server of its own: most of these tests wait.
test-cluster: $(BIN)/.installed-for-tests ## tests on a real SLURM and a real S3 server (.ci/install-cluster-packages)
	$(BIN)/python -m pytest -m cluster --numprocesses 2 --dist worksteal

test-gpu: $(BIN)/.installed-for-tests ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

faults: $(BIN)/.installed-for-tests ## FAULTS=60 SEED=1 WORLDS=1 KINDS=: random faults in runs on a real SLURM and S3, then the books of every run
	$(BIN)/python -m tests.faults --faults $(FAULTS) --seed $(SEED) --worlds $(WORLDS) $(if $(KINDS),--kinds "$(KINDS)")

lint: $(BIN)/.installed-for-tests ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## remove the environment and what tools leave; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "needs Python 3.11, 3.12 or 3.13 with venv (Debian: apt-get install python3-venv)," \
		"found: $$(python3 --version 2>&1 || true); or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifeq ($(GPU),)
ifeq ($(shell uname -s),Linux)
	# The index of the CPU builds is asked once and not waited for: a copy of the wheel on disk (PIP_FIND_LINKS) will do.
	$(BIN)/pip install --quiet --retries 0 --timeout 5 --extra-index-url $(CPU_INDEX) '$(CPU_TORCH)'
endif
endif
	$(BIN)/pip install --quiet -e .
	touch $@

# Tests load tiny models through the libraries that published weights need.
$(BIN)/.installed-for-tests: $(BIN)/.installed
	$(BIN)/pip install --quiet -e '.[dev,models]'
	touch $@
