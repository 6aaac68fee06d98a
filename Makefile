# The two commands a newcomer needs: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-gpu lint bench oracle clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,test]'
	mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/plait  # how pyright finds the package
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

# Once xdist has replaced a worker that died, `loadfile` can wait for ever: none is replaced.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# The device tests on a machine with an NVIDIA GPU; elsewhere they are skipped.
test-gpu: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[cuda,test]'
	$(BIN)/python -m pytest tests/integration/test_gpu.py -rs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks tests/integration/test_partitioned.py tests/runtime/bench/test_switching.py --benchmarks -s -o faulthandler_timeout=3600

# Reference outputs of transformers on the same weights, in an environment of their own (torch is large).
oracle:
	$(PYTHON) -m venv .venv-oracle
	.venv-oracle/bin/python -m pip install --quiet --editable '.[oracle]'
	for script in references encoder_references decoder_references token_ids chat_templates; do \
		.venv-oracle/bin/python tests/oracle/make_$$script.py || exit 1; done

clean:
	rm -rf $(VENV) .venv-oracle .pytest_cache .ruff_cache .hypothesis build *.egg-info
