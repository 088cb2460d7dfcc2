# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's half of the agent: bundle, certificates, the conversation, and what people read."""

from __future__ import annotations

import datetime
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils import progress, summary
from ansible_collections.fleetlift.cvm.plugins.plugin_utils import agent_bundle, pair_certificates, remote_agent
from cryptography import x509

NOW = datetime.datetime(2026, 11, 22, 12, 0, tzinfo=datetime.timezone.utc)


def local_shell(**environment: str) -> remote_agent.RemoteShell:
    """A RemoteShell whose remote side is this machine's own shell."""

    def execute(command: str, in_data: bytes | None, sudoable: bool) -> dict[str, Any]:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            input=in_data or b"",
            capture_output=True,
            check=False,
            env={**os.environ, **environment},
        )
        return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}

    return remote_agent.RemoteShell(execute)


def test_the_bundle_is_the_same_for_the_same_source(tmp_path: Path) -> None:
    package = tmp_path / "fleetlift_agent"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("def main():\n    print('hello from the bundle')\n")
    first = agent_bundle.build(package)
    os.utime(package / "__main__.py", (0, 0))
    assert agent_bundle.build(package) == first
    (package / "__main__.py").write_text("def main():\n    print('hello again')\n")
    assert agent_bundle.build(package).sha256 != first.sha256


def test_the_bundle_runs(tmp_path: Path) -> None:
    package = tmp_path / "fleetlift_agent"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("def main():\n    print('hello from the bundle')\n")
    path = tmp_path / "agent.pyz"
    path.write_bytes(agent_bundle.build(package).data)
    assert zipfile.is_zipfile(path)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    assert done.stdout == "hello from the bundle\n"


def test_a_package_without_a_main_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        agent_bundle.build(tmp_path)


def test_keys_are_private_and_made_once(tmp_path: Path) -> None:
    directory = tmp_path / "pki"
    assert pair_certificates.ensure_pair(directory, "web1", NOW)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert set(before) == {"sender.key", "sender.crt", "receiver.key", "receiver.crt"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert not pair_certificates.ensure_pair(directory, "web1", NOW)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_a_pair_about_to_expire_is_made_anew_on_both_ends(tmp_path: Path) -> None:
    pair_certificates.ensure_pair(tmp_path, "web1", NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert pair_certificates.ensure_pair(tmp_path, "web1", NOW + pair_certificates.VALIDITY)
    assert all(path.read_bytes() != before[path.name] for path in tmp_path.iterdir())


def test_a_certificate_is_accepted_by_a_server_whose_clock_is_behind(tmp_path: Path) -> None:
    pair_certificates.ensure_pair(tmp_path, "web1", NOW)
    certificate = x509.load_pem_x509_certificate((tmp_path / "sender.crt").read_bytes())
    assert certificate.not_valid_before_utc <= NOW - datetime.timedelta(days=1)


@pytest.mark.parametrize("name", ["", "../etc", "a/b", "a..b", "x" * 64, "-rf", "a b", "a;b", "a\n"])
def test_a_migration_name_cannot_leave_its_directory(name: str) -> None:
    with pytest.raises(remote_agent.RemoteError, match="MIGRATION_NAME_INVALID"):
        remote_agent.migration_directory(name)


def test_written_files_are_private_from_the_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    local_shell().write(str(path), b"\x00secret\n")
    assert path.read_bytes() == b"\x00secret\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["key.pem"]


def test_a_failed_write_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(remote_agent.RemoteError, match="REMOTE_WRITE_FAILED") as caught:
        local_shell().write(str(tmp_path / "missing" / "file"), b"")
    assert "missing/file" in caught.value.record["cause"]


def test_digests_of_existing_files_only(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"x")
    found = local_shell().sha256([str(tmp_path / "a b"), str(tmp_path / "none")])
    assert found == {str(tmp_path / "a b"): "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}


def test_a_python_is_found() -> None:
    python = local_shell().find_python(None)
    subprocess.run([python, "-c", "import sys; assert sys.version_info >= (3, 9)"], check=True)


def test_no_suitable_python_is_said_clearly(tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    with pytest.raises(remote_agent.RemoteError, match="PYTHON_TOO_OLD") as caught:
        local_shell().find_python(str(old))
    assert "fleetlift_agent_python" in caught.value.record["action"]


@pytest.mark.parametrize("top", ["", "python/"])
def test_a_relocatable_python_is_unpacked_and_tried(tmp_path: Path, top: str) -> None:
    interpreter = tmp_path / "python3"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(interpreter, f"{top}bin/python3")
    found = local_shell().unpack_python(buffer.getvalue(), str(tmp_path / "runtime"))
    assert found == str(tmp_path / "runtime" / top / "bin" / "python3")


def test_an_archive_without_a_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(remote_agent.RemoteError, match="RUNTIME_UNUSABLE"):
        local_shell().unpack_python(b"this is no archive", str(tmp_path / "runtime"))


def test_a_missing_agent_and_a_broken_one_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_agent, "BASE_DIRECTORY", str(tmp_path))
    agent = remote_agent.RemoteAgent(local_shell(), "web1", sys.executable)
    with pytest.raises(remote_agent.RemoteError, match="AGENT_NOT_DEPLOYED"):
        agent.status()
    assert agent.status_or_none() is None
    (tmp_path / "web1").mkdir()
    (tmp_path / "web1" / "agent.pyz").write_text("print('no json here')")
    with pytest.raises(remote_agent.RemoteError, match="AGENT_UNREADABLE"):
        agent.status_or_none()


def test_an_agents_refusal_keeps_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_agent, "BASE_DIRECTORY", str(tmp_path))
    (tmp_path / "web1").mkdir()
    record = '{"error": {"code": "X_FAILED", "severity": "blocker", "cause": "c.", "action": "a.", "evidence": "e"}}'
    (tmp_path / "web1" / "agent.pyz").write_text(f"print('banner')\nprint('{record}')\nraise SystemExit(1)")
    with pytest.raises(remote_agent.AgentRefusal, match="X_FAILED: c. Next: a.") as caught:
        remote_agent.RemoteAgent(local_shell(), "web1", sys.executable).status()
    assert caught.value.record["evidence"] == "e"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 << 20, "300 MiB"), (5 << 40, "5.0 TiB"), (None, "0 B")],
)
def test_sizes_read_well(number: int | None, text: str) -> None:
    assert progress.size(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (0, "0:00"), (61.4, "1:01"), (3661, "1:01:01")])
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert progress.duration(seconds) == text


