# Everything here needs make and Python >= 3.11 with venv, and nothing else.  What is installed goes into .venv.
#
#   make demo    install, and run the main example
#   make test    install with the tests' needs, and run all tests (ARGS="-k name" chooses; SIDE_BY_SIDE= one at a time)
#   make bench   install, and print the table of benchmarks
#   make lint    ruff, mypy and the import contract
#   make clean   remove .venv and what tools left behind

SHELL := /bin/sh
.SUFFIXES:
.DELETE_ON_ERROR:
.PHONY: demo test bench lint clean

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
# Most tests wait for processes most of the time.  A file's tests stay together: some count all children of their process.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder
RUN := PATH="$(BIN):$$PATH"
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

demo: $(VENV)/.demo
	$(RUN) $(BIN)/python examples/hello_affinity.py

test: $(VENV)/.test
	$(RUN) $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

bench: $(VENV)/.demo
	$(RUN) $(BIN)/python bench/run.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check balsamfut tests examples bench
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf "$(VENV)" build dist balsamfut.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per set of extras: nothing is installed again until pyproject.toml changes.
$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "installing balsamfut and what the examples need into .venv"
	@$(PIP) install -e ".[examples]"
	@touch "$@"

$(VENV)/.test: $(VENV)/.made pyproject.toml
	@echo "installing balsamfut and what the tests need into .venv"
	@$(PIP) install -e ".[test,examples,postgres]"
	@touch "$@"

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@echo "installing balsamfut and what the checks need into .venv"
	@$(PIP) install -e ".[dev,postgres]"
	@touch "$@"

# PYTHON=/path/to/python chooses one.  Debian's python3 without python3-venv makes a venv without pip, so pip is asked for.
$(VENV)/.made:
	@for python in "$(PYTHON)" python3.13 python3.12 python3.11 python3 python; do \
	    test -n "$$python" && command -v "$$python" >/dev/null 2>&1 || continue; \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    found="$$found $$python"; \
	    rm -rf "$(VENV)"; \
	    "$$python" -m venv "$(VENV)" >/dev/null 2>&1 && $(PIP) --version >/dev/null 2>&1 \
	        && touch "$@" && exit 0; \
	done; \
	rm -rf "$(VENV)"; \
	if test -n "$$found"; then \
	    echo "balsamfut: none of$$found can make a virtual environment with pip;" \
	         "install the venv module (Debian and Ubuntu: apt install python3-venv)" >&2; \
	else \
	    echo "balsamfut needs Python 3.11 or newer and found none on PATH;" \
	         "install one, or say where it is: make PYTHON=/path/to/python3.11" >&2; \
	fi; \
	exit 1
