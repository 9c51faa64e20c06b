# dev sets up .venv and fetches Helm for the chart's tests; demo shows the thing at work; test, lint and check verify;
# proto writes the stubs, reference the page of flags and the chart's schema; bench-kernels times the experts' kernels.
# On a machine with an NVIDIA GPU, `make clean dev CUDA=1` takes PyTorch's CUDA build (gigabytes), not the CPU build.
PYTHON ?= python3
CUDA ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := 2.13.0
CPU_WHEELS := https://download.pytorch.org/whl/cpu
PACKAGES := attention_workers checkpoint cluster demo expert_workers gateway kernels membership proto router settings transport

.PHONY: dev proto reference test lint check demo bench-kernels clean

dev: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt tests/helm/fetch_helm.py $(wildcard kernels/cpp/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expertfleet needs Python 3.11 or newer: make dev PYTHON=python3.12"; exit 1; }
	@echo "setting up .venv (about two minutes the first time)"
	@$(PYTHON) -m venv .venv
ifeq ($(CUDA)$(filter-out Linux,$(shell uname -s)),)
	@$(PIP) install "torch==$(TORCH)+cpu" 2>/dev/null || \
		$(PIP) install "torch==$(TORCH)+cpu" --index-url $(CPU_WHEELS)
	@$(PIP) install -c constraints.txt setuptools
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
else
	@$(PIP) install -c constraints.txt setuptools
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
endif
	@$(BIN)/python tests/helm/fetch_helm.py .venv/helm
	@mkdir -p .link && ln -sfn .. .link/expertfleet
	@touch $@

demo: dev
	@$(BIN)/python -m expertfleet.demo

test: dev
	@$(BIN)/pytest -q -n 2 --dist loadfile

lint: dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(addprefix -p expertfleet.,$(PACKAGES))

check: lint
	@$(BIN)/python -m expertfleet.proto.make_stubs --check
	@$(BIN)/python -m expertfleet.cluster.make_reference --check

bench-kernels: dev
	@$(BIN)/python benchmarks/bench_experts_cpu.py --results benchmarks/results
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/python benchmarks/bench_experts_gpu.py --results benchmarks/results; \
	else echo "no GPU here: benchmarks/bench_experts_gpu.py was not run"; fi

proto: dev
	@$(BIN)/python -m expertfleet.proto.make_stubs

reference: dev
	@$(BIN)/python -m expertfleet.cluster.make_reference

clean:
	rm -rf .venv .link build kernels/*.so
