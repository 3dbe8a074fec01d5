# `make` or `make help` lists what can be done. Everything is made inside this folder: .venv*, .cache, site.

PYTHON ?= python3
BIN := .venv/bin
CODE := src tools tests bench examples
PYTHON_VERSION ?= 3.12
WHEELS := .cache/gpu-wheels
CLIENTS := anthropic openai tritonclient kserve schemathesis
export NO_MKDOCS_2_WARNING := 1

SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

##@ Use
.PHONY: install serve
install: .venv/.installed ## set up .venv; nothing to do when it is up to date
serve: install ## install, then serve the starter model; prints the URL, the key file and lines to paste
	@$(BIN)/moc serve --starter

.PHONY: finetune
finetune: install ## fine-tune the starter model on a small example, and prove what that changed; some minutes
	@$(BIN)/python examples/finetune/finetune.py --serve

.venv/.installed: pyproject.toml constraints.txt tools/environment.py
	@$(PYTHON) tools/environment.py .venv -c constraints.txt -e '.[llama,onnx,hub,transformers,learning]' --group dev
	@touch $@

##@ Develop
.PHONY: test test-fast traffic kills soak bench bench-eviction format check
test: install clients ## every test, with the judging clients
	$(BIN)/pytest tests/unit tests/contract tests/integration -n 3 --dist worksteal
	$(BIN)/pytest tests/acceptance tests/faults -m "not alone" -n 3 --dist loadfile $(AGAIN)
	$(BIN)/pytest tests/acceptance tests/faults -m alone $(AGAIN)
test-fast: install ## unit and contract tests, under a minute
	$(BIN)/pytest tests/unit tests/contract -m "not slow" -n 3 --dist worksteal --hypothesis-profile fast
traffic: install ## a minute of mixed traffic while workers and remotes fail; TRAFFIC_S=600 SEED=7
	TRAFFIC_S=$${TRAFFIC_S:-60} $(BIN)/pytest -s tests/faults/test_traffic.py
kills: install ## thirty times kill -9 a worker, a training or the coordinator at a random moment; KILL_ROUNDS=10
	KILL_ROUNDS=$${KILL_ROUNDS:-30} $(BIN)/pytest -s tests/faults/test_kill.py tests/faults/test_training_kill.py
soak: install ## ten minutes of mixed traffic on too little memory; SOAK_S=60 for a shorter look
	SOAK_S=$${SOAK_S:-600} $(BIN)/pytest -s tests/acceptance/test_memory_soak.py
.PHONY: test-gpu gpu-wheels
test-gpu: ## try everything on the NVIDIA GPU of this machine, whose PYTHON has torch and transformers
	@$(PYTHON) tools/gpu_environment.py make .venv-gpu $(WHEELS)
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 .venv-gpu/bin/python -m pytest -p pytest_asyncio.plugin -p pytest_timeout tests/gpu -m gpu -s
gpu-wheels: install ## fetch what `make test-gpu` installs with PYTHON_VERSION, for a machine that reaches no package index
	@$(BIN)/python tools/gpu_environment.py fetch $(WHEELS) $(PYTHON_VERSION)
bench: install ## measure speed and memory
	$(BIN)/python -m bench
bench-eviction: install ## compare eviction with LRU and with knowing the future, on made-up traffic
	$(BIN)/python -m bench.eviction
format: install ## lay out and tidy the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
check: lint types imports sizes protos generated-check docs ## everything that needs no test run

##@ Parts of `make check`
.PHONY: lint types imports sizes protos generated-check docs
lint: install ## layout and style (ruff)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
types: install ## strict types (mypy)
	$(BIN)/mypy
imports: install ## layers and cycles (import-linter)
	@$(BIN)/lint-imports --no-cache | sed -n '/^Contracts/,$$p'; exit $${PIPESTATUS[0]}
sizes: install ## functions of at most 60 lines, files of at most 500
	$(BIN)/python tools/sizes.py $(CODE)
protos: install ## style of the proto files, and nothing in them that breaks the clients of proto/baseline.binpb (buf)
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against proto/baseline.binpb
generated-check: install ## pins, stubs and reference pages are what their sources say
	$(BIN)/python tools/lock.py --check
	$(BIN)/python tools/stubs.py --check
	$(BIN)/python tools/reference.py --check
docs: install ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

##@ Keep up
.PHONY: clients generated proto-baseline lock upgrade clean
clients: $(CLIENTS:%=.venvs/%/.installed) ## set up .venvs, one for each judging client
generated: install ## write the stubs again from proto/, and the reference tables from the code
	$(BIN)/python tools/stubs.py
	$(BIN)/python tools/reference.py
proto-baseline: install ## at a release: from now on clients rely on the proto files as they are
	$(BIN)/buf build proto --exclude-source-info -o proto/baseline.binpb
lock: install ## write constraints.txt and tests/clients/*.txt again after a change of dependencies
	$(BIN)/python tools/lock.py
upgrade: install ## the same, with the newest versions allowed
	$(BIN)/python tools/lock.py --upgrade
clean: ## remove all that was made here, downloaded test models too
	rm -rf .venv .venvs .venv-gpu .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache site dist
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

.venvs/%/.installed: tests/clients/%.txt tools/environment.py
	@$(PYTHON) tools/environment.py .venvs/$* -r $<
	@touch $@

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
