# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An object onto a disk: through a COS that breaks, damages and refuses, onto a loop device that is the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cos_site import BUCKET, MIB, CosSite
from fleetlift_agent import object_writer
from fleetlift_agent.devices import TargetDisk
from fleetlift_agent.errors import AgentError
from fleetlift_agent.object_writer import Order, digest_of, run, write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SERIAL = "disk-data0001"
DATA = os.urandom(3 * MIB) + bytes(5 * MIB) + os.urandom(MIB + 512)


@pytest.fixture
def cos(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    site = CosSite(tmp_path)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def disk(tmp_path, monkeypatch):
    file = tmp_path / "disk"
    file.write_bytes(os.urandom(10 * MIB))
    losetup = ["losetup", "--find", "--show", str(file)]
    path = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    fd = os.open(path, os.O_RDWR | os.O_EXCL)
    made = TargetDisk(fd, Path(path), Path(path).name, 10 * MIB, 512, SERIAL)
    monkeypatch.setattr(object_writer, "find_target", lambda serial, size: contextlib.nullcontext(made))
    try:
        yield made
    finally:
        os.close(fd)
        subprocess.run(["losetup", "--detach", path], check=True)


def order(cos, *, life=600, key="data.raw", **changes):
    cos.sdk().put_object(BUCKET, DATA, key)
    client = cos.sdk()
    client._conf._ip = None
    url = client.get_presigned_url(BUCKET, key, "GET", Expired=life)
    made = Order(url, SERIAL, len(DATA), hashlib.sha256(DATA).hexdigest(), "{}:{}".format(*cos.address))
    return replace(made, **changes)


def asked(given):
    return {name: getattr(given, name) for name in Order.__dataclass_fields__}


def code(function, *arguments):
    with pytest.raises(AgentError) as caught:
        function(*arguments)
    assert "q-signature" not in str(caught.value.record())
    return caught.value.code


def on(disk):
    return os.pread(disk.fd, len(DATA), 0)


def test_object_becomes_the_disks_content_once(cos, disk):
    given = order(cos)
    before = on(disk)
    assert run(asked(replace(given, check=True)))["changed"] and on(disk) == before
    assert run(asked(given))["changed"] and on(disk) == DATA
    assert not run(asked(given))["changed"]
    assert len(cos.requests("get_object")) == 1
    assert digest_of(disk, len(DATA)) == given.sha256
    assert "q-signature" not in repr(given)


def test_broken_transfer_is_continued(cos, disk):
    cos.fault("cut", method="GET", after=4 * MIB)
    write(order(cos), disk, lambda _: None)
    assert on(disk) == DATA


def test_damage_on_the_way_is_noticed(cos, disk):
    cos.fault("corrupt", method="GET", after=4 * MIB)
    assert code(write, order(cos), disk) == "OBJECT_DIFFERS"


def test_link_that_is_refused_is_not_tried_again(cos, disk):
    given = order(cos, life=60)
    cos.offset = 60 + 901.0
    assert code(write, given, disk) == "OBJECT_REFUSED"
    assert len(cos.requests()) == 2


def test_unreachable_cos_is_given_up(cos, disk):
    pauses = []
    assert code(write, order(cos, connect="127.0.0.1:1"), disk, pauses.append) == "OBJECT_UNREACHABLE"
    assert len(pauses) == object_writer.ATTEMPTS - 1


def test_read_back_is_compared(cos, disk, monkeypatch):
    given = order(cos)
    monkeypatch.setattr(object_writer, "write", lambda order, disk: None)
    assert code(run, asked(given)) == "DISK_READ_BACK_DIFFERS"


def test_order_of_another_version_is_refused():
    assert code(run, {"what": "ever"}) == "ARGUMENT_INVALID"
