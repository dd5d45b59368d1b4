# The same commands for people and for CI. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
PLUGINS := $(wildcard plugins/camkit-*)
BIN := .venv/bin

.PHONY: demo quick test coverage families check fuzz bench clean

# One stamp for the whole set-up: it is redone when a project file changes.
.venv/ready: pyproject.toml $(PLUGINS:%=%/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(PLUGINS:%=--editable ./%)
	touch $@

demo: .venv/ready
	$(BIN)/camkit explain --backend native --out camkit-out

quick: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

coverage: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov

families: .venv/ready
	CAMKIT_FAMILIES=1 $(BIN)/python -m pytest tests/test_families.py -n 2 --dist worksteal

cluster: .venv/ready
	CAMKIT_CLUSTER=1 $(BIN)/python -m pytest plugins/camkit-ray

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz --cases 20000

bench: .venv/ready
	$(BIN)/python -m benchmarks.native && $(BIN)/python -m benchmarks.page

clean:
	rm -rf .venv camkit-out
