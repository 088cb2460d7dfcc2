# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a request to its answer: who may do what, and what COS does for each method and subresource."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from time import gmtime, strftime
from typing import Any
from urllib.parse import quote

from lab.cos import documents
from lab.cos.blobs import Blob, read, receive
from lab.cos.errors import CosError
from lab.cos.signature import FIELDS, verify
from lab.cos.store import BUCKET_ACLS, LARGEST_PUT, LONGEST_KEY, MOST_PARTS, OBJECT_ACLS, Object, Store

MOST_LISTED = 1000
# What an object's answer repeats from the request that stored it.
_KEPT = ("content-type", "content-encoding", "content-disposition", "cache-control", "content-language", "expires")
_RANGE = re.compile(r"bytes=(?P<first>\d*)-(?P<last>\d*)")
_OWNER = {"ID": "qcs::cam::uin/100000000001:uin/100000000001", "DisplayName": "100000000001"}
_EVERYONE = "http://cam.qcloud.com/groups/global/AllUsers"


@dataclass(frozen=True)
class Request:
    """One request; path is decoded and begins with a slash, header names are in lower case.

    ``chunks`` yields the body, ``length`` bytes of it, in pieces that are valid until the next one.
    """

    method: str
    bucket: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    length: int
    chunks: Callable[[], Iterable[memoryview]]

    @property
    def key(self) -> str:
        """The object's key, empty for the bucket itself."""
        return self.path[1:]

    def body(self) -> bytes:
        """The whole body, for requests whose body is a document."""
        if self.length > 10 * 1024 * 1024:
            raise CosError("EntityTooLarge", "The document is too large.")
        return b"".join(self.chunks())


@dataclass(frozen=True)
class Answer:
    """One answer; ``pieces`` are ``length`` bytes."""

    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)
    pieces: Iterable[bytes] = ()
    length: int = 0


