# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Converting: only when it pays, the same content under the final name or nothing, the source untouched."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import image_files
import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.images import conversion
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.compress import Wish, compress
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.estimate import Assumptions, Sample, estimate
from ansible_collections.fleetlift.cvm.plugins.module_utils.upload_progress import UploadProgress
from image_files import MIB, run
from play_here import play

REPOSITORY = Path(__file__).resolve().parents[3]
AGENT = str(REPOSITORY / "agent")
SLOW = Assumptions(bandwidth=10_000, processors=2)
FAST = Assumptions(bandwidth=1e13, import_rate=1e13, processors=1)


def convert(path, dest, assumptions=SLOW, **options):
    """The module's result."""
    return compress(Wish(str(path), str(dest), **options), AGENT, assumptions, UploadProgress(0))


def same(one, other):
    """Whether two images hold the same disk."""
    done = subprocess.run(["qemu-img", "compare", str(one), str(other)], capture_output=True, check=False)
    return done.returncode == 0


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def left_over(directory):
    """Files that no user asked for."""
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    workshop = tmp_path_factory.mktemp("images")
    image_files.filesystem(workshop / "volume", "ext4", image_files.system(workshop / "root"), 16 * MIB)
    disk = image_files.disk(workshop / "good.raw", workshop / "volume")
    with disk.open("r+b") as file:
        file.seek(10 * MIB)
        file.write(b"the same words over and over again " * 60000)
    return disk


@pytest.mark.parametrize("name", image_files.FORMATS)
def test_every_format_becomes_a_compressed_qcow2_with_the_same_content(name, good, tmp_path):
    source = image_files.converted(good, tmp_path, name)
    before = digest(source)

    result = convert(source, tmp_path / "out.qcow2", when="always")

    assert (result["changed"], result["converted"], result["verified"]) == (True, True, True)
    assert result["path"] == str(tmp_path / "out.qcow2")
    assert result["size"] == (tmp_path / "out.qcow2").stat().st_size
    described = json.loads(run("qemu-img", "info", "--output=json", tmp_path / "out.qcow2"))
    assert described["format"] == "qcow2"
    assert described["format-specific"]["data"]["compression-type"] == "zlib"
    assert same(tmp_path / "out.qcow2", good)
    assert digest(source) == before
    assert left_over(tmp_path) == []


def test_it_is_converted_only_when_that_ends_sooner(good, tmp_path):
    slow = convert(good, tmp_path / "out.qcow2", check_mode=True)
    fast = convert(good, tmp_path / "out.qcow2", FAST)

    assert slow["estimate"]["compression_pays"] is True
    assert (slow["changed"], slow["path"]) == (True, str(tmp_path / "out.qcow2"))
    assert fast["estimate"]["compression_pays"] is False
    assert (fast["changed"], fast["path"]) == (False, str(good))
    assert convert(good, tmp_path / "out.qcow2", when="never")["path"] == str(good)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_imported_as_it_is_is_converted_even_when_it_takes_longer(good, tmp_path):
    for name in ("vdi", "split vmdk"):
        source = image_files.converted(good, tmp_path, name)

        result = convert(source, tmp_path / f"{name}.qcow2", FAST)

        assert result["converted"] is True
        assert "cannot be imported" in result["reason"]


def test_a_second_run_finds_the_result_and_changes_nothing(good, tmp_path):
    convert(good, tmp_path / "out.qcow2")
    before = (tmp_path / "out.qcow2").stat().st_mtime_ns

    again = convert(good, tmp_path / "out.qcow2")

    assert (again["changed"], again["converted"], again["verified"]) == (False, True, True)
    assert (tmp_path / "out.qcow2").stat().st_mtime_ns == before


def test_a_result_of_another_source_is_replaced(good, tmp_path):
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", good, tmp_path / "out.qcow2")
    other = tmp_path / "other.raw"
    other.write_bytes(good.read_bytes())
    with other.open("r+b") as file:
        file.seek(12 * MIB)
        file.write(b"changed")

    result = convert(other, tmp_path / "out.qcow2", when="always")

    assert result["changed"] is True
    assert same(tmp_path / "out.qcow2", other)


