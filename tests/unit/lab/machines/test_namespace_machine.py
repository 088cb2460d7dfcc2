# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine boots what is on its own disk, sees nothing but its own, and gives its disks back whole."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import loopdisk
from lab.cloud.hypervisor import PacketRule
from lab.command import run
from lab.datacentre import wait_for_ssh
from lab.loopdisk import mounted
from lab.machines.init import DROPPED_CAPABILITIES
from lab.machines.namespace import NamespaceMachine
from lab.machines.protocol import MachineError, State
from lab.namespaces import in_netns

from .conftest import Bench, eventually

pytestmark = pytest.mark.root

WRITE_UNTIL_FROZEN_THEN_POWER_OFF = """
import ctypes, fcntl, os, sys, time
for number in range(2):
    if os.fork() == 0:
        while True:
            with open(f"/root/written{number}", "ab") as stream:
                stream.write(os.urandom(5000))
while not all(os.path.exists(f"/root/written{n}") and os.path.getsize(f"/root/written{n}") > 10**6 for n in (0, 1)):
    pass
os.sync()
fcntl.ioctl(os.open("/", os.O_RDONLY), 0xC0045877, 0)
print("frozen", flush=True)
sys.stdin.readline()
assert os.getpid() != 1 and os.readlink("/proc/1/ns/pid") == os.readlink("/proc/self/ns/pid")
ctypes.CDLL(None).reboot(0x4321FEDC)
"""


def power(machine: NamespaceMachine) -> State:
    return machine.state


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def test_machine_boots_its_disk_and_answers_ssh(bench: Bench) -> None:
    machine = bench.source("one")
    machine.start()
    assert power(machine) == State.RUNNING
    eventually(bench.answers("10.96.0.11"), "ssh")
    assert bench.ssh("10.96.0.11", "hostname").stdout == "template\n"
    machine.stop(hard=False)
    assert power(machine) == State.OFF
    assert loopdisk.attached_under(bench.place.directory) == []
    assert run(["e2fsck", "-fn", str(machine.disks[0].file)])


