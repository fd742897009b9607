# `make test` and `make demo` do all their own set-up, in .venv: they need Python >= 3.11 and a C++ compiler.

PYTHON ?= $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11 python,\
	$(shell $(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))))
PY := .venv/bin/python
INSTALLED := .venv/installed
# Python sources are used in place. These need another installation: folders change when a module is added or moved.
BUILT_FROM := pyproject.toml CMakeLists.txt $(shell find ganglion -name '*.cpp' -o -name '*.h') \
	$(shell find ganglion ganglion_cli -type d -not -name __pycache__)

.PHONY: help test demo docs lint types format clean
.DELETE_ON_ERROR:

# OpenMP threads that spin at barriers are very slow on shared cores.
export OMP_WAIT_POLICY ?= passive

help:
	@echo 'make demo    train a small VMamba on handwritten digits, save, reload, draw, make a page to explore (a few minutes)'
	@echo 'make test    the test suite, preceded by the model tests of timm on our models'
	@echo 'make docs    the documentation as a site, in build/site'
	@echo 'make lint    ruff: rules and format'
	@echo 'make types   pyright'
	@echo 'make format  let ruff rewrite the sources'
	@echo 'make clean   remove what the other targets made'

$(INSTALLED): $(BUILT_FROM)
	@test -n '$(PYTHON)' || { echo 'No Python >= 3.11 found. Install one, or: make PYTHON=/path/to/python' >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@echo 'Installing ganglion and its dependencies into .venv (once; a few minutes)'
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(PY) -m compileall -q ganglion ganglion_cli  # now, since it changes the folders
	@touch $@

test: export OMP_NUM_THREADS := 1
test: $(INSTALLED)
	$(PY) tests/timm_suite/run.py
	$(PY) -m pytest -n 2 --dist loadfile

demo: $(INSTALLED)
	$(PY) examples/digits.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(INSTALLED)
	$(PY) -m pyright --pythonpath $(PY)

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf .venv build outputs ganglion/ops/cpu/*.so ganglion/ops/cpu/*.dylib ganglion/ops/cpu/*.dll
