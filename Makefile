# All targets run in the project's own environment, .venv. make creates it when a target needs it,
# and updates it when setup.cfg or pyproject.toml has changed.

PYTHON ?= python3
PORT = 8888
SOAK_HOURS = 8
# Four for each of two processors: half of the time tests wait. Each of them imports all tests.
WORKERS = 8

# For install-service: the folders of the program, of systemd's units, and of the settings.
PREFIX = /opt/echod
LIBDIR = /usr/local/lib
SYSCONFDIR = /etc

VENV = .venv
BIN = $(VENV)/bin
# Python compiles what is imported: a third of what pip would compile, which takes it half its time.
INSTALL = $(BIN)/python -m pip install --no-input --disable-pip-version-check --no-compile

# bash, because `run` needs a background job that receives Ctrl-C: see there.
SHELL = bash

# Two installations at a time into one environment would clash.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run test coverage check docs pictures soak bench foreign install-service clean

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

# The first Ctrl-C or `kill` drains, and make does not report it as an error. So twistd runs under
# a shell that survives both signals: the terminal sends Ctrl-C to twistd too (`trap - INT` is
# needed because a background job would ignore it), and the shell passes on the SIGTERM that make
# sends to it alone.
run: $(VENV)/run.stamp ## run the daemon on port 8888 (or PORT=...); Ctrl-C ends it
	@trap : INT; trap 'kill $$!' TERM; \
	(trap - INT; exec $(BIN)/twistd -n --pidfile= echod --port $(PORT)) & \
	while wait $$!; status=$$?; kill -0 $$! 2>/dev/null; do :; done; \
	case $$status in 130 | 143) ;; *) exit $$status ;; esac

test: $(VENV)/develop.stamp ## run all tests
	$(BIN)/python -m pytest -n $(WORKERS)

# The tests that are left out run the code in daemons, where nothing measures it.
coverage: $(VENV)/develop.stamp ## measure the tests of the modules; branch coverage under 95% is a failure
	MATRIX=values $(BIN)/python -m pytest -n $(WORKERS) --cov \
	  --ignore tests/documents --ignore tests/faults --ignore tests/system

check: $(VENV)/develop.stamp ## look for faults without running the daemon: style, types, imports, English, news
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.english
	$(BIN)/towncrier build --draft > /dev/null

docs: $(VENV)/develop.stamp ## generate the files made from the code: parts of docs/, and etc/echod.toml
	$(BIN)/python -m echod.settings.reference
	$(BIN)/python -m tests.faults.catalogue

pictures: $(VENV)/run.stamp ## make the picture of README.md: the status page, under load, in Chromium
	$(BIN)/python docs/pictures/make.py

soak: $(VENV)/soak.stamp ## run the long forms of tests/faults, for SOAK_HOURS=8 at most
	SOAK=1 SOAK_HOURS=$(SOAK_HOURS) $(BIN)/python -m pytest tests/faults -v --capture=no \
	  --timeout=0 -p no:randomly

bench: $(VENV)/bench.stamp ## compare with other servers; a quarter of an hour (see bench/README.md)
	$(BIN)/python -m bench --document docs/performance.md

# These programs need many packages, so they get an environment of their own.
foreign: ## run the tests of Twisted and of programs made with it on both reactors; half an hour
	@$(MAKE) --no-print-directory VENV=.venv-foreign .venv-foreign/foreign.stamp
	.venv-foreign/bin/python -m tests.foreign --document docs/reliability.md

install-service: ## install the systemd units (see docs/deploy.md); DESTDIR=, PREFIX=/opt/echod
	install -d "$(DESTDIR)$(LIBDIR)"/{systemd/system,sysusers.d,tmpfiles.d}
	set -o pipefail; for unit in etc/systemd/*; do \
	  sed 's|=/opt/echod\(/[^ ]*\)|="$(PREFIX)\1"|; s|/etc/echod|$(SYSCONFDIR)/echod|g' "$$unit" | \
	    install -m 644 /dev/stdin "$(DESTDIR)$(LIBDIR)/systemd/system/$${unit##*/}" || exit; \
	done
	install -m 644 etc/sysusers.d/echod.conf "$(DESTDIR)$(LIBDIR)/sysusers.d"
	install -m 644 etc/tmpfiles.d/echod.conf "$(DESTDIR)$(LIBDIR)/tmpfiles.d"
	install -d "$(DESTDIR)$(SYSCONFDIR)/echod"
	test -e "$(DESTDIR)$(SYSCONFDIR)/echod/echod.toml" || \
	  install -m 644 etc/echod.toml "$(DESTDIR)$(SYSCONFDIR)/echod"

clean: ## remove the output of all other targets
	rm -rf $(VENV) .venv-foreign build dist *.egg-info .coverage* htmlcov
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o \( -name __pycache__ -o -name dropin.cache \) -exec rm -rf {} +

$(VENV)/run.stamp: WHAT = .
$(VENV)/develop.stamp: WHAT = .[test,check]
$(VENV)/soak.stamp: WHAT = .[test,soak]
$(VENV)/bench.stamp: WHAT = .[bench]
$(VENV)/foreign.stamp: WHAT = .[foreign]
$(VENV)/run.stamp $(VENV)/develop.stamp $(VENV)/soak.stamp $(VENV)/bench.stamp $(VENV)/foreign.stamp: setup.cfg pyproject.toml constraints.txt | $(VENV)/made.stamp
	@$(BIN)/python tools/progress.py 'Installing echod into $(VENV)' \
	  $(INSTALL) --constraint constraints.txt --editable '$(WHAT)'
	@touch $@

# The check is in the recipe, so that it prints one line, and only when a target needs Python.
$(VENV)/made.stamp:
	$(if $(filter True,$(shell $(PYTHON) -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)),, \
	  $(error echod needs Python 3.11 or newer, which "$(PYTHON)" is not: try make PYTHON=python3.11))
	@$(PYTHON) tools/progress.py 'Making $(VENV)' $(PYTHON) -m venv --clear $(VENV)
	@touch $@
