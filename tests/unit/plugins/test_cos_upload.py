# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Uploads through the vendor's unmodified SDK to the lab's COS on real sockets, killed, damaged and repeated."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anycrc
import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import Access
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.cos_client import CosClient, Part
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.cos_errors import CosError
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.cos_upload import (
    MOST_PARTS,
    Image,
    Options,
    Uploader,
    fitting_part_size,
    part_size_of,
    windows_of,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.crc64 import crc64, crc64_of_file, crc64_of_zeros, extents
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.pace import Pace
from ansible_collections.fleetlift.cvm.plugins.module_utils.upload_progress import (
    ProgressFile,
    UploadProgress,
    read_progress,
    upload_line,
)
from cos_site import BUCKET, MIB, REGION, SECRET_ID, SECRET_KEY, CosSite
from hypothesis import given
from hypothesis import strategies as st

KEY = "images/web1.raw"
RUNNER = Path(__file__).with_name("run_module.py")
DEADLINE = 120


@pytest.fixture
def cos(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    site = CosSite(tmp_path)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "web1.raw"
    path.write_bytes(os.urandom(6 * MIB + 4321))
    return path


def client_of(cos, kind=CosClient, **options):
    access = Access(SECRET_ID, SECRET_KEY, REGION, api_timeout=20)
    return kind(access, cos_endpoint=cos.endpoint, sleep=lambda seconds: None, **options)


def uploader_of(cos, client=None, progress=None, **options):
    chosen = Options(**{"part_size": MIB, "connections": 3, "stall_timeout": DEADLINE, **options})
    return Uploader(
        client or client_of(cos), BUCKET, KEY, chosen, progress or UploadProgress(1), spread=lambda least, most: 0.01
    )


def upload(cos, path, **options):
    with Image(str(path)) as image:
        return uploader_of(cos, **options).upload(image)


def refused(function, *arguments, **options):
    with pytest.raises(Refusal) as caught:
        function(*arguments, **options)
    return caught.value.finding


def arguments_of(cos, path, overridden=None, **options):
    return {
        "cos_endpoint": cos.endpoint,
        "region": REGION,
        "secret_id": SECRET_ID,
        "secret_key": SECRET_KEY,
        "bucket": BUCKET,
        "key": KEY,
        "path": str(path),
        "part_size": 1,
        **(overridden or {}),
        **options,
    }


@contextmanager
def module_process(name, arguments):
    """A module that runs in a process of its own, which is killed at the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_PROXY": "*"}
    process = subprocess.Popen(
        [sys.executable, str(RUNNER), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        process.stdin.write(json.dumps(arguments))
        process.stdin.close()
        process.stdin = None
        yield process
    finally:
        process.kill()
        process.wait()


def run_module(name, arguments):
    """The module's result and everything it printed."""
    with module_process(name, arguments) as process:
        output, errors = process.communicate(timeout=DEADLINE)
    return json.loads(output), output + errors


def parts_received(cos):
    return [int(entry["parameters"]["partNumber"]) for entry in cos.requests("put_part") if entry["code"] == "OK"]


# Whole uploads


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB, 3 * MIB + 5])
def test_file_of_any_size_arrives(cos, tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    uploaded = upload(cos, path)
    assert cos.content(KEY) == path.read_bytes()
    assert (uploaded.size, uploaded.sent, uploaded.kept) == (size, size, 0)
    assert uploaded.crc == anycrc.Model("CRC64-XZ").calc(path.read_bytes())
    assert cos.files() == uploaded.parts
    assert client_of(cos).uploads(BUCKET, "") == []


def test_second_upload_costs_nothing_and_a_changed_file_is_uploaded(cos, file):
    first, _ = run_module("cos_object", arguments_of(cos, file))
    before = cos.received()
    second, _ = run_module("cos_object", arguments_of(cos, file))
    assert (first["changed"], first["bytes_sent"]) == (True, file.stat().st_size)
    assert (second["changed"], second["bytes_sent"]) == (False, 0)
    assert cos.received() == before
    with file.open("r+b") as stream:
        stream.seek(3 * MIB)
        stream.write(b"changed in place")
    third, _ = run_module("cos_object", arguments_of(cos, file))
    assert third["changed"]
    assert cos.content(KEY) == file.read_bytes()


def test_check_mode_predicts_and_sends_nothing(cos, file):
    predicted, _ = run_module("cos_object", arguments_of(cos, file, _ansible_check_mode=True))
    assert (predicted["changed"], predicted["bytes_sent"]) == (True, file.stat().st_size)
    assert (cos.received(), cos.files()) == (0, 0)
    missing, _ = run_module("cos_object", arguments_of(cos, file, bucket="other-1250000000", _ansible_check_mode=True))
    assert missing["finding"]["code"] == "COS_BUCKET_NOT_FOUND"


def test_object_is_private_and_made_so_again(cos, file):
    cos.server.store.bucket(BUCKET).acl = "public-read"
    run_module("cos_object", arguments_of(cos, file))
    assert cos.server.store.object(BUCKET, KEY).acl == "private"
    cos.server.store.set_object_acl(BUCKET, KEY, "public-read")
    again, _ = run_module("cos_object", arguments_of(cos, file))
    assert (again["changed"], again["bytes_sent"]) == (True, 0)
    assert cos.server.store.object(BUCKET, KEY).acl == "private"


def test_sparse_file_is_uploaded_with_zeros_for_its_holes(cos, tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(4 * MIB + 77)
        stream.seek(2 * MIB + 5)
        stream.write(b"data between holes")
    upload(cos, path)
    assert cos.content(KEY) == path.read_bytes()


# Interruptions


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_killed_upload_continues_with_what_is_missing(cos, tmp_path, share):
    path = tmp_path / "image"
    path.write_bytes(os.urandom(30 * MIB))
    slow = arguments_of(cos, path, bandwidth_limit=20 * MIB)
    with module_process("cos_object", slow) as process:
        deadline = time.monotonic() + DEADLINE
        while cos.received() < share * 30 * MIB:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.wait()
    # What was on the way when it was killed has an end of its own.
    while any(thread_is_receiving(cos)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    arrived = sorted(set(parts_received(cos)))
    assert 0 < len(arrived) < 30
    requests_before = len(cos.requests("put_part"))
    result, _ = run_module("cos_object", arguments_of(cos, path))
    sent = cos.requests("put_part")[requests_before:]
    assert sorted(int(entry["parameters"]["partNumber"]) for entry in sent) == [
        number for number in range(1, 31) if number not in arrived
    ]
    assert sum(entry["parameters"]["received"] for entry in sent) == (30 - len(arrived)) * MIB
    assert (result["bytes_kept"], result["bytes_sent"]) == (len(arrived) * MIB, (30 - len(arrived)) * MIB)
    assert cos.content(KEY) == path.read_bytes()


def thread_is_receiving(cos):
    """For each file that COS keeps, whether it is not yet a part."""
    known = {
        blob.file.name
        for upload in cos.server.store.uploads(BUCKET, "")
        for _, blob, _ in cos.server.store.parts(BUCKET, KEY, upload.upload_id)
    }
    return [name not in known for name in os.listdir(cos.directory / "cos")]


def begun(cos, *pieces, key=KEY):
    """An unfinished upload with these parts, from the first on; None leaves one out."""
    client = client_of(cos)
    upload_id = client.create_upload(BUCKET, key, {})
    for number, piece in enumerate(pieces, 1):
        if piece is not None:
            client.put_part(BUCKET, key, upload_id, number, piece)
    return upload_id


def test_parts_of_another_file_are_replaced(cos, file):
    data = file.read_bytes()
    begun(cos, data[:MIB], os.urandom(MIB), None, data[3 * MIB : 4 * MIB])
    uploaded = upload(cos, file)
    assert uploaded.kept == 2 * MIB
    assert cos.content(KEY) == data


def test_upload_is_continued_with_the_part_size_it_was_begun_with(cos, file):
    data = file.read_bytes()
    begun(cos, data[: 2 * MIB], None, data[4 * MIB : 6 * MIB])
    uploaded = upload(cos, file, part_size=MIB)
    assert (uploaded.kept, uploaded.parts) == (4 * MIB, 4)
    assert cos.content(KEY) == data


def test_upload_that_does_not_fit_is_given_up(cos, file):
    begun(cos, *[os.urandom(MIB)] * 9)
    uploaded = upload(cos, file)
    assert uploaded.kept == 0
    assert cos.content(KEY) == file.read_bytes()
    assert client_of(cos).uploads(BUCKET, "") == []
    assert cos.files() == uploaded.parts


def test_only_old_uploads_below_the_prefix_are_given_up(cos, file):
    for key, age in (("images/old", 1000), ("images/new", 10), ("other/old", 1000)):
        begun(cos, b"part", key=key)
        [made] = cos.server.store.uploads(BUCKET, key)
        made.initiated -= age
    options = {"abandoned_prefix": "images/", "abandoned_after": 500}
    predicted, _ = run_module("cos_object", arguments_of(cos, file, _ansible_check_mode=True, **options))
    assert predicted["abandoned"] == ["images/old"]
    result, _ = run_module("cos_object", arguments_of(cos, file, **options))
    assert result["abandoned"] == ["images/old"]
    assert sorted(upload.key for upload in client_of(cos).uploads(BUCKET, "")) == ["images/new", "other/old"]


def test_absent_removes_the_object_and_what_was_begun(cos, file):
    run_module("cos_object", arguments_of(cos, file))
    begun(cos, b"part")
    gone, _ = run_module("cos_object", arguments_of(cos, file, state="absent"))
    again, _ = run_module("cos_object", arguments_of(cos, file, state="absent"))
    assert (gone["changed"], again["changed"], cos.files()) == (True, False, 0)


# Faults on the way


@pytest.mark.parametrize("part_size", [MIB, 8 * MIB])
def test_overload_failures_and_broken_connections_are_survived(cos, file, part_size):
    cos.fault("slow_down", count=4, method="PUT")
    cos.fault("internal_error", count=2, method="PUT")
    cos.fault("cut", count=2, method="PUT", after=300_000)
    cos.fault("slow_down", count=2, method="HEAD")
    if part_size == MIB:
        cos.fault("internal_error", method="POST")
    progress = UploadProgress(file.stat().st_size)
    uploaded = upload(cos, file, part_size=part_size, progress=progress)
    assert cos.server.faults.waiting() == []
    assert cos.content(KEY) == file.read_bytes()
    assert uploaded.sent == file.stat().st_size
    assert progress.state()["bytes_done"] == file.stat().st_size


def test_damaged_part_is_noticed_and_sent_again(cos, file):
    cos.fault("corrupt", count=2, method="PUT", after=70_000)
    upload(cos, file)
    assert cos.content(KEY) == file.read_bytes()
    assert len(parts_received(cos)) == 7 + 2


@pytest.mark.parametrize("part_size", [MIB, 8 * MIB])
def test_part_that_is_always_damaged_is_refused(cos, file, part_size):
    cos.fault("corrupt", count=1000, method="PUT", after=5)
    finding = refused(upload, cos, file, part_size=part_size)
    assert finding.code == "COS_PART_CORRUPTED"
    assert finding.evidence["crc_sent"] != finding.evidence["crc_arrived"]


def test_unreachable_cos_is_an_error_after_the_stall_timeout(cos, file):
    cos.fault("cut", count=10_000, method="PUT", after=1000)
    finding = refused(upload, cos, file, stall_timeout=0.5)
    assert finding.code == "CLOUD_UNREACHABLE"
    cos.server.faults.clear()
    assert upload(cos, file).size == file.stat().st_size


def test_object_that_is_not_the_file_in_the_end_is_removed(cos, file):
    class Tampering(CosClient):
        def complete(self, *arguments):
            super().complete(*arguments)
            cos.sdk().put_object(BUCKET, b"something else", KEY)

    assert refused(upload, cos, file, client=client_of(cos, Tampering)).code == "COS_OBJECT_CORRUPTED"
    assert client_of(cos).head(BUCKET, KEY) is None


def test_completion_whose_answer_is_lost_counts(cos, file):
    class Deaf(CosClient):
        lost = 0

        def complete(self, *arguments):
            super().complete(*arguments)
            self.lost += 1
            raise CosError("ClientNetworkError", "reset", 0, "", "Complete Multipart Upload", KEY)

    client = client_of(cos, Deaf)
    upload(cos, file, client=client)
    assert client.lost == 1
    assert cos.content(KEY) == file.read_bytes()


def test_file_that_changes_meanwhile_is_refused(cos, file):
    class Meddler(UploadProgress):
        def sent(self, count):
            super().sent(count)
            os.utime(file, ns=(1, 1))

    finding = refused(upload, cos, file, progress=Meddler(file.stat().st_size))
    assert finding.code == "UPLOAD_SOURCE_CHANGED"
    assert upload(cos, file).kept > 0


def test_file_that_becomes_shorter_is_refused(cos, file):
    class Cutter(UploadProgress):
        def sent(self, count):
            super().sent(count)
            os.truncate(file, 10)

    assert refused(upload, cos, file, progress=Cutter(1)).code == "UPLOAD_SOURCE_CHANGED"


def test_small_file_that_changes_meanwhile_is_not_kept(cos, file):
    class Meddler(UploadProgress):
        def sent(self, count):
            super().sent(count)
            os.utime(file, ns=(1, 1))

    finding = refused(upload, cos, file, part_size=8 * MIB, progress=Meddler(1))
    assert (finding.code, cos.files()) == ("UPLOAD_SOURCE_CHANGED", 0)


# Buckets, URLs, refusals


def test_bucket_is_made_private_and_removed_when_empty(cos):
    name = "new-1250000000"
    arguments = {**arguments_of(cos, "x"), "bucket": name}
    for option in ("key", "path", "part_size"):
        del arguments[option]
    made = [run_module("cos_bucket", arguments)[0]["changed"] for _ in range(2)]
    cos.server.store.bucket(name).acl = "public-read"
    private = run_module("cos_bucket", arguments)[0]["changed"]
    assert (made, private, cos.server.store.bucket(name).acl) == ([True, False], True, "private")
    cos.sdk().put_object(name, b"x", "x")
    kept, _ = run_module("cos_bucket", {**arguments, "state": "absent"})
    assert kept["finding"]["code"] == "COS_BUCKET_NOT_EMPTY"
    cos.sdk().delete_object(name, "x")
    assert [run_module("cos_bucket", {**arguments, "state": "absent"})[0]["changed"] for _ in range(2)] == [True, False]


def test_presigned_url_has_the_vendors_host_and_ends(cos, file, tmp_path):
    upload(cos, file)
    secret = tmp_path / "url"
    arguments = {**arguments_of(cos, file), "url_life": 600, "url_file": str(secret)}
    for option in ("path", "part_size"):
        del arguments[option]
    result, printed = run_module("cos_object_info", arguments)
    url = urlsplit(secret.read_text())
    assert "q-signature" not in printed
    assert secret.stat().st_mode & 0o777 == 0o600
    assert (url.scheme, url.netloc) == ("http", f"{BUCKET}.cos.{REGION}.myqcloud.com")
    assert 590 <= result["url_expires"] - time.time() <= 600
    assert (result["exists"], result["object"]["public"], result["unfinished"]) == (True, False, [])

    def status():
        connection = http.client.HTTPConnection(*cos.address, timeout=20)
        try:
            connection.request("GET", f"{url.path}?{url.query}", headers={"Host": url.netloc})
            return connection.getresponse().status
        finally:
            connection.close()

    assert status() == 200
    cos.offset = 601
    assert status() == 403


def test_info_tells_what_is_unfinished(cos, file):
    begun(cos, b"x" * 1000, b"y" * 500)
    arguments = arguments_of(cos, file)
    for option in ("path", "part_size"):
        del arguments[option]
    result, _ = run_module("cos_object_info", arguments)
    assert result["exists"] is False
    assert [(item["parts"], item["bytes"]) for item in result["unfinished"]] == [(2, 1500)]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"secret_key": "wrong"}, "CLOUD_AUTH_FAILED"),
        ({"secret_id": "AKIDnobody"}, "CLOUD_AUTH_FAILED"),
        ({"bucket": "other-1250000000"}, "COS_BUCKET_NOT_FOUND"),
        ({"bucket": "Images"}, "COS_BUCKET_NAME_INVALID"),
        ({"key": "/images/x"}, "COS_KEY_INVALID"),
        ({"path": "/nonexistent"}, "UPLOAD_SOURCE_UNREADABLE"),
        ({"path": "/dev/null"}, "UPLOAD_SOURCE_UNREADABLE"),
        ({"part_size": 0}, "OPTION_OUT_OF_RANGE"),
        ({"cos_endpoint": "10.0.0.1"}, "CLOUD_ENDPOINT_INVALID"),
    ],
)
def test_refusals_have_codes_and_show_no_secret(cos, file, options, code):
    result, printed = run_module("cos_object", arguments_of(cos, file, options))
    assert (result.get("failed"), result["finding"]["code"]) == (True, code)
    for secret in (SECRET_KEY, "q-signature", "Traceback"):
        assert secret not in printed


