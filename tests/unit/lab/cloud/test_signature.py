# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may call: signatures, credentials, time, product, version, region, and the envelope."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from typing import Any

import pytest
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.sign import Sign
from tencentcloud.cvm.v20170312 import cvm_client, models

from .conftest import SECRET_ID, SECRET_KEY, CloudUnderTest


def signed(
    fleet: CloudUnderTest,
    *,
    service: str = "cvm",
    timestamp: int | None = None,
    body: bytes = b"{}",
    signed_body: bytes | None = None,
    content_type: str = "application/json",
    date: str | None = None,
) -> dict[str, str]:
    """Headers of a DescribeRegions request, signed with the SDK's own arithmetic."""
    timestamp = int(time.time()) if timestamp is None else timestamp
    date = date or time.strftime("%Y-%m-%d", time.gmtime(timestamp))
    host = f"127.0.0.1:{fleet.port}"
    digest = hashlib.sha256(body if signed_body is None else signed_body).hexdigest()
    canonical = f"POST\n/\n\ncontent-type:{content_type}\nhost:{host}\n\ncontent-type;host\n{digest}"
    scope = f"{date}/{service}/tc3_request"
    text = f"TC3-HMAC-SHA256\n{timestamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = Sign.sign_tc3(SECRET_KEY, date, service, text)
    return {
        "Host": host,
        "Content-Type": content_type,
        "X-TC-Action": "DescribeRegions",
        "X-TC-Version": "2017-03-12",
        "X-TC-Timestamp": str(timestamp),
        "X-TC-Region": "ap-guangzhou",
        "Authorization": f"TC3-HMAC-SHA256 Credential={SECRET_ID}/{scope}, "
        f"SignedHeaders=content-type;host, Signature={signature}",
    }


def post(fleet: CloudUnderTest, headers: dict[str, str], body: bytes = b"{}") -> dict[str, Any]:
    """The Response object of a raw request; status and type are the same for every answer."""
    connection = http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=10)
    try:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        response: dict[str, Any] = json.loads(answer.read())["Response"]
    finally:
        connection.close()
    assert response["RequestId"]
    return response


def code(fleet: CloudUnderTest, headers: dict[str, str], body: bytes = b"{}") -> str:
    return str(post(fleet, headers, body)["Error"]["Code"])


def test_hand_signed_request_is_answered(fleet: CloudUnderTest) -> None:
    assert post(fleet, signed(fleet))["RegionSet"][0]["Region"] == "ap-guangzhou"


def test_sdk_sees_the_codes_of_wrong_credentials(fleet: CloudUnderTest) -> None:
    stranger = fleet.client(cvm_client.CvmClient, secret_id="AKIDsomebodyelse")
    assert fleet.refused(stranger, "DescribeRegions") == "AuthFailure.SecretIdNotFound"
    wrong_key = fleet.client(cvm_client.CvmClient, secret_key="not the key")
    assert fleet.refused(wrong_key, "DescribeRegions") == "AuthFailure.SignatureFailure"
    with_token = fleet.client(cvm_client.CvmClient, token="a-token")
    assert fleet.refused(with_token, "DescribeRegions") == "AuthFailure.TokenFailure"
    with pytest.raises(TencentCloudSDKException) as caught:
        wrong_key.StartInstances(models.StartInstancesRequest())
    assert caught.value.get_code() == "AuthFailure.SignatureFailure"


@pytest.mark.parametrize("skew", [-302, 302])
def test_stale_timestamp_expires(fleet: CloudUnderTest, skew: int) -> None:
    headers = signed(fleet, timestamp=int(time.time()) + skew)
    assert code(fleet, headers) == "AuthFailure.SignatureExpire"


@pytest.mark.parametrize("skew", [-295, 295])
def test_small_skew_is_accepted(fleet: CloudUnderTest, skew: int) -> None:
    assert post(fleet, signed(fleet, timestamp=int(time.time()) + skew))["TotalCount"] == 1


