# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that talks to COS, through the vendor's SDK."""

from __future__ import annotations

import logging
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..findings import refuse
from ..redact import without_queries
from .client import CONNECT_TIMEOUT, RETRY_WAITS, Access
from .cos_errors import CODE_OF_STATUS, CosError
from .errors import MALFORMED, NETWORK_CODES

try:
    import requests
    from qcloud_cos import CosClientError, CosConfig, CosS3Client, CosServiceError
    from requests.adapters import HTTPAdapter
except ImportError:
    COS_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    COS_IMPORT_ERROR = None

COS_PACKAGE = "cos-python-sdk-v5"

# What http.client hands to a socket at once when a body is read from a file; its own 8 KiB cost a third of the rate.
BLOCK = 1024 * 1024
# Seconds in which COS joins the parts of an upload; the SDK allows as much.
COMPLETE_TIMEOUT = 1200
# The vendor's naming rules, page 436/13312: the user's part, a hyphen, the APPID.
BUCKET_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?-\d{5,20}")
_EVERYONE = ("groups/global/AllUsers", "groups/global/AuthenticatedUsers")


@dataclass(frozen=True)
class ObjectHead:
    """What COS tells about an object; ``size`` in bytes, ``crc`` is None for one that COS keeps no CRC64 of."""

    size: int
    etag: str
    crc: int | None
    modified: str
    content_type: str
    storage_class: str


@dataclass(frozen=True)
class Part:
    """A part that has arrived; ``size`` in bytes."""

    number: int
    size: int
    etag: str


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that was neither completed nor aborted; ``initiated`` is in epoch seconds."""

    upload_id: str
    key: str
    initiated: float


@dataclass(frozen=True)
class Stored:
    """COS's answer to bytes: the ETag without quotes, and the CRC64 when it tells one."""

    etag: str
    crc: int | None


