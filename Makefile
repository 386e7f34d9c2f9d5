# `make demo` and `make test` need Python 3.10 or newer and make, nothing else: they create .venv and fill it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What the documentation and a release need besides.
DOCS := $(VENV)/.docs
RELEASE := $(VENV)/.release
WORKERS ?= auto
# One thread per worker: the networks of the tests are tiny, and threads get in each other's way (OMP_NUM_THREADS=4 make test).
# A worker that has nothing left takes over from others: the slowest files come first (tests/conftest.py), none waits for the last.
SUITE := -m pytest -n $(WORKERS) --dist worksteal
THREADS := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}

OLDEST := .venv-captum-oldest
LOWEST := .venv-lowest

# Where `make test-wheel` installs the wheel, and nothing else of this folder.
WHEEL_ENV := .venv-wheel
# nnU-Net brings some thirty packages and torchvision.
NNUNET := .venv-nnunet
# napari brings Qt and some sixty packages.
NAPARI := .venv-napari

.PHONY: bench check checks clean coverage demo docs hooks install install-all lint test test-browser test-captum-oldest test-lowest test-napari test-nnunet test-wheel \
	wheel viewer

install: $(INSTALLED)

# One after the other, for pip; then `make -j2 checks` can run two at a time: each of them keeps one core busy.
install-all: $(INSTALLED)
	$(MAKE) $(DOCS)
	$(MAKE) $(RELEASE)

checks: lint docs test-wheel

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/causalseg demo

test: $(INSTALLED)
	$(THREADS) $(BIN)/python $(SUITE)

# For daily work: everything but the slow tests, under two minutes on two cores.
check: lint
	$(THREADS) $(BIN)/python $(SUITE) -m "not slow" tests

# The whole suite; fails below the share of lines and branches in setup.cfg.
coverage: $(INSTALLED)
	$(THREADS) $(BIN)/python $(SUITE) --cov --cov-report=term --cov-report=xml

# The oldest Captum that is supported, which wants numpy 1.
$(OLDEST)/.installed: pyproject.toml constraints-captum-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-captum-oldest.txt -e ".[test]"
	touch $@

test-captum-oldest: $(OLDEST)/.installed
	$(THREADS) $(OLDEST)/bin/python $(SUITE)

# The lower bounds of pyproject.toml; PYTHON has to be 3.10.
$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e ".[test]"
	touch $@

test-lowest: $(LOWEST)/.installed
	$(THREADS) $(LOWEST)/bin/python $(SUITE)

# Folders of nnU-Net's results, with nnU-Net's own code.
$(NNUNET)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(NNUNET)
	$(NNUNET)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,nnunet]"
	touch $@

test-nnunet: $(NNUNET)/.installed
	$(THREADS) $(NNUNET)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m nnunet tests

# The plugin in napari, without a screen; its window is opened as well where there is one with OpenGL: xvfb-run make test-napari.
$(NAPARI)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(NAPARI)
	$(NAPARI)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,napari]" pytest-qt
	touch $@

test-napari: $(NAPARI)/.installed
	$(THREADS) $(if $(DISPLAY),,QT_QPA_PLATFORM=offscreen) $(NAPARI)/bin/python -m pytest -n0 -m napari tests

# Reports in a browser, chromium, which has to be there.
test-browser: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	$(THREADS) $(BIN)/python -m pytest -n0 tests/whole/test_report_in_browser.py

