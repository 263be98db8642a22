# Two verbs for a newcomer: `make demo` and `make test`. Each makes its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-matrix check docs bench gpu format clean

demo: $(VENV)/.installed
	$(BIN)/lira run experiments/digits.toml --run-dir runs/digits

test: $(VENV)/.installed
	$(BIN)/python -m pytest

# Every Python that is found with the oldest and the newest JAX: an environment and the whole suite each, an hour or more.
test-matrix: $(VENV)/.installed
	$(BIN)/python tests/matrix.py $(ARGS)

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Into build/docs; open build/docs/index.html.
docs: $(VENV)/.documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed
	$(BIN)/lira bench

# Installs nothing: a machine with a GPU may have what is needed already, and no way to get more.
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) experiments/benchmarks/gpu.py $(ARGS)

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Written last, so that an interrupted install is started again.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/.documented: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
