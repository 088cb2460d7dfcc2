# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's COS, judged by the vendor's unmodified SDK: what it stores, and what it refuses with which code."""

from __future__ import annotations

import http.client
import os
import socket
from urllib.parse import urlsplit

import anycrc
import crcmod
import pytest
from cos_site import BUCKET, MIB, SECRET_KEY, CosSite
from hypothesis import given
from hypothesis import strategies as st
from qcloud_cos import CosClientError, CosServiceError
from urllib3.exceptions import ProtocolError

from lab.cos.blobs import Blob, combined_crc
from lab.cos.fetch import FetchError, fetch

KEY = "images/web 1+ü.qcow2"


@pytest.fixture
def cos(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    site = CosSite(tmp_path)
    try:
        yield site
    finally:
        site.close()


def code_of(function, *arguments, **options):
    with pytest.raises(CosServiceError) as caught:
        function(*arguments, **options)
    return caught.value.get_status_code(), caught.value.get_error_code()


def bare(cos, method, url, **headers):
    """One request without the SDK: status and body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(*cos.address, timeout=30)
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request(method, target, headers={"Host": parts.netloc, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def presigned(cos, method="GET", key=KEY, **options):
    """A URL as its reader gets it: with the bucket's own host."""
    config = cos.sdk()._conf
    config._ip = None
    client = cos.sdk()
    client._conf = config
    return client.get_presigned_url(BUCKET, key, method, **options)


# The checksum


def test_checksum_is_the_one_that_the_vendors_sdk_computes():
    vendor = crcmod.mkCrcFun(0x142F0E1EBA9EA3693, initCrc=0, xorOut=0xFFFFFFFFFFFFFFFF, rev=True)
    data = os.urandom(100_001)
    assert anycrc.Model("CRC64-XZ").calc(data) == vendor(data)


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=6))
def test_checksum_of_parts_combines_to_that_of_the_whole(pieces):
    model = anycrc.Model("CRC64-XZ")
    blobs = [Blob(None, len(piece), "", model.calc(piece)) for piece in pieces]
    assert combined_crc(blobs) == model.calc(b"".join(pieces))


# Objects


def test_object_comes_back_with_its_headers(cos):
    data = os.urandom(3 * MIB + 17)
    sdk = cos.sdk()
    put = sdk.put_object(BUCKET, data, KEY, EnableMD5=True, Metadata={"x-cos-meta-source": "web1"})
    head = sdk.head_object(BUCKET, KEY)
    assert head["ETag"] == put["ETag"]
    assert int(head["Content-Length"]) == len(data)
    assert head["x-cos-meta-source"] == "web1"
    assert int(head["x-cos-hash-crc64ecma"]) == anycrc.Model("CRC64-XZ").calc(data)
    assert sdk.get_object(BUCKET, KEY)["Body"].get_raw_stream().read() == data


@pytest.mark.parametrize(
    ("wanted", "part"), [("bytes=0-0", slice(0, 1)), ("bytes=7-", slice(7, None)), ("bytes=-5", slice(-5, None))]
)
def test_range_of_a_multipart_object_crosses_parts(cos, wanted, part):
    data = os.urandom(2 * MIB + 9)
    sdk = cos.sdk()
    upload = sdk.create_multipart_upload(BUCKET, KEY)["UploadId"]
    etags = []
    for number, start in enumerate(range(0, len(data), MIB), 1):
        piece = data[start : start + MIB]
        etags.append({"PartNumber": number, "ETag": sdk.upload_part(BUCKET, KEY, piece, number, upload)["ETag"]})
    sdk.complete_multipart_upload(BUCKET, KEY, upload, {"Part": etags})
    assert sdk.get_object(BUCKET, KEY, Range=wanted)["Body"].get_raw_stream().read() == data[part]


def test_range_outside_the_object_is_refused(cos):
    cos.sdk().put_object(BUCKET, b"abc", KEY)
    assert code_of(cos.sdk().get_object, BUCKET, KEY, Range="bytes=3-") == (416, "InvalidRange")


def test_zeros_take_no_room(cos):
    cos.sdk().put_object(BUCKET, bytes(8 * MIB), KEY)
    [file] = (cos.directory / "cos").iterdir()
    assert (file.stat().st_size, file.stat().st_blocks) == (8 * MIB, 0)


def test_deleted_objects_leave_no_file(cos):
    sdk = cos.sdk()
    for key in ("a", "b", "c"):
        sdk.put_object(BUCKET, b"data", key)
    sdk.put_object(BUCKET, b"again", "a")
    assert [item["Key"] for item in sdk.list_objects(BUCKET, MaxKeys=2)["Contents"]] == ["a", "b"]
    sdk.delete_object(BUCKET, "a")
    sdk.delete_objects(BUCKET, {"Object": [{"Key": "b"}, {"Key": "c"}]})
    assert cos.files() == 0
    assert "Contents" not in sdk.list_objects(BUCKET)