class CosClient:
    """COS in one region for one key. Every failure is a :class:`CosError`.

    ``cos_endpoint`` is the URL of a server to connect to in place of the vendor's; requests keep the bucket's own
    host name. ``connections`` is how many threads share this client.
    """

    def __init__(
        self,
        access: Access,
        *,
        cos_endpoint: str | None = None,
        connections: int = 4,
        sleep: Callable[[float], None] = time.sleep,
        random_wait: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._access = access
        self._sleep = sleep
        self._random_wait = random_wait
        url = urlsplit(cos_endpoint or "https:")
        if url.scheme not in ("http", "https") or url.path not in ("", "/") or bool(cos_endpoint) != bool(url.hostname):
            raise refuse(
                "CLOUD_ENDPOINT_INVALID",
                "cloud",
                f"cos_endpoint {cos_endpoint!r} is not the URL of a server.",
                "Set it to a form like http://10.98.0.11:80, or leave it out for the vendor's own hosts.",
            )
        silence_sdk()
        self._scheme = url.scheme
        server = {"IP": url.hostname, "Port": url.port} if url.hostname else {}
        session = requests.Session()
        for prefix in ("http://", "https://"):
            session.mount(prefix, _adapter(connections))
        timeouts = (CONNECT_TIMEOUT, access.api_timeout)
        self._sdk = CosS3Client(self._config(Timeout=timeouts, **server), retry=0, session=session)
        patient = (CONNECT_TIMEOUT, max(COMPLETE_TIMEOUT, access.api_timeout))
        self._patient = CosS3Client(self._config(Timeout=patient, **server), retry=0, session=session)
        # The reader of a presigned URL finds COS by the bucket's own host name, wherever we connect to.
        self._signer = CosS3Client(self._config(), retry=0, session=session)

    def _config(self, **options: Any) -> Any:
        access = self._access
        return CosConfig(
            Region=access.region,
            SecretId=access.secret_id,
            SecretKey=access.secret_key,
            Token=access.token,
            Scheme=self._scheme,
            UA="fleetlift",
            **options,
        )

    # Buckets

    def bucket_exists(self, bucket: str) -> bool:
        """Whether *bucket* is this account's and in this region."""
        return self._found("HEAD Bucket", bucket, lambda: self._sdk.head_bucket(bucket)) is not None

    def create_bucket(self, bucket: str) -> None:
        """Make a private bucket."""
        try:
            self._ask("PUT Bucket", bucket, lambda: self._sdk.create_bucket(bucket, ACL="private"))
        except CosError as error:
            # An earlier attempt whose answer was lost.
            if error.code != "BucketAlreadyOwnedByYou":
                raise

    def delete_bucket(self, bucket: str) -> None:
        """Remove an empty bucket."""
        self._ask("DELETE Bucket", bucket, lambda: self._sdk.delete_bucket(bucket))

    def bucket_is_public(self, bucket: str) -> bool:
        """Whether others than the account may do anything with *bucket* by its ACL."""
        return _public(self._ask("GET Bucket acl", bucket, lambda: self._sdk.get_bucket_acl(bucket)))

    def make_bucket_private(self, bucket: str) -> None:
        """Take all grants to others back."""
        self._ask("PUT Bucket acl", bucket, lambda: self._sdk.put_bucket_acl(bucket, ACL="private"))

    # Objects

    def head(self, bucket: str, key: str) -> ObjectHead | None:
        """What COS tells about an object, None when there is none."""
        answer = self._found("HEAD Object", f"{bucket}/{key}", lambda: self._sdk.head_object(bucket, key))
        if answer is None:
            return None
        headers = _lower(answer)
        stored = _stored(headers)
        return ObjectHead(
            size=int(headers.get("content-length", 0)),
            etag=stored.etag,
            crc=stored.crc,
            modified=headers.get("last-modified", ""),
            content_type=headers.get("content-type", ""),
            storage_class=headers.get("x-cos-storage-class", "STANDARD"),
        )

    def object_is_public(self, bucket: str, key: str) -> bool:
        """Whether others than the account may read the object by its own ACL."""
        return _public(self._ask("GET Object acl", f"{bucket}/{key}", lambda: self._sdk.get_object_acl(bucket, key)))

    def make_object_private(self, bucket: str, key: str) -> None:
        """Take all grants to others back."""
        subject = f"{bucket}/{key}"
        self._ask("PUT Object acl", subject, lambda: self._sdk.put_object_acl(bucket, key, ACL="private"))

    def put(self, bucket: str, key: str, body: Any, headers: Mapping[str, Any]) -> Stored:
        """Store *body* as a whole, one attempt."""
        with _sdk_errors("PUT Object", f"{bucket}/{key}"):
            return _stored(_lower(self._sdk.put_object(bucket, body, key, **headers)))

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self._ask("DELETE Object", f"{bucket}/{key}", lambda: self._sdk.delete_object(bucket, key))

    def presign(self, bucket: str, key: str, seconds: int, method: str = "GET") -> str:
        """A URL that lets whoever holds it do *method* for *seconds*. It is a secret."""
        params = {"x-cos-security-token": self._access.token} if self._access.token else {}
        url = self._signer.get_presigned_url(bucket, key, method, Expired=seconds, Params=params)
        return str(url)

    # Multipart uploads

    def create_upload(self, bucket: str, key: str, headers: Mapping[str, Any]) -> str:
        """Begin an upload and return its id."""
        subject = f"{bucket}/{key}"
        answer = self._ask(
            "Initiate Multipart Upload",
            subject,
            lambda: self._sdk.create_multipart_upload(bucket, key, **headers),
        )
        return str(_expected(answer, "UploadId", "Initiate Multipart Upload", subject))

    def put_part(self, bucket: str, key: str, upload_id: str, number: int, body: Any) -> Stored:
        """Send one part, one attempt."""
        with _sdk_errors("Upload Part", f"{bucket}/{key}"):
            return _stored(_lower(self._sdk.upload_part(bucket, key, body, number, upload_id)))

    def parts(self, bucket: str, key: str, upload_id: str) -> list[Part]:
        """The parts of an upload that have arrived, by number."""
        found: list[Part] = []
        marker = 0
        while True:
            ask = partial(self._sdk.list_parts, bucket, key, upload_id, PartNumberMarker=marker)
            page = self._ask("List Parts", f"{bucket}/{key}", ask)
            found += [
                Part(int(item["PartNumber"]), int(item["Size"]), _unquoted(item["ETag"]))
                for item in page.get("Part", [])
            ]
            if page.get("IsTruncated") != "true" or not page.get("Part"):
                return found
            marker = found[-1].number

    def uploads(self, bucket: str, prefix: str) -> list[UnfinishedUpload]:
        """The unfinished uploads whose key begins with *prefix*, oldest first."""
        found: list[UnfinishedUpload] = []
        markers: dict[str, str] = {}
        while True:
            ask = partial(self._sdk.list_multipart_uploads, bucket, Prefix=prefix, **markers)
            page = self._ask("List Multipart Uploads", bucket, ask)
            found += [
                UnfinishedUpload(item["UploadId"], item["Key"], _epoch(item["Initiated"]))
                for item in page.get("Upload", [])
            ]
            if page.get("IsTruncated") != "true" or not page.get("Upload"):
                return sorted(found, key=lambda upload: upload.initiated)
            markers = {"KeyMarker": found[-1].key, "UploadIdMarker": found[-1].upload_id}

    def complete(self, bucket: str, key: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        """Make the object of the parts, given as number and ETag, one attempt."""
        listed = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in parts]
        with _sdk_errors("Complete Multipart Upload", f"{bucket}/{key}"):
            self._patient.complete_multipart_upload(bucket, key, upload_id, {"Part": listed})

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give an unfinished upload up; one that is gone is none to give up."""
        try:
            self._ask(
                "Abort Multipart Upload",
                f"{bucket}/{key}",
                lambda: self._sdk.abort_multipart_upload(bucket, key, upload_id),
            )
        except CosError as error:
            if error.code != "NoSuchUpload":
                raise

    def _found(self, operation: str, subject: str, ask: Callable[[], Any]) -> Any:
        try:
            return self._ask(operation, subject, ask)
        except CosError as error:
            if error.is_missing:
                return None
            if error.code == CODE_OF_STATUS[403]:
                # A HEAD is refused without words; a listing says whether it is the key, the clock or the policy.
                self.uploads(subject.partition("/")[0], "")
            raise

    def _ask(self, operation: str, subject: str, ask: Callable[[], Any]) -> Any:
        """The answer to a request without a body, which is repeated when that may help."""
        for wait in RETRY_WAITS:
            try:
                with _sdk_errors(operation, subject):
                    return ask()
            except CosError as error:
                if not error.is_transient:
                    raise
            self._sleep(self._random_wait(wait / 2, wait))
        with _sdk_errors(operation, subject):
            return ask()


def silence_sdk() -> None:
    """Keep the SDK's log to itself: at its levels it holds signatures, keys derived from the secret, and URLs."""
    log = logging.getLogger("qcloud_cos")
    log.setLevel(logging.CRITICAL + 1)
    log.propagate = False
    if not log.handlers:
        log.addHandler(logging.NullHandler())


def check_names(bucket: str, key: str | None = None) -> None:
    """Refuse what cannot be a bucket's or an object's name, before anything is asked."""
    if not BUCKET_NAME.fullmatch(bucket):
        raise refuse(
            "COS_BUCKET_NAME_INVALID",
            bucket,
            f"{bucket!r} is not a bucket's name.",
            "Use lower-case letters, digits and hyphens, followed by a hyphen and the account's APPID.",
        )
    # Page 436/13324; the SDK takes one leading slash away, which would make two keys of one name.
    if key is not None and (not key or key.startswith("/") or len(key.encode()) > 850):
        raise refuse(
            "COS_KEY_INVALID",
            f"{bucket}/{key}",
            f"{key!r} is not an object's key.",
            "Use 1 to 850 bytes of UTF-8 that do not begin with a slash.",
        )


def _adapter(connections: int) -> Any:
    class BlockAdapter(HTTPAdapter):  # type: ignore[misc,unused-ignore]
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, blocksize=BLOCK, **options)

    return BlockAdapter(pool_connections=2, pool_maxsize=connections + 1)