def test_clock_that_is_off_is_named(cos, file):
    cos.offset = 86400
    result, _ = run_module("cos_object", arguments_of(cos, file))
    assert result["finding"]["code"] == "CLOUD_CLOCK_SKEW"


def test_secrets_are_in_no_output_even_when_everything_fails(cos, file):
    cos.fault("internal_error", count=1000)
    result, printed = run_module("cos_object", arguments_of(cos, file, stall_timeout=0, _ansible_verbosity=4))
    assert result["finding"]["code"] in ("CLOUD_INTERNAL_ERROR", "CLOUD_RATE_LIMITED")
    for secret in (SECRET_KEY, "q-signature", "q-key-time", "Authorization"):
        assert secret not in printed


# Progress


def test_progress_is_kept_in_a_file_and_told_in_a_line(cos, file, tmp_path):
    progress = UploadProgress(file.stat().st_size)
    with ProgressFile(str(tmp_path / "progress.json"), progress, interval=0.01), Image(str(file)) as image:
        begun(cos, file.read_bytes()[:MIB])
        uploader_of(cos, progress=progress).upload(image)
    state = read_progress(tmp_path / "progress.json")
    assert (state["phase"], state["bytes_sent"], state["bytes_kept"]) == ("done", 5 * MIB + 4321, MIB)
    assert (tmp_path / "progress.json").stat().st_mode & 0o777 == 0o600
    assert upload_line(state).startswith("uploaded")
    assert "100 %" in upload_line(state)


