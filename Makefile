# make demo and make test work on a bare machine: Python >= 3.11, make, and a package index.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
MINUTES ?= 10

.PHONY: help demo test lint format proto bench soak tiny clean

help: ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit("likewise needs Python 3.11 or newer; say which with make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/demo.stamp: .venv/bin/uv pyproject.toml constraints.txt
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[demo]'
	@touch $@

.venv/dev.stamp: .venv/bin/uv pyproject.toml constraints.txt
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/demo.stamp

demo: .venv/demo.stamp ## start a server, index, search, train, classify; print a table and a report with pictures
	$(BIN)/likewise demo

test: .venv/dev.stamp ## run the tests, a file at a time on each core
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/dev.stamp ## ruff, mypy strict, import contracts, and that the stubs are what the .proto says
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_stubs.py

format: .venv/dev.stamp ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: .venv/dev.stamp ## regenerate proto/likewise_proto from the .proto files
	$(BIN)/python tools/generate_stubs.py proto/likewise_proto

bench: .venv/dev.stamp ## embedding and search beside what others reach, search on few vectors; forty minutes
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/search.py --quick

soak: .venv/dev.stamp ## kill a server under load again and again and look for what is lost; MINUTES=10
	$(BIN)/python benchmarks/soak.py chaos --minutes $(MINUTES) $(SOAK)

tiny: .venv/dev.stamp ## train the bundled backbone again from the shared pictures and write its card; hours. TINY=--quick tries it out
	$(BIN)/python -m recipes.tiny --work build/tiny $(TINY)

clean: ## remove the virtual environment and caches
	rm -rf .venv build/search-peers .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
