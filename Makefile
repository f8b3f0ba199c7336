# make demo: everything on generated data, in minutes on a CPU.  make test: the whole suite.  make lint: ruff and mypy.
PYTHON ?= python3
VENV ?= .venv
STAMP = $(VENV)/.installed

.PHONY: demo test lint clean
demo: $(STAMP)
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/nnUNetv2_crossmatch_demo $(DEMO_ARGS)

test: $(STAMP)
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m pytest $(TEST_ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check . && $(VENV)/bin/mypy

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e ".[test,dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
