# Every target makes what it needs: a virtual environment in .venv, from Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

help:
	@echo "make demo   an agent remembers in one process and recalls in another, on a local Aurora"
	@echo "make test   the tests, on the same"
	@echo "make lint   style and types"
	@echo "make bench  this store beside LangGraph's PostgresStore, measured"

demo: $(VENV)/.demo
	@$(BIN)/python examples/quickstart/demo.py

test: $(VENV)/.upstream
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.dev
	@$(BIN)/python -m bench $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.pip: $(BIN)/python constraints.txt
	@$(PIP) install -c constraints.txt pip
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	@echo "installing the package with its extras"
	@$(PIP) install -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing the development tools"
	@$(PIP) install -c constraints.txt --group dev
	@touch $@

# The parent's own tests, of the version that is installed.
$(VENV)/.upstream: $(VENV)/.dev
	@echo "fetching LangGraph's tests of its store"
	@rm -rf $(VENV)/upstream
	@version=$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("langgraph-checkpoint-postgres"))') \
	  && mkdir -p $(VENV)/upstream/$$version && cd $(VENV)/upstream \
	  && ../bin/python -m pip --disable-pip-version-check --quiet download --no-deps \
	    --no-binary langgraph-checkpoint-postgres langgraph-checkpoint-postgres==$$version \
	  && tar -xzf *.tar.gz --strip-components 1 -C $$version langgraph_checkpoint_postgres-$$version/tests
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
