# fastich: set-up, demo, tests, checks, benchmark. `make help` lists them.
PYTHON ?= python3
CUDA ?= cu12
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/$(CUDA).txt
PEERS := webdataset ffcv
# MosaicML Streaming pins an older numpy than the project's, and works with this one: it goes in without its dependencies,
# then what its import needs.
MOSAIC_NEEDS := transformers Brotli python-snappy zstd xxhash catalogue
STAMP := $(VENV)/.installed-$(CUDA)
# A file of tests stays in one process; more than four only take memory (torch and DALI in each).
TEST_FLAGS ?= -n logical --maxprocesses 4 --dist loadfile
EXTRAS := $(if $(filter cu13,$(CUDA)),train-cu13,train),serve,dev

.PHONY: help setup demo study serve-demo peers test check lint types fuzz bench clean

help:
	@echo "make setup   virtual environment in $(VENV), everything from $(CONSTRAINTS) (CUDA=cu13 for CUDA 13)"
	@echo "make demo    the main job, end to end, on synthetic studies (DICOM=dir LABELS=csv for your own)"
	@echo "make study   what slice context, calibration and thresholds are worth, on synthetic studies (20 minutes)"
	@echo "make serve-demo  the triage server on synthetic studies, and its worklist in the browser"
	@echo "make peers   DCMTK, Orthanc, Chromium, PostgreSQL: what more of the tests talk to (Debian, as root)"
	@echo "make test    the tests"
	@echo "make check   lint, types and the tests: what CI runs"
	@echo "make fuzz    libFuzzer over the native core under the sanitizers (needs clang++)"
	@echo "make bench   slices/s of each stage on this machine (QUICK=1: a look; BENCH='--json FILE ...' for more flags)"

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py $(wildcard kernels/*) $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fastich needs Python >= 3.11, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --upgrade 'setuptools>=77' wheel
	FASTICH_KERNELS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --verbose --disable-pip-version-check --no-deps --no-build-isolation --editable . > $(VENV)/kernels.log 2>&1 || { cat $(VENV)/kernels.log; exit 1; }
	@grep 'fastich: .* is left out' $(VENV)/kernels.log || true
	@$(BIN)/python -c 'from fastich import ops; print("kernels:", ops.backend())'
	touch $@

# The experiment of docs/trust.md: about 20 minutes on two cores.
study: setup
	$(BIN)/python -m fastich.experiment $(STUDY)

demo: setup
	$(BIN)/python -m fastich.demo $(if $(DICOM),--dicom '$(DICOM)') $(if $(LABELS),--labels '$(LABELS)')

# The model is the demo's, which is made first where there is none.
serve-demo: setup
	test -f runs/demo/model/model.json || $(BIN)/python -m fastich.demo
	$(BIN)/python -m fastich.serve_demo $(SERVE_DEMO)

peers:
	bash deploy/install_peers.sh

test: setup
	$(BIN)/python -m pytest $(TEST_FLAGS)

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: setup
	$(BIN)/python -m mypy

check: lint types test

fuzz: setup
	$(BIN)/python tests/fuzz_core.py

# Peers that do not install are named here and again in their rows; they never stop the benchmark.
bench: setup
	@for peer in $(PEERS); do \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --constraint $(CONSTRAINTS) $$peer \
	    > $(VENV)/bench-$$peer.log 2>&1 || echo "bench: $$peer does not install (see $(VENV)/bench-$$peer.log)"; \
	done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps mosaicml-streaming > $(VENV)/bench-mosaic.log 2>&1 \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) $(MOSAIC_NEEDS) >> $(VENV)/bench-mosaic.log 2>&1 \
	  || echo "bench: mosaicml-streaming does not install (see $(VENV)/bench-mosaic.log)"
	$(BIN)/python bench/throughput.py $(if $(QUICK),--quick) $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info runs