def test_snapshots_are_left_behind(good, tmp_path):
    source = image_files.converted(good, tmp_path, "qcow2")
    run("qemu-img", "snapshot", "-c", "old", source)

    convert(source, tmp_path / "out.qcow2", when="always")

    assert "snapshots" not in json.loads(run("qemu-img", "info", "--output=json", tmp_path / "out.qcow2"))


def test_a_broken_image_is_refused_before_anything_is_written(good, tmp_path):
    source = image_files.converted(good, tmp_path, "qcow2")
    os.truncate(source, source.stat().st_size // 2)
    backing = tmp_path / "delta.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", good, backing)

    for image, code in ((source, "IMAGE_CORRUPT|IMAGE_TRUNCATED"), (backing, "IMAGE_BACKING_FILE")):
        with pytest.raises(Refusal, match=code):
            convert(image, tmp_path / "out.qcow2", when="always")
    assert not (tmp_path / "out.qcow2").exists()
    assert left_over(tmp_path) == []


def test_the_source_itself_is_no_destination(good, tmp_path):
    link = tmp_path / "link.raw"
    os.link(good, link)
    before = digest(good)

    for dest in (good, link):
        with pytest.raises(Refusal, match="IMAGE_DEST_IS_SOURCE"):
            convert(good, dest, when="always")
    assert digest(good) == before


def test_a_disk_without_room_is_found_out_first(good, tmp_path, monkeypatch):
    class Full:
        f_bavail, f_frsize = 100, 4096

    monkeypatch.setattr(conversion.os, "statvfs", lambda _path: Full)

    with pytest.raises(Refusal) as caught:
        convert(good, tmp_path / "out.qcow2", when="always")

    assert caught.value.finding.code == "IMAGE_NO_SPACE"
    assert caught.value.finding.evidence["free"] == 409600
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_a_disk_that_becomes_full_leaves_nothing_behind(tmp_path):
    source = tmp_path / "random.raw"
    source.write_bytes(os.urandom(8 * MIB))
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2m", "none", small)
    try:
        words = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(source)}})
        with pytest.raises(Refusal, match="IMAGE_NO_SPACE"), conversion.partial(small / "out.qcow2") as place:
            conversion.convert(f"json:{words}", place, conversion.Target("qcow2"), lambda _share: None, 60)
        assert list(small.iterdir()) == []
    finally:
        run("umount", small)


def test_a_result_that_differs_is_removed(good, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "is_same", lambda *_arguments: False)

    with pytest.raises(Refusal, match="IMAGE_DIFFERS"):
        convert(good, tmp_path / "out.qcow2", when="always")

    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_the_same_file(good, tmp_path):
    with conversion.partial(tmp_path / "out.qcow2"), pytest.raises(Refusal, match="IMAGE_BUSY"):
        convert(good, tmp_path / "out.qcow2", when="always")


def test_progress_is_told_from_the_program(good, tmp_path):
    told = []
    source = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(good)}})

    with conversion.partial(tmp_path / "out.qcow2") as place:
        conversion.convert(f"json:{source}", place, conversion.Target("qcow2", "zlib"), told.append, 60)

    assert told == sorted(told)
    assert told[-1] == 1


def run_module(**arguments):
    """The answer of the module in a process of its own, and all that it said."""
    words = [sys.executable, str(Path(__file__).with_name("run_module.py")), "image_convert"]
    collections = next(path for path in sys.path if Path(path, "ansible_collections/fleetlift").is_dir())
    environment = {**os.environ, "PYTHONPATH": collections}
    given = json.dumps(arguments)
    done = subprocess.run(words, input=given, env=environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout), done.stdout + done.stderr


def test_what_the_system_refuses_is_a_record_and_no_traceback(good, tmp_path):
    answer, said = run_module(path=str(good), dest=str(tmp_path / ("long" * 100)), agent=AGENT)

    assert answer["finding"]["code"] == "IMAGE_IO", said
    assert "Traceback" not in said


