# Every target makes the virtual environment when it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test slow check format
quickstart: $(INSTALLED)  ## sample -> three arms -> evaluation -> comparison -> registry -> report, in quickstart/
	$(VENV)/bin/hbt-ray quickstart --out quickstart

test: $(INSTALLED)  ## everything but the slow tests
	$(VENV)/bin/python -m pytest

slow: $(INSTALLED)  ## the tests that take minutes
	$(VENV)/bin/python -m pytest -m slow

check: $(INSTALLED)  ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(INSTALLED)  ## rewrite in the project's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e '.[cpu,dev]' -c constraints.txt
	touch $(INSTALLED)