def test_rate_is_of_what_was_sent_lately_and_not_of_what_was_there():
    now = [0.0]
    progress = UploadProgress(1000, clock=lambda: now[0])
    progress.enter("uploading")
    progress.kept(500)
    for _ in range(10):
        now[0] += 1
        progress.sent(20)
    state = progress.state()
    assert (state["rate"], state["bytes_done"], state["eta_seconds"]) == (20, 700, 15)
    progress.lost(20)
    assert progress.state()["bytes_done"] == 680
    progress.stalled("reset by peer")
    assert upload_line(progress.state()).endswith("STALLED: reset by peer")


def test_pace_lets_as_much_pass_as_was_said():
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    pace = Pace(1000, clock=lambda: now[0], sleep=sleep)
    for _ in range(100):
        pace.take(125)
    assert 12500 / 1000 - 0.5 <= now[0] <= 12500 / 1000
    Pace(None, sleep=pytest.fail).take(1 << 40)


# The arithmetic


@given(st.integers(0, 1 << 16))
def test_checksum_of_zeros_needs_no_zeros(size):
    assert crc64_of_zeros(size) == crc64(bytes(size))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=8))
def test_checksum_of_a_sparse_file_is_that_of_its_bytes(tmp_path_factory, runs):
    path = tmp_path_factory.mktemp("sparse") / "file"
    with path.open("wb") as stream:
        for is_data, blocks in runs:
            stream.write(b"\x5a" * blocks * 4096) if is_data else stream.seek(blocks * 4096, os.SEEK_CUR)
        stream.truncate(stream.tell())
    data = path.read_bytes()
    with path.open("rb") as stream:
        counted = []
        assert crc64_of_file(stream.fileno(), len(data), counted.append) == crc64(data)
        assert sum(counted) == len(data)
        for offset, length, is_data in extents(stream.fileno(), len(data)):
            assert is_data or not any(data[offset : offset + length])


