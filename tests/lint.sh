#!/usr/bin/env bash
# Format, lint, types, import directions, protos: all of them, then one verdict.
set -u
cd "$(dirname "$0")/.."
failed=0
run() { "$@" || { echo "lint: failed: $*" >&2; failed=1; }; }
run ruff format --check --quiet .
run ruff check --quiet .
run mypy --no-error-summary
run lint-imports --no-timing
run buf lint
exit "$failed"
