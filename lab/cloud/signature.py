# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TC3-HMAC-SHA256, checked the way the vendor documents it ("Signature v3")."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from lab.cloud.errors import ApiError

ALGORITHM = "TC3-HMAC-SHA256"
MAXIMUM_SKEW = 300  # seconds, either way
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"

_AUTHORIZATION = re.compile(
    r"TC3-HMAC-SHA256 +Credential=(?P<id>[^/,\s]+)/(?P<date>\d{4}-\d\d-\d\d)/(?P<service>[a-z0-9]+)/tc3_request, *"
    r"SignedHeaders=(?P<headers>[a-z0-9;-]+), *"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Caller:
    """Who signed a request, and for which product."""

    secret_id: str
    service: str


def sign(
    *, secret_key: str, service: str, timestamp: int, headers: Mapping[str, str], signed_headers: str, payload: bytes
) -> str:
    """The signature of a POST to "/" with these headers (lower-case names)."""
    payload_hash = hashlib.sha256(payload).hexdigest()
    canonical_headers = "".join(f"{name}:{headers[name].strip().lower()}\n" for name in signed_headers.split(";"))
    canonical = f"POST\n/\n\n{canonical_headers}\n{signed_headers}\n{payload_hash}"
    date = _date(timestamp)
    scope = f"{date}/{service}/tc3_request"
    text = f"{ALGORITHM}\n{timestamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = _hmac(f"TC3{secret_key}".encode(), date)
    key = _hmac(key, service)
    key = _hmac(key, "tc3_request")
    return _hmac(key, text).hex()


def verify(headers: Mapping[str, str], payload: bytes, credentials: Mapping[str, str], now: float) -> Caller:
    """Who sent this POST (header names in lower case), or the documented AuthFailure as ApiError.

    credentials maps secret ids to secret keys; now is the server's time in epoch seconds.
    """
    match = _AUTHORIZATION.fullmatch(headers.get("authorization", "").strip())
    if match is None:
        raise ApiError("AuthFailure.InvalidAuthorization", "The request header `Authorization` is malformed.")
    signed_headers = match["headers"]
    names = signed_headers.split(";")
    if "content-type" not in names or "host" not in names or any(name not in headers for name in names):
        raise ApiError(
            "AuthFailure.InvalidAuthorization",
            "SignedHeaders must name headers of the request, `content-type` and `host` among them.",
        )
    timestamp = _timestamp(headers)
    secret_key = credentials.get(match["id"])
    if secret_key is None:
        raise ApiError(
            "AuthFailure.SecretIdNotFound", "The SecretId is not found, please ensure that your SecretId is correct."
        )
    if abs(now - timestamp) > MAXIMUM_SKEW:
        raise ApiError(
            "AuthFailure.SignatureExpire",
            f"The signature has expired: X-TC-Timestamp is {timestamp}, the server's time is {int(now)}.",
        )
    if headers.get("x-tc-content-sha256") == UNSIGNED_PAYLOAD:
        payload = UNSIGNED_PAYLOAD.encode()
    expected = sign(
        secret_key=secret_key,
        service=match["service"],
        timestamp=timestamp,
        headers=headers,
        signed_headers=signed_headers,
        payload=payload,
    )
    if match["date"] != _date(timestamp) or not hmac.compare_digest(expected, match["signature"]):
        raise ApiError(
            "AuthFailure.SignatureFailure",
            "The provided credentials could not be validated. Please check your signature is correct.",
        )
    if headers.get("x-tc-token"):
        raise ApiError("AuthFailure.TokenFailure", "The token does not belong to a temporary key.")
    return Caller(match["id"], match["service"])


def _timestamp(headers: Mapping[str, str]) -> int:
    text = headers.get("x-tc-timestamp")
    if text is None:
        raise ApiError("MissingParameter", "The request is missing a required parameter `Timestamp`.")
    if not re.fullmatch(r"\d{1,11}", text):
        raise ApiError("InvalidParameterValue", "The value of `Timestamp` is not a number of seconds.")
    return int(text)


def _date(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%d")


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
