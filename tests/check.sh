#!/usr/bin/env bash
# Every check that guards a change, cheapest first; --all adds the slow proofs. Called by `make test` and `make test-all`.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export MPLBACKEND=agg TOKENIZERS_PARALLELISM=false PYTHONHASHSEED=0 HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1   # two workers on two cores: two threads of each wait for one another

step "exported code in step with the notebooks; notebooks clean"
cp -r nbs ftnb pyproject.toml README.md "$scratch"
(cd "$scratch" && nbdev-export && nbdev-clean)
diff -r --exclude=__pycache__ ftnb "$scratch/ftnb" || { echo "run 'make notebooks': ftnb/ is not what nbs/ exports"; exit 1; }
diff -r --exclude=.ipynb_checkpoints nbs "$scratch/nbs" || { echo "run 'make notebooks': a notebook isn't clean"; exit 1; }

step "lint and types"
ruff check .
mypy --no-error-summary ftnb tests

step "nbdev-test: library notebooks, in nbdev's own way"
nbdev-test nbs --skip-folder-re '^[_.]|^stages$' --n-workers 2

step "nbval: library notebooks, outputs compared"
pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg \
    --ignore=nbs/stages -n 2 --dist loadfile -q nbs

step "nbval: stage notebooks with the parameters of params/smoke.yaml"
FTNB_WORKBENCH="$scratch/workbench" FTNB_DATA_CARDS="$scratch/cards" FTNB_TRACKING_URI="" \
    pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 600 -p no:randomly -q \
    nbs/stages/{prepare,train,evaluate,bias,explain,release}.ipynb

step "pytest"
if [ "${1:-}" = --all ]; then pytest -n 2 --dist worksteal -q tests
else pytest -n 2 --dist worksteal -q -m "not slow" tests; fi
printf '\nall checks passed in %s s\n' "$SECONDS"
