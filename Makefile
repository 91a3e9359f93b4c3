# Each target does its own set-up on a fresh machine: a virtual environment in .venv, pinned packages, the build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait sleep instead of spinning: on a busy machine that is several times faster.
QUIETLY := OMP_WAIT_POLICY=passive
# Tests start many processes. Where no bytecode is kept (`pip install --no-compile` leaves none, and an environment may
# forbid Python to write it) each compiles its libraries anew, half the time that its start takes.
COMPILED_ONCE := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(abspath build/bytecode)
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml constraints.txt

.PHONY: help install demo test sanitize test-arm lint format docs bench gpu-check gpu-check-right gpu-check-tune gpu-check-fast clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 17

$(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt ray playwright optuna transformers diffusers
	# A second transformers, of the year before, in a folder of its own: tests/patching/test_versions.py.
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --upgrade --no-deps \
		--target build/transformers-4.57 transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
	# timm and the torchvision that it imports, in another: the same test says why.
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --upgrade --no-deps \
		--constraint constraints.txt --target build/timm timm torchvision
	@touch $@

install: $(VENV)/installed  ## virtual environment, dependencies, build

demo: install  ## generate data, train, predict, evaluate, compare speed; pictures in demo/
	$(QUIETLY) $(BIN)/hsta demo --output demo

test: $(VENV)/installed-for-tests  ## the whole test suite (what needs a GPU is skipped without one)
	# Two processes: Triton's interpreter, the emulator and the compilers take one core each.
	$(QUIETLY) $(COMPILED_ONCE) $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

sanitize: install  ## the C++ kernels against naive loops, under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/cmake -G Ninja -S . -B build/sanitize -DHSTA_TESTS=ON -DHSTA_SANITIZE=address,undefined -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
	$(BIN)/cmake --build build/sanitize
	$(QUIETLY) build/sanitize/cpu_tests

test-arm: install  ## the same tests for 64-bit Arm, on an emulated processor (g++-aarch64-linux-gnu, qemu-user)
	$(BIN)/cmake -G Ninja -S . -B build/arm -DHSTA_TESTS=ON -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
	$(BIN)/cmake --build build/arm
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/arm/cpu_tests

lint: install  ## formatting, linting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/mypy

format: install  ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

docs: install  ## this documentation as a site, in build/site; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky docs build/site

bench: install  ## operators and model against every contender on this machine, within 20 minutes
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

gpu-check:  ## the three below, on a machine with an NVIDIA GPU and no network, with the Python found there
	$(PYTHON) tools/gpu_check.py right tune fast

gpu-check-right:  ## in nine minutes: build, parity, spills, compute-sanitizer
	$(PYTHON) tools/gpu_check.py right

gpu-check-tune:  ## in nine minutes: a table of configurations for the Triton found there
	$(PYTHON) tools/gpu_check.py tune

gpu-check-fast:  ## in nine minutes: benchmarks, bfloat16 first, and counters of the GPU
	$(PYTHON) tools/gpu_check.py fast

clean:  ## remove everything the other targets made
	rm -rf $(VENV) build demo *.egg-info hsta_kernels/_c*.so
