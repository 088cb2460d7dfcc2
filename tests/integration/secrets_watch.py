# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look for secrets where they must not be, while a migration runs and after it.

``watch`` samples the command lines of all processes, and the agents' logs, states and configurations, for as long as it
runs; it learns each secret when its file appears. ``scan`` then searches files that a run left behind. Secrets are the
cloud key, the landings' passwords and the pairs' private keys. A hit is reported by kind and place, never by value.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Where secrets are meant to be: readable by their owner only.
STORES = ("landing_password", "*.key", "credentials*.json")
AGENT_FILES = ("agent.log", "state.json", "config.json")


def learn(lab: Path) -> dict[str, str]:
    """Secrets by value, each with its kind, from the files that hold them below ``lab``."""
    found: dict[str, str] = {}
    for path in stores(lab):
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue
        if not text.strip():
            # Made a moment ago and written a moment later.
            continue
        if path.name == "landing_password":
            found[text.split()[0]] = "landing password"
        elif path.suffix == ".key":
            # One line from the middle of the PEM block identifies it.
            lines = text.splitlines()
            found[lines[len(lines) // 2]] = "private key"
        else:
            found[json.loads(text)["secret_key"]] = "cloud key"
    return found


def stores(lab: Path) -> Iterator[Path]:
    """The files that are meant to hold secrets."""
    for pattern in STORES:
        yield from lab.rglob(pattern)


def command_lines() -> Iterator[tuple[str, str]]:
    """Place and text of every process's command line."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                yield f"command line of {process.name}", (process / "cmdline").read_text(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue


def agent_files() -> Iterator[tuple[str, str]]:
    """Place and text of what agents write in any namespace, found through their processes."""
    for place, line in list(command_lines()):
        if "agent.pyz" in line:
            base = Path("/proc") / place.rpartition(" ")[2] / "root/run/fleetlift"
            try:
                yield from (
                    (f"{each.name} of an agent", each.read_text(errors="replace"))
                    for name in AGENT_FILES
                    for each in base.glob(f"*/{name}")
                )
            except OSError:
                # The process ended between the two looks.
                continue


def watch(lab: Path, out: Path) -> int:
    """Sample until SIGTERM; the hits and the secrets learnt go to ``out`` (mode 0600)."""
    going = True

    def end(number: int, frame: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, end)
    out.touch(mode=0o600)
    secrets: dict[str, str] = {}
    hits: set[str] = set()
    samples = 0
    while going:
        if samples % 20 == 0:
            secrets.update(learn(lab))
        texts = list(command_lines()) + (list(agent_files()) if samples % 20 == 0 else [])
        hits.update(f"{kind} in {place}" for secret, kind in secrets.items() for place, text in texts if secret in text)
        samples += 1
        time.sleep(0.05)
    out.write_text(json.dumps({"secrets": secrets, "hits": sorted(hits), "samples": samples}))
    return 0


def scan(lab: Path, out: Path, paths: list[Path]) -> int:
    """Report what ``watch`` saw and what the files below ``paths`` hold; 1 when a secret was found."""
    seen = json.loads(out.read_text())
    secrets: dict[str, str] = {**seen["secrets"], **learn(lab)}
    meant = set(stores(lab)) | {out}
    problems = list(seen["hits"])
    problems += [f"{path} can be read by others" for path in stores(lab) if path.stat().st_mode & 0o077]
    files = [each for path in paths for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file()]
    texts = [each for each in files if each not in meant and each.stat().st_size < 64 << 20]
    for path in texts:
        data = path.read_bytes()
        problems += [f"{kind} in {path}" for secret, kind in secrets.items() if secret.encode() in data]
    kinds = sorted(set(secrets.values()))
    print(f"{len(secrets)} secrets ({', '.join(kinds)}), {seen['samples']} samples, {len(texts)} files")
    if kinds != ["cloud key", "landing password", "private key"]:
        problems.append(f"only these kinds of secrets were learnt, so nothing is proved: {kinds}")
    print("\n".join(problems) or "no secret where it must not be")
    return 1 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["watch", "scan"])
    parser.add_argument("--lab", type=Path, required=True, help="the lab's state directory")
    parser.add_argument("--out", type=Path, required=True, help="what watch writes and scan reads")
    parser.add_argument("--path", type=Path, action="append", default=[], help="a file or directory to scan")
    arguments = parser.parse_args()
    if arguments.command == "watch":
        return watch(arguments.lab, arguments.out)
    return scan(arguments.lab, arguments.out, arguments.path)


if __name__ == "__main__":
    sys.exit(main())
