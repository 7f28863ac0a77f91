# The front door: two commands for everybody, the rest for who works on hpcdl.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHON

# Four ranks need four devices: on a machine with a GPU or two the example runs on the CPU all the same.
QUEUE := $(if $(wildcard /dev/nvidia0 /dev/kfd),--set resources.queue=cpu)

# What runs on Slurm mostly waits for Slurm's own clock: one process does that, another everything else.
BESIDE := --numprocesses=2

.DEFAULT_GOAL := help
.PHONY: help quickstart test coverage check lint quick clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST)

quickstart: $(VENV)/.engine  ## install into .venv, then plan, launch and train a small model on this machine
	@echo; echo "\$$ hpcdl plan examples/quickstart.yaml $(QUEUE)"; echo
	@$(BIN)/hpcdl plan examples/quickstart.yaml $(QUEUE)
	@echo; echo "\$$ hpcdl submit examples/quickstart.yaml --follow $(QUEUE)"; echo
	@$(BIN)/hpcdl submit examples/quickstart.yaml --follow $(QUEUE)
	@echo; echo "hpcdl is in $(BIN); to type it as above: source $(BIN)/activate"

test: $(VENV)/.test  ## install what the tests need, a real Slurm and shellcheck included where apt can, and run them all
	@scripts/tools.sh
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -m "slow or not slow" $(BESIDE)

coverage: $(VENV)/.test  ## all tests with their lines counted, which takes half as long again; below 90 % it fails
	$(BIN)/python -m pytest -m "slow or not slow" $(BESIDE) --cov --cov-report=term:skip-covered

quick: $(VENV)/.test  ## all tests but the slow ones and those with Slurm or MPI
	$(BIN)/python -m pytest -m "not slow and not slurm and not mpi" $(BESIDE)

check: lint quick  ## what to run before a commit

lint: $(VENV)/.test  ## style, types, layers, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

clean:  ## remove what the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage

$(VENV)/.engine: pyproject.toml constraints.txt scripts/venv.sh
	@scripts/venv.sh $(VENV) engine
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt scripts/venv.sh
	@scripts/venv.sh $(VENV) engine,mpi,test
	@touch $@ $(VENV)/.engine
