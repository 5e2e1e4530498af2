# Two commands matter: `make demo` and `make test`. Both build .venv when it is missing or out of date.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

# Tests start many processes, and pytest rewrites each file of tests: both are fast with what Python has kept compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo demo-page test test-slow test-frameworks test-runtimes lint docs dist format clean

help:
	@echo "make demo       train a small network in about five minutes (ARGS='--help' lists the options)"
	@echo "make test       run the tests, a few minutes (ARGS='tests/test_taps.py -x' narrows them)"
	@echo "make test-slow  run only the tests that take longer"
	@echo "make test-frameworks  install other people's trainers (extra 'frameworks') and run the tests with them"
	@echo "make test-runtimes  install OpenVINO, OpenCV, ncnn and others into .runtimes/ and run exported files in them"
	@echo "make lint       ruff check, ruff format --check, pyright"
	@echo "make docs       build the documentation's site into build/site"
	@echo "make demo-page  make what docs/demo needs, a page that enlarges in the browser (ARGS=--serve shows it)"
	@echo "make dist       build wheel and source archive into dist/, and try the wheel in an empty environment"
	@echo "make format     let ruff format the code and mend what it can"
	@echo "make install    build .venv and nothing else (PYTHON=python3.12 names another interpreter)"
	@echo "make clean      remove caches and build products; .venv, .runtimes and runs/ stay"

install: $(STAMP)

# A .venv without pip is one whose making was interrupted, or another tool's: it gets one.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "elasticnet needs Python 3.10 or newer, and there is no '$(PYTHON)' here: name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@python=$(PYTHON); if [ -x $(BIN)/python ]; then python=$(BIN)/python; fi; \
	$$python -c 'import sys; v = ".".join(map(str, sys.version_info[:3])); sys.version_info < (3, 10) and sys.exit( \
	  "elasticnet needs Python 3.10 or newer, and " + sys.executable + " is " + v + ": name another, as in make PYTHON=python3.12")'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python recipes/asrn_div2k.py $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(or $(ARGS),-n 2)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

# Other people's trainers are large and have no part in `make test`: they are installed when asked for.
test-frameworks: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev,frameworks]"
	$(BIN)/python -m pytest -m "slow or not slow" tests/frameworks $(ARGS)

# They clash with each other, so each gets an environment of its own. One that cannot be installed is skipped.
test-runtimes: $(STAMP)
	$(BIN)/python tests/runtimes/runtime_list.py install
	$(BIN)/python -m pytest -m "slow or not slow" -rs tests/runtimes $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP)
	$(BIN)/python -m mkdocs build --quiet --strict

# Exported files and ONNX Runtime Web, which `make docs` then takes into the site. It needs Node.js for its npm.
demo-page: $(STAMP)
	$(BIN)/python docs/demo/make.py $(ARGS)

# The wheel goes into an environment that has nothing else, and runs the README's snippet there.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python tests/try_wheel.py dist

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find elasticnet recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
