# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Talking to the kernel of a machine of User-mode Linux; `make boot-matrix` runs whole ones."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from lab.machines import uml
from lab.machines.protocol import MachineError, Platform, State
from lab.umlkernel import UmlKernel


@pytest.fixture
def machine(tmp_path: Path) -> uml.UmlMachine:
    shared: dict[str, Any] = {name: cast(Any, None) for name in ("image", "network", "ledger", "on_power_off")}
    kernel = UmlKernel(Path("linux.uml"), Path("supplement"))
    platform = Platform("v", "p", "vd")
    return uml.UmlMachine("vm1", [], kernel=kernel, platform=platform, directory=tmp_path / "vm1", **shared)


@contextmanager
def kernel_that_answers(machine: uml.UmlMachine, *answers: tuple[int, int, str]) -> Iterator[list[str]]:
    """A kernel's console that gives these answers (error, whether more follows, text) to one command."""
    path = machine.console.parent / "u"
    path.mkdir()
    asked: list[str] = []
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(path / "mconsole"))
    listening.settimeout(20)

    def serve() -> None:
        request, sender = listening.recvfrom(4096)
        magic, version, length = struct.unpack_from("<III", request)
        assert (magic, version, len(request)) == (uml.MAGIC, uml.VERSION, 12 + uml.MAX_DATA)
        asked.append(request[12 : 12 + length].decode())
        for error, more, text in answers:
            listening.sendto(struct.pack("<III", error, more, len(text)) + text.encode(), sender)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        thread.join(20)
        listening.close()


def test_an_answer_may_come_in_several_pieces(machine: uml.UmlMachine) -> None:
    with kernel_that_answers(machine, (0, 1, "Linux "), (0, 0, "6.1")) as asked:
        assert machine._ask("version") == "Linux 6.1"
    assert asked == ["version"]


def test_what_the_kernel_refuses_is_an_error(machine: uml.UmlMachine) -> None:
    with kernel_that_answers(machine, (1, 0, "Unknown command")), pytest.raises(MachineError, match="Unknown command"):
        machine._ask("sing")


def test_a_kernel_that_is_not_there_is_an_error(machine: uml.UmlMachine) -> None:
    with pytest.raises(MachineError, match="does not answer"):
        machine._ask("version")


def test_a_machine_that_is_off_is_still_and_stays_off(machine: uml.UmlMachine) -> None:
    with machine.still():
        assert machine.state is State.OFF
    machine.stop(hard=True)
    assert machine.state is State.OFF
