# Everything happens in .venv; PYTHON picks the interpreter that makes it (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check benchmark clean

demo: $(VENV)/.installed-examples   ## the load-forecast pipeline under an energy budget
	@$(BIN)/python workflows/load_forecast/demo.py

# Three at a time also on two processors, for the tests of Slurm mostly wait for its clock. Then those that measure times,
# alone; 5 says that $(TESTS) has none.
test: $(VENV)/.installed-test       ## the test suite
	$(BIN)/python -m pytest --numprocesses 3 --dist loadscope -m "not alone" $(TESTS)
	$(BIN)/python -m pytest -m alone $(TESTS) || [ $$? = 5 ]

check: $(VENV)/.installed-dev       ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(VENV)/.installed-test  ## figures for the docs; they gate nothing
	$(BIN)/python tests/benchmarks/throughput.py
	$(BIN)/python tests/benchmarks/keeper_start.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"mlflow-green needs Python 3.11 or newer, this is {v[0]}.{v[1]}; say e.g. make PYTHON=python3.12")'
	@echo "making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "installing mlflow-green[$(EXTRA_$*)] into $(VENV), about a minute the first time ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA_$*)]'
	@touch $@

EXTRA_examples := examples
EXTRA_test := examples,test
EXTRA_dev := dev

clean:
	rm -rf $(VENV) .demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
