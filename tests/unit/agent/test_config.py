# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""config.json: what is accepted and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from fleetlift_agent.config import load_config, parse_config
from fleetlift_agent.errors import AgentError
from hypothesis import given
from hypothesis import strategies as st

TLS = {"certificate": "tls/cert.pem", "key": "tls/key.pem", "peer_certificate": "tls/peer.pem"}
SENDER: dict[str, Any] = {
    "schema": 1,
    "migration": "web1",
    "role": "sender",
    "peer": {"host": "10.97.0.11", "port": 443},
    "connections": 4,
    "tls": TLS,
    "disks": [{"id": "d0", "device": "/dev/sda", "size": 3221225472, "target_serial": "disk-websys01"}],
    "bandwidth_limit": None,
    "max_passes": 5,
    "max_downtime": 30,
}
RECEIVER: dict[str, Any] = {
    "schema": 1,
    "migration": "web1",
    "role": "receiver",
    "listen": {"host": "0.0.0.0", "port": 443},
    "tls": TLS,
    "disks": [{"id": "d0", "serial": "disk-websys01", "size": 3221225472}],
}
D = Path("/run/fleetlift/web1")


def test_documented_configurations_are_accepted() -> None:
    sender = parse_config(SENDER, D)
    assert (sender.host, sender.port, sender.disks[0].device) == ("10.97.0.11", 443, Path("/dev/sda"))
    assert sender.tls.key == D / "tls" / "key.pem"
    receiver = parse_config(RECEIVER, D)
    assert (receiver.disks[0].serial, receiver.disks[0].device) == ("disk-websys01", None)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], 2),
        (["role"], "both"),
        (["migration"], "../../etc"),
        (["migration"], ""),
        (["compression"], "sometimes"),
        (["peer"], None),
        (["peer", "port"], 0),
        (["peer", "port"], "443"),
        (["peer", "host"], ""),
        (["tls", "key"], None),
        (["disks"], []),
        (["disks"], {}),
        (["disks", 0, "size"], 1000),
        (["disks", 0, "size"], True),
        (["disks", 0, "size"], 1 << 60),
        (["disks", 0, "id"], "a/b"),
        (["disks", 0, "target_serial"], ""),
        (["connections"], 0),
        (["connections"], 1000),
        (["bandwidth_limit"], 100),
        (["bandwidth_limit"], "fast"),
        (["max_passes"], 0),
        (["max_downtime"], -1),
    ],
)
def test_wrong_value_is_refused_by_name(path: list[Any], value: Any) -> None:
    config = copy.deepcopy(SENDER)
    inner: Any = config
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(AgentError, match="CONFIG_INVALID") as caught:
        parse_config(config, D)
    assert str(path[-1]) in caught.value.cause or path[-1] in ("disks", "device")


@pytest.mark.parametrize("field", ["id", "device", "target_serial"])
def test_two_disks_that_share_a_name_are_refused(field: str) -> None:
    config = copy.deepcopy(SENDER)
    config["disks"].append({"id": "d1", "device": "/dev/sdb", "size": 1 << 20, "target_serial": "disk-2"})
    parse_config(config, D)
    config["disks"][1][field] = config["disks"][0][field]
    with pytest.raises(AgentError, match="two disks have the same"):
        parse_config(config, D)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(SENDER)), inner, max_size=4),
)


@given(JSON, st.sampled_from(sorted(SENDER)))
def test_any_json_is_accepted_or_refused_with_a_record(value: Any, field: str) -> None:
    for config in (value, {**SENDER, field: value}):
        try:
            parse_config(config, D)
        except AgentError as error:
            assert error.record()["code"] == "CONFIG_INVALID"


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="config.json cannot be read"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(AgentError, match="not JSON"):
        load_config(tmp_path)
