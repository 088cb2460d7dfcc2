# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Numbers as people read them, and the one line that tells how far a transfer is."""

from __future__ import annotations

from typing import Any

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
PHASES = {
    "fenced": "source fenced",
    "idle": "idle",
    "initial_sync": "initial sync",
    "delta_sync": "backlog draining",
    "in_sync": "in sync",
    "stopped": "stopped",
    "failed": "failed",
    "cutover": "cutover",
    "approaching": "last look before it",
    "stopping_services": "stopping services",
    "freezing": "freezing filesystems",
    "final_pass": "final pass",
    "verifying": "verifying the copy",
    "prepared": "verified, source held",
}
# These passes tell more than the phase that they are part of.
KINDS = {"audit": "checking the copy", "rescan": "reading all again", "repair": "repairing the target"}


def size(number: float | None) -> str:
    """Bytes as a short text: 1536 -> ``1.5 KiB``."""
    value = float(number or 0)
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit takes everything")


def duration(seconds: float | None) -> str:
    """Seconds as ``0:42`` or ``1:02:03``; ``-`` when unknown."""
    if seconds is None:
        return "-"
    total = round(seconds)
    hours, rest = divmod(total, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def progress_bar(share: float, width: int = 20) -> str:
    """A bar of ``width`` characters filled to ``share`` (0..1)."""
    filled = round(max(0.0, min(1.0, share)) * width)
    return "█" * filled + "░" * (width - filled)


def sync_line(state: dict[str, Any]) -> str:
    """How far the target is behind a source whose changes are tracked; nothing where they are not."""
    sync = state.get("sync") or {}
    if sync.get("mode") != "tracking" or state.get("phase") not in ("delta_sync", "in_sync"):
        return ""
    text = f"  backlog {size(sync.get('backlog'))}"
    if sync.get("lag") is not None:
        text += f", lag {sync['lag']:.0f} s"
    if not sync.get("converging", True):
        text += f"; written at {size(sync.get('write_rate'))}/s, sent at {size(sync.get('send_rate'))}/s"
    return text


def progress_line(state: dict[str, Any]) -> str:
    """One line about a sender's state: phase, bar, bytes, rate and time left, or why it stands still."""
    phase = PHASES.get(str(state.get("phase")), str(state.get("phase")))
    if state.get("phase") == "cutover" and state.get("cutover"):
        phase = PHASES.get(str(state["cutover"].get("phase")), str(state["cutover"].get("phase")))
    progress = state.get("progress") or {}
    if state.get("phase") != "in_sync":
        phase = KINDS.get(str(progress.get("kind")), phase)
    if state.get("phase") == "cutover" and progress.get("kind") not in ("final", "repair"):
        # What is left from the pass before the cutover says nothing about it.
        progress = {}
    total, done = progress.get("bytes_total") or 0, progress.get("bytes_done") or 0
    text = f"{phase:<22}"
    if total:
        text += f" {progress_bar(done / total)} {100 * done / total:3.0f} %  {size(done)} of {size(total)} read"
        text += f", {size(progress.get('bytes_sent'))} sent"
        if done < total:
            text += f", {size(progress.get('rate'))}/s, {duration(progress.get('eta_seconds'))} left"
    text += sync_line(state)
    if state.get("stalled"):
        text += f"  STALLED: {state['stalled'].get('reason')}"
    return text.rstrip()