class Api:
    """COS of one account in one region."""

    def __init__(self, store: Store, credentials: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._store = store
        self._credentials = credentials
        self._clock = clock

    def answer(self, request: Request) -> tuple[str, Answer]:
        """The operation's name and its answer. Raises CosError."""
        caller = verify(request.method, request.path, request.query, request.headers, self._credentials, self._clock())
        if len(request.key.encode()) > LONGEST_KEY:
            raise CosError("InvalidURI", "The key is longer than 850 bytes.")
        operation = _operation(request)
        if caller is None:
            self._admit_anonymous(operation, request)
        return operation, getattr(self, f"_{operation}")(request)

    def _admit_anonymous(self, operation: str, request: Request) -> None:
        bucket = self._store.bucket(request.bucket)
        acl = bucket.acl
        if operation in ("get_object", "head_object"):
            found = bucket.objects.get(request.key)
            if found is not None and found.acl != "default":
                acl = found.acl
            if acl.startswith("public-read"):
                return
        raise CosError("AccessDenied", "Access Denied.")

    # Buckets

    def _put_bucket(self, request: Request) -> Answer:
        self._store.create_bucket(request.bucket, _acl(request, BUCKET_ACLS, "private"))
        return Answer()

    def _head_bucket(self, request: Request) -> Answer:
        self._store.bucket(request.bucket)
        return Answer()

    def _delete_bucket(self, request: Request) -> Answer:
        self._store.delete_bucket(request.bucket)
        return Answer(HTTPStatus.NO_CONTENT)

    def _get_bucket_acl(self, request: Request) -> Answer:
        return _acl_document(self._store.bucket(request.bucket).acl)

    def _put_bucket_acl(self, request: Request) -> Answer:
        self._store.bucket(request.bucket).acl = _acl(request, BUCKET_ACLS, "private")
        return Answer()

    def _get_bucket(self, request: Request) -> Answer:
        prefix, marker = request.query.get("prefix", ""), request.query.get("marker", "")
        most = _number(request.query.get("max-keys", "1000"), "max-keys", MOST_LISTED)
        found = [item for item in self._store.objects(request.bucket, prefix) if item.key > marker]
        page, encode = found[:most], _encoder(request)
        contents = [
            {
                "Key": encode(item.key),
                "LastModified": _time(item.modified),
                "ETag": f'"{item.etag}"',
                "Size": item.size,
                "Owner": _OWNER,
                "StorageClass": "STANDARD",
            }
            for item in page
        ]
        return _document(
            "ListBucketResult",
            {
                "Name": request.bucket,
                "EncodingType": request.query.get("encoding-type"),
                "Prefix": encode(prefix),
                "Marker": encode(marker),
                "MaxKeys": most,
                "IsTruncated": _boolean(len(found) > most),
                "NextMarker": encode(page[-1].key) if len(found) > most else None,
                "Contents": contents,
            },
        )

    def _post_bucket_delete(self, request: Request) -> Answer:
        body = request.body()
        if "content-md5" not in request.headers:
            raise CosError("InvalidArgument", "The request has no Content-MD5.")
        tree = documents.parse(body, "Delete")
        keys = [documents.text(item, "Key") for item in tree.findall("Object")]
        if len(keys) > MOST_LISTED:
            raise CosError("MalformedXML", "More than 1000 objects are listed.")
        for key in keys:
            self._store.delete(request.bucket, key)
        quiet = tree.findtext("Quiet", "false") == "true"
        return _document("DeleteResult", {"Deleted": [] if quiet else [{"Key": key} for key in keys]})

    # Objects

    def _put_object(self, request: Request) -> Answer:
        self._store.bucket(request.bucket)
        if request.length > LARGEST_PUT:
            raise CosError("EntityTooLarge", "Your proposed upload exceeds the maximum allowed object size.")
        acl = _acl(request, OBJECT_ACLS, "default")
        blob = self._receive(request)
        self._store.put(request.bucket, request.key, blob, _kept(request), acl)
        return _stored(blob)

    def _head_object(self, request: Request) -> Answer:
        found = self._store.object(request.bucket, request.key)
        return Answer(HTTPStatus.OK, _described(found), (), found.size)

    def _get_object(self, request: Request) -> Answer:
        found = self._store.object(request.bucket, request.key)
        headers = _described(found)
        for name, value in request.query.items():
            if name.startswith("response-"):
                headers[name.removeprefix("response-").title()] = value
        wanted = _range(request.headers.get("range"), found.size)
        if wanted is None:
            return Answer(HTTPStatus.OK, headers, read(found.blobs, 0, found.size), found.size)
        first, last = wanted
        headers["Content-Range"] = f"bytes {first}-{last}/{found.size}"
        length = last - first + 1
        return Answer(HTTPStatus.PARTIAL_CONTENT, headers, read(found.blobs, first, length), length)

    def _delete_object(self, request: Request) -> Answer:
        self._store.delete(request.bucket, request.key)
        return Answer(HTTPStatus.NO_CONTENT)

    def _get_object_acl(self, request: Request) -> Answer:
        return _acl_document(self._store.object(request.bucket, request.key).acl)

    def _put_object_acl(self, request: Request) -> Answer:
        acl = _acl(request, OBJECT_ACLS, "default")
        self._store.set_object_acl(request.bucket, request.key, acl)
        return Answer()

    # Multipart uploads

    def _post_object_uploads(self, request: Request) -> Answer:
        acl = _acl(request, OBJECT_ACLS, "default")
        upload = self._store.initiate(request.bucket, request.key, _kept(request), acl)
        return _document(
            "InitiateMultipartUploadResult",
            {"Bucket": request.bucket, "Key": request.key, "UploadId": upload.upload_id},
        )

    def _put_part(self, request: Request) -> Answer:
        number = _number(request.query.get("partNumber", ""), "partNumber", MOST_PARTS)
        upload_id = request.query["uploadId"]
        self._store.upload(request.bucket, request.key, upload_id)
        if number < 1:
            raise CosError("InvalidArgument", "partNumber is at least 1.")
        if request.length > LARGEST_PUT:
            raise CosError("EntityTooLarge", "The part is larger than 5 GB.")
        blob = self._receive(request)
        self._store.put_part(request.bucket, request.key, upload_id, number, blob)
        return _stored(blob)

    def _get_parts(self, request: Request) -> Answer:
        upload_id = request.query["uploadId"]
        marker = _number(request.query.get("part-number-marker", "0"), "part-number-marker", MOST_PARTS)
        most = _number(request.query.get("max-parts", "1000"), "max-parts", MOST_LISTED)
        found = [part for part in self._store.parts(request.bucket, request.key, upload_id) if part[0] > marker]
        page, encode = found[:most], _encoder(request)
        return _document(
            "ListPartsResult",
            {
                "Bucket": request.bucket,
                "EncodingType": request.query.get("encoding-type"),
                "Key": encode(request.key),
                "UploadId": upload_id,
                "Owner": _OWNER,
                "Initiator": _OWNER,
                "StorageClass": "STANDARD",
                "PartNumberMarker": marker,
                "NextPartNumberMarker": page[-1][0] if len(found) > most else None,
                "MaxParts": most,
                "IsTruncated": _boolean(len(found) > most),
                "Part": [
                    {"PartNumber": number, "LastModified": _time(at), "ETag": f'"{blob.md5}"', "Size": blob.size}
                    for number, blob, at in page
                ],
            },
        )

    def _get_bucket_uploads(self, request: Request) -> Answer:
        query = request.query
        prefix = query.get("prefix", "")
        after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
        most = _number(query.get("max-uploads", "1000"), "max-uploads", MOST_LISTED)
        found = [
            upload
            for upload in self._store.uploads(request.bucket, prefix)
            if ((upload.key, upload.upload_id) > after if after[1] else upload.key > after[0])
        ]
        page, encode = found[:most], _encoder(request)
        more = len(found) > most
        return _document(
            "ListMultipartUploadsResult",
            {
                "Bucket": request.bucket,
                "EncodingType": query.get("encoding-type"),
                "KeyMarker": encode(after[0]),
                "UploadIdMarker": after[1],
                "NextKeyMarker": encode(page[-1].key) if more else None,
                "NextUploadIdMarker": page[-1].upload_id if more else None,
                "MaxUploads": most,
                "IsTruncated": _boolean(more),
                "Prefix": encode(prefix),
                "Upload": [
                    {
                        "Key": encode(upload.key),
                        "UploadId": upload.upload_id,
                        "StorageClass": "STANDARD",
                        "Initiator": _OWNER,
                        "Owner": _OWNER,
                        "Initiated": _time(upload.initiated),
                    }
                    for upload in page
                ],
            },
        )

    def _post_object_complete(self, request: Request) -> Answer:
        tree = documents.parse(request.body(), "CompleteMultipartUpload")
        listed = [
            (
                _number(documents.text(part, "PartNumber"), "PartNumber", MOST_PARTS),
                documents.text(part, "ETag").strip('"'),
            )
            for part in tree.findall("Part")
        ]
        made = self._store.complete(request.bucket, request.key, request.query["uploadId"], listed)
        answer = _document(
            "CompleteMultipartUploadResult",
            {
                "Location": f"{request.headers['host']}/{quote(request.key)}",
                "Bucket": request.bucket,
                "Key": request.key,
                "ETag": f'"{made.etag}"',
            },
        )
        answer.headers["x-cos-hash-crc64ecma"] = str(made.crc)
        return answer

    def _delete_upload(self, request: Request) -> Answer:
        self._store.abort(request.bucket, request.key, request.query["uploadId"])
        return Answer(HTTPStatus.NO_CONTENT)

    def _receive(self, request: Request) -> Blob:
        blob = receive(self._store.directory, request.chunks())
        try:
            _check_digest(request.headers.get("content-md5"), blob)
        except CosError:
            blob.file.unlink()
            raise
        return blob


# What a request asks for, by method, whether it names an object, and the subresource in its query.
_OPERATIONS = {
    ("PUT", False, ""): "put_bucket",
    ("HEAD", False, ""): "head_bucket",
    ("DELETE", False, ""): "delete_bucket",
    ("GET", False, ""): "get_bucket",
    ("GET", False, "acl"): "get_bucket_acl",
    ("PUT", False, "acl"): "put_bucket_acl",
    ("GET", False, "uploads"): "get_bucket_uploads",
    ("POST", False, "delete"): "post_bucket_delete",
    ("PUT", True, ""): "put_object",
    ("HEAD", True, ""): "head_object",
    ("GET", True, ""): "get_object",
    ("DELETE", True, ""): "delete_object",
    ("GET", True, "acl"): "get_object_acl",
    ("PUT", True, "acl"): "put_object_acl",
    ("POST", True, "uploads"): "post_object_uploads",
    ("PUT", True, "uploadId"): "put_part",
    ("GET", True, "uploadId"): "get_parts",
    ("POST", True, "uploadId"): "post_object_complete",
    ("DELETE", True, "uploadId"): "delete_upload",
}
_SUBRESOURCES = ("acl", "uploads", "uploadId", "delete")
_PLAIN = frozenset(
    (
        *("prefix", "marker", "max-keys", "encoding-type", "delimiter"),
        *("key-marker", "upload-id-marker", "max-uploads"),
        *("partNumber", "part-number-marker", "max-parts", "x-cos-security-token"),
    )
)


def _operation(request: Request) -> str:
    unknown = [
        name
        for name in request.query
        if name not in _PLAIN and name not in _SUBRESOURCES and name not in FIELDS and not name.startswith("response-")
    ]
    if request.query.get("delimiter"):
        unknown.append("delimiter")
    if unknown:
        raise CosError("InvalidArgument", f"The lab's COS does not offer {unknown[0]!r}.")
    subresource = next((name for name in _SUBRESOURCES if name in request.query), "")
    try:
        return _OPERATIONS[request.method, bool(request.key), subresource]
    except KeyError:
        raise CosError("MethodNotAllowed", "The specified method is not allowed against this resource.") from None


def _acl(request: Request, choices: tuple[str, ...], default: str) -> str:
    acl = request.headers.get("x-cos-acl", default)
    if acl not in choices:
        raise CosError("InvalidArgument", f"The ACL {acl!r} is not one of {', '.join(choices)}.")
    return acl


def _acl_document(acl: str) -> Answer:
    grants = [{"Grantee": _OWNER, "Permission": "FULL_CONTROL"}]
    if acl.startswith("public-read"):
        permission = "FULL_CONTROL" if acl == "public-read-write" else "READ"
        grants.append({"Grantee": {"URI": _EVERYONE}, "Permission": permission})
    answer = _document("AccessControlPolicy", {"Owner": _OWNER, "AccessControlList": {"Grant": grants}})
    answer.headers["x-cos-acl"] = acl
    return answer


def _kept(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name in _KEPT or name.startswith("x-cos-meta-")}


def _stored(blob: Blob) -> Answer:
    return Answer(headers={"ETag": f'"{blob.md5}"', "x-cos-hash-crc64ecma": str(blob.crc)})


def _described(found: Object) -> dict[str, str]:
    headers = {
        "Content-Type": "application/octet-stream",
        "ETag": f'"{found.etag}"',
        "Last-Modified": formatdate(found.modified, usegmt=True),
        "Accept-Ranges": "bytes",
        "x-cos-hash-crc64ecma": str(found.crc),
        "x-cos-object-type": "normal",
    }
    headers.update({name.title() if name in _KEPT else name: value for name, value in found.headers.items()})
    return headers


def _range(text: str | None, size: int) -> tuple[int, int] | None:
    """First and last offset that a Range header asks for; None for all. Raises CosError (InvalidRange)."""
    match = _RANGE.fullmatch(text.strip()) if text else None
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:
        first, last = max(0, size - int(match["last"])), size - 1
    else:
        first = int(match["first"])
        last = min(int(match["last"]), size - 1) if match["last"] else size - 1
    if first > last or first >= size:
        raise CosError("InvalidRange", "The requested range cannot be satisfied.")
    return first, last


def _check_digest(given: str | None, blob: Blob) -> None:
    if given is None:
        return
    try:
        digest = base64.b64decode(given, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 16:
        raise CosError("InvalidDigest", "The Content-MD5 you specified is not valid.")
    if digest.hex() != blob.md5:
        raise CosError("BadDigest", "The Content-MD5 you specified did not match what we received.")


def _number(text: str, name: str, largest: int) -> int:
    if not text.isdigit() or int(text) > largest:
        raise CosError("InvalidArgument", f"{name} is a number up to {largest}, not {text!r}.")
    return int(text)


def _encoder(request: Request) -> Callable[[str], str]:
    return quote if request.query.get("encoding-type") == "url" else str


def _document(root: str, content: Mapping[str, Any]) -> Answer:
    body = documents.document(root, content)
    return Answer(HTTPStatus.OK, {"Content-Type": "application/xml"}, [body], len(body))


def _time(epoch: float) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(epoch))


def _boolean(value: bool) -> str:
    return "true" if value else "false"