def test_progress_says_how_far_how_fast_and_how_long() -> None:
    line = progress.progress_line(
        {
            "phase": "initial_sync",
            "progress": {
                "bytes_total": 1 << 30,
                "bytes_done": 1 << 29,
                "bytes_sent": 1 << 20,
                "rate": 10 << 20,
                "eta_seconds": 52,
            },
        }
    )
    assert "initial sync" in line
    assert " 50 %" in line and "10.0 MiB/s" in line and "0:52 left" in line


def test_progress_of_a_cutover_does_not_show_the_pass_before_it() -> None:
    state = {"phase": "cutover", "cutover": {"phase": "freezing"}, "progress": {"kind": "delta", "bytes_total": 5}}
    assert progress.progress_line(state) == "freezing filesystems"
    state["progress"] = {"kind": "final", "bytes_total": 4, "bytes_done": 1}
    assert " 25 %" in progress.progress_line(state)


def test_progress_says_why_it_stands_still() -> None:
    line = progress.progress_line({"phase": "initial_sync", "stalled": {"since": 1, "reason": "connection refused"}})
    assert "STALLED: connection refused" in line


def test_the_table_has_a_row_per_source_and_the_cause_of_each_failure() -> None:
    good = {
        "target": "ins-1",
        "phases": [
            {"phase": "transfer", "status": "ok", "data": {"transfer": {"totals": {"bytes_read": 1 << 30}}}},
            {
                "phase": "handover",
                "status": "ok",
                "data": {
                    "totals": {"bytes_read": 2 << 30, "bytes_sent": 1 << 20},
                    "passes": [{}, {}],
                    "cutover": {"verified": True},
                },
            },
            {"phase": "cutover", "status": "ok", "data": {"downtime_seconds": 7.25}},
        ],
    }
    bad = {
        "target": "ins-2",
        "phases": [{"phase": "landing", "status": "failed", "data": {"message": "TARGET_EXPIRED: gone."}}],
    }
    rows = [summary.row("web1", good), summary.row("db1", bad), summary.row("app1", None)]
    text = "\n".join(summary.table(rows))
    assert "2.0 GiB" in text and "7.2 s" in text and "yes" in text
    assert "landing (failed)" in text and "db1: TARGET_EXPIRED: gone." in text
    assert "not begun" in text


def test_the_table_counts_nothing_that_a_rollback_has_undone() -> None:
    handover = {"phase": "handover", "status": "ok", "data": {"cutover": {"verified": True}}}
    cutover = {"phase": "cutover", "status": "ok", "data": {"downtime_seconds": 12.0}}
    rollback = {"phase": "rollback", "status": "ok", "data": {}}
    back = summary.row("db1", {"target": "ins-1", "phases": [handover, cutover, rollback]})
    assert (back.phase, back.verified, back.downtime) == ("rollback", None, None)
    again = summary.row("db1", {"target": "ins-1", "phases": [rollback, handover, cutover]})
    assert (again.phase, again.verified, again.downtime) == ("cutover", True, 12.0)
