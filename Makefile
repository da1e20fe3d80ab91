# Everything works on a fresh machine that has GNU make and Python 3.11 or newer: each target
# first makes what it needs. `make help` lists them.

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := .ci/constraints.txt
SOURCES := $(wildcard engine server clients docker tests)
CSRC := engine/backends/cpu/csrc
NATIVE := $(wildcard $(CSRC)/*.cpp $(CSRC)/*.hpp $(CSRC)/*.inl $(CSRC)/CMakeLists.txt $(CSRC)/*.cmake)

LLAMA_CMAKE := -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON \
	-DLLAMA_TOOLS_INSTALL=ON -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF

PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	-c $(CONSTRAINTS) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install serve test bench check format clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=\"...\"        more arguments for bitskip serve, pytest or the benchmark"
	@echo "  PYTHON=python3.12 the interpreter that .venv is made with"
	@echo "  TORCH_INDEX=URL   a further package index to take torch from, which test, check and"
	@echo "                    bench need: the usual one's Linux build brings gigabytes of CUDA"

install: $(VENV)/.installed ## make .venv with what the server needs

serve: $(VENV)/.installed ## start the server on port 8000
	@$(VENV)/bin/bitskip serve $(ARGS)

test: $(VENV)/.installed-dev ## run the tests
	@$(VENV)/bin/python -m pytest $(ARGS)

bench: $(VENV)/.installed-bench ## compare speed and memory with other systems: 40 minutes
	@PYTHONPATH=tests $(VENV)/bin/python -m benchmarks $(ARGS)

check: $(VENV)/.installed-dev ## check format, lint and types
	@$(VENV)/bin/ruff format --check $(SOURCES)
	@$(VENV)/bin/ruff check $(SOURCES)
	@$(VENV)/bin/pyright

format: $(VENV)/.installed-dev ## format the code and apply the linter's safe fixes
	@$(VENV)/bin/ruff check --fix-only $(SOURCES)
	@$(VENV)/bin/ruff format $(SOURCES)

clean: ## remove .venv, build outputs and caches
	git clean -fdXq $(CSRC)/.. 2>/dev/null || true
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -type d -name __pycache__ -prune -exec rm -rf {} +

# Dated by the files that say what to install, so a second run has nothing to do. A .venv whose
# making was cut short has no pip and is made anew.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"bitskip-server needs Python 3.11 or newer; name one with PYTHON=...")'
	@test -x $(VENV)/bin/pip || { echo "Making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing the server and what it needs into $(VENV): a minute or two, the first time"
	@$(PIP_INSTALL) --editable .
	@$(VENV)/bin/python -c 'import engine.backends.cpu._native' 2>/dev/null || { \
		echo "No C++ compiler: installing torch, for the reference backend"; \
		$(PIP_INSTALL) --editable '.[torch]'; }
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for tests and checks"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# llama.cpp for this very machine, with its server, from the sources in llama-cpp-python.
$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "Installing what the benchmark compares with; compiling llama.cpp takes a while"
	@CMAKE_ARGS="$(LLAMA_CMAKE)" $(PIP_INSTALL) --no-binary llama-cpp-python --editable '.[bench]'
	@touch $@
