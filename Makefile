# Everything runs in a virtual environment that the first target makes: .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint format

demo: $(INSTALLED)  ## real speech to tokens and back: demo/out.wav and demo/out.png
	$(BIN)/python examples/demo.py

test: lint  ## minutes: small configurations, and one full-size comparison with the original for each family
	$(BIN)/pytest -n auto

test-slow: $(INSTALLED)  ## the rest: all presets at full size
	$(BIN)/pytest -n auto -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
