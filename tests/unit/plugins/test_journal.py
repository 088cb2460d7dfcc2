# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The journal: what it keeps, how it is written, and what happens when it cannot be read."""

from __future__ import annotations

import json
import os
import stat

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.journal import (
    journal_path,
    keep,
    read_journal,
    with_phase,
    write_journal,
)


def options(directory, **changes):
    return {
        "path": str(directory),
        "source": "web1",
        "target": "ins-webtgt01",
        "state": "present",
        "phase": "transfer",
        "status": "ok",
        "data": {},
        **changes,
    }


def note(directory, check_mode=False, **changes):
    return keep(options(directory, **changes), check_mode=check_mode)


def read(directory):
    return note(directory, state="read", phase=None)["journal"]


def test_phase_is_noted_and_read_back_and_is_no_change(tmp_path):
    directory = tmp_path / "state" / "journal"
    assert read(directory) is None
    result = note(directory, data={"bytes_sent": 7})
    assert result["changed"] is False
    journal = read(directory)
    assert journal == result["journal"]
    assert (journal["schema"], journal["source"], journal["target"]) == (1, "web1", "ins-webtgt01")
    assert (journal["phase"], journal["status"]) == ("transfer", "ok")
    assert journal["data"] == {"transfer": {"bytes_sent": 7}}
    assert journal["phases"][0]["finished"] == journal["updated"]


def test_file_is_the_owners_alone(tmp_path):
    result = note(tmp_path / "journal")
    assert stat.S_IMODE(os.stat(result["file"]).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "journal").st_mode) == 0o700
    assert os.listdir(tmp_path / "journal") == ["web1.json"]


def test_data_of_a_phase_is_merged_and_the_phase_becomes_the_last(tmp_path):
    note(tmp_path, phase="preflight", data={"pairs": []})
    note(tmp_path, phase="transfer", data={"passes": 1})
    note(tmp_path, phase="preflight", data={"findings": []})
    journal = read(tmp_path)
    assert [item["phase"] for item in journal["phases"]] == ["transfer", "preflight"]
    assert journal["data"]["preflight"] == {"pairs": [], "findings": []}


def test_failed_phase_is_not_the_phase_that_was_reached(tmp_path):
    note(tmp_path, phase="transfer")
    note(tmp_path, phase="cutover", status="failed", data={"message": "no"})
    journal = read(tmp_path)
    assert (journal["phase"], journal["status"]) == ("transfer", "failed")
    assert "cutover" not in journal["data"]
    note(tmp_path, phase="cutover", data={"downtime_seconds": 3})
    journal = read(tmp_path)
    assert journal["phase"] == "cutover"
    assert journal["data"]["cutover"] == {"downtime_seconds": 3}


def test_begun_phase_keeps_its_beginning():
    begun = with_phase(None, source="s", target="t", phase="transfer", status="started", data={}, now=10.0)
    assert begun["phase"] is None
    ended = with_phase(begun, source="s", target="t", phase="transfer", status="ok", data={}, now=25.0)
    assert (ended["phases"][0]["started"], ended["phases"][0]["finished"]) == (10.0, 25.0)


def test_journal_of_another_target_is_begun_anew(tmp_path):
    note(tmp_path, phase="finalize")
    note(tmp_path, phase="preflight", target="ins-other")
    journal = read(tmp_path)
    assert (journal["target"], journal["phase"]) == ("ins-other", "preflight")


def test_check_mode_shows_but_writes_nothing(tmp_path):
    directory = tmp_path / "journal"
    assert note(directory, check_mode=True)["journal"]["phase"] == "transfer"
    assert not directory.exists()
    note(directory)
    assert note(directory, check_mode=True, state="absent")["changed"]
    assert read(directory)
    assert note(directory, state="absent")["changed"]
    assert not note(directory, state="absent")["changed"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "JOURNAL_CORRUPT"),
        ('{"schema": 1, "phases": [', "JOURNAL_CORRUPT"),
        ("[]", "JOURNAL_CORRUPT"),
        ('{"phases": []}', "JOURNAL_CORRUPT"),
        ('{"schema": 1, "phases": [1]}', "JOURNAL_CORRUPT"),
        (b"\xff\xfe", "JOURNAL_CORRUPT"),
        ('{"schema": 2, "phases": []}', "JOURNAL_NEWER"),
    ],
)
@pytest.mark.parametrize("state", ["read", "present"])
def test_journal_that_cannot_be_read_is_reported_and_left_as_it_is(tmp_path, text, code, state):
    path = tmp_path / "web1.json"
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(content)
    with pytest.raises(Refusal) as refused:
        note(tmp_path, state=state)
    assert refused.value.finding.code == code
    assert "elete" in refused.value.finding.action and "cache" in refused.value.finding.action
    assert path.read_bytes() == content
    note(tmp_path, state="absent")
    assert note(tmp_path)["journal"]["phase"] == "transfer"


@pytest.mark.parametrize("name", ["", "../web1", "a/b", ".hidden", ".."])
def test_name_that_would_leave_the_directory_is_refused(tmp_path, name):
    with pytest.raises(Refusal, match="JOURNAL_NAME_INVALID"):
        journal_path(str(tmp_path), name)


def test_failed_write_leaves_the_old_journal_and_no_temporary_file(tmp_path):
    path = tmp_path / "web1.json"
    write_journal(path, {"schema": 1, "phases": []})
    with pytest.raises(TypeError):
        write_journal(path, {"schema": 1, "phases": [object()]})
    assert json.loads(path.read_text()) == {"schema": 1, "phases": []}
    assert os.listdir(tmp_path) == ["web1.json"]
    assert read_journal(path) is not None
