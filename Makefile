# `make help` lists the targets. ARGS passes more to a command: make test ARGS="-k metrics"
.DEFAULT_GOAL := help
.PHONY: help setup lint run test prove bench lab docs demo cluster export lock clean
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PY := .venv/bin/python
LOCK = uv pip compile pyproject.toml $(ARGS) -q --extra aws --python $(PY) --generate-hashes --no-header --no-annotate --no-emit-index-url

IMAGE_LOCK = uv pip compile -q --python $(PY) --generate-hashes --no-header --no-annotate --no-emit-index-url
# the training image's own builds stay: those for CUDA, and what these are compiled against
MERLIN = faiss-cpu pandas pyarrow numba llvmlite dask setuptools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

setup: ## make .venv from the lock files; silent when nothing changed
	@sh setup.sh

# the last two stages, which fill the online store and write Triton's files, are what `make demo` starts from
run: setup ## run every stage on the built-in shop, then recommend
	@recsys run --params params/quickstart.yaml --to triton $(ARGS)
	@recsys recommend --run quickstart

lint: setup ## ruff over notebooks, tests and benchmarks, mypy over the package
	@ruff format --check -q nbs tests bench || { echo "run: .venv/bin/ruff format nbs tests bench"; exit 1; }
	@ruff check -q nbs tests bench
	@mypy

test: lint ## prove every behaviour, in small counts
	@$(PY) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

prove: setup ## prove the big counts, which may take hours; writes outputs/prove.json
	@$(PY) tests/prove.py $(ARGS)

bench: setup ## measure speed and memory; writes outputs/bench.json, bench/results.json and a plot
	@$(PY) bench/bench.py $(ARGS)

lab: setup ## open the notebooks in JupyterLab, with a guide, on this machine only
	@$(PY) -m jupyterlab --config nbs/jupyter_server_config.py --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=nbs $$([ "$$(id -u)" != 0 ] || echo --allow-root) $(ARGS)

docs: setup ## build the docs site from the quickstart run's executed notebooks, or the tiny one's; writes site/
	@recsys docs $(ARGS)

demo: setup ## open the shop window on the quickstart run
	@recsys demo --run quickstart $(ARGS)

cluster: setup ## print the steps to a cluster on AWS and what it costs; APPLY=1 runs them, DOWN=1 takes it down, DATA=1 the data, too
	@recsys cluster $(if $(filter 1,$(DOWN)),down $(if $(filter 1,$(DATA)),--data),up) $(if $(filter 1,$(APPLY)),--apply) $(ARGS)

export: setup ## after editing notebooks: clear their outputs, clean them, write recsys/, README.md and what k8s/ has from them
	@$(PY) -m jupyter nbconvert --log-level WARN --clear-output --inplace nbs/*/*.ipynb nbs/*.ipynb
	@nbdev_clean && nbdev_export
	@recsys pipeline compile && recsys pipeline tables && recsys cluster page
	@[ ! -e nbs/index.ipynb ] || $(PY) -m jupyter nbconvert --log-level WARN --to markdown --output-dir . --output README nbs/index.ipynb

lock: setup ## resolve the lock files again (py310 is for the production images: resolved, never installed here)
	@$(LOCK) --python-version 3.11 --extra docs --extra dev -o requirements-py311.lock
	@$(LOCK) --python-version 3.10 -o requirements-py310.lock
	@for image in gateway worker; do $(IMAGE_LOCK) -c requirements-py311.lock --python-version 3.11 k8s/images/$$image/requirements.in -o k8s/images/$$image/requirements.lock || exit; done
	@$(IMAGE_LOCK) -c requirements-py310.lock --python-version 3.10 k8s/images/serving/requirements.in -o k8s/images/serving/requirements.lock
	@$(IMAGE_LOCK) -c requirements-py310.lock --python-version 3.10 $(MERLIN:%=--no-emit-package %) k8s/images/training/requirements.in -o k8s/images/training/requirements.lock
	@$(IMAGE_LOCK) -c requirements-py310.lock -c k8s/images/training/requirements.lock --python-version 3.10 $(MERLIN:%=--no-emit-package %) k8s/images/notebook/requirements.in -o k8s/images/notebook/requirements.lock
	@$(IMAGE_LOCK) --python-version 3.11 tests/checkov/requirements.in -o tests/checkov/requirements.lock

clean: ## remove what builds leave behind; outputs/ and .venv stay
	@rm -rf build dist site _proc ./*.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache nbs/.last_checked nbs/.ipynb_checkpoints nbs/*/.ipynb_checkpoints
	@find nbs recsys tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "outputs/ and .venv were kept; remove them by hand when you mean to"
