# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An upload that can be killed at any byte and continued: parts in parallel, each verified, the whole verified."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from ..crc64 import CHUNK, crc64, crc64_of_file, joined
from ..findings import Refusal, refuse
from ..pace import Pace
from ..upload_progress import UploadProgress
from .cos_client import CosClient, ObjectHead, Part, Stored, UnfinishedUpload
from .cos_errors import CosError

# The vendor's limits, pages 436/14518 and 436/7750.
MOST_PARTS = 10_000
SMALLEST_PART = 1024 * 1024
LARGEST_PART = 5 * 1024**3
LARGEST_OBJECT = 50_000_000_000_000
# A part that arrives damaged this often is no accident of the line.
CORRUPTION_ATTEMPTS = 3
LONGEST_BACKOFF = 20.0


@dataclass(frozen=True)
class Options:
    """How to upload: sizes in bytes, ``bandwidth_limit`` in bytes per second, ``stall_timeout`` in seconds."""

    part_size: int = 16 * 1024 * 1024
    connections: int = 4
    bandwidth_limit: int | None = None
    stall_timeout: float = 600
    headers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Uploaded:
    """What an upload came to; sizes in bytes."""

    size: int
    crc: int
    sent: int
    kept: int
    parts: int


@dataclass(frozen=True)
class Window:
    """Where a part lies in the file, in bytes; numbers begin at 1."""

    number: int
    offset: int
    size: int


class Image:
    """A regular file that is open for reading and must stay as it is."""

    def __init__(self, path: str) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise refuse(
                "UPLOAD_SOURCE_UNREADABLE",
                path,
                f"The file cannot be read: {error.strerror}.",
                "Check path and its permissions; it is a file on the controller.",
            ) from error
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            raise refuse(
                "UPLOAD_SOURCE_UNREADABLE",
                path,
                "This is not a regular file.",
                "Name an image file; export a disk to a file first.",
            )
        self.path = path
        self.size = status.st_size
        self._identity = (status.st_mtime_ns, status.st_size)
        if self.size > LARGEST_OBJECT:
            os.close(self.fd)
            raise refuse(
                "COS_TOO_LARGE",
                path,
                f"The file has {self.size} bytes, an object at most {LARGEST_OBJECT}.",
                "Split it.",
            )

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self.fd)

    def check_unchanged(self) -> None:
        """Refuse when the file was written to since it was opened: what was sent would be of two states."""
        status = os.fstat(self.fd)
        if (status.st_mtime_ns, status.st_size) != self._identity:
            raise refuse(
                "UPLOAD_SOURCE_CHANGED",
                self.path,
                "The file was written to while it was uploaded.",
                "Wait until whatever writes it has ended, then run again; unchanged parts are not sent again.",
            )

    def crc(self, advance: Callable[[int], None]) -> int:
        """The CRC64 of the whole file; its holes are not read."""
        try:
            return crc64_of_file(self.fd, self.size, advance)
        except EOFError:
            self.check_unchanged()
            raise


