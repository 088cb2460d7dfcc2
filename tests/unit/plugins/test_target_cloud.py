# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cloud layer through the real SDK against the lab's cloud, and against servers that misbehave."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud import client as api_client
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud import waiter
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import Access, CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.errors import CloudError, meaning_of
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.instances import Instances
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import target_from_api, target_from_record
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.modules import target_info, target_landing
from lab_fleet import DATABASE, REGION, SECRET_KEY, WEB, instance

from lab.cloud.store import Disk

PASSWORD = "Landing-2026"


def refused(function, *arguments, **options):
    with pytest.raises(Refusal) as caught:
        function(*arguments, **options)
    return caught.value.finding


# Reading


def test_target_is_complete_and_in_the_words_of_the_collection(fleet):
    [target] = fleet.instances().by_ids([DATABASE])
    record = target.record()
    assert [(disk["disk_id"], disk["usage"], disk["order"], disk["size_bytes"]) for disk in record["disks"]] == [
        ("disk-dbsys001", "system", 0, 50 << 30),
        ("disk-dbdata01", "data", 1, 100 << 30),
        ("disk-dbdata02", "data", 2, 20 << 30),
    ]
    assert {disk["state"] for disk in record["disks"]} == {"ATTACHED"}
    assert [(rule["group"], rule["index"], rule["action"], rule["port"]) for rule in record["ingress"]] == [
        ("sg-fleetlift", 0, "ACCEPT", "22"),
        ("sg-fleetlift", 1, "DROP", "8000-9000"),
        ("sg-second", 0, "ACCEPT", "443,8443"),
    ]
    assert (record["state"], record["restrict_state"], record["architecture"]) == ("RUNNING", "NORMAL", "x86_64")
    assert record["private_addresses"] == ["10.97.0.12"]
    assert record["public_addresses"] == ["203.0.113.12"]
    assert (record["region"], record["zone"], record["bandwidth_out_mbps"]) == (REGION, "ap-guangzhou-3", 100)
    assert target_from_record(json.loads(json.dumps(record))) == target


def add_instances(fleet, count):
    """That many instances named many; returns their ids."""
    names = [f"ins-many{number:04}" for number in range(count)]
    for number, name in enumerate(names):
        disk = f"disk-many{number:04}"
        fleet.cloud.store.add_disk(Disk(disk, 20, "ap-guangzhou-3"))
        fleet.cloud.store.add_instance(instance(name, "many", number % 200, disk))
    return names


def test_more_than_a_hundred_instances_keep_their_order_and_the_apis_limit(fleet):
    names = add_instances(fleet, 150)[::-1]
    assert [target.instance_id for target in fleet.instances().by_ids(names)] == names
    assert [len(entry["parameters"]["InstanceIds"]) for entry in fleet.requests("DescribeInstances")] == [100, 50]
    assert len(fleet.requests("DescribeDisks")) == 2
    assert len(fleet.requests("DescribeSecurityGroupPolicies")) == 2
    by_name = fleet.instances().by_filters({"instance-name": ["many"]})
    assert sorted(target.instance_id for target in by_name) == sorted(names)


def test_more_names_than_a_filter_holds_are_asked_for_in_several_requests(fleet):
    names = [f"none{number}" for number in range(7)] + ["web", "db"]
    found = fleet.instances().by_filters({"instance-name": names, "zone": ["ap-guangzhou-3"]})
    assert {target.instance_id for target in found} == {WEB, DATABASE}


def test_who_wants_to_know_the_ids_only_asks_for_nothing_else(fleet):
    found = fleet.instances().by_filters({"instance-name": ["web"]}, complete=False)
    assert [(target.instance_id, target.name, target.ingress) for target in found] == [(WEB, "web", ())]
    assert [entry["action"] for entry in fleet.requests()] == ["DescribeInstances"]


def test_one_id_that_is_wrong_does_not_hide_the_others(fleet):
    wanted = add_instances(fleet, 250)
    targets, missing = fleet.instances().existing([*wanted[:40], "web-server-1", *wanted[40:], "ins-unknown0"])
    assert [target.instance_id for target in targets] == wanted
    assert {name: finding.code for name, finding in missing.items()} == {
        "web-server-1": "TARGET_NOT_FOUND",
        "ins-unknown0": "TARGET_NOT_FOUND",
    }
    assert "not an instance id" in missing["web-server-1"].cause
    # Three hundreds, and the halves of the one with the malformed id.
    assert len(fleet.requests("DescribeInstances")) <= 3 + 2 * 7
    assert len(fleet.requests("DescribeSecurityGroupPolicies")) == 2