def test_wrong_digest_is_refused_and_nothing_stored(cos):
    digest = "1B2M2Y8AsgTpgAmY7PhCfg=="
    assert code_of(cos.sdk().put_object, BUCKET, b"abc", KEY, ContentMD5=digest) == (400, "BadDigest")
    assert code_of(cos.sdk().put_object, BUCKET, b"abc", KEY, ContentMD5="nonsense") == (400, "InvalidDigest")
    assert cos.files() == 0


# Multipart uploads


def test_parts_are_listed_page_by_page(cos):
    sdk = cos.sdk()
    upload = sdk.create_multipart_upload(BUCKET, KEY)["UploadId"]
    for number in (3, 1, 2):
        sdk.upload_part(BUCKET, KEY, bytes([number]), number, upload)
    first = sdk.list_parts(BUCKET, KEY, upload, MaxParts=2)
    assert [part["PartNumber"] for part in first["Part"]] == ["1", "2"]
    assert first["IsTruncated"] == "true"
    rest = sdk.list_parts(BUCKET, KEY, upload, PartNumberMarker=first["NextPartNumberMarker"])
    assert [part["PartNumber"] for part in rest["Part"]] == ["3"]


def test_uploads_are_listed_page_by_page_and_aborted(cos):
    sdk = cos.sdk()
    made = [sdk.create_multipart_upload(BUCKET, key)["UploadId"] for key in ("a", "a", "b")]
    seen, markers = [], {}
    while True:
        page = sdk.list_multipart_uploads(BUCKET, MaxUploads=1, **markers)
        seen += [item["UploadId"] for item in page["Upload"]]
        if page["IsTruncated"] == "false":
            break
        markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    assert sorted(seen) == sorted(made)
    sdk.upload_part(BUCKET, "b", b"x", 1, made[2])
    sdk.abort_multipart_upload(BUCKET, "b", made[2])
    assert code_of(sdk.upload_part, BUCKET, "b", b"x", 1, made[2]) == (404, "NoSuchUpload")
    assert cos.files() == 0


def test_what_does_not_fit_together_is_not_completed(cos):
    sdk = cos.sdk()
    upload = sdk.create_multipart_upload(BUCKET, KEY)["UploadId"]
    etags = [sdk.upload_part(BUCKET, KEY, b"small", number, upload)["ETag"] for number in (1, 2)]
    listed = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]

    def complete(parts):
        return code_of(sdk.complete_multipart_upload, BUCKET, KEY, upload, {"Part": parts})

    assert complete(listed[::-1]) == (400, "InvalidPartOrder")
    assert complete([listed[0], {"PartNumber": 2, "ETag": '"0"'}]) == (400, "InvalidPart")
    assert complete(listed) == (400, "EntityTooSmall")
    assert sdk.complete_multipart_upload(BUCKET, KEY, upload, {"Part": listed[:1]})["ETag"].endswith('-1"')
    assert cos.content(KEY) == b"small"
    assert cos.files() == 1


# Who may


def test_tampered_signature_and_unknown_key_are_refused(cos):
    sdk = cos.sdk()
    authorization = sdk.get_auth("GET", BUCKET, KEY)
    tampered = authorization[:-1] + ("0" if authorization[-1] != "0" else "1")
    url = f"http://{sdk.get_conf().get_host(BUCKET)}/{KEY}".replace(" ", "%20")
    url = url.replace("ü", "%C3%BC")
    status, body = bare(cos, "GET", url, Authorization=tampered)
    assert (status, b"<Code>SignatureDoesNotMatch</Code>" in body) == (403, True)
    assert code_of(cos.sdk(SecretKey="another").get_object, BUCKET, KEY) == (403, "SignatureDoesNotMatch")
    assert code_of(cos.sdk(SecretId="AKIDnobody").get_object, BUCKET, KEY) == (403, "InvalidAccessKeyId")


def test_signature_covers_path_query_and_headers(cos):
    cos.sdk().put_object(BUCKET, b"abc", KEY)
    url = presigned(cos, Params={"response-content-type": "text/plain"}, Headers={"x-cos-signed": "yes"})
    assert bare(cos, "GET", url, **{"x-cos-signed": "yes"})[0] == 200
    assert bare(cos, "GET", url, **{"x-cos-signed": "no"})[0] == 403
    assert bare(cos, "GET", url.replace("text", "html"), **{"x-cos-signed": "yes"})[0] == 403
    assert bare(cos, "GET", url.replace("/web", "/db"), **{"x-cos-signed": "yes"})[0] == 403


def test_presigned_url_is_for_its_method_and_its_time(cos):
    cos.sdk().put_object(BUCKET, b"abc", KEY)
    url = presigned(cos, Expired=60)
    assert bare(cos, "GET", url) == (200, b"abc")
    assert bare(cos, "DELETE", url)[0] == 403
    cos.offset = 59
    assert bare(cos, "GET", url)[0] == 200
    cos.offset = 62
    status, body = bare(cos, "GET", url)
    assert (status, b"Request has expired" in body) == (403, True)
    cos.offset = -3600
    assert b"RequestTimeTooSkewed" in bare(cos, "GET", url)[1]


