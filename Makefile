# make run      the whole chain on the toy data, ending with the report (about 20 minutes on two cores)
# make test     lint (ruff, formatting, mypy) and all tests
# make test-browser  every kind of page in a headless Chromium (Debian: apt install chromium)
# make test-gpu  what needs a GPU (docs/install.md)
# make test-slurm  the tests on a real local Slurm (docs/cluster.md says what they need)
# make install  only the environment .venv: torch, compiled mmcv, ltpipe with all extras
# make lint     ruff, formatting, mypy
# make pictures the pictures of the README, from results of make run (needs a Chromium, and Graphviz for the graph)
# make docs     the documentation site in site/, every warning an error
# make test-tutorial  follows docs/tutorial.md literally (half an hour on two cores)
# make clean    remove results and logs; data and the environment stay
#
# PYTHON, CORES and TORCH_BUILD may be given: make run CORES=8; docs/install.md says when

PYTHON ?= python3
TORCH_BUILD ?=
CORES ?= $(shell env --unset=OMP_NUM_THREADS --unset=OMP_THREAD_LIMIT nproc)

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint envs/constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' envs/constraints.txt)
MMCV := $(shell sed -n 's/^onedl-mmcv==//p' envs/constraints.txt)

export PATH := $(CURDIR)/$(BIN):$(PATH)
# Spinning OpenMP threads take most of the time on shared machines.
export OMP_WAIT_POLICY ?= passive
export PIP_NO_INPUT := 1

ifneq ($(and $(TORCH_BUILD),$(wildcard $(VENV)/.torch)),)
ifneq ($(TORCH_BUILD),$(shell cat $(VENV)/.torch))
$(error $(VENV) has another build of torch: remove it (rm -r $(VENV)) to install $(TORCH_BUILD))
endif
endif

.DEFAULT_GOAL := run
.PHONY: run test test-browser test-gpu test-slurm test-tutorial pictures docs install lint clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	snakemake --profile workflow/profiles/ci --cores $(CORES) all

test: lint
	OMP_NUM_THREADS=1 python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

# A Chromium of this machine (LTPIPE_CHROMIUM, or on the path), else the one that playwright downloads.
test-browser: $(VENV)/.installed
	@$(INSTALL) --editable ".[browser]"
	python -m pytest -m browser tests/browser

test-gpu: $(VENV)/.installed
	python -m pytest -m gpu

test-slurm: $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m pytest -m slurm

test-tutorial: $(VENV)/.installed
	python -m pytest -m tutorial

pictures: $(VENV)/.installed
	@$(INSTALL) --editable ".[browser]"
	python docs/make_images.py

# Material announces its end of life in every build; a warning of MkDocs itself ends the build.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

lint: $(VENV)/.installed
	ruff check .
	ruff format --check .
	mypy

install: $(VENV)/.installed

clean:
	rm -rf results logs .snakemake .ltpipe .pytest_cache .mypy_cache .ruff_cache

# Without a GPU mmcv compiles for the CPU only, and without a word.
define CUDA_CHECK
import sys, torch, mmcv.ops
built = mmcv.ops.get_compiling_cuda_version()
if built.split(".")[0] != torch.version.cuda.split(".")[0]:
    sys.exit(f"mmcv was compiled for CUDA: {built}; torch is for {torch.version.cuda}. Give FORCE_CUDA=1 where there is "
             "no GPU, and an nvcc of that CUDA (docs/install.md)")
endef
export CUDA_CHECK

# Flags in the environment take the place of those that Python was compiled with, so these (-O3) come first.
define COMPILER_FLAGS
import os, sysconfig
print(os.environ.get("CFLAGS", sysconfig.get_config_var("CFLAGS")), "-g0")
endef
export COMPILER_FLAGS

# ---- the environment, in the order that pip needs -------------------------------------------------------------------

$(VENV)/.created:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ltpipe needs Python 3.11 or newer: make run PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "== environment $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "python3 -m venv does not work here; on Debian: apt install python3-venv" >&2; exit 1; }
	@touch $@

# Any build of this version will do, for a CPU or for a GPU; pip's own settings decide where it comes from.
$(VENV)/.torch: $(VENV)/.created
	@echo "== torch $(TORCH)$(TORCH_BUILD:%=+%)"
	@$(INSTALL) torch==$(TORCH)$(TORCH_BUILD:%=+%)
	@echo "$(TORCH_BUILD)" > $@

# mmcv has no binary packages for current torch versions. It is compiled without build isolation, against the torch above.
# pip keeps what it compiled without knowing for which torch: a build of one's own is compiled anew. Without symbols for a
# debugger (-g0; Python's own flags ask for them) a file takes about a quarter less time, and the operators are the same.
$(VENV)/.mmcv: $(VENV)/.torch
	@echo "== build tools, OpenCV without graphics"
	@$(INSTALL) setuptools wheel ninja psutil packaging numpy
	@$(INSTALL) --no-build-isolation ./envs/opencv-python
	@if [ -z "$(TORCH_BUILD)" ] && $(PIP) cache list onedl_mmcv 2>/dev/null | grep -q -- "-$(MMCV)-"; \
	  then echo "== onedl-mmcv $(MMCV), from pip's cache"; \
	  else echo "== onedl-mmcv $(MMCV): compiling 78 files with $(CORES) jobs, once; usually 10 to 15 minutes on two cores ($$(date +%H:%M))"; fi
	@flags="$$($(BIN)/python -c "$$COMPILER_FLAGS")" && CFLAGS="$$flags" CXXFLAGS="$$flags" MMCV_WITH_OPS=1 MAX_JOBS=$(CORES) $(INSTALL) --no-build-isolation --no-deps $(TORCH_BUILD:%=--no-cache-dir --force-reinstall) onedl-mmcv==$(MMCV)
	@echo "== onedl-mmcv is ready ($$(date +%H:%M))"
	@touch $@

$(VENV)/.installed: $(VENV)/.mmcv pyproject.toml envs/constraints.txt
	@echo "== ltpipe with the extras workflow and dev"
	@$(INSTALL) --editable ".[workflow,dev]"
	@$(BIN)/python -c "import cv2, mmcv.ops, mmdet, mmengine.config"
	@case "$(TORCH_BUILD)" in cu*) $(BIN)/python -c "$$CUDA_CHECK" || { rm $(VENV)/.mmcv; exit 1; };; esac
	@touch $@
