# Every target works in a fresh clone: it first installs what it needs into .venv. `make demo` and
# `make serve` install what the gateway needs (GATEWAY); the other targets add the tools (STAMP).

# pipefail is bash's
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GATEWAY := $(VENV)/.gateway
STAMP := $(VENV)/.installed
FUZZER := $(VENV)/.fuzzer
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The lock names everything: otherwise pip 23 would look for coverage[toml] beyond it, and find a newer one.
LOCKED := $(PIP) install --progress-bar off --require-hashes --no-deps --requirement
# Prints a line for each package that pip handles.
TELL := while read -r word what _; do case "$$word" in Collecting|Processing) echo "  $${what\#\#*/}";; Installing) echo "  unpacking";; esac; done

.DEFAULT_GOAL := help
.PHONY: help demo cluster serve test test-browser coverage torture fuzz bench bench-quick scale soak screenshots lint types format lock dist clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# On a bare machine one line says what is missing.
$(GATEWAY): pyproject.toml requirements-demo.lock
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON) 3.11 or newer (or set PYTHON=...)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "missing: Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1) (set PYTHON=...)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: Python's venv module (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "installing the gateway into $(VENV), once (some 100 MB):"
	@$(PYTHON) -m venv --clear $(VENV)
	@set -o pipefail; $(LOCKED) requirements-demo.lock | $(TELL)
	@$(PIP) --quiet install --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMP): $(GATEWAY) requirements.lock
	@echo "installing the tools of tests and checks into $(VENV), once (some 400 MB more):"
	@set -o pipefail; $(LOCKED) requirements.lock | $(TELL)
	@touch $@

demo: $(GATEWAY) ## Watch the whole life of an ICE on real sockets
	@$(BIN)/ice-gateway demo

cluster: $(STAMP) ## Watch three gateways on one PostgreSQL: a drop across nodes, a death, a rolling restart
	@$(BIN)/python -m tests.cluster.show

serve: $(GATEWAY) ## Start a gateway to keep (http://127.0.0.1:8440, ./ice-gateway.db)
	@$(BIN)/ice-gateway serve

test: $(STAMP) ## Run the tests, all but those in a browser
	@$(BIN)/python -m pytest -q -n 4 --dist worksteal --ignore tests/browser

test-browser: $(STAMP) ## Run the tests of the pages in Chromium
	@$(BIN)/python -m pytest -q -n 4 --dist worksteal tests/browser

coverage: $(STAMP) ## Run the tests and list the lines that none of them runs
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal --cov --cov-report=term

torture: $(STAMP) ## An hour and a half: 4,000 power cuts (needs strace), 3,000 damaged files, kill -9 in 300 rounds, during 300 operations, between occurrences and while machines enrol, failing nodes, a bad network (as root), a rolling restart, the API by each role, PostgreSQL, abuse, the worst input of each entrance
	@$(BIN)/python -m tests.torture.crash --rounds 300
	@$(BIN)/python -m tests.torture.operations --count 300
	@$(BIN)/python -m tests.torture.schedules --seconds 120
	@$(BIN)/python -m tests.torture.schedules --seconds 60 --engine postgresql
	@$(BIN)/python -m tests.torture.enrolment --rounds 300
	@$(BIN)/python -m tests.torture.enrolment --rounds 300 --engine postgresql
	@$(BIN)/python -m tests.powerloss --states 4000 --mutations
	@$(BIN)/python -m tests.torture.damage --trials 3000
	@$(BIN)/python -m tests.torture.api
	@ICE_TEST_LONG=1 $(BIN)/python -m pytest -q -m long
	@$(BIN)/python -m tests.torture.nodes --rounds 100
	@$(BIN)/python -m tests.torture.network --rounds 200 --minutes 25 --if-possible
	@$(BIN)/python -m tests.torture.rolling --ices 1000
	@ICE_TEST_ENGINE=postgresql $(BIN)/python -m pytest -q -n 2 --dist worksteal --ignore tests/gateway/web/test_rfc6455.py tests/gateway tests/api
	@$(BIN)/python -m tests.torture.abuse
	@$(BIN)/python -m tests.torture.stall

