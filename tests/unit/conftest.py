# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes ``ansible_collections.fleetlift.cvm``, ``lab`` and ``fleetlift_agent`` importable from the working tree."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[2]

# Examples that take long on a busy machine are no failures.
settings.register_profile("fleetlift", deadline=None)
settings.load_profile("fleetlift")


def _collection_path() -> Path:
    """A directory that holds ansible_collections/fleetlift/cvm, a link to the working tree."""
    root = Path(tempfile.mkdtemp(prefix="fleetlift-collections-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    namespace = root / "ansible_collections" / "fleetlift"
    namespace.mkdir(parents=True)
    (namespace / "cvm").symlink_to(REPOSITORY)
    return root


# A run under ansible-test has the tree in place already.
if not (len(REPOSITORY.parents) > 2 and REPOSITORY.parents[1].name == "ansible_collections"):
    sys.path.insert(0, str(_collection_path()))
for path in (REPOSITORY, REPOSITORY / "agent"):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
