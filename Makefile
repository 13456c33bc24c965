# `make demo`: the whole job on the model in the box. `make test`: the tests. Both make the environment they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-real test-versions lint bench faults mutants clean

demo: $(READY)
	$(BIN)/grouper demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-real: $(READY)
	$(BIN)/python bench/fetch_real_models.py
	$(BIN)/python -m pytest -m "real or every"

# The tests with the newest release of every dependency, then with the lowest ones; torch is that of constraints.txt.
test-versions:
	$(PYTHON) -m venv $(VENV)-newest
	grep '^torch==' constraints.txt > $(VENV)-newest/torch.txt
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager pip \
		--constraint $(VENV)-newest/torch.txt --editable '.[dev]'
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[dev]'
	failed=0; for set in newest lowest; do \
		OMP_NUM_THREADS=1 $(VENV)-$$set/bin/python -m pytest -n 2 -m "not real" || failed=1; done; exit $$failed

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Prints what searches, exports, refinement and the peers of the genetic search take here: half an hour on 2 cores.
bench: $(READY)
	PYTHONPATH=. $(BIN)/python bench/search_scale.py
	PYTHONPATH=. $(BIN)/python bench/export_scale.py
	PYTHONPATH=. $(BIN)/python bench/refinement.py --shape 7b --layers 2 --tokens 2048 --memory 1GB --scope attention
	PYTHONPATH=. $(BIN)/python bench/peers.py
	PYTHONPATH=. $(BIN)/python bench/hypervolume.py

# Damages checkpoints, runs and options, and kills commands, over a thousand times: for people, not for CI.
faults: $(READY)
	PYTHONPATH=.:bench $(BIN)/python bench/faults.py
	PYTHONPATH=.:bench $(BIN)/python bench/fuzz.py
	PYTHONPATH=.:bench $(BIN)/python bench/kills.py

# Changes the code line by line and lists what the tests do not notice: hours, for people, not for CI. Of a part alone:
# make mutants ONLY='grouper.uptraining*'
mutants: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(if $(ONLY),'$(ONLY)')
	$(BIN)/mutmut results

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-lowest grouper-demo build *.egg-info .pytest_cache .ruff_cache mutants
