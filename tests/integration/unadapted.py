# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The negative control: a copy of a lab's source that nobody has adapted does not come up on the target's hardware.

Boots the disks that the source was made with, as they are and without changing them, on virtio. Exits with 0 when the
initramfs gives up because it does not find its root, and with 1 when the system comes up or nothing happens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.command import run
from lab.machines.protocol import MachineDisk
from lab.machines.qemu import PROCESSORS, UEFI_CODE, Hardware, accelerator, disk_words

GIVES_UP = "(initramfs)"
COMES_UP = "login:"
TIMEOUT = 400.0


def disks_of(source: str, scratch: Path) -> list[MachineDisk]:
    """Overlays over what the disks of ``source`` were made with."""
    status = json.loads(run([sys.executable, "-m", "lab", "status", "--json"]))
    (row,) = (row for row in status["machines"] if row["name"] == source)
    disks = []
    for number, disk in enumerate(row["disks"]):
        described = json.loads(run(["qemu-img", "info", "--force-share", "--output=json", disk["file"]]))
        overlay = scratch / f"{number}.qcow2"
        base = described["full-backing-filename"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, str(overlay)])
        disks.append(MachineDisk(overlay, f"unadapted-{number}"))
    return disks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--firmware", choices=("bios", "uefi"), default="bios")
    options = parser.parse_args()
    hardware = Hardware(options.firmware, "virtio", "virtio")
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        console = scratch / "console"
        words = [
            "qemu-system-x86_64", "-nodefaults", "-display", "none", *accelerator(), "-machine", "pc",
            "-smp", PROCESSORS, "-m", "1024", "-serial", f"file:{console}",
            *disk_words(hardware, disks_of(options.source, scratch)),
        ]  # fmt: skip
        if options.firmware == "uefi":
            words += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={UEFI_CODE}"]
        started = time.monotonic()
        with subprocess.Popen(words, stdin=subprocess.DEVNULL) as machine:
            try:
                said = ""
                while machine.poll() is None and time.monotonic() - started < TIMEOUT:
                    said = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
                    if GIVES_UP in said or COMES_UP in said:
                        break
                    time.sleep(0.5)
            finally:
                machine.kill()
    print("\n".join(said.splitlines()[-12:]))
    if GIVES_UP in said:
        print(f"the unadapted copy does not boot (after {time.monotonic() - started:.0f} s)")
        return 0
    print("the unadapted copy came up" if COMES_UP in said else f"nothing in {TIMEOUT:.0f} s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
