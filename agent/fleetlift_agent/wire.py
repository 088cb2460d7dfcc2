# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wire format: a preamble, then length-prefixed frames (docs/wire-protocol.md describes every byte).

Pure functions from bytes to values and back; anything unexpected raises AgentError
WIRE_MALFORMED, and no frame may announce more than its type's bound.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import EXTENT, SUB_BLOCKS, Range
from fleetlift_agent.hashing import DIGEST, LEAF

MAGIC = b"FLEETLFT"
PROTOCOL = 3
_PREAMBLE = struct.Struct(">8sHH")
PREAMBLE_SIZE = _PREAMBLE.size
_HEADER = struct.Struct(">BBHI")
HEADER_SIZE = _HEADER.size

HELLO, WELCOME, ERROR, REQUEST, REPLY = 1, 2, 3, 4, 5
PING, PONG = 6, 7
DIGESTS_REQUEST, DIGESTS = 16, 17
LEAVES_REQUEST, LEAVES = 18, 19
WRITE, ACK, CLEAR = 20, 21, 22

JSON_LIMIT = 64 << 10
MAX_DIGESTS = 16384
MAX_ACKS = 8192
MAX_CLEARED = 256
_EXTENT_KEY = struct.Struct(">HHI")
_DIGESTS_REQUEST = struct.Struct(">HHII")
_WRITE = struct.Struct(f">HHIBBHI{DIGEST}s{DIGEST}s")
_RANGE = struct.Struct(">HHBB")

# What a write has before its ranges, and before its content at most.
WRITE_FIXED = _WRITE.size
WRITE_HEAD = _WRITE.size + SUB_BLOCKS * _RANGE.size

# The most payload bytes a frame of each type may announce.
PAYLOAD_LIMITS = {
    HELLO: JSON_LIMIT,
    WELCOME: JSON_LIMIT,
    ERROR: JSON_LIMIT,
    REQUEST: JSON_LIMIT,
    REPLY: JSON_LIMIT,
    PING: 0,
    PONG: 0,
    DIGESTS_REQUEST: _DIGESTS_REQUEST.size,
    DIGESTS: _EXTENT_KEY.size + MAX_DIGESTS * DIGEST,
    LEAVES_REQUEST: _EXTENT_KEY.size,
    LEAVES: _EXTENT_KEY.size + SUB_BLOCKS * LEAF,
    WRITE: WRITE_HEAD + EXTENT,
    ACK: MAX_ACKS * _EXTENT_KEY.size,
    CLEAR: MAX_CLEARED * _EXTENT_KEY.size,
}
MAX_PAYLOAD = max(PAYLOAD_LIMITS.values())


def malformed(why: str, **evidence: Any) -> AgentError:
    """The error for bytes that are not this protocol."""
    return AgentError(
        "WIRE_MALFORMED",
        f"The peer sent something that is not the replication protocol: {why}",
        "Check that host and port belong to the other agent of this migration and that both run the same version",
        evidence,
        subject="connection",
    )


def pack_preamble() -> bytes:
    return _PREAMBLE.pack(MAGIC, PROTOCOL, 0)


def check_preamble(data: bytes) -> None:
    """Raises WIRE_MALFORMED for a foreign protocol, PROTOCOL_VERSION_MISMATCH for another version of this one."""
    if len(data) != PREAMBLE_SIZE:
        raise malformed("the connection ended in the preamble")
    magic, version, _reserved = _PREAMBLE.unpack(data)
    if magic != MAGIC:
        raise malformed("the first bytes are not the protocol's magic", first_bytes=data[:8].hex())
    if version != PROTOCOL:
        raise AgentError(
            "PROTOCOL_VERSION_MISMATCH",
            f"The peer speaks protocol version {version}, this agent speaks {PROTOCOL}",
            "Install the same version of the agent on the source and in the landing",
            {"peer": version, "own": PROTOCOL},
            subject="connection",
        )


def pack_header(kind: int, length: int) -> bytes:
    return _HEADER.pack(kind, 0, 0, length)


def parse_header(data: bytes) -> tuple[int, int]:
    """(frame type, payload length) after checking both against their bounds."""
    kind, flags, reserved, length = _HEADER.unpack(data)
    limit = PAYLOAD_LIMITS.get(kind)
    if limit is None or flags or reserved:
        raise malformed(f"unknown frame type {kind} or reserved bits set", header=data.hex())
    if length > limit:
        raise malformed(f"a frame of type {kind} announces {length} bytes, the bound is {limit}", header=data.hex())
    return kind, length


def pack_json(value: Mapping[str, Any]) -> bytes:
    data = json.dumps(value, separators=(",", ":")).encode()
    if len(data) > JSON_LIMIT:
        raise malformed(f"a message of {len(data)} bytes exceeds {JSON_LIMIT}")
    return data


