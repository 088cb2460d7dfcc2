# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at a whole fleet in one run, beside what Ansible itself needs to look at the same servers.

``python tests/fleet_bench.py --hosts 100`` starts a lab with so many light sources and targets, gathers facts with
``ansible -m ansible.builtin.setup``, runs the preflight, and compares: time per host, the controller's CPU and memory,
and the API's requests by action. It fails when the preflight takes more than three times as long, or asks the API more
often than batches of a hundred need. With ``--targets name`` the targets have to be found by their names first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
INVENTORY = REPOSITORY / "extensions" / "molecule" / "inventory"
MOST_TIMES = 3.0
BATCH = 100


@dataclass(frozen=True)
class Measured:
    """Wall clock and CPU in seconds, the most memory of all processes together in bytes (PSS)."""

    seconds: float
    cpu: float
    memory: int


def descendants(process: int) -> list[int]:
    """*process* and all that it has started, whose sessions differ: Ansible gives each worker one of its own."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [process]
    for pid in found:
        found += children.get(pid, [])
    return found


def memory_of(process: int) -> int:
    """Bytes that *process* and its descendants use, shared pages counted in shares."""
    total = 0
    for pid in descendants(process):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def measure(command: list[str], environment: dict[str, str], log: Path) -> Measured:
    """Run *command* to its end; its output goes to *log*. A failure ends the program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    most = 0
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        done = threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.5):
                most = max(most, memory_of(process.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        code = process.wait()
        done.set()
        watching.join()
    seconds = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}:\n{log.read_text(errors='replace')[-4000:]}")
    return Measured(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, most)


def requests(log: Path) -> Counter[str]:
    """The API's requests so far, by action."""
    return Counter(json.loads(line)["action"] for line in log.read_text().splitlines()) if log.exists() else Counter()


def row(name: str, hosts: int, measured: Measured) -> str:
    return (
        f"{name:<28}{measured.seconds:8.1f} s{measured.seconds / hosts * 1000:9.0f} ms{measured.cpu:9.1f} s"
        f"{measured.memory / (1 << 20):9.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--forks", type=int, default=20)
    parser.add_argument("--lab", default="fleet")
    parser.add_argument("--targets", choices=("id", "name"), default="id", help="how the plan names them")
    options = parser.parse_args()
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(binaries.parent / "collections"),
        "ANSIBLE_NOCOLOR": "true",
        "FLEETLIFT_REPOSITORY": str(REPOSITORY),
        "PYTHONPATH": str(REPOSITORY),
    }
    lab = [sys.executable, "-m", "lab", "--name", options.lab]
    with tempfile.TemporaryDirectory() as work:
        fleet = Path(work)
        generate = [sys.executable, str(REPOSITORY / "tests" / "fleet_lab.py"), "--workload", "none"]
        generate += ["--targets", options.targets]
        subprocess.run([*generate, "--hosts", str(options.hosts), str(fleet)], check=True)
        inventory = ["-i", str(INVENTORY), "-i", str(fleet / "fleet.fleetlift.yml"), "-f", str(options.forks)]
        try:
            subprocess.run([*lab, "down"], env=environment, check=True)
            started = measure([*lab, "up", str(fleet / "lab.yml")], environment, fleet / "up.log")
            inside = [*lab, "run", "--"]
            setup = [*inside, "ansible", *inventory, "wave_*", "-m", "ansible.builtin.setup"]
            preflight = [*inside, "ansible-playbook", *inventory, "--limit", "wave_*", "fleetlift.cvm.preflight"]
            # Connections are opened, and modules' files are read, by the first to come: once for both.
            subprocess.run(
                [*inside, "ansible", *inventory, "wave_*", "-m", "ansible.builtin.ping"],
                env=environment,
                stdout=subprocess.DEVNULL,
                check=True,
            )
            log = Path(os.environ.get("FLEETLIFT_LAB_DIR") or "/var/lib/fleetlift-lab") / options.lab / "requests.jsonl"
            plain = measure(setup, environment, fleet / "setup.log")
            before = requests(log)
            whole = measure(preflight, environment, fleet / "preflight.log")
            asked = requests(log) - before
            said = (fleet / "preflight.log").read_text(errors="replace")
        finally:
            subprocess.run([*lab, "down"], env=environment, check=True)
    result = next((line for line in said.splitlines() if " can migrate, " in line), "")
    print(f"{options.hosts} servers, {options.forks} forks; the lab was up in {started.seconds:.1f} s\n")
    print(f"{'':<28}{'time':>10}{'per host':>12}{'CPU':>11}{'memory':>13}")
    print(row("ansible -m setup", options.hosts, plain))
    print(row("fleetlift.cvm.preflight", options.hosts, whole))
    print(f"\nAPI requests: {', '.join(f'{count} {action}' for action, count in sorted(asked.items()))}")
    times = whole.seconds / plain.seconds
    print(f"{result} It took {times:.1f} times as long as setup, {whole.seconds / options.hosts:.2f} s a server.")
    batches = -(-options.hosts // BATCH)
    # A name is looked for by itself.
    allowed = {
        "DescribeInstances": batches + (options.hosts if options.targets == "name" else 0),
        "DescribeDisks": batches,
    }
    problems = [
        f"{action} was asked {asked[action]} times, {most} would do"
        for action, most in allowed.items()
        if asked[action] > most
    ]
    if not result.startswith(f"{options.hosts} of {options.hosts} "):
        problems.append(f"not all of {options.hosts} servers can migrate: {result or 'no result'}")
    if times > MOST_TIMES:
        problems.append(f"the preflight took {times:.1f} times what setup took, {MOST_TIMES:g} are allowed")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
