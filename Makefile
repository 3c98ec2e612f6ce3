PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint validate notebooks bench bench-attack bench-exact robust-accuracy clean

demo: .venv/core.stamp
	$(BIN)/fperr measure fashion_adversarial fashion_standard fashion_saturated \
	    --n 100 --scenarios all --out out/demo --overwrite

test: .venv/test.stamp
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/test.stamp
	$(BIN)/python -m pytest -m slow --durations=0

lint: .venv/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict fperr
	$(BIN)/lint-imports

validate: .venv/core.stamp
	$(BIN)/fperr validate kernels
	$(BIN)/fperr validate bounds --cases 1000000 --out out/bounds

notebooks: .venv/test.stamp
	$(BIN)/jupyter execute notebooks/*.ipynb

bench: .venv/test.stamp
	$(BIN)/python -m tests.bench

bench-attack: .venv/test.stamp
	MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 \
	    $(BIN)/python -m tests.bench_attack

robust-accuracy: .venv/test.stamp
	$(BIN)/python -m tests.robust_accuracy

bench-exact: .venv/test.stamp
	$(BIN)/python -m tests.bench_exact

.venv/core.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --config-settings editable_mode=compat -e .
	touch $@

.venv/test.stamp: .venv/core.stamp
	$(INSTALL) --config-settings editable_mode=compat -e '.[test]'
	$(INSTALL) --no-deps torchattacks adv-lib  # their pins of requests and visdom fit nothing else
	touch $@

clean:
	rm -rf .venv out
