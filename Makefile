# make demo   environment, embedded data, training, 3D test, pictures
# make blade  the same for a part: turbine blades with two kinds of defects
# make ct     the same with the chests' CT slices in place of X-ray views
# make breast  mammograms: Mask R-CNN, then AG-RCNN with the partner views
# make test   environment, then the whole test suite
# make lint   style, docstrings, types, spelling
# make runtime  the wheel that runs deployed models, in build/runtime
# make wheel  mmcv's wheel in WHEELS; make WHEELS=FOLDER env takes it from there
# make docs   the documents as a site, in build/site
PYTHON ?= python3.11
DEVICE ?= auto
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc)
SETUP = $(PYTHON) tools/setup_env.py --venv $(VENV) --device $(DEVICE) \
	$(if $(WHEELS),--wheels $(WHEELS))

.PHONY: demo blade ct breast test env lint runtime wheel docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

env:
	@command -v $(PYTHON) >/dev/null || { echo "[setup] Python: expected \
	$(PYTHON), found none; install Python 3.11 or name it: \
	make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(SETUP)

demo: env
	@$(BIN)/python tools/demo.py --jobs $(JOBS)

blade: env
	@$(BIN)/python tools/demo.py blade --jobs $(JOBS)

ct: env
	@$(BIN)/python tools/demo.py ct --jobs $(JOBS)

breast: env
	@$(BIN)/python tools/demo.py breast --jobs $(JOBS)

test: env
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 \
	--dist worksteal --durations=15

lint: env
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m codespell_lib

runtime: env
	@rm -rf runtime/build build/runtime
	@$(BIN)/python -m pip wheel -q --no-deps --no-index \
	--no-build-isolation -w build/runtime ./runtime
	@cp runtime/requirements.txt build/runtime/
	@ls build/runtime/*

wheel: env
	@$(SETUP) --wheel

docs: env
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "[docs] build/site/index.html"

clean:
	rm -rf work_dirs/demo-v2 data/demo-v2 work_dirs/blade data/blade data/blade_ct \
	work_dirs/ct data/ct work_dirs/breast data/breast data/breast_dicom
