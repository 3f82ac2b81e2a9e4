#!/usr/bin/env bash
# Format, lint, types, import directions, protos: all of them, then one verdict. Says nothing when all is well.
set -u
cd "$(dirname "$0")/.."
failed=0
run() {
  local output
  output=$("$@" 2>&1) || { printf 'lint failed: %s\n%s\n' "$*" "$output" >&2; failed=1; }
}
run ruff format --check .
run ruff check --quiet .
run mypy
run lint-imports --no-logo
run buf lint
exit "$failed"
