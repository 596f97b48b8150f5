# orch: every verb of development. `make` or `make help` lists them.

PYTHON  ?= $(or $(shell command -v python3.11 2>/dev/null),python3)
VENV    := .venv
BIN     := $(VENV)/bin
PY      := $(BIN)/python
STAMP   := $(VENV)/.installed
PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml)))
DISTS   := . $(PLUGINS)
PIP     := $(PY) -m pip --disable-pip-version-check --no-input
HAS_PIP := $(PY) -m pip --version >/dev/null 2>&1

EXAMPLE ?= digits
WORKERS ?= 3
SEEDS   ?= 10000
ARGS    ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv run test check sim chaos bench protos wheels format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make .venv with everything installed (every other verb does this by itself)

run: $(STAMP) ## Train EXAMPLE=digits (or bytegpt) on WORKERS=3 workers of this host
	$(BIN)/orch run --workers $(WORKERS) --seed 7 --summary summary.json examples/$(EXAMPLE)/train.py $(ARGS)

test: $(STAMP) ## Run every test (ARGS="-k name" for some)
	$(PY) -m pytest $(ARGS)

# deptry: a plugin may name torch and pluggy although it sees them through orch_core's face only.
check: $(STAMP) ## Lint, format, types, import rules, dependencies, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@for example in examples/*; do $(BIN)/mypy $$example || exit 1; done
	$(BIN)/lint-imports --no-logo --no-cache
	@for dist in $(DISTS); do \
		name=$$(sed -n '/^\[project\]/,/^$$/s/^name = "\(.*\)"/\1/p' $$dist/pyproject.toml | tr - _); \
		echo "deptry $$dist ($$name)"; (cd $$dist && "$(CURDIR)/$(BIN)/deptry" $$name --no-ansi \
			--known-first-party $$name --per-rule-ignores 'DEP002=pluggy|torch,DEP004=pytest') || exit 1; \
	done
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && $(call generate,$$scratch) && \
		for made in $$(cd $$scratch && find . -type f); do \
			diff -u $$made $$scratch/$$made || { echo "generated code is out of date: make protos"; exit 1; }; \
		done && echo "generated code is up to date"

sim: $(STAMP) ## Simulate SEEDS=10000 jobs with faults and print seeds/s
	$(PY) -m orch_core.testing.simulator --seeds $(SEEDS) $(ARGS)

chaos: $(STAMP) ## Kill real jobs at every failpoint, alone and with a second death
	ORCH_CHAOS=full $(PY) -m pytest tests/chaos $(ARGS)

bench: $(STAMP) ## Run the benchmarks, one after the other
	@for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(PY) $$script $(ARGS) || exit 1; done

protos: $(STAMP) ## Generate the gRPC stubs from protos/
	@$(call generate,.)

wheels: $(STAMP) ## Build the wheels of all distributions into dist/
	rm -rf dist
	@for dist in $(DISTS); do $(PY) -m build --wheel --no-isolation --outdir dist $$dist >/dev/null || exit 1; done
	@ls -1 dist

format: $(STAMP) ## Format the code and sort the imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove what was made, .venv too
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# grpcio-tools 1.66.2 writes stubs that work with protobuf 5.27 to 7 and with grpcio from 1.66; newer ones ask for more.
generate = $(PY) -m grpc_tools.protoc -I protos --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) \
	$$(find protos -name '*.proto')

# torch first and not compiled to bytecode: 7 s instead of 24 s. All editables at once without isolation: 3 s instead of 18 s.
$(STAMP): pyproject.toml constraints.txt .ci/requirements.py $(addsuffix /pyproject.toml,$(PLUGINS))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "orch needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(HAS_PIP) || $(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv; \
		else \
			echo "this Python cannot make virtual environments; on Debian and Ubuntu: sudo apt-get install python3-venv"; \
			exit 1; \
		fi
	@$(HAS_PIP) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile --constraint constraints.txt 'torch>=2.4'
	@$(PY) .ci/requirements.py $(filter %.toml,$^) > $(VENV)/.requirements
	$(PIP) install --quiet --constraint constraints.txt --requirement $(VENV)/.requirements hatchling editables
	$(PIP) install --quiet --no-build-isolation --no-deps $(addprefix --editable ,$(DISTS))
	@touch $@
