# make demo   the whole loop on real photographs
# make test   the tests, without those that take long; a few minutes
# make test-all  all tests; wants root, scripts/emulate_arm64 and every optional part, and leaves out what is missing
# make test-slow, make test-long  those that make test leaves out; CI runs the first, a release wants both
# make test-pi  those on an emulated Raspberry Pi alone; wants root and scripts/emulate_arm64
# make test-pi-full  a whole emulated machine: first boot, watchdog, power cuts; wants qemu-system-arm, too
# make bench  every figure, into benchmarks/results.md; hours, on a machine that does nothing else
# make torture BUNDLE=x.edgeloop  mistreats an agent for 20 minutes; writes the table in docs/reliability.md
# make findings  what surprised us in libraries and formats, run again; says what has changed
# make docs   the documentation site, into build/site; a broken link or reference fails
# make check  lint, types, spelling, import contracts, documentation, and the floor of the coverage, if it was recorded
# make release-check  builds a release, installs it into empty environments, runs the demo from the wheel
#
# Each makes its environment first. Another Python: make test PYTHON=python3.12

.PHONY: demo test test-all test-slow test-long test-pi test-pi-full torture findings bench docs check release-check env-demo env-dev clean

VENV ?= .venv
BIN = $(VENV)/bin
# Many tests wait more than they compute. Each process takes up to 2 GB, with slow tests 3 GB.
TEST_PROCESSES ?= 3

demo: env-demo
	$(BIN)/edgeloop demo $(ARGS)

PYTEST = $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# Recording makes the tests slower, so it is left to CI and to make test COVERAGE=1.
RECORD = $(if $(CI)$(COVERAGE),--cov --cov-report= --cov-fail-under=0)

test: env-dev
	$(PYTEST) -m "not slow" $(RECORD) $(ARGS)

# Those of 5 to 20 seconds, and one run of the demo.
test-slow: env-dev
	$(PYTEST) -m "slow and not long and not whole_machine" $(ARGS)

test-long: env-dev
	$(PYTEST) -m "long and not whole_machine" $(ARGS)

test-all: env-dev
	$(PYTEST) $(RECORD) $(ARGS)

test-pi: env-dev
	$(BIN)/python -m pytest tests/pi $(ARGS)

test-pi-full: env-dev
	$(BIN)/python -m pytest tests/pi -m whole_machine $(ARGS)

torture: env-dev
	$(BIN)/python -m benchmarks.torture $(BUNDLE) $(ARGS)

findings:
	@for finding in findings/*.sh; do echo "$$finding"; $$finding || changed="$$changed $$finding"; done; \
	[ -z "$$changed" ] || { echo "changed:$$changed"; exit 1; }

bench: env-dev
	$(BIN)/python -m benchmarks $(ARGS)

docs: env-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

check: env-dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	@if [ -f .coverage ]; then $(BIN)/coverage report --skip-covered --format=total; \
	else echo "coverage is not recorded; record it with: make test COVERAGE=1"; [ -z "$(CI)" ]; fi

release-check:
	PYTHON="$(PYTHON)" scripts/release_check

env-demo env-dev: env-%:
	@PYTHON="$(PYTHON)" scripts/make_env $(VENV) $*

clean:
	rm -rf $(VENV) .bench build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