# Only here: it is large, and for Linux on x86-64 alone.
$(FUZZER): $(STAMP) requirements-fuzz.lock
	@set -o pipefail; $(LOCKED) requirements-fuzz.lock | $(TELL)
	@touch $@

# Seconds for each target.
FUZZ_SECONDS ?= 600

fuzz: $(FUZZER) ## Fuzz each entrance for ten minutes (FUZZ_SECONDS), some at a time; on Linux (x86-64)
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

bench: $(STAMP) ## Compare with other servers, at most 30 minutes; writes docs/performance.md
	@$(BIN)/python -m tests.bench

bench-quick: $(STAMP) ## The same with fewer ICEs in 3 minutes; only prints its table
	@$(BIN)/python -m tests.bench --quick

scale: $(STAMP) ## Hold 3,000 to 100,000 ICEs at up to six nodes on PostgreSQL, in three quarters of an hour; writes docs/capacity.md
	@$(BIN)/python -m tests.scale --ices 3000 --nodes 1 --idle 120 --churn 10 --minutes 6
	@$(BIN)/python -m tests.scale --ices 3000 --nodes 3 --bystander --idle 120 --churn 10 --minutes 6
	@$(BIN)/python -m tests.scale --ices 10000 --nodes 2 --idle 180 --minutes 8
	@$(BIN)/python -m tests.scale --ices 30000 --nodes 3 --idle 180 --minutes 9
	@$(BIN)/python -m tests.scale --ices 100000 --nodes 6

# How long the gateway lives.
SOAK_HOURS ?= 2

soak: $(STAMP) ## Let a gateway live for two hours (SOAK_HOURS) among ICEs and admins; fails if anything grows
	@$(BIN)/python -m tests.soak --hours $(SOAK_HOURS)

screenshots: $(STAMP) ## Make the pictures of docs/images from a real run (needs Chromium)
	@$(BIN)/python -m tests.browser.screenshots

lint: $(STAMP) ## Check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## Check types, those of the client for each operating system, and the documents' examples
	@$(BIN)/mypy
	@ICE_TEST_LONG=1 $(BIN)/python -m pytest -q tests/unit/test_examples.py
	@$(BIN)/mypy --package client --platform win32 --cache-dir .mypy_cache/win32
	@$(BIN)/mypy --package client --platform darwin --cache-dir .mypy_cache/darwin

format: $(STAMP) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

COMPILE := $(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --upgrade --quiet

lock: $(STAMP) ## Renew the lock files
	@$(PIP) --quiet install uv
	@$(COMPILE) --extra postgres --group dev --output-file requirements.lock pyproject.toml
	@$(COMPILE) --extra server --group demo --constraint requirements.lock --output-file requirements-demo.lock pyproject.toml
	@$(COMPILE) --group fuzz --output-file requirements-fuzz.lock
	@$(COMPILE) --extra postgres --group image --constraint requirements.lock --output-file requirements-image.lock pyproject.toml

dist: $(STAMP) ## Build the sdist and the wheel into dist/ and check what the wheel has
	@rm -rf build dist
	@$(BIN)/python -m build --no-isolation
	@ICE_WHEEL=$$(echo dist/*.whl) $(BIN)/python -m pytest -q tests/unit/test_wheel.py
	@version=$$($(BIN)/python -c 'import gateway; print(gateway.__version__)'); \
		grep -q "^## \[$$version\] - [0-9]" CHANGELOG.md || echo "not for a release: CHANGELOG.md has no dated entry for $$version"

clean: ## Remove what was installed and measured
	rm -rf $(VENV) build dist .bench .coverage .fuzz .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
