# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The COS modules in a play: the progress is shown, a URL is not, and the key stays on the controller."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from cos_site import BUCKET, MIB, REGION, SECRET_ID, SECRET_KEY, CosSite

KEY = "images/web1.raw"


@pytest.fixture
def cos(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    site = CosSite(tmp_path)
    try:
        yield site
    finally:
        site.close()


def play(cos, directory, hosts, tasks):
    """Run tasks with the COS modules' defaults set; returns exit status and output."""
    book = directory / "play.yml"
    defaults = {"cos_endpoint": cos.endpoint, "bucket": BUCKET}
    modules = ("cos_object", "cos_object_info", "cos_bucket")
    content = {
        "hosts": hosts,
        "gather_facts": False,
        "module_defaults": {f"fleetlift.cvm.{name}": defaults for name in modules},
        "tasks": tasks,
    }
    book.write_text(yaml.safe_dump([content]))
    collections = next(path for path in sys.path if Path(path, "ansible_collections/fleetlift").is_dir())
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": collections,
        "ANSIBLE_LOCAL_TEMP": str(directory / "ansible"),
        "TENCENTCLOUD_SECRET_ID": SECRET_ID,
        "TENCENTCLOUD_SECRET_KEY": SECRET_KEY,
        "TENCENTCLOUD_REGION": REGION,
        "NO_PROXY": "*",
    }
    inventory = f"here ansible_connection=local ansible_python_interpreter={sys.executable}\nthere\n"
    (directory / "hosts").write_text(inventory)
    words = [str(Path(sys.executable).with_name("ansible-playbook")), "-vvv", "-i", str(directory / "hosts"), str(book)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def test_upload_shows_its_progress_and_the_url_is_used_but_not_shown(cos, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(8 * MIB))
    status, output = play(
        cos,
        tmp_path,
        "here",
        [
            {"fleetlift.cvm.cos_object": {"key": KEY, "path": str(image), "part_size": 1, "bandwidth_limit": 2 * MIB}},
            {"fleetlift.cvm.cos_object_info": {"key": KEY, "url_life": 600}, "register": "found"},
            {"ansible.builtin.copy": {"content": "{{ found.url }}", "dest": str(tmp_path / "url")}, "no_log": True},
        ],
    )
    assert status == 0, output
    assert f"[here: {KEY}] uploading" in output
    assert cos.content(KEY) == image.read_bytes()
    for secret in (SECRET_KEY, "q-signature", "q-ak"):
        assert secret not in output
    url = urlsplit((tmp_path / "url").read_text())
    request = urllib.request.Request(
        f"{cos.endpoint}{url.path}?{url.query}", headers={"Host": url.netloc, "Range": "bytes=0-9"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.read() == image.read_bytes()[:10]


def test_key_does_not_travel_to_a_server(cos, tmp_path):
    status, output = play(cos, tmp_path, "there", [{"fleetlift.cvm.cos_bucket": {}}])
    assert status != 0
    assert "COS_KEY_WOULD_TRAVEL" in output
    assert cos.requests() == []
