# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A request's signature, checked the way the vendor documents it ("Request Signature", 436/7778)."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from urllib.parse import quote

from lab.cos.errors import CosError

# In the order of the vendor's page; all of them are in the Authorization header, or all in the query.
FIELDS = (
    "q-sign-algorithm",
    "q-ak",
    "q-sign-time",
    "q-key-time",
    "q-header-list",
    "q-url-param-list",
    "q-signature",
)
_TIMES = re.compile(r"(?P<start>\d{1,12});(?P<end>\d{1,12})")
_UNRESERVED = "-_.~"
# Seconds by which a signature may begin in the future.
TOLERANCE = 900


def verify(
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    credentials: Mapping[str, str],
    now: float,
) -> str | None:
    """The secret id that signed a request, None for an anonymous one.

    path is decoded and begins with a slash; query is decoded; header names are in lower case; credentials maps
    secret ids to secret keys; now is epoch seconds. Raises CosError.
    """
    fields = _fields(query, headers)
    if fields is None:
        return None
    if fields["q-sign-algorithm"] != "sha1":
        raise CosError("AccessDenied", "The signature algorithm is not sha1.")
    secret_key = credentials.get(fields["q-ak"])
    if secret_key is None:
        raise CosError("InvalidAccessKeyId", "The Access Key Id you provided does not exist in our records.")
    expected = sign(method, path, query, headers, fields, secret_key)
    if not hmac.compare_digest(expected, fields["q-signature"]):
        raise CosError("SignatureDoesNotMatch", "The Signature you specified is invalid.")
    for name in ("q-sign-time", "q-key-time"):
        _check_time(fields[name], now)
    return fields["q-ak"]


def sign(
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    fields: Mapping[str, str],
    secret_key: str,
) -> str:
    """The q-signature that belongs to the other fields. Raises CosError when a listed name is not in the request."""
    http_string = "\n".join(
        (
            method.lower(),
            path,
            _listed(fields["q-url-param-list"], query),
            _listed(fields["q-header-list"], headers),
            "",
        )
    )
    digest = hashlib.sha1(http_string.encode()).hexdigest()
    string_to_sign = f"sha1\n{fields['q-sign-time']}\n{digest}\n"
    return _hmac(_hmac(secret_key, fields["q-key-time"]), string_to_sign)


def _fields(query: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, str] | None:
    authorization = headers.get("authorization", "").strip()
    if authorization:
        found = dict(item.partition("=")[::2] for item in authorization.split("&"))
    elif any(name in query for name in FIELDS):
        found = {name: query[name] for name in FIELDS if name in query}
    else:
        return None
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise CosError("AccessDenied", f"The signature lacks {missing[0]}.")
    return found


def _listed(names: str, values: Mapping[str, str]) -> str:
    encoded = {quote(name, _UNRESERVED).lower(): quote(value, _UNRESERVED) for name, value in values.items()}
    listed = [name for name in names.split(";") if name]
    if listed != sorted(listed) or any(name not in encoded for name in listed):
        raise CosError("SignatureDoesNotMatch", "The signature lists what the request does not have.")
    return "&".join(f"{name}={encoded[name]}" for name in listed)


def _check_time(text: str, now: float) -> None:
    times = _TIMES.fullmatch(text)
    if times is None:
        raise CosError("AccessDenied", f"The time range {text!r} of the signature is malformed.")
    if now > int(times["end"]):
        raise CosError("AccessDenied", "Request has expired")
    if now < int(times["start"]) - TOLERANCE:
        raise CosError("RequestTimeTooSkewed", "The difference between the request time and the server's is too large.")


def _hmac(key: str, message: str) -> str:
    return hmac.new(key.encode(), message.encode(), hashlib.sha1).hexdigest()
