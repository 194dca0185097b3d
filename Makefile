# raylens: `make demo` and `make test` do all the set-up themselves.
SHELL := /bin/bash
PYTHON ?= python3
DEMO ?= demo
VENV := .venv
BIN := $(VENV)/bin
# Threads are set per actor by raylens; this only keeps the tools themselves from oversubscribing.
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint thorough chaos fuzz bench bench-scale bench-bias onnx-table proto lock audit-dependencies clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.ready  ## build .venv from requirements.lock with uv (exact versions, checked hashes)

$(VENV)/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r <(sed -n '/^uv==/,/[^\\]$$/p' requirements.lock)
	UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy $(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --quiet --editable .
	touch $@

demo: venv  ## make data, train a small network, explain it on local Ray, draw a contact sheet (S3=1: through a real S3 server)
	$(BIN)/raylens demo --output $(DEMO) $(if $(S3),--s3)

lint: venv  ## ruff, mypy --strict, pydoclint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet pipeline serve schemas

test: lint  ## lint, then every test that does not take minutes, in three processes
	$(BIN)/python -m pytest tests --numprocesses=3 --dist=loadfile --no-loadscope-reorder --durations=40

thorough: venv  ## every seed and kind of fault, and every family that must compile
	$(BIN)/python -m pytest tests/chaos tests/jobs tests/runtime tests/deploy tests/report tests/test_readme.py --thorough

chaos: venv  ## 100 seeded rounds of faults over the real components, half an hour (ROUNDS="--first 17 --rounds 1": one of them)
	PYTHONPATH=tests $(BIN)/python tests/chaos/rounds.py $(ROUNDS)

fuzz: venv  ## 10,000 mutated images, and Parquet, manifests, tars, ONNX and requests (CASES="--only tar --first 7 --cases 1": one)
	PYTHONPATH=tests $(BIN)/python tests/fuzz/cases.py $(CASES)
	$(if $(CASES),,RAYLENS_EXAMPLES=200 $(BIN)/python -m pytest tests/serve/test_schemathesis.py)

bench: venv  ## side-by-side benchmarks; prints ratios
	$(BIN)/python -m pytest tests/benchmarks --benchmarks -s

bench-scale: venv  ## the job on 1 to 8 simulated nodes, and the constants of deploy/SCALING.md (20 minutes)
	for part in scale constants sizes; do \
	  PYTHONPATH=$(CURDIR)/tests:$(CURDIR)/tests/benchmarks $(BIN)/python tests/benchmarks/$$part.py || exit; done

bench-bias: venv  ## the whole protocol of PlantedCue: which ways to find slices find the true ones, which maps say what a network goes by (bench-bias/)
	for part in planted_cue planted_maps; do \
	  PYTHONPATH=tests $(BIN)/python tests/benchmarks/$$part.py --output bench-bias || exit; done

onnx-table: venv  ## compile every model family, write the table of deploy/ONNX.md
	PYTHONPATH=tests $(BIN)/python tests/runtime/table.py

proto: venv  ## compile serve/open_inference.proto
	$(BIN)/uv run --no-project --with grpcio-tools python -m grpc_tools.protoc -I serve \
	  --descriptor_set_out=serve/open_inference.binpb open_inference.proto

lock:  ## resolve requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --upgrade --output-file requirements.lock

audit-dependencies: venv  ## look up known vulnerabilities of every package in requirements.lock
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --require-hashes --requirement requirements.lock \
	  || { echo "either a package has known vulnerabilities, or the index did not tell about every package: see above" >&2; exit 1; }

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
