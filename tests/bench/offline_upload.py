# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``make offline-bench``: cos_object and the vendor's coscmd upload the same file over the same link, in turns.

Both are whole processes with their defaults, and talk to the lab's COS in another one. All of it lives in network,
mount and process namespaces that end with this program; the link is their loopback with a rate limit. The last lines
are about memory: an image of 500 GB that is nearly all holes is being uploaded until its time is over.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.cos.server import APPID, CosServer

REPOSITORY = Path(__file__).resolve().parents[2]
REGION = "ap-guangzhou"
SECRET_ID = "AKIDlaboratory0000000000000000000000"
SECRET_KEY = "only-known-inside-of-this-benchmark"
BUCKET = f"images-{APPID}"
HOST = f"{BUCKET}.cos.{REGION}.myqcloud.com"
ADDRESS, PORT = "127.0.0.1", 80
MIB = 1 << 20
SPARSE = 500 * 10**9


@dataclass(frozen=True)
class Run:
    """One process: its seconds, those of processors, and the most memory it had, in bytes."""

    seconds: float
    processor: float
    memory: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coscmd", type=Path, required=True, help="the vendor's tool")
    parser.add_argument("--mib", type=int, default=512, help="the size of the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mbps", type=int, nargs="*", default=[300, 0], help="rates of the link; 0 is no limit")
    parser.add_argument("--sparse-seconds", type=float, default=20)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return subprocess.run([*words, sys.executable, __file__, *sys.argv[1:], "--inside"], check=False).returncode
    with tempfile.TemporaryDirectory(prefix="fleetlift-bench-") as directory:
        return measure(options, Path(directory))


def measure(options: argparse.Namespace, work: Path) -> int:
    """Print the table; 1 when one of the uploads failed."""
    build_link(work)
    file = work / "image"
    with file.open("wb") as stream:
        for _number in range(options.mib):
            stream.write(os.urandom(MIB))
    with cos(work):
        configure(options.coscmd, work)
        print(f"{options.mib} MiB, {options.rounds} uploads by each in turns, medians of whole processes. Defaults:")
        print("cos_object 4 connections and parts of 16 MiB, coscmd 5 threads and parts of 1 MiB\n")
        print("link        tool        seconds   MiB/s   CPU s   memory")
        print("──────────  ──────────  ───────  ──────  ──────  ───────")
        for mbps in options.mbps:
            limit(mbps)
            runs: dict[str, list[Run]] = {"cos_object": [], "coscmd": []}
            for number in range(options.rounds):
                runs["cos_object"].append(ours(file, f"ours-{mbps}-{number}", work))
                runs["coscmd"].append(theirs(options.coscmd, file, f"theirs-{mbps}-{number}", work))
            report(f"{mbps} Mbit/s" if mbps else "no limit", runs, options.mib)
        limit(0)
        sparse(work, options.sparse_seconds)
    return 0


def build_link(work: Path) -> None:
    """The loopback of this namespace as a line with packets of the usual size, and COS's name for it."""
    run(["ip", "link", "set", "lo", "mtu", "1500", "up"])
    hosts = work / "hosts"
    hosts.write_text(f"{ADDRESS} localhost {HOST}\n", encoding="ascii")
    run(["mount", "--bind", str(hosts), "/etc/hosts"])


def limit(mbps: int) -> None:
    """Let so much through in each second; 0 is everything."""
    subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], capture_output=True, check=False)
    if mbps:
        bucket = ["tbf", "rate", f"{mbps}mbit", "burst", "256kb", "latency", "100ms"]
        run(["tc", "qdisc", "add", "dev", "lo", "root", *bucket])


@contextmanager
def cos(work: Path) -> Iterator[None]:
    """The lab's COS in a process of its own."""
    child = os.fork()
    if not child:
        listening = socket.create_server((ADDRESS, PORT))
        server = CosServer(listening, work / "cos", {SECRET_ID: SECRET_KEY}, region=REGION)
        server.start()
        server.store.create_bucket(BUCKET, "private")
        threading.Event().wait()
    try:
        wait_for_server()
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def wait_for_server() -> None:
    """Until COS answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((ADDRESS, PORT)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def configure(coscmd: Path, work: Path) -> None:
    """Write the tool's configuration: its own defaults, without TLS as on the other side."""
    account = ["-a", SECRET_ID, "-s", SECRET_KEY, "-b", BUCKET, "-r", REGION]
    run([str(coscmd), "-c", str(work / "cos.conf"), "config", *account, "--do-not-use-ssl"], home=work)


