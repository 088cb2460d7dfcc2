# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Buckets with their objects and unfinished uploads. Bytes are in files, what is known about them in memory."""

from __future__ import annotations

import hashlib
import re
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.cos.blobs import Blob, combined_crc
from lab.cos.errors import CosError

# The vendor's limits: pages 436/14518 (specifications), 436/7750 (Upload Part), 436/7742 (Complete).
LEAST_PART = 1024 * 1024
MOST_PARTS = 10_000
LARGEST_PUT = 5 * 1024**3
LONGEST_KEY = 850

BUCKET_ACLS = ("private", "public-read", "public-read-write", "authenticated-read")
OBJECT_ACLS = ("default", "private", "public-read", "authenticated-read")


@dataclass(frozen=True)
class Object:
    """A stored object; ``modified`` in epoch seconds, ``headers`` are given back with it."""

    key: str
    blobs: tuple[Blob, ...]
    etag: str
    crc: int
    modified: float
    headers: dict[str, str]
    acl: str

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(blob.size for blob in self.blobs)


@dataclass
class Upload:
    """An unfinished multipart upload and the parts that have arrived, by number."""

    upload_id: str
    key: str
    initiated: float
    headers: dict[str, str]
    acl: str
    parts: dict[int, tuple[Blob, float]] = field(default_factory=dict)


@dataclass
class Bucket:
    """A bucket."""

    name: str
    acl: str
    objects: dict[str, Object] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)