def test_the_module_without_its_action_says_what_is_missing(good, tmp_path):
    answer, said = run_module(path=str(good), dest=str(tmp_path / "out.qcow2"))

    assert answer["finding"]["code"] == "IMAGE_ACTION_MISSING", said


def test_a_directory_that_is_not_there_is_named(good, tmp_path):
    for dest in (tmp_path / "nowhere/out.qcow2", tmp_path):
        with pytest.raises(Refusal, match="IMAGE_DIRECTORY"):
            convert(good, dest, when="always")


def test_what_qemu_cannot_read_is_a_record_with_what_it_said(tmp_path):
    words = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(tmp_path / "gone")}})

    with pytest.raises(Refusal) as caught, conversion.partial(tmp_path / "out.qcow2") as place:
        conversion.convert(f"json:{words}", place, conversion.Target("qcow2"), lambda _share: None, 60)

    assert caught.value.finding.code == "IMAGE_CONVERT_FAILED"
    assert "No such file" in caught.value.finding.cause


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_result_and_the_next_one_succeeds(how, tmp_path):
    source = tmp_path / "large.raw"
    with source.open("wb") as file:
        for _number in range(96):
            file.write(os.urandom(MIB // 2) + bytes(range(256)) * 2048)
    progress = tmp_path / "progress.json"
    arguments = {
        "path": str(source),
        "dest": str(tmp_path / "out.qcow2"),
        "when": "always",
        "agent": AGENT,
        "progress_file": str(progress),
    }
    words = [sys.executable, str(Path(__file__).with_name("run_module.py")), "image_convert"]
    collections = next(path for path in sys.path if Path(path, "ansible_collections/fleetlift").is_dir())
    environment = {**os.environ, "PYTHONPATH": collections}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as module:
        module.stdin.write(json.dumps(arguments).encode())
        module.stdin.close()
        partial = tmp_path / ".out.qcow2.fleetlift-partial"
        deadline = time.monotonic() + 120
        while not (partial.exists() and partial.stat().st_size > MIB) and time.monotonic() < deadline:
            time.sleep(0.01)
        children = Path(f"/proc/{module.pid}/task/{module.pid}/children").read_text().split()
        module.send_signal(how)
        module.wait()
    assert children
    deadline = time.monotonic() + 30
    while any(Path("/proc", child).exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path("/proc", child).exists() for child in children)
    assert not (tmp_path / "out.qcow2").exists()
    if how == signal.SIGTERM:
        assert left_over(tmp_path) == []

    assert convert(source, tmp_path / "out.qcow2", when="always")["verified"] is True
    assert left_over(tmp_path) == []


def test_the_module_runs_in_a_play_and_check_mode_writes_nothing(good, tmp_path):
    made = tmp_path / "images"
    made.mkdir()
    task = {"path": str(good), "dest": str(made / "out.qcow2"), "bandwidth": 10000}
    tasks = [
        {"fleetlift.cvm.image_convert": task, "register": "image"},
        {"ansible.builtin.assert": {"that": "image.converted and image is changed"}},
    ]

    status, output = play(tmp_path, tasks, "--check")
    assert status == 0, output
    assert list(made.iterdir()) == []

    status, output = play(tmp_path, tasks)
    assert status == 0, output
    assert same(made / "out.qcow2", good)
    assert list((tmp_path / "remote").glob("*")) == []


def test_the_estimate_adds_up():
    sample = Sample(data=8_000_000_000, ratio=0.5, rate=50_000_000, looked_at=1)
    assumptions = Assumptions(bandwidth=10_000_000, efficiency=1, price=0.02, days_kept=30, processors=8)

    answer = estimate(10_000_000_000, sample, assumptions)

    assert answer["as_it_is"] == {
        "bytes": 10_000_000_000,
        "convert_seconds": 0,
        "upload_seconds": 1000,
        "import_seconds": 62.5,
        "total_seconds": 1062.5,
        "storage_cost": 0.2,
    }
    # Four threads compress: 8 GB at 200 MB/s.
    assert answer["compressed"]["convert_seconds"] == 40
    assert answer["compressed"]["total_seconds"] == 40 + 400 + 25
    assert answer["compression_pays"] is True
    assert answer["saved_seconds"] == 597.5
