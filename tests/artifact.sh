#!/usr/bin/env bash
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The artifact holds what users need and nothing else, and installs without a network.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$top/.venv/bin:$PATH"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ansible-galaxy collection build --output-path "$work" "$top" >/dev/null
tar -tzf "$work"/fleetlift-cvm-*.tar.gz | grep -v '/$' | cut -d/ -f1 | sort -u >"$work/found"
cat >"$work/wanted" <<'LIST'
CHANGELOG.rst
COPYING
FILES.json
MANIFEST.json
README.md
agent
changelogs
docs
inventories
meta
playbooks
plugins
requirements.txt
roles
LIST
diff -u "$work/wanted" "$work/found"
! tar -tzf "$work"/fleetlift-cvm-*.tar.gz | grep -E '^(lab|tests|\.|inventories/lab)|__pycache__|\.pyc$'
# Away from this tree, which would pass for the installed collection.
export ANSIBLE_COLLECTIONS_PATH="$work/collections"
ansible-galaxy collection install --offline -p "$work/collections" "$work"/fleetlift-cvm-*.tar.gz >/dev/null
cd "$work"
ansible-doc -t module fleetlift.cvm.transfer >/dev/null
ansible-playbook --syntax-check -i localhost, fleetlift.cvm.migrate >/dev/null
echo "artifact: $(du -k "$work"/fleetlift-cvm-*.tar.gz | cut -f1) KiB, installs offline"