class Store:
    """All buckets of one account in one region. Every method is safe between threads and raises CosError."""

    def __init__(self, directory: Path, appid: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self._appid = appid
        self._name = re.compile(rf"[a-z0-9]([a-z0-9-]{{0,48}}[a-z0-9])?-{appid}")
        self._lock = threading.RLock()
        self._buckets: dict[str, Bucket] = {}

    def create_bucket(self, name: str, acl: str) -> None:
        """Make an empty bucket."""
        if not self._name.fullmatch(name):
            raise CosError("InvalidBucketName", f"A bucket's name is lower case and ends in -{self._appid}.")
        with self._lock:
            if name in self._buckets:
                raise CosError("BucketAlreadyOwnedByYou", "The bucket you tried to create is already owned by you.")
            self._buckets[name] = Bucket(name, acl)

    def delete_bucket(self, name: str) -> None:
        """Remove an empty bucket."""
        with self._lock:
            bucket = self.bucket(name)
            if bucket.objects or bucket.uploads:
                raise CosError("BucketNotEmpty", "The bucket you tried to delete is not empty.")
            del self._buckets[name]

    def bucket(self, name: str) -> Bucket:
        """The bucket ``name``."""
        with self._lock:
            try:
                return self._buckets[name]
            except KeyError:
                raise CosError("NoSuchBucket", "The specified bucket does not exist.") from None

    def bucket_names(self) -> list[str]:
        """All buckets."""
        with self._lock:
            return sorted(self._buckets)

    def put(self, bucket: str, key: str, blob: Blob, headers: dict[str, str], acl: str) -> Object:
        """Make an object of one blob, in place of an earlier one."""
        return self._place(bucket, Object(key, (blob,), blob.md5, blob.crc, time.time(), headers, acl))

    def object(self, bucket: str, key: str) -> Object:
        """The object ``key``."""
        with self._lock:
            try:
                return self.bucket(bucket).objects[key]
            except KeyError:
                raise CosError("NoSuchKey", "The specified key does not exist.") from None

    def objects(self, bucket: str, prefix: str) -> list[Object]:
        """The objects below ``prefix``, by key."""
        with self._lock:
            found = self.bucket(bucket).objects
            return [found[key] for key in sorted(found) if key.startswith(prefix)]

    def set_object_acl(self, bucket: str, key: str, acl: str) -> None:
        """Change who may read an object."""
        with self._lock:
            old = self.object(bucket, key)
            self.bucket(bucket).objects[key] = Object(**{**vars(old), "acl": acl})

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; one that is not there is none to remove."""
        with self._lock:
            old = self.bucket(bucket).objects.pop(key, None)
        if old is not None:
            _discard(old.blobs)

    def initiate(self, bucket: str, key: str, headers: dict[str, str], acl: str) -> Upload:
        """Begin a multipart upload."""
        upload = Upload(f"{int(time.time())}{uuid.uuid4().hex}", key, time.time(), headers, acl)
        with self._lock:
            self.bucket(bucket).uploads[upload.upload_id] = upload
        return upload

    def upload(self, bucket: str, key: str, upload_id: str) -> Upload:
        """The unfinished upload ``upload_id`` of ``key``."""
        with self._lock:
            found = self.bucket(bucket).uploads.get(upload_id)
            if found is None or found.key != key:
                raise CosError("NoSuchUpload", "The specified multipart upload does not exist.")
            return found

    def uploads(self, bucket: str, prefix: str) -> list[Upload]:
        """The unfinished uploads below ``prefix``, by key and age."""
        with self._lock:
            found = self.bucket(bucket).uploads.values()
            return sorted((u for u in found if u.key.startswith(prefix)), key=lambda u: (u.key, u.upload_id))

    def put_part(self, bucket: str, key: str, upload_id: str, number: int, blob: Blob) -> None:
        """Keep a part, in place of an earlier one of the same number."""
        try:
            with self._lock:
                upload = self.upload(bucket, key, upload_id)
                old = upload.parts.get(number)
                upload.parts[number] = (blob, time.time())
        except CosError:
            _discard([blob])
            raise
        if old is not None:
            _discard([old[0]])

    def parts(self, bucket: str, key: str, upload_id: str) -> list[tuple[int, Blob, float]]:
        """Number, bytes and time of the parts that have arrived, by number."""
        with self._lock:
            found = self.upload(bucket, key, upload_id).parts
            return [(number, *found[number]) for number in sorted(found)]

    def complete(self, bucket: str, key: str, upload_id: str, listed: Sequence[tuple[int, str]]) -> Object:
        """Make an object of the listed parts, given as number and MD5; the others are discarded."""
        if not listed:
            raise CosError("MalformedXML", "The XML you provided lists no parts.")
        numbers = [number for number, _ in listed]
        if numbers != sorted(set(numbers)):
            raise CosError("InvalidPartOrder", "The list of parts was not in ascending order.")
        with self._lock:
            upload = self.upload(bucket, key, upload_id)
            for number, etag in listed:
                if number not in upload.parts or upload.parts[number][0].md5 != etag:
                    raise CosError("InvalidPart", f"Part {number} could not be found, or its ETag does not match.")
            blobs = tuple(upload.parts[number][0] for number in numbers)
            if any(blob.size < LEAST_PART for blob in blobs[:-1]):
                raise CosError("EntityTooSmall", "A part that is not the last is smaller than 1 MB.")
            del self.bucket(bucket).uploads[upload_id]
            etag = f"{hashlib.md5(''.join(blob.md5 for blob in blobs).encode()).hexdigest()}-{len(blobs)}"
            made = Object(key, blobs, etag, combined_crc(blobs), time.time(), upload.headers, upload.acl)
            self._place(bucket, made)
        _discard(blob for number, (blob, _) in upload.parts.items() if number not in numbers)
        return made

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give an unfinished upload up."""
        with self._lock:
            upload = self.upload(bucket, key, upload_id)
            del self.bucket(bucket).uploads[upload_id]
        _discard(blob for blob, _ in upload.parts.values())

    def _place(self, bucket: str, made: Object) -> Object:
        try:
            with self._lock:
                objects = self.bucket(bucket).objects
                old = objects.get(made.key)
                objects[made.key] = made
        except CosError:
            _discard(made.blobs)
            raise
        if old is not None:
            _discard(old.blobs)
        return made


def _discard(blobs: Iterable[Blob]) -> None:
    """Delete files; whoever is reading one keeps it until the end."""
    for blob in blobs:
        blob.file.unlink()