def theirs(coscmd: Path, file: Path, key: str, work: Path) -> Run:
    """One upload by the vendor's tool."""
    words = [str(coscmd), "-c", str(work / "cos.conf"), "-l", str(work / "cos.log"), "upload", str(file), key]
    done = timed(words, "", work)
    remove(key, work)
    return done


def ours(file: Path, key: str, work: Path) -> Run:
    """One upload by the module."""
    done = timed(module_words(), json.dumps(arguments(key, path=str(file))), work)
    remove(key, work)
    return done


def remove(key: str, work: Path) -> None:
    """Take an object away again, so that the disk does not fill."""
    timed(module_words(), json.dumps(arguments(key, state="absent")), work)


def module_words() -> list[str]:
    return [sys.executable, str(REPOSITORY / "tests/unit/plugins/run_module.py"), "cos_object"]


def arguments(key: str, **more: Any) -> dict[str, Any]:
    return {
        "bucket": BUCKET,
        "key": key,
        "region": REGION,
        "secret_id": SECRET_ID,
        "secret_key": SECRET_KEY,
        "cos_endpoint": f"http://{ADDRESS}:{PORT}",
        **more,
    }


def environment(work: Path) -> dict[str, str]:
    """What both tools are started with: nothing of the user's own configuration."""
    path = os.environ["PATH"]
    return {"PATH": path, "HOME": str(work), "NO_PROXY": "*", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def timed(words: Sequence[str], given: str, work: Path) -> Run:
    """Run a program to its end. Raises SystemExit with what it said when it fails."""
    log = work / "said"
    began = time.monotonic()
    with log.open("wb") as said:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment(work))
        assert process.stdin is not None
        process.stdin.write(given.encode())
        process.stdin.close()
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{Path(words[0]).name} failed: {log.read_text(errors='replace')[-2000:]}")
    # ru_maxrss counts KiB: getrusage(2).
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def report(link: str, runs: dict[str, list[Run]], mib: int) -> None:
    """Two rows and their ratio."""
    middle = {}
    for tool, each in runs.items():
        middle[tool] = statistics.median(one.seconds for one in each)
        processor = statistics.median(one.processor for one in each)
        memory = max(one.memory for one in each)
        print(
            f"{link:<10}  {tool:<10}  {middle[tool]:7.2f}  {mib / middle[tool]:6.1f}  {processor:6.2f}"
            f"  {memory / MIB:3.0f} MiB",
            flush=True,
        )
    print(
        f"{'':<10}  cos_object / coscmd: {middle['coscmd'] / middle['cos_object']:.2f} times the throughput", flush=True
    )


def sparse(work: Path, seconds: float) -> None:
    """Upload 500 GB of holes for a while and say how much memory that took."""
    file = work / "sparse"
    with file.open("wb") as stream:
        stream.truncate(SPARSE)
    progress = work / "progress.json"
    process = subprocess.Popen(module_words(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment(work))
    assert process.stdin is not None
    given = arguments("sparse", path=str(file), progress_file=str(progress))
    process.stdin.write(json.dumps(given).encode())
    process.stdin.close()
    time.sleep(seconds)
    peak = next(
        line.split()[1] for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line
    )
    state = json.loads(progress.read_text())
    process.kill()
    process.wait()
    print(
        f"\n500 GB, all holes, after {seconds:.0f} s and {state['bytes_sent'] / MIB:.0f} MiB sent: "
        f"{int(peak) / 1024:.0f} MiB of memory"
    )


def run(words: Sequence[str], home: Path | None = None) -> None:
    """Run a program that has to succeed."""
    env = None if home is None else environment(home)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=env)


if __name__ == "__main__":
    sys.exit(main())
