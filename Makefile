# Everything a person needs; each target sets up what it needs in .venv by itself.
#   make demo [ARGS=--once]   sandboxd, an Envoy and an upstream, with filters at work
#   make test                 the tests (less than ten minutes)
#   make test-long            those that take long: soaks, fuzzers, Envoy with every access checked (about nine minutes)
#   make check                linters, types, C warnings, generated code
#   make test-vm              the service in a virtual machine: systemd, cgroup v2 (root, about ten minutes)
#   make fuzz                 ten million inputs for each fuzzer under libFuzzer (root gets clang by itself; about an hour)
#   make bench                figures into build/bench.json (ARGS=matrix: by workload; ARGS=soak: a million exchanges)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.PHONY: demo test test-long test-vm check fuzz bench generate format clean

demo: $(READY)
	$(BIN)/python -m sandboxd.demo $(ARGS)

test: $(READY)
	-$(BIN)/python -m tests.support.redis_server
	$(BIN)/python -m pytest $(ARGS)

test-long: $(READY)
	$(BIN)/python -m pytest -m long $(ARGS)

test-vm: $(READY)
	$(BIN)/python -m tests.machine $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m sandboxd.protos.generate --check
	$(BIN)/python -m sandboxd.hostcore.build --check
	$(BIN)/python -m tests.conformance --check

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz.libfuzzer $(ARGS)

bench: $(READY)
	$(BIN)/python -m tests.bench $(ARGS)

generate: $(READY)
	$(BIN)/python -m sandboxd.protos.generate

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The editable install builds hostcore.wasm with ziglang from the dev extra: no compiler on the machine is needed.
$(READY): pyproject.toml setup.py $(wildcard sandboxd/hostcore/*.[ch]) sandboxd/hostcore/build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sandboxd needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "No virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) (the first time downloads about 250 MB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" wheel "ziglang>=0.15,<0.18"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info sandboxd/hostcore/*.wasm
