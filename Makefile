# Nothing needs to be activated or installed beforehand: missing environments are created, and packages are installed
# again only when pyproject.toml has changed.

PYTHON ?= python3

# Ignore an environment that is active in the caller's shell.
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH UV_PROJECT_ENVIRONMENT UV_PYTHON UV_SYSTEM_PYTHON

# uv from the PATH if it works there; else our own, in a separate environment.
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .venv-uv/bin/uv)

BIN := .venv/bin
OLDEST := .venv-oldest/bin

# Distribute whole files: the tests of one file share trainings and launches.
TWO_AT_A_TIME := --numprocesses 2 --dist loadfile

# codespell looks up what its regular expression matches: words, and these phrases as a whole ("there is no" is fine).
PHRASES := $(shell sed 's/->.*//' .codespell-phrases.txt | paste -s -d '|' -)

# Warnings (a link that leads nowhere, a page outside the navigation) are errors. The variable hides an advertisement.
BUILD_DOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build --strict

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo check docs format test test-all test-oldest bench wheel clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.installed ## train a small model on digits, score the rows, show the findings
	$(BIN)/vog-hf demo
	@echo "The results are in $(CURDIR)/vog-demo"

check: .venv/.installed-dev ## lint, format, types, spelling, workflows, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell --dictionary - --dictionary .codespell-phrases.txt \
		--regex "(?<!there )(?<!There )\b(?:$(PHRASES))\b(?! longer| more\b)|[\w\-'’]+"
	$(BIN)/zizmor --offline --no-progress .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BUILD_DOCS)

docs: .venv/.installed-dev ## build the documentation to read it: site/index.html
	$(BUILD_DOCS)
	@echo "Open $(CURDIR)/site/index.html; to search as well: $(BIN)/python -m http.server --directory site"

format: .venv/.installed-dev ## format the code and apply ruff's fixes
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

test: .venv/.installed-dev ## the default tier: no network, no GPU, a few minutes
	$(BIN)/python -m pytest $(TWO_AT_A_TIME)

test-all: .venv/.installed-dev ## every tier
	$(BIN)/python -m pytest -m "" $(TWO_AT_A_TIME)

test-oldest: .venv-oldest/.installed ## the default tier with the lower bounds of pyproject.toml
	$(OLDEST)/python -m pytest $(TWO_AT_A_TIME)

bench: .venv/.installed ## measure speed and memory against their targets (30 minutes on an otherwise idle machine)
	$(BIN)/python benchmarks/run.py

wheel: .venv/.installed ## build dist/*.tar.gz and, from it, dist/*.whl
	rm -rf dist
	$(UV) build --python $(BIN)/python --out-dir dist

clean: ## remove the environments, build output and caches
	rm -rf .venv .venv-oldest .venv-uv dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet uv

# Pass the interpreter's own path: uv would look up a bare name in places that the shell does not search.
MAKE_VENV = $(UV) venv --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

.venv/bin/python: | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; $(PYTHON) is older. Choose another one: make PYTHON=python3.12" >&2; exit 1; }
	$(MAKE_VENV) .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(UV) pip install --python $(BIN)/python --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(UV) pip install --python $(BIN)/python --editable '.[peft,review,timm,trackio]' --group dev
	@touch $@

# Created from scratch each time: uv keeps installed versions that satisfy a bound, so a changed bound would go untested.
.venv-oldest/.installed: pyproject.toml | $(UV)
	rm -rf .venv-oldest
	$(MAKE_VENV) .venv-oldest
	$(UV) pip install --python $(OLDEST)/python --resolution lowest-direct --editable '.[peft,review,timm,trackio]' --group test
	@touch $@
