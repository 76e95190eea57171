# Every target makes what it needs: a virtual environment in .venv, from Python 3.11 or later. An
# interpreter that is named (make test PYTHON=/path/to/python3.13) has one of its own, .venv-3.13.
PYTHON ?= python3
VERSION := $(if $(filter file,$(origin PYTHON)),,-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
VENV := .venv$(VERSION)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
UV := $(BIN)/uv --quiet

# The tests run in two processes, each with a local Aurora. WORKERS=0 runs them in this one, for a
# debugger, and where nothing is left of a machine's cores and tests of timing fail.
WORKERS ?= 2
PYTEST := python -m pytest -n $(WORKERS) --dist worksteal

# The oldest pgvector-python that is allowed, the last of 0.4, and that of constraints.txt.
PGVECTORS := 0.3.6 0.4.2 0.5.1
LOWEST := .venv-lowest$(VERSION)
# Left out: LangChain's models, and what holds our tables and errors against the newest botocore.
LOWEST_TESTS := tests/aws tests/sql tests/connect tests/execution tests/stores tests/embeddings \
  tests/local --ignore tests/embeddings/test_model_identity.py \
  --deselect tests/aws/test_regions.py::test_partitions_are_those_of_botocore \
  --deselect tests/embeddings/test_bedrock_client.py::test_an_api_key_needs_no_other_credentials_and_tls
PGVECTOR_TESTS := tests/sql/test_put.py tests/sql/test_search.py tests/stores/test_contract.py \
  tests/execution/test_pgvector_types.py

.DEFAULT_GOAL := help
.PHONY: help dev demo test test-lowest test-pgvector lint bench clean

help:
	@echo "make dev    an environment with everything, and nothing run"
	@echo "make demo   an agent remembers in one process and recalls in another, on a local Aurora"
	@echo "make test   the tests, on the same (ARGS='tests/sql -k put', PYTHON=/path/to/python3.13)"
	@echo "make lint   style and types"
	@echo "make bench  this store beside LangGraph's PostgresStore, measured"
	@echo "make test-lowest    the store's tests with the oldest libraries that pyproject.toml allows"
	@echo "make test-pgvector  the tests of vectors with each series of pgvector-python"

dev: $(VENV)/.upstream

demo: $(VENV)/.demo
	@$(BIN)/python examples/quickstart/demo.py

test: $(VENV)/.upstream
	@$(BIN)/$(PYTEST) $(ARGS)

test-lowest: $(LOWEST)/.made
	@$(LOWEST)/bin/$(PYTEST) $(LOWEST_TESTS) $(ARGS)

# langchain-postgres is the neighbour that asks for the oldest of them.
test-pgvector: $(LOWEST)/.made
	@echo langchain-postgres | $(UV) pip compile --all-extras pyproject.toml - > /dev/null
	@for version in $(PGVECTORS); do \
	  echo "pgvector $$version"; \
	  $(UV) pip install --python $(LOWEST)/bin/python pgvector==$$version || exit 1; \
	  $(LOWEST)/bin/$(PYTEST) $(PGVECTOR_TESTS) $(ARGS) || exit 1; \
	done
	@rm $(LOWEST)/.made  # it holds the newest now

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
	@$(PIP) install -c constraints.txt -e '.[all]' --group examples
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

# Without langmem and the neighbours of `dev`, which ask for newer libraries than the store does.
$(LOWEST)/.made: $(VENV)/.dev .ci/test_tools.py
	@echo "making $(LOWEST)"
	@rm -rf $(LOWEST)
	@$(PYTHON) -m venv --without-pip $(LOWEST)
	@$(BIN)/python .ci/test_tools.py > $(LOWEST)/tools.txt
	@$(UV) pip compile --resolution lowest-direct --python $(LOWEST)/bin/python --no-annotate \
	  --extra local --extra openai pyproject.toml $(LOWEST)/tools.txt -o $(LOWEST)/requirements.txt
	@$(UV) pip install --python $(LOWEST)/bin/python -r $(LOWEST)/requirements.txt
	@$(UV) pip install --python $(LOWEST)/bin/python --no-deps -e .
	@touch $@

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