def test_changed_body_breaks_the_signature(fleet: CloudUnderTest) -> None:
    assert code(fleet, signed(fleet, body=b"{}"), b'{"A": 1}') == "AuthFailure.SignatureFailure"


def test_changed_host_breaks_the_signature(fleet: CloudUnderTest) -> None:
    assert code(fleet, {**signed(fleet), "Host": "cvm.tencentcloudapi.com"}) == "AuthFailure.SignatureFailure"


def test_date_of_another_day_breaks_the_signature(fleet: CloudUnderTest) -> None:
    assert code(fleet, signed(fleet, date="2020-01-01")) == "AuthFailure.SignatureFailure"


def test_unsigned_payload_is_accepted_when_declared(fleet: CloudUnderTest) -> None:
    headers = {**signed(fleet, signed_body=b"UNSIGNED-PAYLOAD"), "X-TC-Content-SHA256": "UNSIGNED-PAYLOAD"}
    assert post(fleet, headers)["TotalCount"] == 1


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic YWJj",
        "TC3-HMAC-SHA256 Credential=a/b/c, SignedHeaders=content-type;host, Signature=00",
        f"TC3-HMAC-SHA256 Credential={SECRET_ID}/2026-01-01/cvm/tc3_request, SignedHeaders=host, Signature={'0' * 64}",
    ],
)
def test_malformed_authorization(fleet: CloudUnderTest, authorization: str) -> None:
    headers = {**signed(fleet), "Authorization": authorization}
    assert code(fleet, headers) == "AuthFailure.InvalidAuthorization"


def test_product_version_and_action_must_exist(fleet: CloudUnderTest) -> None:
    assert code(fleet, signed(fleet, service="tat")) == "NoSuchProduct"
    assert code(fleet, {**signed(fleet), "X-TC-Version": "2019-01-01"}) == "NoSuchVersion"
    assert code(fleet, {**signed(fleet), "X-TC-Action": "MakeCoffee"}) == "InvalidAction"
    assert code(fleet, {**signed(fleet), "X-TC-Action": "ResetInstancesPassword"}) == "InvalidAction"
    assert code(fleet, signed(fleet, service="cbs")) == "InvalidAction"
    for missing in ("X-TC-Action", "X-TC-Version", "X-TC-Timestamp"):
        headers = signed(fleet)
        del headers[missing]
        assert code(fleet, headers) == "MissingParameter"
    assert code(fleet, {**signed(fleet), "X-TC-Timestamp": "yesterday"}) == "InvalidParameterValue"


def test_region_must_be_the_lab_s(fleet: CloudUnderTest) -> None:
    elsewhere = fleet.client(cvm_client.CvmClient, region="ap-shanghai")
    assert fleet.refused(elsewhere, "DescribeInstances") == "UnsupportedRegion"
    nowhere = fleet.client(cvm_client.CvmClient, region="")
    assert fleet.refused(nowhere, "DescribeInstances") == "MissingParameter"
    assert fleet.call(nowhere, "DescribeRegions")["TotalCount"] == 1


def test_body_must_be_a_json_object(fleet: CloudUnderTest) -> None:
    for body in (b"", b"{", b"[]", b"\xff"):
        assert code(fleet, signed(fleet, body=body), body) == "InvalidRequest"
    assert code(fleet, signed(fleet, content_type="text/plain")) == "InvalidRequest"


def test_oversized_body_is_refused_unread(fleet: CloudUnderTest) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=10)
    try:
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", str(11 * 1024 * 1024))
        connection.endheaders()
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    assert answer["Response"]["Error"]["Code"] == "RequestSizeLimitExceeded"


def test_other_methods_are_refused(fleet: CloudUnderTest) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=10)
    try:
        connection.request("GET", "/?Action=DescribeRegions")
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["Response"]["Error"]["Code"] == "UnsupportedProtocol"
    finally:
        connection.close()
