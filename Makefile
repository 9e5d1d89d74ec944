# `make` lists what one can do. Everything needs only Python 3.11 or newer, and sets up .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup report test test-all bench lab notebooks clean
.DEFAULT_GOAL := help

help:           ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1|/' | column -t -s '|'

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(READY) ## make the virtual environment, with pinned versions

report: $(READY) ## run the quickstart study, say where its report is
	@$(BIN)/ftnb run params/quickstart.yaml

test: $(READY)  ## every check that guards a change (under 25 minutes on 2 cores)
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/check.sh

test-all: $(READY) ## test, and the slow proofs: simulations, JupyterLab, large files, real data
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/check.sh --all

bench: $(READY) ## side-by-side measurements, each a ratio in one run
	@PATH="$(CURDIR)/$(BIN):$$PATH" bench/run.sh

lab: $(READY)   ## JupyterLab on this repository
	@$(BIN)/jupyter lab

notebooks: $(READY) ## after editing nbs/: export the modules, clean the notebooks
	@PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-export && PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-clean

clean:          ## remove what can be made again; reports and cards stay
	@rm -rf $(VENV) .ftnb .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
