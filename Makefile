# `make` or `make help` lists what can be done. Everything is made inside this folder: .venv, .venvs, .cache, site.

PYTHON ?= python3
BIN := .venv/bin
CODE := src tools tests bench examples
CLIENTS := openai tritonclient kserve schemathesis
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

.venv/.installed: pyproject.toml constraints.txt tools/environment.py
	@$(PYTHON) tools/environment.py .venv -c constraints.txt -e '.[llama,onnx,hub,transformers]' --group dev
	@touch $@

##@ Develop
.PHONY: test test-fast bench bench-eviction format check
test: install clients ## every test, with the judging clients
	$(BIN)/pytest
test-fast: install ## unit and contract tests, under a minute
	$(BIN)/pytest tests/unit tests/contract -m "not slow" -n 2
bench: install ## measure speed and memory
	$(BIN)/python -m bench
bench-eviction: install ## compare eviction with LRU and with knowing the future, on made-up traffic
	$(BIN)/python -m bench.eviction
format: install ## lay out and tidy the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
check: lint types imports sizes generated-check docs ## everything that needs no test run

##@ Parts of `make check`
.PHONY: lint types imports sizes generated-check docs
lint: install ## layout and style (ruff)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
types: install ## strict types (mypy)
	$(BIN)/mypy
imports: install ## layers and cycles (import-linter)
	@$(BIN)/lint-imports --no-cache | sed -n '/^Contracts/,$$p'; exit $${PIPESTATUS[0]}
sizes: install ## functions of at most 60 lines, files of at most 500
	$(BIN)/python tools/sizes.py $(CODE)
generated-check: install ## pins and reference pages are what their sources say
	$(BIN)/python tools/lock.py --check
	$(BIN)/python tools/reference.py --check
docs: install ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

##@ Keep up
.PHONY: clients generated lock upgrade clean
clients: $(CLIENTS:%=.venvs/%/.installed) ## set up .venvs, one for each judging client
generated: install ## write the reference tables again from the code
	$(BIN)/python tools/reference.py
lock: install ## write constraints.txt and tests/clients/*.txt again after a change of dependencies
	$(BIN)/python tools/lock.py
upgrade: install ## the same, with the newest versions allowed
	$(BIN)/python tools/lock.py --upgrade
clean: ## remove all that was made here, downloaded test models too
	rm -rf .venv .venvs .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache site dist
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

.venvs/%/.installed: tests/clients/%.txt tools/environment.py
	@$(PYTHON) tools/environment.py .venvs/$* -r $<
	@touch $@

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
