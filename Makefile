# Run `pip install -e ".[dev]"` first. All targets except `compat` use the active environment.
.PHONY: check test slow drill system third-party compat generate docs bench build

check:   ## Linters, types, import contracts, prose
	.ci/check

test:    ## The default tests
	pytest

slow:    ## Whole runs, sweeps and combinations
	pytest -m "slow and not drill"

drill:   ## All kill drills; takes hours. STORMPROOF_DRILL_EVERY=15 runs every 15th step
	pytest -m drill

system:  ## Reduced drills, browser and cluster tests; installs Debian packages, needs root
	.ci/system

third-party:  ## Trains models of ten packages that use Lightning, each in its own environment; needs PyPI and GitHub
	pytest -n 2 --dist loadgroup -m third_party tests/third_party

compat:  ## Default tests with the oldest and the newest versions; needs Python 3.11 and 3.13
	.ci/compat

generate:  ## Stubs, reference pages and tables that list public names, options and --help
	python scripts/generate.py

docs:    ## Documentation site in build/site, readable offline; broken links and anchors are errors
	mkdocs build --strict

bench:   ## Cost of checkpoints, loaders and monitors on this machine
	python scripts/benchmarks/checkpoint.py
	python scripts/benchmarks/resumable_loader.py
	python scripts/benchmarks/monitoring.py

build:   ## Source distribution and wheel in dist/
	python -m build
