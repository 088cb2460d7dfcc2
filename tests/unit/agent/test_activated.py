# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volume groups that the landing has activated by itself are let go of; the case `uml` of the matrix has real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleetlift_agent import activated

# Writes down how it was called; lvs finds one group that nobody uses and one that somebody does.
LVM = """\
#!/bin/sh
echo "$@" >>{log}
[ "$1" != lvs ] || printf '  vg0|\\n  vg0|\\n  data|open\\n  data|\\n'
"""


class Landing:
    """A landing with two disks; the second partition of the first is held."""

    def __init__(self, base: Path, uuid: str) -> None:
        self.sys, self.dev, self.log = base / "sys", base / "dev", base / "log"
        for name in ("vda/vda1/partition", "vda/vda2/partition", "vda/vda2/holders/dm-0", "vdb/holders/dm-1"):
            path = self.sys / "block" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for name, text in (("dm-0", uuid), ("dm-1", "CRYPT-LUKS2-abc")):
            (self.sys / "block" / name / "dm").mkdir(parents=True)
            (self.sys / "block" / name / "dm/uuid").write_text(text)
        (self.dev / "disk/by-id").mkdir(parents=True)
        for name, serial in (("vda", "disk-system"), ("vdb", "disk-data")):
            (self.dev / name).touch()
            (self.dev / "disk/by-id" / f"virtio-{serial}").symlink_to(f"../../{name}")
        self.program = base / "lvm"
        self.program.write_text(LVM.format(log=self.log))
        self.program.chmod(0o755)

    def release(self, monkeypatch: pytest.MonkeyPatch, *serials: str) -> list[str]:
        monkeypatch.setattr(activated, "PROGRAMS", (self.program, Path("/bin/sh"), Path("/usr/bin/sh")))
        return activated.release(serials, sys=self.sys, dev=self.dev)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def test_a_group_that_nobody_uses_is_deactivated_and_one_with_an_open_volume_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing = Landing(tmp_path, "LVM-abcdef")
    assert landing.release(monkeypatch, "disk-system", "disk-data") == ["vg0"]
    listed, changed = landing.calls()
    assert listed.startswith("lvs ") and changed.endswith(" -an vg0")
    assert all(f'"a|^{landing.dev}/vda2$|","r|.*|"' in call and "vdb" not in call for call in (listed, changed))


def test_what_something_else_holds_is_left_to_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landing = Landing(tmp_path, "mpath-abcdef")
    assert landing.release(monkeypatch, "disk-system", "disk-data") == []
    assert landing.calls() == []


def test_another_disks_group_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landing = Landing(tmp_path, "LVM-abcdef")
    assert landing.release(monkeypatch, "disk-data", "disk-elsewhere") == []
    assert landing.calls() == []