def test_file_that_is_shorter_than_expected_has_no_checksum(tmp_path):
    for content in (b"abc", b""):
        path = tmp_path / "file"
        path.write_bytes(content)
        with path.open("rb") as stream, pytest.raises(EOFError):
            crc64_of_file(stream.fileno(), 10)


@given(st.integers(1, 50 * 10**12), st.integers(1, 64))
def test_part_size_keeps_within_the_limits(size, wanted):
    part_size = fitting_part_size(size, wanted * MIB)
    assert part_size >= wanted * MIB
    assert -(-size // part_size) <= MOST_PARTS
    assert part_size == wanted * MIB or size > wanted * MIB * MOST_PARTS


@given(st.integers(1, 40 * MIB), st.integers(1, 8), st.integers(1, 8), st.data())
def test_part_size_of_an_upload_is_found_again(size, begun_with, wanted, data):
    windows = windows_of(size, begun_with * MIB)
    assert sum(window.size for window in windows) == size
    there = data.draw(st.sets(st.sampled_from(range(len(windows)))))
    parts = [Part(windows[index].number, windows[index].size, "") for index in sorted(there)]
    found = part_size_of(parts, size, wanted * MIB)
    if any(part.size == begun_with * MIB for part in parts):
        assert found is not None
    if found is not None:
        expected = {window.number: window.size for window in windows_of(size, found)}
        assert all(expected[part.number] == part.size for part in parts)
