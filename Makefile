# Two commands do everything on a fresh Debian 12 or Ubuntu 24.04, as root: `make demo` and `make test`.

PYTHON ?= python3
SYSTEM_PACKAGES ?= missing
BIN := .venv/bin
SOURCES := pyproject.toml setup.py cni_bridge/native/client.c $(shell find cni_bridge ipam -name '*.py')

.PHONY: demo test bench lint clean system-packages

demo: .venv/installed
	$(BIN)/python -m tests.demo

test: .venv/installed
	$(BIN)/pytest -n auto --dist worksteal

bench: .venv/installed
	$(BIN)/python -m tests.perf.bench_attach
	$(BIN)/python -m tests.perf.bench_ipam
	$(BIN)/python -m tests.perf.bench_ports

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/installed: $(SOURCES) | system-packages
	rm -rf build *.egg-info
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check '.[dev]'
	rm -rf build *.egg-info
	touch $@

system-packages:
	@test $(SYSTEM_PACKAGES) = present || packaging/install-system-packages

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
