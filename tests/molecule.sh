#!/usr/bin/env bash
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Start a lab of its own, run the Molecule scenarios inside it, and take the lab down whatever happens.
#   tests/molecule.sh [SCENARIO...]
# FLEETLIFT_LAB_FILE is the description of the lab, FLEETLIFT_LAB its name.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
export PATH="$top/.venv/bin:$PATH" ANSIBLE_COLLECTIONS_PATH="$top/.venv/collections"
export FLEETLIFT_REPOSITORY="$top" PYTHONPATH="$top"
lab=(python -m lab --name "${FLEETLIFT_LAB:-molecule}")
work=$(mktemp -d)
trap '"${lab[@]}" down; rm -rf "$work"' EXIT
"${lab[@]}" down
"${lab[@]}" up "${FLEETLIFT_LAB_FILE:-tests/molecule-lab.yml}"

# What Ansible would log at its most talkative is searched for secrets as well.
export ANSIBLE_LOG_PATH="$work/ansible.log" ANSIBLE_LOG_VERBOSITY=3
scenarios=("$@")
if [ $# -eq 0 ]; then scenarios=(preflight migrate resume stress refuse rollback); fi
for scenario in "${scenarios[@]}"; do
  # Molecule remembers between runs what it has prepared; this lab is new.
  export MOLECULE_EPHEMERAL_DIRECTORY="$work/$scenario"
  "${lab[@]}" run -- bash -c 'cd extensions && exec molecule test --scenario-name "$0" --no-command-borders' "$scenario"
done
