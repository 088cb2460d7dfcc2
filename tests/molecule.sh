#!/usr/bin/env bash
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Start a lab of its own, run the Molecule scenarios inside it, and take the lab down whatever happens.
#   tests/molecule.sh [SCENARIO...]
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
export PATH="$top/.venv/bin:$PATH" ANSIBLE_COLLECTIONS_PATH="$top/.venv/collections" FLEETLIFT_REPOSITORY="$top"
export PYTHONPATH="$top"
lab=(python -m lab --name molecule)
trap '"${lab[@]}" down' EXIT
"${lab[@]}" down
"${lab[@]}" up tests/molecule-lab.yml
cd extensions
for scenario in "${@:-migrate resume refuse}"; do
  for name in $scenario; do
    (cd "$top" && "${lab[@]}" run -- bash -c 'cd extensions && molecule test --scenario-name "$0" --no-command-borders' "$name")
  done
done
