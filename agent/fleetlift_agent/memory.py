# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have everything in memory before the root filesystem is frozen: a page or module read from it then never arrives."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os

# include/uapi/asm-generic/mman.h
MCL_CURRENT = 1
MCL_FUTURE = 2

# Python imports these on first use, deep inside calls that look harmless (strptime, a TLS failure, an encoding name).
LAZY_MODULES = (
    "_strptime",
    "base64",
    "bisect",
    "calendar",
    "concurrent.futures.thread",
    "datetime",
    "encodings.ascii",
    "encodings.hex_codec",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.unicode_escape",
    "encodings.utf_8",
    "hashlib",
    "hmac",
    "ipaddress",
    "json.decoder",
    "json.encoder",
    "json.scanner",
    "linecache",
    "locale",
    "multiprocessing",
    "queue",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "ssl",
    "stringprep",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "tokenize",
    "traceback",
    "unicodedata",
    "warnings",
    "zipfile",
    "zlib",
)
# Faster implementations that a server may lack.
OPTIONAL_MODULES = ("blake3", "xxhash", "zstandard")


@functools.cache
def c_library() -> ctypes.CDLL:
    """The C library this process is linked with, whose calls leave ``ctypes.get_errno()``."""
    return ctypes.CDLL(None, use_errno=True)


def preload_and_lock() -> list[str]:
    """Import what would be imported later and lock all memory, present and future, against being paged out.

    Returns notes, one sentence for each thing that could not be done; an empty list means that all is in memory.
    """
    notes = []
    for name in LAZY_MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            notes.append(f"The Python on this server has no module {name}: {error}.")
    for name in OPTIONAL_MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            # The agent works without; nothing of it can be asked for later.
            continue
    # Each of these reads files (locale archive, character tables, error texts) the first time only.
    "fleetlift".encode("idna")
    os.strerror(5)
    if c_library().mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        number = ctypes.get_errno()
        notes.append(f"The agent's memory cannot be locked: {os.strerror(number)}.")
    return notes


def locked_bytes() -> int:
    """How much of this process is locked in memory, in bytes (VmLck of /proc/self/status)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("VmLck:"):
                return int(line.split()[1]) * 1024
    return 0
