# The three commands of the README, and what developers use beside them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install quickstart test test-slow lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	touch $(STAMP)

quickstart: install
	$(BIN)/tilth run quickstart

test: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: install
	HYPOTHESIS_PROFILE=search $(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check . --fix
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/pretrain_loop.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
