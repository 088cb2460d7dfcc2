# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
# The collection has to lie at ansible_collections/fleetlift/cvm to be found; this tree is linked there.
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/$(VENV)/collections
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
LAB := $(PYTHON) -m lab
PLAYBOOK := $(LAB) run -- ansible-playbook -i inventories/lab -f 10

.PHONY: help
help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: setup
setup: $(VENV)/.packages $(VENV)/.ready ## Install what the lab and the tests need (Debian packages, a virtual environment)

# Install the Debian packages that the file $< lists, those that are missing.
define install
	@mkdir -p $(VENV)
	@missing=$$(for p in $$(grep -v '^#' $<); do \
	  dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "Installing" $$missing && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=600 $$missing >/dev/null; fi
	@touch $@
endef

$(VENV)/.packages $(VENV)/.packages-virtual $(VENV)/.packages-uml: $(VENV)/.%: lab/%.txt
	$(install)

$(VENV)/.packages-browser $(VENV)/.packages-bench: $(VENV)/.%: tests/%.txt
	$(install)

$(VENV)/.ready: requirements.txt requirements-dev.txt | $(VENV)/.packages
	@test -x $(PYTHON) || /usr/bin/python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@mkdir -p $(VENV)/collections/ansible_collections/fleetlift
	@ln -sfn $(CURDIR) $(VENV)/collections/ansible_collections/fleetlift/cvm
	@touch $@

.PHONY: demo
demo: setup ## Migrate three running servers in parallel, on this machine
	$(LAB) up lab/demo.yml
	$(PLAYBOOK) fleetlift.cvm.migrate
	$(LAB) verify web1 ins-webtgt01
	$(LAB) verify db1 ins-dbtgt001
	$(LAB) verify app1 ins-apptgt01
	@echo; echo "The three servers now run on their targets. Look around: '$(LAB) status', '$(LAB) ssh ins-webtgt01'."
	@echo "Remove the lab again with 'make clean'."

.PHONY: clean
clean: setup ## Tear the lab down completely
	$(LAB) down

.PHONY: test
test: setup $(VENV)/.packages-browser $(VENV)/.packages-virtual ## Run all tests
	$(PYTHON) tests/everything.py

.PHONY: lint
lint: setup
	ruff check . && ruff format --check .
	mypy agent lab plugins/module_utils
	yamllint .
	ansible-lint --offline --profile production
	antsibull-docs lint-collection-docs --plugin-docs .
	antsibull-changelog lint

.PHONY: unit
unit: setup $(VENV)/.packages-browser ## Run the unit and property tests
	$(PYTHON) -m pytest -q --durations=20

.PHONY: picture
picture: setup $(VENV)/.packages-browser ## Take the picture of the preflight's report for the documentation again
	PYTHONPATH=$(VENV)/collections $(PYTHON) tests/report_picture.py

.PHONY: sanity
sanity: setup
	tests/sanity.sh

.PHONY: artifact
artifact: setup ## Build the Galaxy artifact, look into it and install it offline
	tests/artifact.sh

.PHONY: molecule
molecule: setup ## Run whole migrations, with faults
	tests/molecule.sh

.PHONY: offline
offline: setup ## Turn a fleet of image files into instances through COS, with faults
	FLEETLIFT_LAB_FILE=tests/offline-lab.yml tests/molecule.sh offline

.PHONY: offline-boot
offline-boot: setup $(VENV)/.packages-virtual ## Boot the adapted image of a VMware guest on virtio (about five minutes)
	FLEETLIFT_LAB_FILE=tests/offline-boot-lab.yml tests/molecule.sh offline-boot

HOSTS ?= 100
TARGETS ?= id
.PHONY: fleet
fleet: setup ## Look at HOSTS=100 servers in one run, beside what ansible -m setup needs for them (a few minutes)
	$(PYTHON) tests/fleet_bench.py --hosts $(HOSTS) --targets $(TARGETS)

.PHONY: waves
waves: setup ## Migrate twelve servers in three waves, one of which has a sabotaged target (about six minutes)
	tests/waves.sh

.PHONY: boot
boot: setup $(VENV)/.packages-virtual ## Migrate a virtual machine with IDE disk and Intel NIC, and boot it from virtio (about ten minutes)
	FLEETLIFT_LAB_FILE=tests/boot-lab.yml tests/molecule.sh boot

.PHONY: boot-matrix
boot-matrix: setup $(VENV)/.packages-virtual $(VENV)/.packages-uml ## The same for other firmware, disks, volumes, releases (an hour and a half)
	PYTHONPATH=. $(PYTHON) tests/boot_matrix.py

ROUNDS ?= 20
SEED ?= 1
FIRST ?= 0
MINUTES ?=
.PHONY: stress
stress: setup ## Replicate working filesystems under faults: ROUNDS=20 or MINUTES=480, SEED=1 or new (15 s a round)
	PYTHONPATH=.:agent:tests/unit/agent $(PYTHON) tests/stress.py --seed $(SEED) --first $(FIRST) \
	  $(if $(MINUTES),--minutes $(MINUTES),--rounds $(ROUNDS))

$(VENV)/bench/.ready: tests/bench/requirements.txt
	/usr/bin/python3 -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.PHONY: offline-bench
offline-bench: setup $(VENV)/bench/.ready ## Upload a file with cos_object and with the vendor's coscmd, in turns
	PYTHONPATH=.:$(ANSIBLE_COLLECTIONS_PATH) $(PYTHON) tests/bench/offline_upload.py --coscmd $(VENV)/bench/bin/coscmd

CASES ?=
.PHONY: bench
bench: setup $(VENV)/.packages-bench ## Measure beside rsync and nbdcopy; CASES="final size" for some (all: 15 minutes)
	PYTHONPATH=.:agent:tests/unit/agent $(PYTHON) tests/bench/replication $(CASES)
