#!/usr/bin/env bash
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-test sanity on a copy of what is built, since ansible-test insists on a path of its own and on a git work tree.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$top/.venv/bin:$PATH"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ansible-galaxy collection build --output-path "$work" "$top" >/dev/null
tree="$work/ansible_collections/fleetlift/cvm"
mkdir -p "$tree"
tar -xzf "$work"/fleetlift-cvm-*.tar.gz -C "$tree"
rm "$tree/MANIFEST.json" "$tree/FILES.json"
cp "$top/galaxy.yml" "$tree/"
cd "$tree"
git init --quiet . && git add --all

# ansible-test wants a script that it would download to install pip; Python carries pip itself, and this one says so.
requirements=$(python -c 'import ansible_test; print(list(ansible_test.__path__)[0])')/_internal/python_requirements.py
cache="$HOME/.ansible/test/cache"
mkdir -p "$cache"
for pip in $(sed -nE "s/^ *pip='([0-9.]+)',$/\1/p" "$requirements" | sort -u); do
  script="$cache/get_pip_${pip//./_}.py"
  test -e "$script" || cat >"$script" <<PY
import subprocess
import sys

subprocess.check_call([sys.executable, "-m", "ensurepip"], stdout=subprocess.DEVNULL)
subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "pip==$pip"], stdout=subprocess.DEVNULL)
PY
done

python_version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ansible-test sanity --local --color no --python "$python_version" "$@"