def test_machine_sees_only_its_own_disks_processes_and_network(bench: Bench) -> None:
    machine = bench.source("one")
    machine.start()
    eventually(bench.answers("10.96.0.11"), "ssh")

    def inside(command: str) -> str:
        done = bench.ssh("10.96.0.11", command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert inside("ls /sys/block").split() == ["sda"]
    assert inside("lsblk --noheadings --raw --output NAME,SERIAL,MOUNTPOINT").split() == ["sda", "SERIAL-one", "/"]
    assert inside("find /dev -type b").split() == ["/dev/sda"]
    assert inside("tail -n +3 /proc/partitions").split()[3:] == ["sda"]
    assert inside("findmnt --noheadings --output SOURCE /").strip() == "/dev/sda"
    assert sorted(inside("ls /sys/class/net").split()) == ["eth0", "lo"]
    assert inside("cat /proc/1/comm").strip() == "init"
    assert inside("cat /proc/sys/kernel/random/boot_id") != Path("/proc/sys/kernel/random/boot_id").read_text()
    host_root = os.stat("/").st_dev
    for device in (host_root, os.makedev(7, 255)):
        numbers = f"{os.major(device)} {os.minor(device)}"
        assert bench.ssh("10.96.0.11", f"mknod /dev/other b {numbers}").returncode != 0
    bounding = int(inside("grep CapBnd /proc/self/status").split()[1], 16)
    kept = [name for name, number in DROPPED_CAPABILITIES.items() if bounding >> number & 1]
    assert kept == []
    assert bench.ssh("10.96.0.11", "echo 1 > /proc/sys/vm/drop_caches").returncode != 0
    assert bench.ssh("10.96.0.11", "touch /sys/block/x").returncode != 0


def test_host_disk_cannot_be_opened_even_through_a_real_devtmpfs(bench: Bench) -> None:
    machine = bench.source("one")
    machine.start()
    eventually(bench.answers("10.96.0.11"), "ssh")
    done = bench.ssh("10.96.0.11", "mount -t devtmpfs none /mnt && for d in $(find /mnt -type b); do head -c1 $d; done")
    loop = bench.ssh("10.96.0.11", "stat --format=%d /").stdout.strip()
    opened = done.stderr.count("Operation not permitted")
    blocks = bench.ssh("10.96.0.11", "find /mnt -type b | wc -l").stdout.strip()
    assert loop and int(blocks) > 1
    # Its own disk has a node there as well: the only one that opens.
    assert opened == int(blocks) - 1


def test_power_off_while_frozen_ends_the_machine_and_changes_nothing(bench: Bench) -> None:
    machine = bench.source("one")
    machine.start()
    eventually(bench.answers("10.96.0.11"), "ssh")
    network = bench.network.controller
    command = ["ip", "netns", "exec", network, "ssh", "-F", "none", "-i", str(bench.place.key)]
    command += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "root@10.96.0.11"]
    # The script comes by standard input into RAM: nothing may need the frozen disk.
    script = bench.place.directory / "script"
    script.write_text(WRITE_UNTIL_FROZEN_THEN_POWER_OFF)
    with script.open("rb") as stream:
        subprocess.run([*command, "cat > /run/script"], stdin=stream, check=True, capture_output=True)
    with subprocess.Popen(
        [*command, "python3 /run/script"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"frozen\n"
        before = digest(machine.disks[0].file)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        eventually(lambda: power(machine) == State.OFF, "power off")
    assert digest(machine.disks[0].file) == before
    assert loopdisk.attached_under(bench.place.directory) == []
    eventually(lambda: bench.powered_off == ["one"], "the lab is told")
    with mounted(machine.disks[0].file, bench.place.directory / "mnt", options=("ro", "noload")) as root:
        assert (root / "root/written0").stat().st_size > 0


def test_hard_stop_ends_a_frozen_machine(bench: Bench) -> None:
    machine = bench.source("one")
    machine.start()
    eventually(bench.answers("10.96.0.11"), "ssh")
    freeze = "import fcntl, os; fcntl.ioctl(os.open('/', os.O_RDONLY), 0xC0045877, 0)"
    assert bench.ssh("10.96.0.11", f'python3 -c "{freeze}"').returncode == 0
    machine.stop(hard=True)
    assert power(machine) == State.OFF
    machine.start()
    eventually(bench.answers("10.96.0.11"), "ssh again")


def test_reboot_inside_boots_the_disk_again(bench: Bench) -> None:
    machine = bench.source("one")
    machine.start()
    eventually(bench.answers("10.96.0.11"), "ssh")
    first = bench.ssh("10.96.0.11", "touch /root/kept; cat /proc/sys/kernel/random/boot_id").stdout
    bench.ssh("10.96.0.11", "reboot")

    def came_back() -> bool:
        done = bench.ssh("10.96.0.11", "ls /root/kept && cat /proc/sys/kernel/random/boot_id")
        return done.returncode == 0 and first not in done.stdout

    eventually(came_back, "reboot")
    assert bench.powered_off == []


def test_rescue_system_runs_from_ram_with_every_disk_attached(bench: Bench) -> None:
    disks = [bench.disk("system"), bench.disk("data", filled=False)]
    before = [digest(disk.file) for disk in disks]
    machine = bench.instance("ins-1", *disks)
    machine.rescue("root", "Correct-Horse7")
    assert power(machine) == State.RESCUE
    bench.network.set_policies("ins-1", [PacketRule("tcp", ((22, 22),), "0.0.0.0/0", "ACCEPT")])
    eventually(lambda: bench.ssh("203.0.113.11", "true", password="Correct-Horse7").returncode == 0, "ssh")
    assert bench.ssh("203.0.113.11", "true", password="Wrong-Horse7").returncode != 0
    listing = bench.ssh(
        "203.0.113.11",
        "hostname; findmnt -no FSTYPE /; ls /dev/disk/by-id; cat /sys/block/vdb/serial; grep -c /dev/vd /proc/mounts",
        password="Correct-Horse7",
    ).stdout.split()
    assert listing == ["rescue", "overlay", "virtio-SERIAL-data", "virtio-SERIAL-system", "SERIAL-data", "0"]
    bench.ssh("203.0.113.11", "echo lost > /root/lost", password="Correct-Horse7")
    machine.stop(hard=True)
    assert [digest(disk.file) for disk in disks] == before
    everything = b"".join(path.read_bytes() for path in bench.place.directory.rglob("*.log"))
    assert b"Correct-Horse7" not in everything + bench.place.ledger.read_bytes()
    machine.rescue("root", "Other-Horse7")
    eventually(lambda: bench.ssh("203.0.113.11", "true", password="Other-Horse7").returncode == 0, "ssh")
    assert bench.ssh("203.0.113.11", "cat /root/lost", password="Other-Horse7").returncode != 0


def test_machine_without_a_filesystem_does_not_boot_and_says_why(bench: Bench) -> None:
    machine = bench.source("one", bench.disk("blank", filled=False))
    with pytest.raises(MachineError, match="no bootable device: /dev/sda"):
        machine.start()
    assert power(machine) == State.OFF
    assert "no bootable device" in machine.console.read_text()


def test_missing_data_disk_stops_the_boot(bench: Bench) -> None:
    disk = bench.disk("one")
    with mounted(disk.file, bench.place.directory / "mnt") as root:
        (root / "etc/fstab").write_text("UUID=1234-not-there /srv ext4 defaults 0 0\n")
    machine = bench.source("one", disk)
    with pytest.raises(MachineError, match="/srv: there is no disk UUID=1234-not-there"):
        machine.start()


def test_disk_can_be_added_to_and_taken_from_a_running_machine(bench: Bench) -> None:
    machine = bench.source("one")
    machine.start()
    eventually(bench.answers("10.96.0.11"), "ssh")
    data = bench.disk("data", filled=False)
    machine.attach(data)
    done = bench.ssh("10.96.0.11", "mkfs.ext4 -q /dev/sdb && mount /dev/sdb /mnt && cat /sys/block/sdb/device/serial")
    assert done.stdout == "SERIAL-data\n", done.stderr
    with pytest.raises(MachineError, match="mounted on /mnt"):
        machine.detach("SERIAL-data")
    assert bench.ssh("10.96.0.11", "umount /mnt").returncode == 0
    machine.detach("SERIAL-data")
    assert bench.ssh("10.96.0.11", "ls /sys/block /dev/disk/by-id").stdout.count("sd") == 1
    assert [disk.serial for disk in machine.disks] == ["SERIAL-one"]
    assert loopdisk.probe(str(data.file)).filesystem == "ext4"


def test_copy_and_original_run_side_by_side(bench: Bench) -> None:
    for number in (11, 12):
        bench.source(f"m{number}", number=number).start()
    for number in (11, 12):
        eventually(bench.answers(f"10.96.0.{number}"), "ssh")


def test_ten_machines_start_in_seconds(bench: Bench) -> None:
    numbers = range(10, 20)
    machines = [bench.instance(f"i{n}", bench.disk(f"i{n}", filled=False), number=n) for n in numbers]
    for machine in machines:
        bench.network.set_policies(machine.name, [PacketRule("tcp", ((22, 22),), "0.0.0.0/0", "ACCEPT")])
    start = time.monotonic()
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda machine: machine.rescue("root", "Correct-Horse7"), machines))
    in_netns(bench.network.controller, lambda: wait_for_ssh([f"10.97.0.{number}" for number in numbers]))
    seconds = time.monotonic() - start
    print(f"ten machines answered SSH after {seconds:.2f} s")
    assert seconds < 15