$(RELEASE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[release]"
	touch $@

wheel: $(RELEASE)
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*

# In an environment of its own and an empty folder: what someone gets who has nothing but the wheel. It is used once: what is imported is compiled
# then, and not all of torch before.
test-wheel: wheel
	rm -rf $(WHEEL_ENV)
	$(PYTHON) -m venv $(WHEEL_ENV)
	$(WHEEL_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt "$$(ls dist/*.whl)[demo]"
	empty="$$(mktemp -d)" && run="$(CURDIR)/$(WHEEL_ENV)/bin" && cd "$$empty" \
		&& "$$run/causalseg" demo --draws 3 \
		&& test -s causalseg-demo/report.html && test -s causalseg-demo/effects.png && test -s causalseg-demo/effects.csv && rm -r "$$empty"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# What pre-commit runs before each commit: .pre-commit-config.yaml.
hooks: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pre-commit
	$(BIN)/pre-commit install

# Tables and plots go to docs/; about an hour on two cores. DATA=FOLDER has the skin pictures of benchmarks/skin.py; without them the
# table of joints, most of which is about skin, is printed and not written, and that of joint effects left out.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/coverage.py --write docs/benchmarks/coverage.md
	$(BIN)/python benchmarks/allocation.py --threads 1 --write docs/benchmarks/allocation.md
	$(BIN)/python benchmarks/component_coverage.py --drawn --write docs/benchmarks/component_coverage.md
	$(BIN)/python benchmarks/against_paper.py --write docs/benchmarks/against_paper.md
	$(BIN)/python benchmarks/error_by_forwards.py --write docs/benchmarks/error_by_forwards.md
	$(BIN)/python benchmarks/throughput.py --write docs/benchmarks/throughput.md
	$(BIN)/python benchmarks/growth.py --write docs/benchmarks/growth.md
	$(BIN)/python benchmarks/windows.py --threads 1 --write docs/benchmarks/windows.md
	$(BIN)/python benchmarks/far_regions.py --threads 1 $(if $(DATA),--data $(DATA)) --write docs/benchmarks/far_regions.md
	$(BIN)/python benchmarks/pathways.py --threads 1 $(if $(DATA),--data $(DATA)) --write docs/benchmarks/pathways.md
	$(BIN)/python benchmarks/approximations.py --write docs/benchmarks/approximations.md
	$(BIN)/python benchmarks/shortcut.py --write docs/benchmarks/shortcut.md
	$(BIN)/python benchmarks/comparison.py --write docs/benchmarks/comparison.md
	$(BIN)/python benchmarks/cohort.py --write docs/benchmarks/cohort.md
	$(BIN)/python benchmarks/prediction_intervals.py --threads 1 --write docs/benchmarks/prediction_intervals.md
	$(BIN)/python benchmarks/refuters.py --threads 1 --write docs/benchmarks/refuters.md
	$(BIN)/python benchmarks/joints.py --threads 1 $(if $(DATA),--data "$(DATA)" --write docs/benchmarks/joints.md)
	$(BIN)/python benchmarks/joint_coverage.py --threads 1 --write docs/benchmarks/joint_coverage.md
	$(BIN)/python benchmarks/equal_forwards.py --threads 1 --write docs/benchmarks/equal_forwards.md
	$(if $(DATA),$(BIN)/python benchmarks/joint_effects.py --threads 1 --data "$(DATA)" --write docs/benchmarks/joint_effects.md)
	$(BIN)/python benchmarks/regions.py --threads 1 --cases 6 --network "batch norm" --pictures 3 $(if $(DATA),--data "$(DATA)" --write docs/benchmarks/regions.md)
	$(BIN)/python benchmarks/refusals.py --threads 1 --write docs/benchmarks/refusals.md
	$(BIN)/python examples/model_study.py --write docs
	$(BIN)/python benchmarks/layer_effects.py
	$(BIN)/python benchmarks/gradient_effects.py

# The viewer of volumes that reports hold, from npm; the licenses of what is in it are beside it, in niivue.LICENSE.txt.
NIIVUE := 0.69.0
viewer:
	folder="$$(mktemp -d)" && cd "$$folder" && npm pack --silent @niivue/niivue@$(NIIVUE) && tar xzf *.tgz \
		&& gzip -9nc package/dist/niivue.umd.js > "$(CURDIR)/captum_causalseg/cli/pages/niivue.umd.js.gz" && rm -r "$$folder"

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

docs: $(DOCS)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) $(OLDEST) $(LOWEST) $(NAPARI) $(NNUNET) $(WHEEL_ENV) build dist *.egg-info .coverage coverage.xml .pytest_cache .mypy_cache .ruff_cache docs/_build