def parse_json(data: bytes | memoryview) -> dict[str, Any]:
    """The object in a HELLO, WELCOME, ERROR, REQUEST or REPLY."""
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise malformed(f"not JSON: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise malformed("the message is not a JSON object")
    return value


class ExtentKey(NamedTuple):
    """One extent of one disk (its index in HELLO's list)."""

    disk: int
    extent: int

    def pack(self) -> bytes:
        return _EXTENT_KEY.pack(self.disk, 0, self.extent)


def parse_extent_key(data: bytes | memoryview) -> ExtentKey:
    if len(data) != _EXTENT_KEY.size:
        raise malformed("an extent key has the wrong length")
    disk, _reserved, extent = _EXTENT_KEY.unpack(data)
    return ExtentKey(disk, extent)


def pack_extent_keys(keys: Sequence[ExtentKey]) -> bytes:
    """The payload of an ACK or a CLEAR."""
    return b"".join([key.pack() for key in keys])


def parse_extent_keys(data: bytes | memoryview) -> list[ExtentKey]:
    if len(data) % _EXTENT_KEY.size:
        raise malformed("a list of extents has the wrong length")
    return [ExtentKey(disk, extent) for disk, _reserved, extent in _EXTENT_KEY.iter_unpack(data)]


@dataclass(frozen=True)
class DigestsRequest:
    disk: int
    first: int
    count: int

    def pack(self) -> bytes:
        return _DIGESTS_REQUEST.pack(self.disk, 0, self.first, self.count)


def parse_digests_request(data: bytes | memoryview) -> DigestsRequest:
    if len(data) != _DIGESTS_REQUEST.size:
        raise malformed("a request for digests has the wrong length")
    disk, _reserved, first, count = _DIGESTS_REQUEST.unpack(data)
    if not 1 <= count <= MAX_DIGESTS:
        raise malformed(f"{count} digests asked for at once")
    return DigestsRequest(disk, first, count)


@dataclass(frozen=True)
class Digests:
    """Digests of consecutive extents, from `key` on, concatenated."""

    key: ExtentKey
    digests: bytes

    def pack(self) -> bytes:
        return self.key.pack() + self.digests


def parse_digests(data: bytes | memoryview) -> Digests:
    return Digests(*_key_and_hashes(data, DIGEST))


@dataclass(frozen=True)
class Leaves:
    """The leaves of one extent, concatenated."""

    key: ExtentKey
    leaves: bytes

    def pack(self) -> bytes:
        return self.key.pack() + self.leaves


def parse_leaves(data: bytes | memoryview) -> Leaves:
    return Leaves(*_key_and_hashes(data, LEAF))


def _key_and_hashes(data: bytes | memoryview, size: int) -> tuple[ExtentKey, bytes]:
    key = parse_extent_key(data[: _EXTENT_KEY.size])
    hashes = bytes(data[_EXTENT_KEY.size :])
    if not hashes or len(hashes) % size:
        raise malformed("a list of hashes has the wrong length")
    return key, hashes


@dataclass(frozen=True)
class Write:
    """New content for some sub-blocks of one extent; for none, when the target was found to hold all of it.

    digest is the extent's digest afterwards, content_hash is H(concatenated leaves of the
    data sub-blocks), raw_length their bytes before compression.
    """

    key: ExtentKey
    digest: bytes
    content_hash: bytes
    ranges: tuple[Range, ...]
    codec: int
    raw_length: int

    @property
    def head_size(self) -> int:
        """Bytes before the content."""
        return WRITE_FIXED + len(self.ranges) * _RANGE.size

    def pack(self) -> bytes:
        """Everything before the (compressed) content."""
        head = _WRITE.pack(
            self.key.disk,
            len(self.ranges),
            self.key.extent,
            self.codec,
            0,
            0,
            self.raw_length,
            self.digest,
            self.content_hash,
        )
        return head + b"".join([_RANGE.pack(part.first, part.count, int(part.zero), 0) for part in self.ranges])


def write_head_size(fixed: memoryview) -> int:
    """How many bytes of a write's payload come before its content; `fixed` are the first ones."""
    if len(fixed) != WRITE_FIXED:
        raise malformed("a write is shorter than its header")
    count = _WRITE.unpack(fixed)[1]
    if count > SUB_BLOCKS:
        raise malformed(f"a write with {count} ranges")
    return int(WRITE_FIXED + count * _RANGE.size)


def parse_write(head: memoryview) -> Write:
    """What comes before the content of a write."""
    if write_head_size(head[:WRITE_FIXED]) != len(head):
        raise malformed("the header of a write has the wrong length")
    disk, _count, extent, codec, flags, reserved, raw_length, digest, content_hash = _WRITE.unpack(head[:WRITE_FIXED])
    if flags or reserved or raw_length > EXTENT:
        raise malformed("the header of a write contradicts itself")
    return Write(ExtentKey(disk, extent), digest, content_hash, _parse_ranges(head[WRITE_FIXED:]), codec, raw_length)


def _parse_ranges(data: memoryview) -> tuple[Range, ...]:
    ranges = []
    at = 0
    for first, count, kind, reserved in _RANGE.iter_unpack(data):
        if reserved or kind > 1 or count == 0 or first < at or first + count > SUB_BLOCKS:
            raise malformed("the ranges of a write overlap or leave the extent")
        ranges.append(Range(first, count, bool(kind)))
        at = first + count
    return tuple(ranges)
