# make demo: everything on generated data, in minutes on a CPU.  make test: the whole suite.  make lint: ruff and mypy.
# make docs: the site of docs/ in build/site; a broken link stops it.
PYTHON ?= python3
VENV ?= .venv
INSTALL = $(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python
STAMP = $(VENV)/.installed
DOCS_STAMP = $(VENV)/.installed_docs
RUN = PATH="$(abspath $(VENV))/bin:$$PATH"

.PHONY: demo test test-compiler test-install lint docs clean

demo: $(STAMP)
	$(RUN) nnUNetv2_crossmatch_demo $(DEMO_ARGS)

test: $(STAMP)
	$(RUN) OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m pytest -n 2 --dist worksteal $(TEST_ARGS)

# Compiles trainings of every method, and builds code with g++: minutes.
test-compiler: $(STAMP)
	$(RUN) TEST_COMPILER=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m pytest -n 2 --show-capture=no -o timeout=0 tests/learning/test_compiled.py tests/training/test_compiled_methods.py

# Builds the wheel and the source distribution and installs them in an environment of their own: minutes, and the network.
test-install: $(STAMP)
	$(RUN) TEST_INSTALL=1 python -m pytest -o timeout=0 tests/install

lint: $(STAMP)
	$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy

docs: $(DOCS_STAMP)
	$(RUN) mkdocs build --strict

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet uv
	$(INSTALL) --editable ".[test,dev]"
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(INSTALL) --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
