PYTHON ?= python3
BIN := .venv/bin
# Some machines forbid byte code; without it every process recompiles Airflow for seconds.
unexport PYTHONDONTWRITEBYTECODE
export GX_ANALYTICS_ENABLED := False

ifdef ARCHIVE
export MARKETDATA_SOURCES := files
export MARKETDATA_FILES := $(abspath $(ARCHIVE))
endif

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit(f"error: Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; fix: make PYTHON=/path/to/python3.11")'
	@echo "installing into .venv (once; about 1.6 GB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)"
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.PHONY: setup
setup: $(BIN)/.installed ## Install everything into .venv

.PHONY: run
run: setup ## Carry real prices through the whole pipeline (ARCHIVE=folder for files of your own)
	@$(BIN)/marketdata run

.PHONY: up
up: setup ## Open the Airflow UI with the DAGs, on PostgreSQL with the LocalExecutor
	@$(BIN)/marketdata engines up --airflow

.PHONY: down
down: setup ## Stop every engine that was started from here
	@$(BIN)/marketdata engines down

.PHONY: backfill
backfill: setup ## Run the pipeline for past days (FROM=2018-12-03 TO=2018-12-05 [REPROCESS=none|failed|completed])
	@$(BIN)/marketdata backfill --from $(FROM) --to $(TO) $(if $(REPROCESS),--reprocess $(REPROCESS))

.PHONY: test
test: setup ## Pass the tests: units, DAG integrity, contracts and the whole pipeline on the embedded engines
	@$(BIN)/pytest -m "not engines and not kubernetes and not scans" -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: test-engines
test-engines: setup ## Pass the contract suites on three brokers, real Trino and S3, and the faults on them
	@$(BIN)/pytest -m engines -q --numprocesses 2 --dist loadfile

.PHONY: engines-up
engines-up: setup ## Start three brokers, Trino, S3, PostgreSQL and a schema registry, and print the variables that name them
	@$(BIN)/python -m tests.engines up

.PHONY: engines-down
engines-down: setup ## Stop what `make engines-up` started
	@$(BIN)/python -m tests.engines down

.PHONY: test-faults
test-faults: setup ## Inject every fault with five seeds, and write docs/reference/faults.md
	@FAULT_SEEDS=5 $(BIN)/pytest -q tests/faults/test_brokers.py tests/faults/test_postgres.py tests/faults/test_clock.py
	@$(BIN)/python -m tests.faults.figures

.PHONY: test-kubernetes
test-kubernetes: setup ## Pass the suite on a real Kubernetes (KUBECONFIG's cluster, or two started here: root, Debian, Go)
	@$(BIN)/pytest -m kubernetes -q $(if $(KUBECONFIG),,--numprocesses 2 --dist loadfile)

.PHONY: scan
scan: setup ## Scan code, image recipe, charts and history; each scanner is first shown something it must find
	@$(BIN)/pytest -m scans -q

.PHONY: bench
bench: setup ## Measure: a table, and JSON in build/bench/
	@$(BIN)/python -m tests.performance

.PHONY: check
check: setup ## Lint, types, import directions, generated files
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m marketdata.tasks.reference --check
	@$(MAKE) --no-print-directory check-lock

.PHONY: check-lock
check-lock: setup
	@$(MAKE) --no-print-directory lock DESTINATION=build/lock
	@for file in requirements.lock requirements.txt requirements-task.txt requirements-tools.txt; do \
	  diff -u $$file build/lock/$$file || { echo "error: $$file is stale; fix: make lock"; exit 1; }; done

# `requirements.lock` is what is installed here; what the images hold is cut from it. What builds them is resolved within it,
# and its own packages by what its file has already.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock"
DESTINATION ?= .
.PHONY: lock
lock: ## Renew requirements.lock within pyproject.toml's bounds, and the images' requirement files cut from it
	@mkdir -p $(DESTINATION)
	@test $(DESTINATION) = . || cp requirements.lock requirements.txt requirements-task.txt requirements-tools.txt $(DESTINATION)/
	@$(COMPILE) pyproject.toml --group airflow --group task --group embedded --group dev $(if $(UPGRADE),--upgrade) -o $(DESTINATION)/requirements.lock
	@$(COMPILE) pyproject.toml --group airflow --no-annotate --constraint $(DESTINATION)/requirements.lock -o $(DESTINATION)/requirements.txt
	@$(COMPILE) pyproject.toml --group task --no-annotate --constraint $(DESTINATION)/requirements.lock -o $(DESTINATION)/requirements-task.txt
	@$(COMPILE) --group tools --no-annotate --constraint $(DESTINATION)/requirements.lock $(if $(UPGRADE),--upgrade) -o $(DESTINATION)/requirements-tools.txt

.PHONY: lock-scanners
lock-scanners: setup ## Renew the scanners' own lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock-scanners" $(if $(UPGRADE),--upgrade) tests/scans/requirements.in -o tests/scans/requirements.lock

.PHONY: docs
docs: setup ## Generate docs/reference, and the monitoring chart's values from deploy/monitoring
	@$(BIN)/python -m marketdata.tasks.reference
	@$(BIN)/python helm-values/kube_prometheus_stack.py

.PHONY: format
format: setup ## Format and fix what can be fixed by itself
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: clean
clean: ## Stop the engines and remove everything they and the runs left behind
	@test ! -x $(BIN)/marketdata || $(BIN)/marketdata engines down
	@rm -rf build
