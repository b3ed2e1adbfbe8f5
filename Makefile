# Every target uses the environment that is active: pip install -e ".[dev]"
.PHONY: check test slow drill system compat docs bench build

check:   ## Linters, types, import contracts
	.ci/check

test:    ## The default tests
	pytest

slow:    ## Whole runs, sweeps and combinations
	pytest -m "slow and not drill"

drill:   ## All kill drills; takes hours. STORMPROOF_DRILL_EVERY=15 runs every 15th step
	pytest -m drill

system:  ## Reduced drills, browser and cluster tests; installs Debian packages
	.ci/system

compat:  ## Default tests with the oldest and the newest versions
	.ci/compat

docs:    ## The pages of docs/, strict about links and anchors
	mkdocs build --strict

bench:   ## Cost of checkpoints, loaders and monitors on this machine
	python scripts/benchmarks/checkpoint.py
	python scripts/benchmarks/resumable_loader.py
	python scripts/benchmarks/monitoring.py

build:   ## Source distribution and wheel in dist/
	python -m build
