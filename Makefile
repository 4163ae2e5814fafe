# make demo    a fleet on this machine: broker, aggregator, devices; about two minutes
# make test    everything that CI runs
# make check   ruff, mypy --strict and the fast tests; under two minutes
# Both set themselves up first: .venv with locked versions, and Mosquitto where that is allowed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

demo: $(STAMP)
	$(BIN)/edgefold demo $(DEMO)

test: lint
	$(BIN)/python -m pytest $(PYTEST)

check: lint
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/edgefold bench train
	$(BIN)/edgefold bench idle

# Renews every pinned version; torch stays as pyproject.toml and the two lines below say.
lock: $(STAMP)
	$(BIN)/python -m pip install -q --upgrade --upgrade-strategy eager -e '.[dev]' \
	    'torch==2.13.0'
	tools/lock.sh $(BIN)/python > constraints.txt

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	tools/setup.sh $(PYTHON) $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache demo-out

.PHONY: demo test check lint format bench lock setup clean
.DEFAULT_GOAL := check
