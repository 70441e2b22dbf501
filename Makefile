# Two commands do everything on a fresh Debian 12 or Ubuntu 24.04, as root: `make demo` and `make test`.

PYTHON ?= python3
SYSTEM_PACKAGES ?= missing
BIN := .venv/bin
SOURCES := pyproject.toml setup.py cni_bridge/native/client.c $(shell find cni_bridge ipam -name '*.py')

.PHONY: demo test test-robustness bench lint clean system-packages

demo: .venv/installed
	$(BIN)/python -m tests.demo

test: .venv/installed
	$(BIN)/pytest -n auto --dist worksteal

# Hours, not minutes: every failpoint and fault, long histories, 20 000 pairs, and each parser fuzzed for FUZZ_SECONDS.
FUZZ_SECONDS ?= 300
test-robustness: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check '.[robustness]'
	$(BIN)/pytest tests/robustness --robustness full --timeout 7200 -n auto --dist worksteal
	for target in $$($(BIN)/python -m tests.robustness.fuzz --list); do \
		$(BIN)/python -m tests.robustness.fuzz $$target -max_total_time=$(FUZZ_SECONDS) || exit; \
	done

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