@contextmanager
def _sdk_errors(operation: str, subject: str) -> Iterator[None]:
    """Turns what the SDK raises inside into :class:`CosError`."""
    try:
        yield
    except CosServiceError as error:
        status = int(error.get_status_code())
        digest = error.get_digest_msg()
        fields = {str(name).lower(): str(value) for name, value in digest.items()} if hasattr(digest, "items") else {}
        code = fields.get("code") or CODE_OF_STATUS.get(status) or MALFORMED
        request_id = fields.get("requestid") or fields.get("x-cos-request-id") or ""
        raise CosError(code, fields.get("message", ""), status, request_id, operation, subject) from error
    except CosClientError as error:
        raise CosError(NETWORK_CODES[0], without_queries(str(error)), 0, "", operation, subject) from error
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        # The SDK reads a body that is not COS's XML, and what it raises then is no error of its own.
        raise CosError(MALFORMED, f"{type(error).__name__}: {error}", 0, "", operation, subject) from error


def _expected(answer: Mapping[str, Any], name: str, operation: str, subject: str) -> Any:
    if not answer.get(name):
        raise CosError(MALFORMED, f"no {name} in the answer", 200, "", operation, subject)
    return answer[name]


def _lower(headers: Mapping[str, Any]) -> dict[str, str]:
    return {name.lower(): str(value) for name, value in headers.items()}


def _stored(headers: Mapping[str, str]) -> Stored:
    crc = headers.get("x-cos-hash-crc64ecma", "")
    return Stored(_unquoted(headers.get("etag", "")), int(crc) if crc.isdigit() else None)


def _unquoted(etag: str) -> str:
    return etag.strip('"')


def _public(policy: Mapping[str, Any]) -> bool:
    grants = (policy.get("AccessControlList") or {}).get("Grant") or []
    listed = grants if isinstance(grants, list) else [grants]
    uris = [str((grant.get("Grantee") or {}).get("URI", "")) for grant in listed]
    return any(uri.endswith(_EVERYONE) for uri in uris)


def _epoch(text: str) -> float:
    moment = datetime.strptime(text.partition(".")[0].rstrip("Z"), "%Y-%m-%dT%H:%M:%S")
    return moment.replace(tzinfo=timezone.utc).timestamp()