def test_missing_instance_is_named(fleet):
    finding = refused(fleet.instances().by_ids, [WEB, "ins-00000000"])
    assert (finding.code, finding.subject) == ("TARGET_NOT_FOUND", "ins-00000000")


def test_query_selects_from_the_targets_and_a_bad_one_is_explained(fleet):
    records = [target.record() for target in fleet.instances().by_ids([WEB, DATABASE])]
    assert target_info.select("[?name=='db'].disks[].disk_id", records)[0] == "disk-dbsys001"
    assert refused(target_info.select, "[?", records).code == "QUERY_INVALID"


@pytest.mark.parametrize(
    ("instance_type", "os_name", "architecture"),
    [
        ("S5.MEDIUM4", "Debian 12 64-bit", "x86_64"),
        ("SR1.MEDIUM4", "TencentOS Server 3.1", "aarch64"),
        ("S2.SMALL1", "CentOS 6.8 32bit", "i386"),
    ],
)
def test_architecture_comes_from_type_and_system(instance_type, os_name, architecture):
    shown = {"InstanceId": "ins-1", "InstanceState": "RUNNING", "InstanceType": instance_type, "OsName": os_name}
    assert target_from_api(shown).architecture == architecture


# Refusals of the cloud


@pytest.mark.parametrize(
    ("access", "code"),
    [
        ({"secret_id": "AKIDnobody0000000000"}, "CLOUD_AUTH_FAILED"),
        ({"secret_key": "wrong"}, "CLOUD_AUTH_FAILED"),
        ({"region": "ap-nowhere"}, "CLOUD_REGION_WRONG"),
    ],
)
def test_wrong_access_is_explained_with_the_request_id(fleet, access, code):
    finding = refused(fleet.instances(**access).observe, WEB)
    assert finding.code == code
    assert finding.evidence["request_id"]
    assert SECRET_KEY not in str(finding.record())


def test_skewed_clock_is_called_so(fleet):
    fleet.now = lambda: time.time() + 3600
    finding = refused(fleet.instances().observe, WEB)
    assert finding.code == "CLOUD_CLOCK_SKEW"
    assert "clock" in finding.action


def test_requests_over_the_rate_are_retried_until_they_pass(fleet):
    times = [time.time()]
    fleet.now = lambda: times[-1]
    client = CloudClient(fleet.access(), sleep=lambda seconds: times.append(times[-1] + seconds))
    instances = Instances(client, REGION)
    for _unused in range(100):
        instances.observe(WEB)
    codes = [entry["code"] for entry in fleet.requests("DescribeInstances")]
    assert codes.count("OK") == 100
    assert codes.count("RequestLimitExceeded") == len(times) - 1 > 0


def test_access_says_what_is_missing_and_hides_its_key():
    with pytest.raises(Refusal, match=r"TENCENTCLOUD_SECRET_KEY"):
        Access("id", "", REGION)
    with pytest.raises(Refusal, match="CLOUD_ENDPOINT_INVALID"):
        Access("id", "key", REGION, endpoint="10.98.0.10:80")
    assert "unit-secret" not in repr(Access("id", "unit-secret", REGION))


def test_every_state_code_has_a_meaning():
    assert meaning_of("UnsupportedOperation.InstanceStateServiceLiveMigrate").code == "TARGET_IN_LIVE_MIGRATION"
    assert meaning_of("UnsupportedOperation.InstanceStateStopping").code == "TARGET_BUSY"
    assert meaning_of("UnsupportedOperation.InstanceStateTerminating").code == "TARGET_STATE"
    assert meaning_of("RequestLimitExceeded.UinLimitExceeded").code == "CLOUD_RATE_LIMITED"
    assert meaning_of("InvalidParameterValue.Whatever").code == "CLOUD_REQUEST_FAILED"


# Servers that misbehave


