# `make` alone lists the targets. Everything happens in .venv; nothing is installed outside it.
VENV := .venv
BIN := $(VENV)/bin
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# Override with `make PYTHON=/path/to/python3.12 install`.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)
# More arguments for pytest: `make test ARGS="-k storage"`, `make test ARGS="-m 'not slow'"`.
ARGS ?=
# Processes that share the tests; each may start a Ray cluster of its own.
PROCESSES ?= 2

.PHONY: help install demo test test-oldest lint format wheel constraints clean
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed-dev ## Make .venv with CardioRay and everything its tests need

demo: $(VENV)/.installed ## Run the main job: phantoms, ten backbones compared, the winner served
	$(BIN)/cardioray demo --out runs/demo

test: $(VENV)/.installed-dev ## Run every test and report coverage
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=term $(ARGS)

test-oldest: ## Run the tests without a cluster with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --disable-pip-version-check -q uv
	VIRTUAL_ENV=.venv-oldest .venv-oldest/bin/uv pip install -q --resolution lowest-direct -e '.[dev]'
	.venv-oldest/bin/python -m pytest -n $(PROCESSES) -m "not ray and not slow" $(ARGS)

lint: $(VENV)/.installed-dev ## Check format, style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(VENV)/.installed ## Build dist/: the package and its tested versions, for cluster.yaml
	rm -rf dist
	$(BIN)/python -m pip wheel --disable-pip-version-check -q --no-deps -w dist .
	cp constraints.txt dist/

constraints: $(VENV)/.installed-dev ## Write constraints.txt from .venv, which must be fresh
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,benchmarks,tracking]'
	@sed '/^[^#]/d' constraints.txt > constraints.new
	@$(BIN)/python -m pip freeze --exclude-editable | \
		grep -v -i -E '^(nvidia-|cuda-|triton)' >> constraints.new
	mv constraints.new constraints.txt

clean: ## Remove .venv, caches and build products; runs/ is kept
	rm -rf $(VENV) .venv-oldest build dist *.egg-info .coverage htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) $(NEW_ENOUGH) 2>/dev/null; then \
		echo "CardioRay needs Python 3.11 or later: $(or $(PYTHON),python3) is not." >&2; \
		echo "Name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing into $(VENV): about 6 GB, several minutes the first time."
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@
