# Everything a newcomer runs. `make` or `make help` explains the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
DEPLOYED ?= runs/deployed

# No part of the project talks to the network while it runs.
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1
export RAY_USAGE_STATS_ENABLED = 0
# One thread a process: two processes of one thread beat one process of two.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo audit deploy-local test check lint types contracts pytest proofs mutants format clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(VENV)/.installed ## Make .venv with exactly the versions of constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install ## Search a private network for five hospitals, verify their ledgers (real data; 2 minutes)
	rm -rf $(RUN)
	$(BIN)/python -m simulations run hospitals --epsilon 3 --out $(RUN)
	$(BIN)/fednas ledger verify $(RUN)

audit: install ## Attack what the demo ran, and state what was found beside its claim (1 minute)
	$(BIN)/fednas audit run $(RUN)
	$(BIN)/fednas ledger statement $(RUN)
	$(BIN)/fednas audit verify $(RUN)

deploy-local: install ## The same on SuperLink and SuperNodes over TLS, three processes with keys of their own (3 minutes)
	rm -rf $(DEPLOYED)
	$(BIN)/python -m simulations run hospitals --sites 3 --rounds 4 --test-noise --out $(DEPLOYED)/here
	$(BIN)/python -m simulations run hospitals --sites 3 --rounds 4 --test-noise --runtime deployment --out $(DEPLOYED)/deployed
	cmp $(DEPLOYED)/here/supernet.safetensors $(DEPLOYED)/deployed/supernet.safetensors
	$(BIN)/fednas ledger verify $(DEPLOYED)/deployed

test: check ## All checks and tests; the same as `make check`

check: lint types contracts pytest ## The one door: ruff, mypy --strict, import contracts, pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

contracts: install
	$(BIN)/lint-imports

pytest: install
	$(BIN)/pytest

proofs: install ## Long proofs: everything marked slow
	$(BIN)/pytest -m slow

mutants: install ## Break the code in every known way and see each one found (under 5 minutes)
	$(BIN)/fednas audit mutants

format: install ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment, caches and runs
	rm -rf $(VENV) runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
