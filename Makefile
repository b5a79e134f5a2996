# Two commands for a new user: `make quickstart` and `make test`. Both set up everything first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ASSETS ?= ../shared/assets
MINUTES ?= 20
REAL_SPLITS ?= train=0.16 validation=0.08 test=0.2

.PHONY: help setup quickstart test lint sweep benchmark-real sweep-real shards-real test-cluster bench-data bench-training bench-evaluation chaos mlflow clean
help: ## Print the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.complete ## Install the suite and its pinned packages into .venv (about 6.5 GB)
$(VENV)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[test]'
	# On all cores, which pip does not. Not left to the first use: where PYTHONDONTWRITEBYTECODE is set, as it is in many
	# containers, every process would compile everything again. (A few files of packages are templates, no Python.)
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib data_shards evaluation jobs trainer >/dev/null || true
	touch $@

quickstart: setup ## A small overfitting sweep on the embedded sample, then the whole benchmark: tables, reports, MLflow
	$(BIN)/python -m jobs.sweep jobs/configs/sweep_head.yaml
	$(BIN)/python -m jobs.benchmark jobs/configs/quickstart.yaml

test: setup ## All tests but those on a real Slurm (those that need Chromium or real faces say so when they skip)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/slurm

lint: setup ## Style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

sweep: setup ## A Ray Tune sweep over learning rate and unfrozen depth on the embedded sample
	$(BIN)/python -m jobs.sweep jobs/configs/sweep_quickstart.yaml

benchmark-real: shards-real ## The same on real faces and nine real weights; ASSETS=FOLDER (hours on two cores)
	$(BIN)/python -m jobs.benchmark jobs/configs/real.yaml weights_dir=$(ASSETS)/weights

sweep-real: shards-real ## Overfitting sweeps on real faces: heads on nine backbones, then three small ones in depth; ASSETS=FOLDER
	$(BIN)/python -m jobs.sweep jobs/configs/sweep_real_head.yaml weights_dir=$(ASSETS)/weights
	$(BIN)/python -m jobs.sweep jobs/configs/sweep_real_deep.yaml weights_dir=$(ASSETS)/weights

shards-real: setup
	test -f $(ASSETS)/faces/faces.csv || { echo "error: no $(ASSETS)/faces/faces.csv; give make benchmark-real ASSETS=FOLDER" >&2; exit 2; }
	mkdir -p runs/faces  # the same table, which also says that every image is a video of its own
	ln -sfn $(abspath $(ASSETS))/faces/dfdc $(abspath $(ASSETS))/faces/stylegan runs/faces/
	awk -F, -v OFS=, 'NR == 1 { print $$0, "video" } NR > 1 { print $$0, $$1 }' $(ASSETS)/faces/faces.csv > runs/faces/faces.csv
	$(BIN)/python -m data_shards.pack faces=runs/faces/faces.csv only=dfdc out=runs/shards/dfdc $(REAL_SPLITS)
	$(BIN)/python -m data_shards.pack faces=runs/faces/faces.csv only=stylegan out=runs/shards/stylegan train=0 validation=0 test=1

test-cluster: setup ## The tests on a real Slurm (Debian: slurmctld slurmd slurm-client munge)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/slurm

bench-data: setup ## Loader, resume, corruption and packing against their peers; writes runs/bench-data.md
	$(BIN)/python -m tests.benchmarks.data

bench-training: setup ## Step time against a bare loop
	$(BIN)/python tests/benchmarks/bench_training.py

bench-evaluation: setup ## Speed and truth (coverage, nulls) of the separability scores
	$(BIN)/python -m tests.benchmarks.bench_evaluation

chaos: setup ## Random faults on a real Slurm for MINUTES (root), then the check that nothing is lost or doubled
	$(BIN)/python tests/benchmarks/chaos.py minutes=$(MINUTES) seed=0

mlflow: setup ## Compare runs at http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///runs/mlflow.db

clean: ## Remove results; the environment stays
	rm -rf runs
