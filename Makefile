# make quickstart   train, evaluate and tabulate a small GAN on embedded digits
# make test         lint, types and tests
# make test-torch VERSION=2.6.0   the tests on another torch, in a .venv of its own
# Each makes .venv and installs into it when pyproject.toml is newer; after that neither touches the network.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the CPU-only wheels of torch, a tenth of those for CUDA.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test suite test-torch lint types check speed calibration clean

quickstart: $(STAMP)
	$(BIN)/ganbench reproduce dcgan-digits --offline --out quickstart
	@echo "The command is $(BIN)/ganbench; it is called ganbench after: . $(BIN)/activate"
	@echo "What this machine has, and what is missing: $(BIN)/ganbench doctor"

# mypy runs beside the tests: alone it keeps one core busy and leaves the others idle.
test: lint
	@$(MAKE) --no-print-directory --jobs 2 types suite

suite: $(STAMP)
	GANBENCH_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# The tests on another torch. Each torchvision requires one release of torch, so that the right one is found.
test-torch:
	@case "$(VERSION)" in 2.*.*) ;; *) echo "give a release of torch: make test-torch VERSION=2.6.0" >&2; exit 2;; esac
	@venv=.venv-torch-$(VERSION); \
	if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $$venv && \
	  VIRTUAL_ENV=$$venv uv pip install --quiet "torch==$(VERSION)" torchvision --editable '.[test]'; \
	else \
	  $(PYTHON) -m venv $$venv && \
	  $$venv/bin/python -m pip install --quiet --disable-pip-version-check "torch==$(VERSION)" torchvision --editable '.[test]'; \
	fi
	GANBENCH_OFFLINE=1 .venv-torch-$(VERSION)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

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
	  { [ -z "$(TORCH_INDEX)" ] || \
	    VIRTUAL_ENV=$(VENV) uv pip install --quiet torch torchvision --index-url "$(TORCH_INDEX)"; } && \
	  VIRTUAL_ENV=$(VENV) uv pip install --quiet --editable '.[dev]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  { [ -z "$(TORCH_INDEX)" ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    torch torchvision --index-url "$(TORCH_INDEX)"; } && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'; \
	fi
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-torch-* build dist quickstart .pytest_cache .mypy_cache .ruff_cache
