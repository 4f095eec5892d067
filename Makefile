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

PEERS  := quix bytewax flink

.PHONY: demo test lint model check-data bench bench-peers bench-scaling peers peers-lock chaos lock clean

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

# The same work by other frameworks. One that cannot be installed here is in the table with the reason.
bench-peers: peers
	@exec .venv/bin/foreclick bench peers $(ARGS)

bench-scaling: $(STAMP)
	@exec .venv/bin/foreclick bench scaling $(ARGS)

# An environment a peer, of its own lock; what went wrong is in .peers/NAME.log.
peers: $(STAMP)
	@mkdir -p .peers
	@for peer in $(PEERS); do $(MAKE) --no-print-directory .peers/$$peer/.stamp || \
	  echo "$$peer could not be installed; .peers/$$peer.log says why" >&2; done

.peers/%/.stamp: tests/bench/peers/requirements-%.lock tests/bench/peers/flink.xml
	@echo 'creating .peers/$*' && { .venv/bin/uv venv --quiet --clear --python $(PY) .peers/$* && \
	  .venv/bin/uv pip sync --quiet --python .peers/$*/bin/python --require-hashes $< && \
	  { test $* != flink || mvn --batch-mode --quiet -Dstyle.color=never --file tests/bench/peers/flink.xml \
	    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DincludeScope=runtime \
	    -DoutputDirectory=$(CURDIR)/.peers/flink/jars; } && touch $@; } > .peers/$*.log 2>&1

peers-lock: $(STAMP)
	@for peer in $(PEERS); do .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate $(ARGS) --output-file tests/bench/peers/requirements-$$peer.lock \
	  tests/bench/peers/requirements-$$peer.in || exit 1; done

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
