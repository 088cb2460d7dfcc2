# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line: ``python -m lab``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from lab import namespaces
from lab.command import require_programs, run
from lab.control import call
from lab.cos.faults import KINDS, METHODS
from lab.daemon import serve
from lab.description import INITRAMFS, TABLES, load
from lab.errors import LabError
from lab.exportedimage import ExportedImage
from lab.ledger import Ledger
from lab.place import Place
from lab.processes import is_alive
from lab.sweep import take_down
from lab.verify import verify

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = Path(__file__).with_name("demo.yml")
PROGRAMS = {
    "blkid": "util-linux",
    "cp": "coreutils",
    "ip": "iproute2",
    "losetup": "mount",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "tc": "iproute2",
}
IMAGE_PROGRAMS = {
    "cpio": "cpio",
    "mmdebstrap": "mmdebstrap",
    "sfdisk": "fdisk",
}
CONSOLE_TAIL = 64 * 1024


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    root = argparse.ArgumentParser(prog="python -m lab", description="A data centre and a cloud on one machine.")
    root.add_argument(
        "--name",
        default=os.environ.get("FLEETLIFT_LAB_NAME", "demo"),
        help="the lab's name (default: $FLEETLIFT_LAB_NAME, which `run` sets, or demo)",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start the lab")
    up.add_argument("file", nargs="?", type=Path, default=DEMO, help="lab description (default: the demo)")
    commands.add_parser("down", help="take the lab down and remove every trace of it")
    status = commands.add_parser("status", help="show what runs")
    status.add_argument("--json", action="store_true", help="as JSON")
    ssh = commands.add_parser("ssh", help="open a shell, or run a command, on a machine")
    ssh.add_argument("machine")
    ssh.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    inside = commands.add_parser("run", help="run a command where the controller is")
    inside.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    machine = commands.add_parser("machine", help="switch a source off or on")
    machine.add_argument("action", choices=("start", "stop", "restart"))
    machine.add_argument("machine")
    link = commands.add_parser("link", help="plug or pull a machine's network cable")
    link.add_argument("state", choices=("up", "down"))
    link.add_argument("machine")
    instance = commands.add_parser("instance", help="change an instance behind the API's back")
    instance.add_argument("action", choices=("set",))
    instance.add_argument("machine")
    instance.add_argument("fields", nargs="+", metavar="KEY=VALUE")
    console = commands.add_parser("console", help="print the end of a machine's console")
    console.add_argument("machine")
    cos = commands.add_parser("cos", help="look at COS, or have faults befall the next requests to it")
    cos_commands = cos.add_subparsers(dest="cos_command", required=True, metavar="COMMAND")
    cos_commands.add_parser("status", help="buckets, traffic and waiting faults, as JSON")
    fault = cos_commands.add_parser("fault", help="refuse, cut off or damage the next requests")
    fault.add_argument("kind", choices=KINDS)
    fault.add_argument("--count", type=int, default=1, help="how many requests (default: 1)")
    fault.add_argument("--method", choices=METHODS, help="only requests of this method")
    fault.add_argument("--after", type=int, default=0, help="bytes of the body before the cut or the damaged byte")
    cos_commands.add_parser("clear", help="take waiting faults back")
    commands.add_parser("notices", help="what the account's Message Center says, as JSON")
    image = commands.add_parser(
        "image", help="make a raw image of a disk with a Debian that boots, as an export has it"
    )
    image.add_argument("file", type=Path)
    image.add_argument("--host", default="exported", help="the host name on it (default: exported)")
    image.add_argument("--size-mib", type=int, default=1024, help="the disk's size (default: 1024)")
    image.add_argument("--table", choices=TABLES, default="mbr", help="the partition table (default: mbr)")
    image.add_argument("--initramfs", choices=INITRAMFS, default="most", help="dep: without virtio (default: most)")
    comparison = commands.add_parser("verify", help="compare a switched-off source's disks with an instance's")
    comparison.add_argument("machine", metavar="source")
    comparison.add_argument("target")
    comparison.add_argument("--json", action="store_true", help="as JSON")
    daemon = commands.add_parser("serve", help="be the lab's daemon (started by up)")
    daemon.add_argument("file", type=Path)
    return root


def require_host() -> None:
    """Refuse where the lab cannot work."""
    if sys.platform != "linux":
        raise LabError(f"the lab needs Linux, this is {sys.platform}", "Run it on a Linux machine")
    if os.geteuid() != 0:
        raise LabError("the lab needs root, for namespaces and loop devices", "Run it as root")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parser().parse_args(arguments)
    try:
        require_host()
        place = Place.of(options.name)
        result: int = COMMANDS[options.command](place, options)
        return result
    except LabError as error:
        print(f"error: {error.cause}", file=sys.stderr)
        if error.action:
            print(f"  what to do: {error.action}", file=sys.stderr)
        return 1


def up(place: Place, options: argparse.Namespace) -> int:
    """Start the daemon and show its progress until it is ready."""
    require_programs(PROGRAMS)
    file = options.file.resolve()
    load(file)
    if place.exists():
        try:
            call(place.socket, "status")
        except LabError as error:
            if any(is_alive(process) for process in Ledger(place.ledger).read().processes):
                raise LabError(
                    f"the lab {place.name!r} is just being started or taken down, or does not answer",
                    "Wait and try again, or take it down",
                ) from error
            raise LabError(
                f"a lab {place.name!r} was left behind by a crash",
                f"Remove it first: python -m lab --name {place.name} down",
            ) from error
        print(f"the lab {place.name!r} is running already")
        return 0
    place.create()
    with place.log.open("a", encoding="utf-8") as log:
        place.log.chmod(0o600)
        process = subprocess.Popen(
            [sys.executable, "-m", "lab", "--name", place.name, "serve", str(file)],
            cwd=REPOSITORY,
            env={**os.environ, "FLEETLIFT_LAB_DIR": str(place.base), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        failure = follow(process)
    except KeyboardInterrupt:
        take_down(place)
        raise LabError("interrupted", "What had been started is gone again; run up to start anew") from None
    if failure is None:
        show(call(place.socket, "status"))
        return 0
    process.wait()
    take_down(place)
    raise failure


def follow(process: subprocess.Popen[str]) -> LabError | None:
    """Print the daemon's progress; return what went wrong, or None when it is ready."""
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        if "progress" in message:
            print(message["progress"], flush=True)
        elif "ready" in message:
            return None
        else:
            return LabError(message["failed"]["cause"], message["failed"]["action"])
    return LabError("the lab's daemon ended before the lab was ready", "Run up again; see what it printed above")


def down(place: Place, _: argparse.Namespace) -> int:
    """Take the lab down."""
    if in_controller(place):
        raise LabError("this process is inside the lab", "Leave the shell that 'lab run' opened, then take it down")
    print(f"the lab {place.name!r} is gone" if take_down(place) else f"there is no lab {place.name!r}")
    return 0


def status(place: Place, options: argparse.Namespace) -> int:
    """Show what runs."""
    found = call(place.socket, "status")
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0


def show(found: dict[str, Any]) -> None:
    """Print a status as a table."""
    print(f"lab {found['lab']}: region {found['region']}, controller {found['controller']}")
    print(f"API {found['endpoint']}, COS {found['cos_endpoint']} (APPID {found['appid']})")
    rows = [("NAME", "KIND", "STATE", "POWER", "LINK", "ADDRESSES", "DISKS")]
    rows += [
        (
            row["name"],
            row["kind"],
            row["state"],
            row["power"],
            row["link"],
            " ".join(row["addresses"]),
            " ".join(f"{disk['serial']}({disk['size'] / 2**30:g} GiB)" for disk in row["disks"]),
        )
        for row in found["machines"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def enter_controller(place: Place) -> None:
    """Move this process into the controller's network namespace."""
    call(place.socket, "status")
    with open(f"/run/netns/fl-{place.name}-ctl", "rb") as namespace:
        namespaces.setns(namespace.fileno(), namespaces.CLONE_NEWNET)


def in_controller(place: Place) -> bool:
    """Whether this process was started by ``run``: taking the lab down would end it half-way."""
    namespace = Path(f"/run/netns/fl-{place.name}-ctl")
    return namespace.exists() and os.path.samefile(namespace, "/proc/self/ns/net")


def controller_environment(place: Place) -> dict[str, str]:
    """Return the environment of a command that runs where the controller is."""
    account = json.loads(place.credentials.read_text(encoding="ascii"))
    return {
        **os.environ,
        "FLEETLIFT_LAB_DIR": str(place.base),
        "FLEETLIFT_LAB_NAME": place.name,
        # Another lab has machines at the same addresses: a connection that is shared must not lead there.
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(place.directory / "cp"),
        "TENCENTCLOUD_SECRET_ID": account["secret_id"],
        "TENCENTCLOUD_SECRET_KEY": account["secret_key"],
        "TENCENTCLOUD_REGION": account["region"],
        "NO_PROXY": "*",
    }


def words_of(options: argparse.Namespace) -> list[str]:
    """Return the command after ``--``."""
    words: list[str] = list(options.words)
    return words[1:] if words[:1] == ["--"] else words


def execute(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Become ``command``."""
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError as error:
        raise LabError(f"there is no program {command[0]!r}", "Install it, or correct the command") from error


def run_command(place: Place, options: argparse.Namespace) -> int:
    """Run a command where the controller is."""
    words = words_of(options)
    if not words:
        raise LabError("no command was given", "python -m lab run -- COMMAND")
    environment = controller_environment(place) if place.credentials.exists() else dict(os.environ)
    enter_controller(place)
    execute(words, environment)


def ssh(place: Place, options: argparse.Namespace) -> int:
    """Log in to a machine from where the controller is."""
    name = call(place.socket, "resolve", name=options.machine)
    rows = {row["name"]: row for row in call(place.socket, "status")["machines"]}
    address = rows[name]["addresses"][-1]
    enter_controller(place)
    execute([*ssh_command(place, address), *words_of(options)], dict(os.environ))


def ssh_command(place: Place, address: str) -> list[str]:
    """Return the words that log in as root at ``address`` with the lab's key."""
    command = ["ssh", "-F", "none", "-i", str(place.key), "-o", "IdentitiesOnly=yes"]
    for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=10"):
        command += ["-o", option]
    return [*command, f"root@{address}"]


def query_database(place: Place, address: str, sql: str) -> str:
    """Run an SQL query on the machine at ``address`` and return what it answers."""
    login = ["ip", "netns", "exec", f"fl-{place.name}-ctl", *ssh_command(place, address)]
    return run([*login, "psql", "-U", "postgres", "-At"], stdin=f"{sql};\n").strip()


def machine(place: Place, options: argparse.Namespace) -> int:
    """Switch a source off or on."""
    call(place.socket, "machine", name=options.machine, action=options.action)
    return 0


def link(place: Place, options: argparse.Namespace) -> int:
    """Plug or pull a machine's cable."""
    call(place.socket, "link", name=options.machine, up=options.state == "up")
    return 0


def instance(place: Place, options: argparse.Namespace) -> int:
    """Change an instance behind the API's back."""
    pairs = [field.partition("=") for field in options.fields]
    for key, separator, _ in pairs:
        if not separator:
            raise LabError(f"{key!r} has no value", "Write KEY=VALUE, for example RestrictState=EXPIRED")
    call(place.socket, "instance", name=options.machine, fields={key: value for key, _, value in pairs})
    return 0


def console(place: Place, options: argparse.Namespace) -> int:
    """Print the end of a machine's console."""
    name = call(place.socket, "resolve", name=options.machine)
    with (place.directory / "machines" / name / "console.log").open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - CONSOLE_TAIL))
        sys.stdout.buffer.write(stream.read())
    return 0


def cos(place: Place, options: argparse.Namespace) -> int:
    """Look at COS, or disturb it."""
    if options.cos_command == "status":
        print(json.dumps(call(place.socket, "cos-status"), indent=2))
        return 0
    fault = None
    if options.cos_command == "fault":
        fault = {name: getattr(options, name) for name in ("kind", "count", "method", "after")}
    call(place.socket, "cos-fault", fault=fault)
    return 0


def notices(place: Place, _: argparse.Namespace) -> int:
    """Print the account's notices."""
    print(json.dumps(call(place.socket, "notices"), indent=2))
    return 0


def image(place: Place, options: argparse.Namespace) -> int:
    """Make an image; the lab's key is let in when there is one. No lab has to run."""
    require_programs(IMAGE_PROGRAMS)
    public = place.key.with_suffix(".pub")
    exported = ExportedImage(options.host, options.size_mib * 1024 * 1024, options.table, options.initramfs)
    exported.build(options.file, place.cache, public.read_text(encoding="ascii") if public.exists() else "")
    return 0


def verify_command(place: Place, options: argparse.Namespace) -> int:
    """Compare a source with the instance it was moved to; exit with 1 when they differ."""
    found = call(place.socket, "status")
    with tempfile.TemporaryDirectory(prefix="verify-", dir=place.directory) as scratch:
        query = partial(query_database, place)
        results = namespaces.in_private_mounts(
            lambda: verify(found, options.machine, options.target, Path(scratch), query)
        )
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        for result in results:
            print(f"{result.subject}: {result.compared}: {'the same' if result.same else 'DIFFERENT'}")
            for difference in result.differences:
                print(f"  {difference}")
    return 0 if all(result.same for result in results) else 1


def serve_command(place: Place, options: argparse.Namespace) -> int:
    """Be the lab's daemon."""
    serve(place, options.file)
    return 0


COMMANDS = {
    "up": up,
    "down": down,
    "status": status,
    "ssh": ssh,
    "run": run_command,
    "machine": machine,
    "link": link,
    "instance": instance,
    "console": console,
    "cos": cos,
    "image": image,
    "notices": notices,
    "verify": verify_command,
    "serve": serve_command,
}
