# `make demo` and `make test` need only Python >= 3.10, make and a C library.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch's default Linux wheel brings gigabytes of CUDA. Where no GPU is present, prefer a CPU build if an index that pip
# knows has one; TORCH="torch==2.9.1" (any pip arguments) overrides.
TORCH ?=

.PHONY: demo fuzz test test-slow test-large test-kill format bench clean

demo: $(VENV)/.installed
	$(BIN)/python -m unmask demo

test: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

test-large: $(VENV)/.installed-dev  # 5 GB of text within 3 GB of address space: 15 GB of disk, minutes
	$(BIN)/python benchmarks/preparing.py --large 5000 --limit 3000 --tokenizer bytes
	$(BIN)/python benchmarks/preparing.py --large 5000 --limit 3000 --tokenizer bpe:4096

# Kills a run, and a preparation of text, at random moments, saves included: a few minutes.
test-kill: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill.py --kills 150
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_preparing.py --kills 150

# every fuzz test at length: files, canvases and options made of anything
fuzz: $(VENV)/.installed-dev
	UNMASK_EXAMPLES=500 $(BIN)/python -m pytest tests/test_fuzz_files.py tests/test_fuzz_sampling.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	for each in preparing products training sampling decoding speculative constraints likelihood harness; do $(BIN)/python benchmarks/$$each.py || exit 1; done

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "unmask needs Python 3.10 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	PIP="$(BIN)/pip" TORCH="$(TORCH)" sh scripts/install_torch.sh
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet -e ".[corpus]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist
