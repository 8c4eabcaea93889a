# make demo     photographs in, an atlas out: the demo, with its report
# make quick    a first answer in about a minute: the tests of config, plan, photographs, files and
#               tables, and of the house, without workflows, networks, browser and fuzz
# make test     all tests
# make lint     style of the code and of the workflow
# make dry-run  a rehearsal of every config
# make install  .venv with what the workflow needs, and its library (pip install -e .)
#
# Each target installs what is missing into .venv first. Variables: CORES (all), CONFIG
# (config/config.yaml), DIRECTORY (.), PYTHON (python3, 3.11 or later).

PYTHON ?= python3
CORES ?= all
CONFIG ?= config/config.yaml
DIRECTORY ?= .

BIN := .venv/bin
INSTALLED := .venv/requirements.txt
TOOLS := .venv/requirements-dev.txt
REPORT := $(DIRECTORY)/results/report.html
STYLE := $(CURDIR)/workflow/report/report.css
REPORT_LOG := $(DIRECTORY)/logs/report.log
# Progress bars where make writes to a terminal, else a few lines per job.
SHOWN := $(if $(MAKE_TERMOUT),--logger rich,--quiet rules)
HERE := --configfile $(CONFIG) --directory $(DIRECTORY)
# A worker per core, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadscope \
    --no-loadscope-reorder

.DELETE_ON_ERROR:
.PHONY: demo report quick test lint dry-run install tools

demo: report
	@$(BIN)/python -m rfatlas.tables.findings $(DIRECTORY)/results

# Snakemake's report takes a while to build, so only if a result or a caption is newer than it. It
# has a line per figure to say.
report: install
	$(BIN)/snakemake $(SHOWN) $(HERE) --cores $(CORES)
	@if [ ! -s $(REPORT) ] || [ -n "$$(find $(DIRECTORY)/results workflow/report -type f \
	    -newer $(REPORT) -print -quit)" ]; then \
	    $(BIN)/snakemake $(HERE) --report $(REPORT) --report-stylesheet $(STYLE) \
	    >$(REPORT_LOG) 2>&1 || { cat $(REPORT_LOG); exit 1; }; fi

# A file is in by its folder; what is slow in it is marked so, by hand or by tests/conftest.py.
quick: tools
	$(PYTEST) -m "not workflow and not slurm and not slow" $(ARGS) $(wildcard tests/test_*.py) \
	    $(addprefix tests/,plan sources images files tables)

test: tools
	$(PYTEST) $(ARGS)

lint: tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check --compact-diff Snakefile workflow
	$(BIN)/snakemake --lint

dry-run: tools
	$(BIN)/python -m pytest tests/test_workflow.py -k dry_run_of -v

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or \
	    sys.exit("rfatlas needs Python 3.11 or later; this is " + sys.version.split()[0] + \
	    ". Name another one: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing rfatlas and requirements.txt into .venv (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@cp requirements.txt $@
	@echo "Installed."

tools: $(TOOLS)

$(TOOLS): $(INSTALLED) requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@cp requirements-dev.txt $@