def test_nobody_reads_what_is_not_public(cos):
    sdk, anyone = cos.sdk(), cos.sdk(Anonymous=True, SecretId="", SecretKey="")
    sdk.put_object(BUCKET, b"abc", KEY)
    assert code_of(anyone.get_object, BUCKET, KEY) == (403, "AccessDenied")
    sdk.put_object_acl(BUCKET, KEY, ACL="public-read")
    assert anyone.get_object(BUCKET, KEY)["Body"].get_raw_stream().read() == b"abc"
    assert code_of(anyone.delete_object, BUCKET, KEY) == (403, "AccessDenied")
    assert code_of(anyone.put_object, BUCKET, b"", "other") == (403, "AccessDenied")
    sdk.put_object(BUCKET, b"abc", KEY, ACL="private")
    sdk.put_bucket_acl(BUCKET, ACL="public-read")
    assert code_of(anyone.get_object, BUCKET, KEY) == (403, "AccessDenied")


def test_buckets_have_the_accounts_name_and_are_made_once(cos):
    sdk = cos.sdk()
    assert code_of(sdk.create_bucket, "images-999") == (400, "InvalidBucketName")
    assert code_of(sdk.create_bucket, BUCKET) == (409, "BucketAlreadyOwnedByYou")
    assert code_of(sdk.head_object, "other-1250000000", KEY)[0] == 404
    sdk.put_object(BUCKET, b"", KEY)
    assert code_of(sdk.delete_bucket, BUCKET) == (409, "BucketNotEmpty")


# Faults


def test_faults_meet_as_many_requests_as_told(cos):
    cos.fault("slow_down", count=2, method="PUT")
    cos.fault("internal_error", method="HEAD")
    sdk = cos.sdk()
    assert code_of(sdk.put_object, BUCKET, b"abc", KEY) == (503, "SlowDown")
    assert code_of(sdk.put_object, BUCKET, b"abc", KEY) == (503, "SlowDown")
    sdk.put_object(BUCKET, b"abc", KEY)
    assert code_of(sdk.head_object, BUCKET, KEY)[0] == 500
    assert sdk.head_object(BUCKET, KEY)["Content-Length"] == "3"


def test_cut_upload_ends_in_a_reset_and_leaves_nothing(cos):
    cos.fault("cut", after=5 * MIB)
    with pytest.raises(CosClientError):
        cos.sdk().put_object(BUCKET, bytes(16 * MIB), KEY)
    assert 0 < cos.received() <= 5 * MIB
    assert cos.files() == 0


def test_cut_download_gives_what_came_before(cos):
    data = os.urandom(4 * MIB)
    cos.sdk().put_object(BUCKET, data, KEY)
    cos.fault("cut", method="GET", after=3 * MIB + 7)
    stream = cos.sdk().get_object(BUCKET, KEY)["Body"].get_raw_stream()
    got = bytearray()
    with pytest.raises(ProtocolError):
        while piece := stream.read(MIB, decode_content=False):
            got += piece
    assert data.startswith(bytes(got))
    assert len(got) < len(data)


def test_corrupted_part_has_another_etag(cos):
    data = bytes(2 * MIB)
    whole = cos.sdk().put_object(BUCKET, data, KEY)["ETag"]
    cos.fault("corrupt", after=MIB + 1)
    assert cos.sdk().put_object(BUCKET, data, KEY)["ETag"] != whole
    assert cos.content(KEY) == data[: MIB + 1] + b"\xff" + data[MIB + 2 :]
    cos.fault("corrupt", after=5)
    assert code_of(cos.sdk().put_object, BUCKET, data, KEY, EnableMD5=True) == (400, "BadDigest")


# The cloud's own reading


def test_cloud_fetches_a_presigned_url_without_a_name_server(cos, tmp_path):
    data = os.urandom(2 * MIB + 3)
    cos.sdk().put_object(BUCKET, data, KEY)
    url = presigned(cos)
    assert fetch(url, tmp_path / "image", lambda: socket.create_connection(cos.address)) == len(data)
    assert (tmp_path / "image").read_bytes() == data
    cos.offset = 3600
    with pytest.raises(FetchError) as caught:
        fetch(url, tmp_path / "late", lambda: socket.create_connection(cos.address))
    assert caught.value.status == 403


def test_log_holds_no_signature_and_no_key(cos):
    cos.sdk().put_object(BUCKET, b"abc", KEY)
    bare(cos, "GET", presigned(cos))
    text = (cos.directory / "cos-requests.jsonl").read_text()
    assert len(text.splitlines()) == 2
    assert "q-signature" not in text
    assert SECRET_KEY not in text
