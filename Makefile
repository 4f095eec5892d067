# Every target first brings .venv in line with requirements.lock; nothing else has to be installed by hand
# but Python >= 3.11 and, for a broker of one's own, Docker or Java 17 with Maven.
#
#   make demo ARGS="--users 500"     make test ARGS="tests/broker"     make chaos ROUNDS=30 SEED=1

PYTHON ?= python3
PY     := .venv/bin/python
STAMP  := .venv/.stamp
ARGS   ?=
ROUNDS ?= 5
SEED   ?= 1
DATA   ?= data

.PHONY: demo test lint model check-data bench chaos lock clean

# exec: the shell makes way for the program, so a Ctrl-C or a kill of make's child meets the program itself.
demo: $(STAMP)
	@exec .venv/bin/foreclick demo $(ARGS)

test: $(STAMP)
	@exec $(PY) -m pytest -q --durations=10 $(ARGS)

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

model: $(STAMP)
	@exec .venv/bin/foreclick models make $(ARGS)

check-data: $(STAMP)
	@exec $(PY) -m tests.check_data $(DATA)

bench: $(STAMP)
	@exec .venv/bin/foreclick bench all $(ARGS)

chaos: $(STAMP)
	@exec $(PY) -m tests.chaos --rounds $(ROUNDS) --seed $(SEED) $(ARGS)

# The virtual environment. Running venv again over a half-made one mends it. Bytecode is compiled here once:
# importing torch takes 8 s without it, and every worker process would pay that where Python may not write.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: $(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.12' >&2; exit 1; }
	@if ! $(PY) -c '' 2>/dev/null || ! test -x .venv/bin/uv; then \
	  echo 'creating .venv' && $(PYTHON) -m venv .venv && \
	  .venv/bin/pip install --quiet "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)"; fi
	.venv/bin/uv pip sync --quiet --python $(PY) --require-hashes --compile-bytecode requirements.lock
	@.venv/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@

# After a change of dependencies in pyproject.toml. Versions already locked stay unless --upgrade is in ARGS.
lock: $(STAMP)
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-header \
	  --no-annotate $(ARGS) --output-file requirements.lock pyproject.toml

# What was made by running things; .venv stays, as it takes minutes to make again.
clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