class PartBody:
    """A part as a file that the SDK reads: paced, counted, and its CRC64 known at the end."""

    def __init__(
        self, image: Image, window: Window, pace: Pace, progress: UploadProgress, stop: threading.Event
    ) -> None:
        self._image = image
        self._window = window
        self._pace = pace
        self._progress = progress
        self._stop = stop
        self._position = 0
        self.crc = 0

    def __len__(self) -> int:
        return self._window.size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(CHUNK), b"")

    def tell(self) -> int:
        """Bytes that were read."""
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Start over, which is all that sending again needs."""
        if position or whence != os.SEEK_SET:
            raise ValueError("a part is read from its start to its end")
        self._progress.lost(self._position)
        self._position = self.crc = 0
        return 0

    def read(self, count: int = -1) -> bytes:
        """The next bytes, at most *count*."""
        left = self._window.size - self._position
        wanted = min(left, self._pace.piece, CHUNK if count < 0 else count)
        if not wanted:
            return b""
        self._pace.take(wanted)
        if self._stop.is_set():
            raise InterruptedError("another part has failed for good")
        piece = os.pread(self._image.fd, wanted, self._window.offset + self._position)
        if not piece:
            raise EOFError("the file became shorter")
        self.crc = crc64(piece, self.crc)
        self._position += len(piece)
        self._progress.sent(len(piece))
        return piece


class Uploader:
    """Uploads one file to one key. A further run of the same continues it."""

    def __init__(
        self,
        client: CosClient,
        bucket: str,
        key: str,
        options: Options,
        progress: UploadProgress,
        *,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._options = options
        self._progress = progress
        self._clock = clock
        self._spread = spread
        self._pace = Pace(options.bandwidth_limit)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._sent = self._kept = 0

    @property
    def subject(self) -> str:
        """How records name the object."""
        return f"{self._bucket}/{self._key}"

    def is_stored(self, image: Image, head: ObjectHead | None) -> bool:
        """Whether the object is the file already, by size and CRC64."""
        if head is None or head.size != image.size or head.crc is None:
            return False
        return image.crc(self._progress.advance) == head.crc

    def upload(self, image: Image) -> Uploaded:
        """Bring the file to COS. Raises Refusal; what has arrived stays there for the next run."""
        self._progress.enter("uploading")
        if image.size <= self._options.part_size:
            crc, parts = self._upload_whole(image), 1
        else:
            crc, parts = self._upload_parts(image)
        self._check_stored(image, crc)
        # The object is complete: whatever else was begun for this key only costs money.
        abandon(self._client, self._bucket, unfinished(self._client, self._bucket, self._key))
        self._progress.enter("done")
        self._progress.advance(image.size)
        return Uploaded(image.size, crc, self._sent, self._kept, parts)

    def _upload_whole(self, image: Image) -> int:
        headers = self._options.headers
        window = Window(1, 0, image.size)

        def send(body: Any) -> Stored:
            return self._client.put(self._bucket, self._key, body, headers)

        crc = self._sent_part(image, window, send)[1]
        try:
            image.check_unchanged()
        except Refusal:
            self._client.delete(self._bucket, self._key)
            raise
        return crc

    def _upload_parts(self, image: Image) -> tuple[int, int]:
        upload_id, part_size, arrived = self._continued(image)
        windows = windows_of(image.size, part_size)
        results: list[tuple[str, int]] = [("", 0)] * len(windows)

        def work(window: Window) -> None:
            if not self._stop.is_set():
                results[window.number - 1] = self._part(image, window, upload_id, arrived.get(window.number))

        with ThreadPoolExecutor(self._options.connections, thread_name_prefix="part") as pool:
            pending = [pool.submit(work, window) for window in windows]
            try:
                for future in as_completed(pending):
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        crc = 0
        for window, (_etag, part_crc) in zip(windows, results):
            crc = joined(crc, part_crc, window.size)
        image.check_unchanged()
        self._progress.enter("completing")
        self._complete(upload_id, [(window.number, etag) for window, (etag, _crc) in zip(windows, results)], crc)
        return crc, len(windows)

    def _continued(self, image: Image) -> tuple[str, int, dict[int, Part]]:
        """The upload to go on with, its part size, and its parts that have arrived; a new one when none fits."""
        wanted = fitting_part_size(image.size, self._options.part_size)
        for upload in reversed(unfinished(self._client, self._bucket, self._key)):
            parts = self._client.parts(self._bucket, self._key, upload.upload_id)
            part_size = part_size_of(parts, image.size, wanted)
            if part_size:
                return upload.upload_id, part_size, {part.number: part for part in parts}
        return self._client.create_upload(self._bucket, self._key, self._options.headers), wanted, {}

    def _part(self, image: Image, window: Window, upload_id: str, arrived: Part | None) -> tuple[str, int]:
        """Have one part at COS; returns its ETag and CRC64."""
        if arrived is not None and arrived.size == window.size:
            md5, crc = _digests(image, window)
            if md5 == arrived.etag:
                self._progress.kept(window.size)
                with self._lock:
                    self._kept += window.size
                return arrived.etag, crc

        def send(body: Any) -> Stored:
            return self._client.put_part(self._bucket, self._key, upload_id, window.number, body)

        return self._sent_part(image, window, send)

    def _sent_part(self, image: Image, window: Window, send: Callable[[Any], Stored]) -> tuple[str, int]:
        """Send until it has arrived undamaged; returns ETag and CRC64."""
        for _attempt in range(CORRUPTION_ATTEMPTS):
            stored, crc = self._persistently(image, window, send)
            intact = stored.crc == crc if stored.crc is not None else stored.etag == _digests(image, window)[0]
            if intact:
                with self._lock:
                    self._sent += window.size
                return stored.etag, crc
            self._progress.lost(window.size)
        image.check_unchanged()
        raise refuse(
            "COS_PART_CORRUPTED",
            self.subject,
            f"Part {window.number} arrived at COS damaged {CORRUPTION_ATTEMPTS} times.",
            "Look for a proxy or network device that changes data on the way, and use https; then run again.",
            part=window.number,
            crc_sent=crc,
            crc_arrived=stored.crc,
        )

    def _persistently(self, image: Image, window: Window, send: Callable[[Any], Stored]) -> tuple[Stored, int]:
        """Send, and again while that fails for reasons that pass, until nothing has arrived for too long."""
        failures = 0
        while True:
            body = PartBody(image, window, self._pace, self._progress, self._stop)
            # Without a byte in it, a body that is a file would be sent in chunks, which COS refuses.
            content: Any = body if window.size else b""
            try:
                stored = send(content)
            except CosError as error:
                self._progress.lost(body.tell())
                image.check_unchanged()
                if not error.is_transient or self._stop.is_set():
                    raise
                failures += 1
                self._back_off(error, failures)
                continue
            with self._lock:
                self._failing_since = None
            self._progress.stalled(None)
            return stored, body.crc

    def _back_off(self, error: CosError, failures: int) -> None:
        """Wait before the next attempt, or raise *error* when no part has arrived for the stall timeout."""
        now = self._clock()
        with self._lock:
            if self._failing_since is None:
                self._failing_since = now
            since = self._failing_since
        if now - since >= self._options.stall_timeout:
            raise error
        self._progress.stalled(error.message or error.code)
        longest = min(LONGEST_BACKOFF, 0.25 * 2.0**failures, self._options.stall_timeout)
        self._stop.wait(self._spread(longest / 2, longest))

    def _complete(self, upload_id: str, parts: Sequence[tuple[int, str]], crc: int) -> None:
        failures = 0
        while True:
            try:
                self._client.complete(self._bucket, self._key, upload_id, parts)
                return
            except CosError as error:
                if failures and error.code == "NoSuchUpload":
                    # It may have been done although its answer was lost.
                    head = self._client.head(self._bucket, self._key)
                    if head is not None and head.crc == crc:
                        return
                if not error.is_transient:
                    raise
                failures += 1
                self._back_off(error, failures)

    def _check_stored(self, image: Image, crc: int) -> None:
        head = self._client.head(self._bucket, self._key)
        if head is not None and head.size == image.size and head.crc in (crc, None):
            return
        if head is not None:
            self._client.delete(self._bucket, self._key)
        raise refuse(
            "COS_OBJECT_CORRUPTED",
            self.subject,
            "The object at COS is not the file: its size or CRC64 differs. It was removed.",
            "Run again; if it happens again, give the evidence to the vendor's support.",
            size=image.size,
            crc=crc,
            stored_size=head.size if head else None,
            stored_crc=head.crc if head else None,
        )


def unfinished(
    client: CosClient, bucket: str, key: str | None = None, prefix: str | None = None, before: float = 0.0
) -> list[UnfinishedUpload]:
    """The unfinished uploads of *key*, and those below *prefix* that were begun *before* that time in epoch seconds."""
    found = [] if key is None else [upload for upload in client.uploads(bucket, key) if upload.key == key]
    if prefix is not None:
        old = [upload for upload in client.uploads(bucket, prefix) if upload.initiated < before]
        found += [upload for upload in old if upload.key != key]
    return found


def abandon(client: CosClient, bucket: str, uploads: Sequence[UnfinishedUpload]) -> None:
    """Give unfinished uploads up."""
    for upload in uploads:
        client.abort(bucket, upload.key, upload.upload_id)


def windows_of(size: int, part_size: int) -> list[Window]:
    """The parts of a file of *size* bytes."""
    return [
        Window(number, offset, min(part_size, size - offset))
        for number, offset in enumerate(range(0, size, part_size), 1)
    ]


def fitting_part_size(size: int, wanted: int) -> int:
    """*wanted*, or as much more, in whole MiB, as keeps the number of parts within what COS allows."""
    least = -(-size // MOST_PARTS)
    mib = 1024 * 1024
    return max(wanted, -(-least // mib) * mib)


def part_size_of(parts: Sequence[Part], size: int, wanted: int) -> int | None:
    """The part size with which an upload of a file of *size* bytes was begun; None when it was another file's.

    With no parts, or parts that fit it, *wanted*.
    """
    for part_size in (wanted, max((part.size for part in parts), default=wanted)):
        if not SMALLEST_PART <= part_size <= LARGEST_PART or -(-size // part_size) > MOST_PARTS:
            continue
        expected = {window.number: window.size for window in windows_of(size, part_size)}
        if all(expected.get(part.number) == part.size for part in parts):
            return part_size
    return None


def _digests(image: Image, window: Window) -> tuple[str, int]:
    """MD5 in hexadecimal and CRC64 of a part as it is in the file."""
    md5 = hashlib.md5(usedforsecurity=False)
    crc, offset, end = 0, window.offset, window.offset + window.size
    while offset < end:
        piece = os.pread(image.fd, min(CHUNK, end - offset), offset)
        if not piece:
            image.check_unchanged()
            raise EOFError(f"{image.path} ends early")
        md5.update(piece)
        crc = crc64(piece, crc)
        offset += len(piece)
    return md5.hexdigest(), crc
