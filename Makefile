# setup   everything into .venv, from requirements.lock; done again only when the lock or pyproject.toml changed
# run     the pipeline as a Prefect flow: from data to a registered model
# test    lint and the tests; test-slow: those that take minutes; torture: crashes, full disks, outages; an hour
# ui      MLflow's and Prefect's web interfaces
# docs    the documentation as a site in site/
# bench   speed and memory against their bars
# lock    resolve pyproject.toml anew, keeping what is pinned; UPGRADE=--upgrade takes the newest
# Another interpreter: make PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# what is installed is right while these stay: the pins, this package's metadata, the folder (a venv cannot be moved)
KEY = $$(cat requirements.lock pyproject.toml | cksum) $(CURDIR)

.PHONY: setup install checks run test test-slow torture lint ui docs bench lock

run: setup
	@$(BIN)/vaeline run

test: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	@$(BIN)/python -m pytest -m slow

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

torture: setup
	@$(BIN)/python -m pytest -m torture -v -n 2 --dist worksteal

ui: setup
	@$(BIN)/vaeline ui

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

bench: setup
	@$(BIN)/python -m benchmarks

setup:
	@test "$$(cat $(STAMP) 2>/dev/null)" = "$(KEY)" && $(BIN)/python -c '' || $(MAKE) --no-print-directory install

install: checks
	@rm -f $(STAMP)
	@want=$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])'); \
	have=$$($(BIN)/python -c 'import sys; print(sys.version_info[:2])' 2>/dev/null); \
	test "$$want" = "$$have" || $(PYTHON) -m venv --clear .venv
	@echo "installing the pinned packages into .venv: some minutes, about 6 GB"
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps -e .
	@echo "$(KEY)" > $(STAMP)

checks:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1 || true);" \
	    "install one (sudo apt install python3) or name it (make PYTHON=python3.12)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments: sudo apt install python3-venv" >&2; exit 1; }
	@command -v git >/dev/null || { echo "error: git is not installed: sudo apt install git" >&2; exit 1; }
	@git rev-parse --git-dir >/dev/null || { \
	  echo "error: DVC needs a git repository here: git clone the project instead of unpacking an archive," \
	    "or: git init && git add -A && git commit -m start" >&2; exit 1; }

# No --emit-index-url and no --find-links: the lock names versions and hashes, never where they were found.
lock: checks
	@test -x .venv/lock/bin/uv || { $(PYTHON) -m venv .venv/lock && .venv/lock/bin/pip install -q uv; }
	@.venv/lock/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --no-emit-index-url -q $(UPGRADE) -o requirements.lock
