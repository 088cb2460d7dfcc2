# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs one module of the collection in a process of its own: ``run_module.py NAME``, its options as JSON on stdin."""

from __future__ import annotations

import importlib
import json
import sys

from ansible.module_utils.testing import patch_module_args

if __name__ == "__main__":
    module = importlib.import_module(f"ansible_collections.fleetlift.cvm.plugins.modules.{sys.argv[1]}")
    with patch_module_args(json.load(sys.stdin)):
        module.main()
