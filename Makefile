# Needs make, bash and Python 3.10 or newer with venv; everything else is installed into .venv.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
comma := ,
BIN := $(VENV)/bin
# What pip does, in a few lines.
PIP_LINES := awk '/^ *Downloading .* MB\)$$/ { print; fflush() } \
	/^Installing/ { print "  Packages to install: " NF - 3; fflush() }'

.PHONY: help announce-demo demo leaderboard picture test check bench peers compare gpu schema docs fingerprints cheats clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: announce-demo $(VENV)/.installed ## Evaluate one defense on a few digits, print the table and build its site
	$(BIN)/bench evaluate --defense ours --suite demo --results runs
	$(BIN)/bench leaderboard --results runs --out site

announce-demo:
	@echo "The demo: the defense \`ours\` under 12 attacks on 64 grey digits of 8×8 pixels; some minutes on two cores."
	@test -e $(VENV)/.installed || echo "Before it, the first time: about 2.6 GB are downloaded and about 6 GB installed into $(VENV); some minutes."

leaderboard: $(VENV)/.installed ## Build the site from the published results
	$(BIN)/bench leaderboard --results results --out site

CHROMIUM ?= chromium
picture: leaderboard ## Take the README's picture of the published leaderboard (needs Chromium)
	$(CHROMIUM) --headless --no-sandbox --hide-scrollbars --window-size=1520,900 \
	  --screenshot=docs/leaderboard.png site/index.html

# Several processes of one thread each; the tests of a file stay together, as they share what is costly.
test: $(VENV)/.installed-test ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

check: $(VENV)/.installed-test $(VENV)/.installed-dev ## Run ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-test ## Measure what the harness itself costs: its part of docs/benchmarks.md (ARGS='-k plan' for some)
	OMP_NUM_THREADS=1 PYTHONPATH=tests/benchmarks:tests/helpers $(BIN)/python -m harness $(ARGS)

peers: $(VENV)/.installed-peers ## Install the public attack libraries that ours are compared with

compare: $(VENV)/.installed-peers ## Compare our attacks with theirs (DATA=folder:PATH adds CIFAR-10): docs/benchmarks.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests/benchmarks $(BIN)/python -m peers --out docs/benchmarks.md \
		$(if $(DATA),--data '$(DATA)') $(ARGS)

# A piece of the paper-scale runs: everything in it resumes, so the next call goes on.
MINUTES ?= 30
DATA_ROOT ?= data
gpu: $(VENV)/.installed ## Train and evaluate at the papers' size on a GPU, MINUTES=30 at a time, resumed by the next call
	timeout --signal=INT --kill-after=60 $(MINUTES)m bash -eu -c ' \
	  for defense in none madry ours; do \
	    paper="--suite cifar10-paper --defense $$defense --set network=resnet18 --data-root $(DATA_ROOT) --device cuda"; \
	    if [ $$defense = ours ]; then paper="$$paper --set external_width=1"; fi; \
	    $(BIN)/bench train $$paper --download --checkpoints runs/checkpoints; \
	    $(BIN)/bench evaluate $$paper --checkpoints runs/checkpoints --results runs; \
	  done'

schema: $(VENV)/.installed ## Write bench.schema.json again after a change to bench/suites/config.py
	$(BIN)/python -m bench.suites.reading > bench.schema.json.part
	mv bench.schema.json.part bench.schema.json

docs: $(VENV)/.installed ## Write docs/attacks.md, defenses.md, reproduce.md, commands.md, budgets.md and the verdict again after a change to what they are made of
	for module in reference.attacks reference.defenses reference.reproduce cli.commands; do \
	  page=docs/$${module##*.}.md; \
	  $(BIN)/python -m bench.$$module > $$page.part && mv $$page.part $$page || exit 1; \
	done
	$(BIN)/python -m bench.reference.verdict docs
	$(BIN)/python -m bench.reference.budgets docs

fingerprints: $(VENV)/.installed-test ## Store the fingerprints of attacks and defenses that are new or have another version
	WRITE_FINGERPRINTS=1 $(BIN)/python -m pytest tests -k fingerprint

# A level by itself is joined with what was kept of the others.
cheats: $(VENV)/.installed-test ## Evaluate every cheat at every level of isolation (or LEVELS=...): docs/cheats.md
	PYTHONPATH=tests/helpers $(BIN)/python -m cheating build/cheats $(LEVELS) > docs/cheats.md.part
	mv docs/cheats.md.part docs/cheats.md

clean: ## Remove what was installed and built here (results stay)
	rm -rf $(VENV) build site *.egg-info

# One stamp per set of requirements: a second call is quick, a changed pyproject.toml installs again.
$(VENV)/.installed: EXTRA =
$(VENV)/.installed-test: EXTRA = [test$(if $(RAY),$(comma)ray)]
$(VENV)/.installed-dev: EXTRA = [dev]
$(VENV)/.installed-peers: EXTRA = [peers]
# A dependency of adv-lib builds with old setuptools only; pip before 25.3 reads the first variable, later the second.
$(VENV)/.installed-peers: export PIP_CONSTRAINT := tests/benchmarks/peers/build-constraints.txt
$(VENV)/.installed-peers: export PIP_BUILD_CONSTRAINT := tests/benchmarks/peers/build-constraints.txt
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-peers: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) (the first time PyTorch is downloaded, which takes some minutes) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.$(EXTRA)' | $(PIP_LINES)
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is older than 3.10; set PYTHON=path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
