# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A copy of an image, adapted to boot on a CVM: the same adaptation as that of a migrated server, on a file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..boot_adaptation import listed, shown
from ..findings import Refusal, finding_from, refuse
from ..upload_progress import UploadProgress
from . import conversion, qemu
from .compress import check_place, convertible, verify
from .conversion import Target
from .header import Header, ImageFile
from .inspection import Inspected, Order, look_at

SCHEMA = 1


@dataclass(frozen=True)
class Wish:
    """What to make. *options* are those of the agent's adaptation; *timeout* in seconds, for each of the steps.

    *grow_to* is the size in bytes that the disk shall have, None for that of the image.
    """

    path: str
    dest: str
    options: Mapping[str, Any]
    format: str = "qcow2"
    compress: bool = True
    timeout: float = 86400
    grow_to: int | None = None
    check_mode: bool = False
    diff: bool = False


def record_path(dest: Path) -> Path:
    """Where the record of what was changed lies, beside the prepared image."""
    return dest.with_name(f"{dest.name}.adapt.json")


def prepare(wish: Wish, agent: str, progress: UploadProgress) -> dict[str, Any]:
    """Make the copy and adapt it; the module's result. Raises Refusal; nothing is left under the final name then."""
    started = time.monotonic()
    final = Path(wish.dest).absolute()
    with ImageFile(wish.path) as file:
        check_place(file, final)
        found = look_at(file, Order(agent))
        convertible(found)
        origin = {"path": str(file.path.absolute()), **_identity(os.fstat(file.fd))}
        earlier = _recorded(final, origin, wish)
        if earlier is not None:
            return {"changed": False, **_result(final, earlier)}
        if os.geteuid() != 0:
            raise refuse(
                "NOT_ROOT",
                wish.path,
                "Adapting an image mounts a copy of it, which only root can do.",
                "Run the task with become: true.",
            )
        virtual = found.look.header.virtual_size or 0
        _check_growth(wish, virtual)
        progress.resize(virtual)
        source = qemu.opened_as(file.path, found.look.header)
        _check_space(final, found, wish)
        work = final.with_name(f"{final.name}.raw")
        with conversion.partial(work) as copy:
            progress.enter("converting")
            conversion.convert(source, copy, Target("raw"), progress.share, wish.timeout)
            progress.enter("comparing")
            verify(source, copy, Header("raw"), progress, wish.timeout)
            progress.enter("adapting")
            if wish.grow_to is not None:
                os.truncate(copy, wish.grow_to)
            reply = _adapted(copy, found, wish, agent)
            if wish.check_mode:
                return {**_described(reply), "changed": True, "path": str(final)}
            _finish(copy, final, file.path, wish, progress)
        record = _write_record(final, origin, wish, reply)
    seconds = round(time.monotonic() - started, 1)
    return {"changed": True, **_result(final, record), **_described(reply), "seconds": seconds}


def _check_growth(wish: Wish, virtual: int) -> None:
    if wish.grow_to is not None and (wish.grow_to < virtual or wish.grow_to % 512):
        raise refuse(
            "OPTION_OUT_OF_RANGE",
            "grow_to",
            f"grow_to is {wish.grow_to}, and the disk in the image has {virtual} bytes.",
            "Give at least that, in whole sectors of 512 bytes. A disk is never made smaller.",
        )


def _check_space(final: Path, found: Inspected, wish: Wish) -> None:
    """The raw copy takes what the disk holds; the result comes on top of it when it is not that copy itself."""
    data = found.sample.data if found.sample is not None else found.look.header.virtual_size or 0
    result = 0
    if wish.format != "raw" and not wish.check_mode:
        result = found.sample.compressed if found.sample is not None and wish.compress else data
    conversion.check_space(final.parent, data + result, "adapted copy")


