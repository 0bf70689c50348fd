# Run `make` or `make help` to see the targets.

PYTHON ?= python3
BIN := .venv/bin
DATA_DIR ?= .textmatch
BENCHES := encoder overload ingest
INSTALLED := .venv/.installed
APT_INSTALL := apt-get update -qq && apt-get install -y -qq --no-install-recommends
BUF := node_modules/.bin/buf
STUBS_DIR ?= .
# An older protoc in a separate environment: its stubs work with protobuf 6 and 7, those of newer ones with 7 only.
PROTOC_VERSION := 1.76.0
PROTOC_INSTALLED := .venv-protoc/.installed-$(PROTOC_VERSION)
PROTOC := .venv-protoc/bin/python -m grpc_tools.protoc -I protos \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc
# Tests of one file share servers, so they run in one process.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup protos format check check-stubs check-breaking check-structure test test-all chaos run demo bench docs \
	screenshot check-deploy promtool redis-tls chromium toolchains images monitoring

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Create .venv and install everything (the first time takes some minutes)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@echo "==> Creating .venv"
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "==> Installing textmatch and its dependencies into .venv; the first time takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "==> Done: nothing was installed outside .venv"

$(PROTOC_INSTALLED):
	@$(PYTHON) -m venv .venv-protoc
	@.venv-protoc/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==$(PROTOC_VERSION) 'setuptools<81'
	@touch $@

protos: $(INSTALLED) $(PROTOC_INSTALLED) ## Generate textmatch/v1 from protos/
	@$(PROTOC) --python_out=$(STUBS_DIR) --mypy_out=quiet:$(STUBS_DIR) protos/textmatch/v1/*.proto
	@$(PROTOC) --grpc_python_out=$(STUBS_DIR) --mypy_grpc_out=quiet:$(STUBS_DIR) protos/textmatch/v1/*_service.proto

docs: $(INSTALLED) ## Write docs/configuration.md from the settings
	@$(BIN)/python docs/generate_configuration.py

format: $(INSTALLED) ## Format the code and apply ruff's fixes
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

check: $(INSTALLED) $(BUF) check-stubs check-breaking check-structure check-deploy ## Lint, types, import rules, structure, protos, packages, manifests, alerts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BUF) lint

check-stubs: $(INSTALLED) $(PROTOC_INSTALLED)
	@stubs=$$(mktemp -d) && trap 'rm -rf '"$$stubs" EXIT && $(MAKE) -s protos STUBS_DIR=$$stubs \
		&& diff -r -x __pycache__ -x __init__.py $$stubs/textmatch/v1 textmatch/v1 \
		|| { echo "textmatch/v1 is stale: run make protos" >&2; exit 1; }

# The release before this commit. Before the first one there is nothing to compare with.
check-breaking: $(BUF)
	@test "$$(git rev-parse --is-shallow-repository)" = false || { echo "git fetch --unshallow --tags first: the last release is unknown" >&2; exit 1; }
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' HEAD^ 2>/dev/null) || { echo "buf breaking: no release yet"; exit 0; }; \
		released=$$(mktemp -d) && trap 'rm -rf '"$$released" EXIT && git archive "$$tag" protos buf.yaml | tar -x -C "$$released" \
		&& echo "buf breaking: compared with $$tag" && $(BUF) breaking --against "$$released"

check-structure: $(INSTALLED)
	@$(BIN)/pytest -q tests/unit/test_structure.py tests/unit/test_dependencies.py

check-deploy: $(INSTALLED) promtool ## Render and validate the manifests; test the alerts
	@$(BIN)/mypy -p deploy.monitoring
	@$(BIN)/pytest -q tests/unit/deploy

# The package prometheus starts a daemon. It is therefore installed automatically only in CI.
promtool:
	@command -v promtool >/dev/null || test -z "$$CI" || { echo "==> Installing prometheus, which contains promtool"; $(APT_INSTALL) prometheus >/dev/null; }

# Tests of TLS need a Redis server with TLS support, which the bundled one lacks.
redis-tls:
	@command -v redis-server redis-check-rdb >/dev/null || test -z "$$CI" || { echo "==> Installing redis-tools, which contains a server with TLS"; $(APT_INSTALL) redis-tools >/dev/null; }

# The clients in docs/clients are compiled by Go (https://go.dev/dl), Maven and npm. Debian has no recent Go.
toolchains: $(if $(CI),$(BUF))
	@command -v mvn >/dev/null || test -z "$$CI" || { echo "==> Installing maven with a JDK"; $(APT_INSTALL) maven >/dev/null; }

$(BUF): package.json
	@command -v npm >/dev/null || { echo "==> Installing npm, which installs buf"; $(APT_INSTALL) npm >/dev/null; }
	@echo "==> Installing buf"
	@npm install --silent --no-audit --no-fund --no-package-lock && touch $@

# Tests click through the console. Without the browser it is skipped on a laptop, and fails in CI.
chromium:
	@command -v chromium >/dev/null || test -z "$$CI" || { echo "==> Installing chromium"; $(APT_INSTALL) chromium >/dev/null; }

test: $(INSTALLED) redis-tls chromium toolchains ## Run all tests except the slow ones
	@$(BIN)/pytest -m "not slow" $(PARALLEL)

test-all: $(INSTALLED) redis-tls chromium toolchains ## Run all tests
	@$(BIN)/pytest $(PARALLEL)

chaos: $(INSTALLED) ## Kill processes repeatedly while 20,000 documents are ingested; SEED=N repeats a run
	@TEXTMATCH_CHAOS_SEED=$(or $(SEED),$(shell date +%s)) TEXTMATCH_CHAOS_DOCUMENTS=$(or $(DOCUMENTS),20000) \
		TEXTMATCH_CHAOS_KILLS=$(or $(KILLS),5) $(BIN)/pytest -s tests/chaos

run: $(INSTALLED) ## Start the whole stack on this machine; Ctrl-C stops it
	@$(BIN)/textmatch up --data-dir $(DATA_DIR)

demo: $(INSTALLED) ## Start the stack, ingest a real corpus, answer questions
	@$(BIN)/python -m standalone.demo --data-dir $(DATA_DIR)

# Without a Chinese font, which Debian has as fonts-noto-cjk, half of the picture is unreadable.
screenshot: $(INSTALLED) chromium ## Make the picture of the console in README
	@$(BIN)/python -m standalone.demo --data-dir $(DATA_DIR)
	@$(BIN)/python docs/make_screenshot.py

bench: $(INSTALLED) ## Run every benchmark in its quick form
	@for bench in $(BENCHES); do $(BIN)/python -m bench.$$bench --quick || exit 1; done

images: ## Build the images of encoder, matcher and worker, with docker or buildah
	@deploy/docker/build.sh

monitoring: $(INSTALLED) ## Write the dashboards and rules from deploy/monitoring
	@$(BIN)/python -m deploy.monitoring
