# Every target makes the virtual environment when it is missing or older than what it is made from.
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV := .venv
INSTALLED := $(VENV)/.installed

AUDIT ?= yes

.PHONY: quickstart test slow check audit no format
quickstart: $(INSTALLED)  ## sample -> three arms -> evaluation -> comparison -> registry -> report, in quickstart/
	$(VENV)/bin/hbt-ray quickstart --out quickstart

test: $(INSTALLED)  ## everything but the slow tests, a file at a time on each of two cores
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(INSTALLED)  ## the tests that take minutes; beside them those with servers of their own, which mostly wait
	$(VENV)/bin/python -m pytest --timeout 600 -m "slow and servers" 2>&1 | sed -u "s/^/servers: /" & servers=$$!; \
	$(VENV)/bin/python -m pytest --timeout 600 -m "slow and not servers"; others=$$?; \
	wait $$servers && exit $$others

check: $(INSTALLED) $(AUDIT:yes=audit)  ## lint, format, types, audit; AUDIT=no where the package index tells of no vulnerabilities
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

audit: $(INSTALLED)  ## known vulnerabilities of the pinned dependencies; one that could not be looked up is an error
	$(VENV)/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt --vulnerability-service pypi --progress-spinner off

no:
	@echo "the dependencies were NOT audited (AUDIT=no)"

format: $(INSTALLED)  ## rewrite in the project's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e '.[cpu,dev]' -c constraints.txt
	touch $(INSTALLED)
