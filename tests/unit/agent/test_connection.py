# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether sending waits for the link or for the peer.

`python test_connection.py DIRECTORY ADDRESS` connects with the certificates that are there, sends, and prints the
seconds; without an address it reads.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fleetlift_agent import wire
from fleetlift_agent.connection import Connection, ConnectionLost
from fleetlift_agent.tls import TlsFiles, TlsIdentity, load_identity
from loop_pair import AGENT, make_certificate
from veth_link import TARGET, veth_link

_PORT = 4499
_FRAMES = 4
_FRAME = 512 << 10


def identity(directory: Path, name: str, peer: str) -> TlsIdentity:
    files = TlsFiles(directory / f"{name}.pem", directory / f"{name}.key", directory / f"{peer}.pem")
    return load_identity(files, server=name == "reader")


def write_frames(directory: Path, address: str) -> None:
    """Send some frames and wait for an answer; print how long the sending took, and how much of that was the link's."""
    raw = socket.create_connection((address, _PORT), timeout=20)
    # No more than this waits in the kernel's queues, so that sending takes as long as the delivery.
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    connection = Connection(identity(directory, "writer", "reader").wrap(raw), 60)
    content = os.urandom(_FRAME)
    begun = time.monotonic()
    for _frame in range(_FRAMES):
        connection.send(wire.WRITE, content)
    print(json.dumps({"seconds": time.monotonic() - begun, "link": connection.link_seconds}))
    connection.receive()


def read_frames(directory: Path, listener: socket.socket, pause: float) -> None:
    """Take the frames of one writer, with a pause before each."""
    raw, _address = listener.accept()
    connection = Connection(identity(directory, "reader", "writer").wrap(raw), 60)
    try:
        for _frame in range(_FRAMES):
            time.sleep(pause)
            connection.receive()
        connection.send(wire.PONG)
    finally:
        connection.release()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    for name in ("reader", "writer"):
        make_certificate(tmp_path, name)
    return tmp_path


def script(directory: Path, address: str) -> list[str]:
    return [sys.executable, __file__, str(directory), address]


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(AGENT), str(AGENT.parent), str(Path(__file__).parent)])}


def test_waiting_for_a_slow_reader_is_told_from_waiting_for_the_link(certificates: Path) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by the connection: the reader's system takes little that the reader has not read.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        listener.bind(("127.0.0.1", _PORT))
        listener.listen()
        writer = subprocess.Popen(script(certificates, "127.0.0.1"), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        read_frames(certificates, listener, 0.3)
        took = json.loads(writer.communicate(timeout=30)[0])
    assert took["link"] < 0.5 * took["seconds"]


def test_waiting_for_the_link_is_not_blamed_on_the_reader(certificates: Path) -> None:
    with veth_link() as link:
        link.shape(20)
        reader = subprocess.Popen(
            link.inside(link.target, *script(certificates, "")), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None and reader.stdout.readline() == "listening\n"
        writer = subprocess.run(
            link.inside(link.source, *script(certificates, TARGET)),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        )
        assert reader.wait(30) == 0
    took = json.loads(writer.stdout)
    assert took["link"] > 0.8 * took["seconds"]


if __name__ == "__main__":
    directory, address = Path(sys.argv[1]), sys.argv[2]
    try:
        if address:
            write_frames(directory, address)
        else:
            with socket.create_server(("", _PORT)) as own:
                print("listening", flush=True)
                read_frames(directory, own, 0)
    except ConnectionLost as error:
        sys.exit(str(error))
