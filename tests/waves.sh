#!/usr/bin/env bash
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Twelve servers in three waves, one of them with a sabotaged target, in a lab of their own.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
fleet=$(mktemp -d)
trap 'rm -rf "$fleet"' EXIT
export FLEETLIFT_FLEET="$fleet" FLEETLIFT_SABOTAGED=srv005 FLEETLIFT_LAB_FILE="$fleet/lab.yml"
"$top/.venv/bin/python" "$top/tests/fleet_lab.py" --hosts 12 --waves 3 --sabotage "$FLEETLIFT_SABOTAGED" "$fleet"
"$top/tests/molecule.sh" waves
