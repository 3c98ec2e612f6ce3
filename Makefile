PYTHON ?= python3
BIN := .venv/bin
DOORS := tests/cli/test_commands.py tests/cli/test_bad_calls.py tests/cli/test_words.py \
    tests/networks/test_checkpoints.py tests/networks/test_user_models.py \
    tests/networks/test_bad_input.py tests/measurement/test_measure.py tests/attacks/test_attacks.py
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# a process for each core, each with one thread: kernels on small tensors gain nothing from more
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# tests start hundreds of processes, each of which would compile fperr anew (a fifth of its start)
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo docs test coverage test-slow lint validate notebooks bench bench-scale repair-table evidence evidence-half format-outcomes gpu-arithmetic gpu-check robust-accuracy \
    test-lowest clean

demo: .venv/core.stamp
	$(BIN)/fperr measure fashion_adversarial fashion_standard fashion_saturated \
	    --n 100 --scenarios all --out out/demo --overwrite
	@for network in "fashion_adversarial --radius 0.1" "fashion_standard --radius 0.015" \
	    "fashion_saturated --radius 0.05"; do \
	    $(BIN)/fperr attribute $$network --n 200 --steps 20 --starts 2 --exact all; done

test: .venv/test.stamp
	$(PARALLEL) -m "not slow" --durations=25

# apart from `make test`: counting lines costs half as much time again
coverage: .venv/test.stamp
	$(PARALLEL) -m "not slow" --cov --cov-report=term:skip-covered

test-slow: .venv/test.stamp .packages/stamp
	PYTHONPATH=$(CURDIR)/.packages $(PARALLEL) -m slow --durations=0

# The doors with the lowest versions that pyproject.toml allows, and the newest of everything else;
# old versions use what newer ones of their own dependencies deprecate.
test-lowest: .venv-lowest/stamp
	.venv-lowest/bin/python -m pytest -m "not slow" -W ignore::DeprecationWarning $(DOORS)

lint: .venv/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict fperr
	$(BIN)/lint-imports

# the site, without network; a warning is an error
docs: .venv/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

validate: .venv/core.stamp
	$(BIN)/fperr validate kernels
	$(BIN)/fperr validate bounds --cases 1000000 --out out/bounds

notebooks: .venv/test.stamp
	$(BIN)/python -m tests.makers.notebooks

# asv keeps what it measures in out/bench; a part alone: make bench-losses, or BENCH=a regular expression.
# glibc keeps the memory that tensors leave, so that page faults are not what is measured
BENCH ?= .
ASV := $(BIN)/asv --config tests/benchmarks/asv.conf.json
bench: .venv/test.stamp
	$(ASV) machine --yes
	ASV_PYTHONPATH=$(CURDIR) MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 \
	    $(ASV) run --environment existing --set-commit-hash $$(git rev-parse HEAD) \
	    --show-stderr --bench "$(BENCH)"

bench-attacks bench-engines bench-gradients bench-large bench-losses bench-measuring: bench-%:
	$(MAKE) bench BENCH='^$*\.'

# what campaigns cost beside their computing: minutes
bench-scale: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.scale

robust-accuracy: .venv/test.stamp
	$(BIN)/python -m tests.benchmarks.robust_accuracy

repair-table: .venv/test.stamp
	$(BIN)/python -m tests.benchmarks.repair_table

# what the gaps of known networks are made of: hours, resumed where it was cut off
evidence: .venv/test.stamp
	$(BIN)/python -m tests.benchmarks.evidence

evidence-half: .venv/test.stamp
	$(BIN)/python -m tests.benchmarks.evidence --half

# what a GPU's arithmetic, emulated, does to outcomes: an hour, resumed where it was cut off
format-outcomes: .venv/test.stamp
	$(BIN)/python -m tests.benchmarks.format_outcomes

# what it does to gradients: a table of docs/how_to/gpu_arithmetic.md
gpu-arithmetic: .venv/test.stamp
	$(BIN)/python -m tests.benchmarks.gpu_arithmetic

# on a machine with a card: the tests marked gpu and ten minutes of times, in one file to send in
gpu-check: .venv/test.stamp
	$(BIN)/python -m tests.gpu_check

.venv/core.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --config-settings editable_mode=compat -e .
	touch $@

.venv/test.stamp: .venv/core.stamp
	$(INSTALL) --config-settings editable_mode=compat -e '.[test]'
	$(INSTALL) --no-deps torchattacks adv-lib  # their pins of requests and visdom fit nothing else
	touch $@

.venv/docs.stamp: .venv/core.stamp
	$(INSTALL) --config-settings editable_mode=compat -e '.[docs]'
	touch $@

# RobustBench installs its own tests, which would hide these
.packages/stamp: tests/packages.txt .venv/core.stamp
	rm -rf .packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .packages \
	    -r tests/packages.txt
	rm -rf .packages/tests
	touch $@

.venv-lowest/stamp: pyproject.toml constraints-lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints-lowest.txt --config-settings editable_mode=compat -e . pytest hypothesis
	touch $@

clean:
	rm -rf .venv .venv-lowest .packages out
