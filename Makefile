# make quickstart   train, evaluate and tabulate a small GAN on embedded digits
# make test         lint, types and tests
# Each makes .venv and installs into it when pyproject.toml is newer; after that neither touches the network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test lint types check speed calibration clean

quickstart: $(STAMP)
	$(BIN)/ganbench reproduce dcgan-digits --offline --out quickstart

test: lint types
	GANBENCH_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check

types: $(STAMP)
	$(BIN)/mypy

# The project's own regression check: a tiny seeded run against a committed baseline.
check: $(STAMP)
	rm -rf build/check
	$(BIN)/ganbench reproduce tests/recipes/tiny-digits.toml --offline --quiet --device cpu --out build/check
	$(BIN)/ganbench check tests/baselines/tiny-digits.json --out build/check --junit build/check/junit.xml

# The table of docs/speed.md: a quarter of an hour on an idle machine.
speed: $(STAMP)
	@if command -v uv >/dev/null 2>&1; then VIRTUAL_ENV=$(VENV) uv pip install --quiet --editable '.[bench]'; \
	else $(BIN)/python -m pip install --quiet --editable '.[bench]'; fi
	$(BIN)/python -m benchmarks.speed --out docs/speed.md

# The tables of docs/calibration.md.
calibration: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.calibration --out docs/calibration.md

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ganbench needs Python 3.10 or later: make PYTHON=python3.11 ...")'
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(VENV) && \
	  VIRTUAL_ENV=$(VENV) uv pip install --quiet --editable '.[dev]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'; \
	fi
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist quickstart .pytest_cache .mypy_cache .ruff_cache
