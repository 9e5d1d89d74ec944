#!/usr/bin/env bash
# Every side-by-side measurement; copy what it prints to RESULTS.md with date and machine.
set -euo pipefail
cd "$(dirname "$0")"
for bench in *.py; do printf '\n== %s\n' "$bench"; python "$bench"; done
