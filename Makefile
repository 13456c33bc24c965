# `make demo`: the whole job on the model in the box. `make test`: the tests. Both make the environment they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-real lint mutants clean

demo: $(READY)
	$(BIN)/grouper demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-real: $(READY)
	$(BIN)/python bench/fetch_real_models.py
	$(BIN)/python -m pytest -m real

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Changes the code line by line and lists what the tests do not notice: hours, for people, not for CI.
mutants: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) grouper-demo build *.egg-info .pytest_cache .ruff_cache mutants