class Misbehaving:
    """Answers every request with the next of some (status, content type, body); counts them."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.count = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.count += 1
                outer.headers = dict(self.headers)
                status, content_type, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                data = body.encode()
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def client(self):
        endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        return CloudClient(Access("id", "key", REGION, endpoint=endpoint), sleep=lambda seconds: None)


@pytest.fixture
def misbehaving(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    made = []

    def make(*answers):
        made.append(Misbehaving(*answers))
        return made[-1]

    yield make
    for each in made:
        each.server.shutdown()
        each.server.server_close()


JSON = "application/json"
ERROR = json.dumps({"Response": {"Error": {"Code": "UnauthorizedOperation.X", "Message": "no"}, "RequestId": "r-1"}})
GOOD = json.dumps({"Response": {"TotalCount": 0, "InstanceSet": [], "RequestId": "r-2"}})


def test_error_under_another_content_type_is_not_taken_for_success(misbehaving):
    client = misbehaving((200, "application/json; charset=utf-8", ERROR)).client()
    with pytest.raises(CloudError) as caught:
        client.call("cvm", "DescribeInstances", {}, expect=("InstanceSet",))
    assert (caught.value.finding.code, caught.value.request_id) == ("CLOUD_PERMISSION_DENIED", "r-1")


@pytest.mark.parametrize(
    "body",
    ["<html>hello</html>", "{}", "[]", '{"Response": {"InstanceSet": null, "RequestId": "r"}}', '{"Response": {}}'],
)
def test_answer_without_what_it_must_have_is_an_error(misbehaving, body):
    client = misbehaving((200, JSON, body)).client()
    with pytest.raises(CloudError) as caught:
        client.call("cvm", "DescribeInstances", {}, expect=("InstanceSet",))
    assert caught.value.finding.code == "CLOUD_RESPONSE_MALFORMED"


def test_read_is_repeated_after_a_gateway_error_and_a_change_is_not(misbehaving):
    bad = (502, "text/html", "bad gateway")
    server = misbehaving(bad, bad, (200, JSON, GOOD))
    assert server.client().call("cvm", "DescribeInstances", {})["TotalCount"] == 0
    assert server.count == 3
    server = misbehaving(bad)
    with pytest.raises(CloudError) as caught:
        server.client().call("cvm", "EnterRescueMode", {}, idempotent=False)
    assert (caught.value.finding.code, server.count) == ("CLOUD_UNREACHABLE", 1)


def test_api_that_does_not_take_the_connection_is_given_up_early_and_in_plain_words(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(api_client, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(api_client, "RETRY_WAITS", ())
    with socket.socket() as full, socket.socket() as first:
        # One connection fills the backlog of 0; the kernel drops what comes after it, as a firewall would.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())
        access = Access("id", SECRET_KEY, REGION, endpoint=f"http://127.0.0.1:{full.getsockname()[1]}", api_timeout=60)
        started = time.monotonic()
        with pytest.raises(CloudError) as caught:
            CloudClient(access).call("cvm", "DescribeInstances", {})
    assert time.monotonic() - started < 10
    assert caught.value.finding.code == "CLOUD_UNREACHABLE"
    assert "timed out" in caught.value.finding.cause
    assert " at 0x" not in caught.value.finding.cause
    assert "answered with" not in caught.value.finding.cause


def test_messages_are_asked_for_in_english(misbehaving):
    server = misbehaving((200, JSON, GOOD))
    server.client().call("cvm", "DescribeInstances", {})
    assert server.headers["X-TC-Language"] == "en-US"
    assert server.headers["X-TC-Region"] == REGION
    assert "fleetlift" in server.headers["X-TC-RequestClient"]


def test_refusal_for_the_rate_is_repeated_even_for_a_change(misbehaving):
    limited = json.dumps({"Response": {"Error": {"Code": "RequestLimitExceeded", "Message": "m"}, "RequestId": "r"}})
    server = misbehaving((200, JSON, limited), (200, JSON, GOOD))
    server.client().call("cvm", "EnterRescueMode", {}, idempotent=False)
    assert server.count == 2


# The landing


class SshServer:
    """Greets like an SSH server, a line of chatter first, until it is closed."""

    def __init__(self, greeting=b"hello\r\nSSH-2.0-Test\r\n"):
        import socketserver

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(greeting)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def ssh():
    server = SshServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(waiter, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(waiter, "LONGEST_PAUSE", 0.05)


def options(ssh=None, **changes):
    return {
        "instance_id": WEB,
        "state": "present",
        "username": "root",
        "password": PASSWORD,
        "stop_type": "soft_first",
        "wait": True,
        "wait_timeout": 20,
        "settle_timeout": 10,
        "ssh_port": ssh.port if ssh else 22,
        "address": "127.0.0.1",
        **changes,
    }


def landing(fleet, ssh=None, check_mode=False, **changes):
    return target_landing.run(fleet.instances(), options(ssh, **changes), check_mode=check_mode)


def test_landing_there_and_back_each_twice(fleet, ssh):
    first = landing(fleet, ssh)
    assert (first["changed"], first["previous_state"], first["state"]) == (True, "RUNNING", "RESCUE_MODE")
    assert first["diff"] == {"before": {"state": "RUNNING"}, "after": {"state": "RESCUE_MODE"}}
    assert fleet.hypervisor.rescued[WEB] == ("root", PASSWORD)
    assert not landing(fleet, ssh)["changed"]
    back = landing(fleet, state="absent", password=None)
    assert (back["changed"], back["state"]) == (True, "RUNNING")
    assert not landing(fleet, state="absent", password=None)["changed"]
    assert fleet.changes() == ["EnterRescueMode", "ExitRescueMode", "StartInstances"]


def test_check_mode_predicts_and_changes_nothing(fleet):
    assert landing(fleet, check_mode=True)["changed"]
    assert landing(fleet, check_mode=True)["state"] == "RESCUE_MODE"
    assert not landing(fleet, check_mode=True, state="absent")["changed"]
    assert fleet.changes() == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"RestrictState": "EXPIRED"}, "TARGET_EXPIRED"),
        ({"RestrictState": "PROTECTIVELY_ISOLATED"}, "TARGET_ISOLATED"),
        ({"InstanceState": "SERVICE_LIVE_MIGRATE"}, "TARGET_IN_LIVE_MIGRATION"),
        ({"InstanceState": "SHUTDOWN"}, "TARGET_STATE"),
    ],
)
def test_unusable_target_is_refused_and_nothing_is_asked_of_it(fleet, fields, code):
    fleet.cloud.set_instance(WEB, **fields)
    assert refused(landing, fleet).code == code
    assert refused(landing, fleet, check_mode=True).code == code
    assert fleet.changes() == []


def test_failed_entry_is_reported_with_the_clouds_words(fleet):
    fleet.hypervisor.fail.add("rescue")
    finding = refused(landing, fleet)
    assert finding.code == "LANDING_FAILED"
    assert "rescue failed as asked" in finding.cause
    assert fleet.changes() == ["EnterRescueMode"]


def test_run_that_was_interrupted_is_continued(fleet, ssh):
    fleet.hypervisor.gate.clear()
    assert landing(fleet, wait=False)["state"] == "ENTER_RESCUE_MODE"
    fleet.hypervisor.gate.set()
    assert landing(fleet, ssh)["state"] == "RESCUE_MODE"
    fleet.hypervisor.gate.clear()
    assert landing(fleet, wait=False, state="absent")["state"] == "EXIT_RESCUE_MODE"
    fleet.hypervisor.gate.set()
    assert landing(fleet, state="absent")["state"] == "RUNNING"
    assert fleet.changes() == ["EnterRescueMode", "ExitRescueMode", "StartInstances"]


def test_another_operation_is_let_end_first(fleet, ssh):
    fleet.hypervisor.gate.clear()
    CloudClient(fleet.access()).call("cvm", "RebootInstances", {"InstanceIds": [WEB]}, idempotent=False)
    assert refused(landing, fleet, settle_timeout=0.3).code == "TARGET_BUSY"
    threading.Timer(0.2, fleet.hypervisor.gate.set).start()
    assert landing(fleet, ssh)["state"] == "RESCUE_MODE"
    assert fleet.changes() == ["RebootInstances", "EnterRescueMode"]


def test_landing_without_ssh_says_which_address_and_port(fleet, ssh):
    ssh.close()
    finding = refused(landing, fleet, ssh, wait_timeout=1)
    assert finding.code == "LANDING_SSH_UNREACHABLE"
    assert f"127.0.0.1:{ssh.port}" in finding.cause


def test_what_answers_without_being_ssh_does_not_count(fleet):
    web = SshServer(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    try:
        assert refused(landing, fleet, web, wait_timeout=1).code == "LANDING_SSH_UNREACHABLE"
    finally:
        web.close()