def _adapted(copy: Path, found: Inspected, wish: Wish, agent: str) -> dict[str, Any]:
    """The agent's reply about the raw *copy*. Raises Refusal for its first blocker."""
    options = {**wish.options, "grow": wish.grow_to is not None}
    if options.get("firmware", "auto") == "auto":
        # What the image was made for. The machine that adapts it says nothing about the one that boots it.
        options["firmware"] = "uefi" if found.look.firmware == ("uefi",) else "bios"
    order = {
        "disks": [{"id": "d0", "path": str(copy)}],
        "check": wish.check_mode,
        "diff": wish.diff,
        "options": options,
    }
    try:
        done = subprocess.run(
            [sys.executable, *_program(agent), "adapt"],
            input=json.dumps(order).encode(),
            capture_output=True,
            check=False,
            timeout=wish.timeout,
            env={**qemu.ENVIRONMENT, "PYTHONPATH": agent},
            preexec_fn=qemu.ends_with_us,
        )
    except subprocess.TimeoutExpired as error:
        raise refuse(
            "ADAPT_TIMEOUT",
            wish.path,
            f"The adaptation had not ended after {wish.timeout:.0f} s, and was stopped. The image itself is untouched.",
            "Give it more time with the option timeout.",
        ) from error
    try:
        reply: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise refuse(
            "ADAPT_UNREADABLE",
            wish.path,
            f"The adaptation ended with status {done.returncode} and without a result.",
            "Run again; the image itself is untouched.",
            output=done.stderr.decode("utf-8", "replace")[-1000:],
        ) from error
    if not reply.get("ok"):
        raise Refusal(finding_from(reply["error"]))
    return reply


def _program(agent: str) -> list[str]:
    """The words that start the agent: its zipapp, or its package in a directory."""
    return [agent] if Path(agent).is_file() else ["-m", "fleetlift_agent"]


def _finish(copy: Path, final: Path, like: Path, wish: Wish, progress: UploadProgress) -> None:
    """Bring the adapted raw *copy* into its format and place."""
    if wish.format == "raw":
        conversion.sync(copy)
        conversion.put(copy, final, like)
        progress.enter("ready")
        return
    words = {"driver": "raw", "file": {"driver": "file", "filename": str(copy)}}
    raw = f"json:{json.dumps(words)}"
    with conversion.partial(final) as place:
        progress.enter("converting")
        target = Target(wish.format, "zlib" if wish.compress else "")
        conversion.convert(raw, place, target, progress.share, wish.timeout)
        progress.enter("comparing")
        verify(raw, place, Header(wish.format), progress, wish.timeout)
        conversion.put(place, final, like)
    progress.enter("ready")


def _identity(status: os.stat_result) -> dict[str, Any]:
    """What changes when a file does."""
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _options_digest(wish: Wish) -> str:
    text = json.dumps([wish.format, wish.compress, wish.grow_to, dict(wish.options)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_record(final: Path, origin: dict[str, Any], wish: Wish, reply: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the record at once; it says which file it is about, so that it fits no other."""
    record = {
        "schema": SCHEMA,
        "source": origin,
        "options": _options_digest(wish),
        "prepared": _identity(final.stat()),
        "changes": listed(reply["changes"]),
        "findings": reply["findings"],
        "root": reply["root"],
    }
    with conversion.partial(record_path(final)) as place:
        place.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        conversion.sync(place)
        conversion.put(place, record_path(final), final)
    return record


def _recorded(final: Path, origin: dict[str, Any], wish: Wish) -> dict[str, Any] | None:
    """The record, if it says that *final* is what is wanted, made of this very source."""
    try:
        record: dict[str, Any] = json.loads(record_path(final).read_text(encoding="utf-8"))
        fits = (
            record["schema"] == SCHEMA
            and record["source"] == origin
            and record["options"] == _options_digest(wish)
            and record["prepared"] == _identity(final.stat())
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Without a record, or with one that is none, the work is done anew.
        return None
    return record if fits else None


def _result(final: Path, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": str(final),
        "record": str(record_path(final)),
        "size": final.stat().st_size,
        **{key: record[key] for key in ("changes", "findings", "root")},
    }


def _described(reply: Mapping[str, Any]) -> dict[str, Any]:
    """The reply as the module returns it."""
    described = {"changes": listed(reply["changes"]), "findings": reply["findings"], "root": reply["root"]}
    texts = shown(reply["changes"])
    return {**described, "diff": texts} if texts else described
