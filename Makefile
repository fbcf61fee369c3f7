# Two commands: `make demo` (the main job on the built-in data) and `make test`. Each installs what it needs.
PYTHON ?= python3
VENV ?= .venv
# Processes that share the tests, a file at a time.
WORKERS ?= 2
RUN = $(VENV)/bin/python
STAMP = $(VENV)/.part_robust_installed

.PHONY: demo test lint install clean

demo: $(STAMP)
	$(RUN) tools/run_demo.py

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy part_robust

install: $(STAMP)

$(STAMP): requirements.txt setup.py tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
