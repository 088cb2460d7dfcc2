# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What COS's error codes mean for a migration, and what to do about each."""

from __future__ import annotations

from ..findings import Finding, Refusal
from .errors import MALFORMED, NETWORK_CODES, Meaning, meaning_of

_NETWORK = NETWORK_CODES[0]
# What a HEAD request is answered with has no body, hence no code.
CODE_OF_STATUS = {403: "AccessDenied", 404: "NoSuchResource", 500: "InternalError", 503: "ServiceUnavailable"}
# The vendor's list of error codes, page 436/7730; the SDK makes NoSuchResource of a HEAD that finds nothing.
MISSING = ("NoSuchKey", "NoSuchResource")
TRANSIENT = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "IncompleteBody", _NETWORK)

_KEY = Meaning(
    "CLOUD_AUTH_FAILED",
    "COS does not accept the API key.",
    "Check secret_id, secret_key and, for a temporary key, token.",
)
_CLOCK = Meaning(
    "CLOUD_CLOCK_SKEW",
    "The signature is not valid at this time by COS's clock.",
    "Set the controller's clock (chronyc makestep, or enable NTP). A presigned URL expires: make a new one.",
)
_BUSY = Meaning(
    "CLOUD_RATE_LIMITED",
    "COS asks to slow down, and retries did not get through.",
    "Lower connections, set a bandwidth_limit, or wait; an interrupted upload continues where it was.",
)
_BROKEN = Meaning(
    "CLOUD_INTERNAL_ERROR",
    "COS failed internally.",
    "Run again, an interrupted upload continues where it was; give the request id to the vendor's support.",
)
_OTHER = Meaning("COS_REQUEST_FAILED", "COS refused the request.", "Follow COS's message in the evidence.")
_MEANINGS = {
    "AccessDenied": Meaning(
        "COS_ACCESS_DENIED",
        "The key's user may not do this with the bucket or object.",
        "Give it a CAM policy that allows the operation in the evidence on this bucket, and check that the bucket is"
        " this account's.",
    ),
    "BucketAlreadyExists": Meaning(
        "COS_BUCKET_TAKEN", "The bucket's name is in use.", "Choose another name in front of the APPID."
    ),
    "BucketNotEmpty": Meaning(
        "COS_BUCKET_NOT_EMPTY",
        "The bucket still holds objects or unfinished uploads, so it is kept.",
        "Remove them first (fleetlift.cvm.cos_object with state absent), or keep the bucket.",
    ),
    "EntityTooLarge": Meaning(
        "COS_TOO_LARGE",
        "The object or part is larger than COS takes.",
        "Use a larger part_size, or compress the image.",
    ),
    "ExpiredToken": _KEY,
    "IncompleteBody": _BROKEN,
    "InternalError": _BROKEN,
    "InvalidAccessKeyId": _KEY,
    "InvalidBucketName": Meaning(
        "COS_BUCKET_NAME_INVALID",
        "This is not a bucket's name of this account.",
        "Use lower-case letters, digits and hyphens, followed by a hyphen and the account's APPID.",
    ),
    "NoSuchBucket": Meaning(
        "COS_BUCKET_NOT_FOUND",
        "There is no such bucket in this region.",
        "Check bucket and region, or create it with fleetlift.cvm.cos_bucket.",
    ),
    "NoSuchKey": Meaning("COS_OBJECT_NOT_FOUND", "There is no such object in the bucket.", "Check bucket and key."),
    "NoSuchResource": Meaning(
        "COS_OBJECT_NOT_FOUND", "There is no such object or bucket.", "Check bucket, key and region."
    ),
    "NoSuchUpload": Meaning(
        "COS_UPLOAD_GONE",
        "The unfinished upload was ended by somebody else while this one continued it.",
        "Make sure that only one upload to this key runs, then run again.",
    ),
    "RequestIsExpired": _CLOCK,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestTimeout": _BUSY,
    "ServiceUnavailable": _BUSY,
    "SignatureDoesNotMatch": _KEY,
    "SlowDown": _BUSY,
}


def cos_meaning(code: str, message: str) -> Meaning:
    """The meaning of COS's *code*; an expired signature is told by its *message* only."""
    if code in (_NETWORK, MALFORMED):
        return meaning_of(code)
    if code == "AccessDenied" and "expired" in message:
        return _CLOCK
    return _MEANINGS.get(code, _OTHER)


class CosError(Refusal):
    """COS's refusal of one *operation*, or the failure to ask it; ``code`` and ``message`` are COS's own."""

    def __init__(self, code: str, message: str, status: int, request_id: str, operation: str, subject: str) -> None:
        meaning = cos_meaning(code, message)
        happened = "" if code in (_NETWORK, MALFORMED) else f" was answered with {code}"
        cause = f"{meaning.cause} {operation}{happened}: {message.strip().rstrip('.') or status}."
        evidence = {
            "cos_operation": operation,
            "cos_code": code,
            "cos_message": message,
            "http_status": status,
            "request_id": request_id,
        }
        super().__init__(Finding(meaning.code, "blocker", subject, cause, meaning.action, evidence))
        self.code = code
        self.message = message

    @property
    def is_missing(self) -> bool:
        """The object does not exist, or for a request about a bucket, the bucket."""
        return self.code in MISSING

    @property
    def is_transient(self) -> bool:
        """Asking again may help; what was asked for may or may not have been done."""
        return self.code in TRANSIENT
