# Two commands: `make demo` (the quick start) and `make test` (lint, types, tests). Both set up VENV first.
# `make test-all` also runs the tests marked `exhaustive`: combinations of which `make test` runs one of each, and what takes
# seconds by itself, such as kills, processes, Ray, Slurm and the blocks of the docs.
# What is marked `stress`, combinations of three, is left to `make stress`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo docs test test-all lint stress golden audit setup clean

demo: setup
	$(BIN)/fedbench run --grid
	@echo
	@echo "Open runs/quickstart/report.html in a browser. Then type:"
	@echo "  . $(VENV)/bin/activate"
	@echo "  fedbench run --grid seed=1,2         # two more seeds, so that the table can say which differences are real"
	@echo "  fedbench list                        # what there is to combine; fedbench new strategy mine.py adds to it"

# One thread for each process: tests' tensors are tiny, and more threads than cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4

test: lint
	$(PYTEST) -m "not exhaustive and not stress"

test-all: lint
	$(PYTEST) -m "not stress"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/.
docs: setup
	$(BIN)/python -m mkdocs build --strict

# A run killed twenty times, and one under every fault of disk, memory and processes, must end with the same bits; 100,000
# damaged inputs of each kind must end in a sentence. About an hour; benchmarks/results/stress.md has its tables.
stress: setup
	$(PYTEST) -m stress
	FEDBENCH_KILLS=20 $(BIN)/python -m pytest tests/test_resume.py -k killed
	$(BIN)/python tests/faults/inject.py
	$(BIN)/python tests/faults/fuzz.py --inputs 100000

# After a change that moves numbers on purpose: the losses that tests/test_numerics.py compares with.
golden: setup
	$(BIN)/python tests/golden_losses.py --write

# The tested set of versions against the databases of known vulnerabilities. It needs the network, and no other target
# needs it: pip-audit has an environment of its own. A version that the database does not know is no pass.
AUDIT := .venv-audit
audit: $(AUDIT)/.installed
	@$(AUDIT)/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
	  || { echo "make audit: not passed; above is what is known of a version, or why the database could not tell" >&2; exit 1; }

$(AUDIT)/.installed:
	@$(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet pip-audit \
	  || { echo "make audit: pip-audit could not be installed into $(AUDIT); it needs a package index" >&2; exit 1; }
	@touch $@

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedbench needs Python 3.11 or newer; set PYTHON=...")'
	@echo "Installing into $(VENV): a few minutes and about 6 GB, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(AUDIT) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
