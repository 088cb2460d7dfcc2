# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Talk to an agent on a server through Ansible's own connection, with nothing but a POSIX shell on the other side.

No module is copied and no Python is needed for the talking itself, so the same code serves sources and landings,
and a server that is busy, frozen or briefly unreachable. What must stay out of the process list (configuration,
keys) travels on standard input.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any, Callable

from ansible.errors import AnsibleConnectionFailure, AnsibleError

BASE_DIRECTORY = "/run/fleetlift"
MIGRATION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
OLDEST_PYTHON = (3, 9)

# Newest first: a newer interpreter beside the distribution's old one is common on long-lived servers.
PYTHON_CANDIDATES = (
    "python3 /usr/bin/python3 /usr/libexec/platform-python /usr/local/bin/python3"
    " python3.14 python3.13 python3.12 python3.11 python3.10 python3.9"
)


class RemoteError(AnsibleError):
    """Something the user can act on; ``record`` is the structured form that ends in the task's result."""

    def __init__(self, code: str, cause: str, action: str, *, subject: str = "", evidence: str = "") -> None:
        super().__init__(f"{code}: {cause} Next: {action}" + (f" ({evidence})" if evidence else ""))
        self.record = {
            "code": code,
            "severity": "blocker",
            "subject": subject,
            "cause": cause,
            "action": action,
            "evidence": evidence,
        }


class AgentRefusal(RemoteError):
    """The agent answered with an error record of its own."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(
            str(record.get("code", "AGENT_ERROR")),
            str(record.get("cause", "the agent gave no cause.")),
            str(record.get("action", "see agent.log in the agent's directory.")),
            subject=str(record.get("subject", "")),
            evidence=str(record.get("evidence", "")),
        )


@dataclass(frozen=True)
class Answer:
    """What a shell command on the server gave back."""

    rc: int
    stdout: str
    stderr: str


def migration_directory(migration: str) -> str:
    """Where the agent of ``migration`` lives on a server. Raises RemoteError for a name that could leave the base."""
    if not MIGRATION_NAME.fullmatch(migration) or ".." in migration:
        raise RemoteError(
            "MIGRATION_NAME_INVALID",
            f"'{migration}' cannot name a migration.",
            "use letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit.",
        )
    return f"{BASE_DIRECTORY}/{migration}"


class RemoteShell:
    """Commands on the task's host. ``execute`` is an action plugin's ``_low_level_execute_command``."""

    def __init__(self, execute: Callable[..., dict[str, Any]]) -> None:
        self._execute = execute

    def run(self, command: str, stdin: bytes | None = None) -> Answer:
        """Run a shell command line. Raises AnsibleConnectionFailure when the server cannot be reached."""
        result = self._execute(command, in_data=stdin, sudoable=True)
        return Answer(int(result["rc"]), str(result["stdout"]), str(result["stderr"]))

    def write(self, path: str, data: bytes, mode: str = "0600") -> None:
        """Replace ``path`` atomically with ``data``; it is never readable by others, not even for a moment."""
        new = shlex.quote(f"{path}.new")
        answer = self.run(
            f"umask 077 && cat > {new} && chmod {mode} {new} && mv -f {new} {shlex.quote(path)}", stdin=data
        )
        if answer.rc != 0:
            raise RemoteError(
                "REMOTE_WRITE_FAILED",
                f"{path} could not be written.",
                "make sure that the directory is writable for root and not full.",
                evidence=answer.stderr.strip()[-300:],
            )

    def sha256(self, paths: list[str]) -> dict[str, str]:
        """SHA-256 of those of ``paths`` that exist, by path."""
        listed = " ".join(shlex.quote(path) for path in paths)
        answer = self.run(f'for f in {listed}; do test ! -f "$f" || sha256sum "$f"; done')
        return {line[66:]: line[:64] for line in answer.stdout.splitlines() if len(line) > 66}

    def find_python(self, preferred: str | None) -> str:
        """An interpreter new enough for the agent. Raises RemoteError (PYTHON_TOO_OLD) when there is none."""
        wanted = shlex.quote(preferred) if preferred else PYTHON_CANDIDATES
        check = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
        answer = self.run(
            f'for p in {wanted}; do q=$(command -v $p 2>/dev/null) && "$q" -c {shlex.quote(check)} 2>/dev/null'
            ' && echo "python=$q" && break; done; true'
        )
        for line in answer.stdout.splitlines():
            if line.startswith("python="):
                return line[len("python=") :]
        raise RemoteError(
            "PYTHON_TOO_OLD",
            "no Python 3.9 or newer was found for the agent"
            + (f" at {preferred}." if preferred else "; tried " + PYTHON_CANDIDATES.replace(" ", ", ") + "."),
            "install one beside the system's Python and name it with fleetlift_agent_python, or give a relocatable one "
            "with fleetlift_agent_runtime.",
        )

    def unpack_python(self, archive: bytes, directory: str) -> str:
        """Unpack a relocatable Python (``.tar.gz``) into ``directory``; returns its interpreter.

        Raises RemoteError (RUNTIME_UNUSABLE) when it does not unpack or does not run there.
        """
        where = shlex.quote(directory)
        answer = self.run(f"umask 077 && rm -rf {where} && mkdir -p {where} && tar -xzf - -C {where}", stdin=archive)
        if answer.rc == 0:
            for path in (f"{directory}/bin/python3", f"{directory}/*/bin/python3"):
                found = self.run(f"ls {path} 2>/dev/null | head -n 1; true").stdout.strip()
                if found:
                    return self.find_python(found)
        raise RemoteError(
            "RUNTIME_UNUSABLE",
            "the archive of fleetlift_agent_runtime does not hold a Python that could be unpacked here.",
            "give a .tar.gz with bin/python3 at its top or one directory below, built for this machine's architecture.",
            evidence=answer.stderr.strip()[-300:],
        )


class RemoteAgent:
    """The agent of one migration on the task's host."""

    def __init__(self, shell: RemoteShell, migration: str, python: str | None = None) -> None:
        self.shell = shell
        self.directory = migration_directory(migration)
        self._python = python

    @property
    def python(self) -> str:
        """The interpreter that ``agent`` recorded when it deployed, or a search for one."""
        if self._python is None:
            self._python = self.recorded_python() or self.shell.find_python(None)
        return self._python

    def recorded_python(self) -> str | None:
        """The interpreter that an earlier deployment chose, if it is still there."""
        note = f"{self.directory}/python"
        return self.shell.run(f'p=$(cat {note} 2>/dev/null) && test -x "$p" && echo "$p"; true').stdout.strip() or None

    def call(self, words: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the agent's command line; the reply is its JSON.

        Raises AgentRefusal for an error record, RemoteError (AGENT_UNREADABLE) for anything that is not JSON.
        """
        command = f"{shlex.quote(self.python)} {self.directory}/agent.pyz {words}"
        answer = self.shell.run(command, stdin=json.dumps(arguments or {}).encode())
        reply = parse_reply(answer)
        if reply is None:
            missing = "No such file" in answer.stderr or "can't open file" in answer.stderr
            raise RemoteError(
                "AGENT_NOT_DEPLOYED" if missing else "AGENT_UNREADABLE",
                "there is no agent on this server." if missing else "the agent's answer could not be read.",
                "run the agent role (state: present) first."
                if missing
                else f"look at {self.directory}/agent.log on the server.",
                evidence=(answer.stderr.strip() or answer.stdout.strip())[-300:],
            )
        if isinstance(reply.get("error"), dict) and not reply.get("ok"):
            raise AgentRefusal(reply["error"])
        return reply

    def control(self, command: str, arguments: dict[str, Any] | None = None, timeout: int = 20) -> dict[str, Any]:
        """Send one command to the running daemon."""
        return self.call(f"ctl --dir {self.directory} {command} --timeout {timeout}", arguments)

    def status(self) -> dict[str, Any]:
        """The daemon's state. Raises AgentRefusal (AGENT_NOT_RUNNING) when there is no daemon."""
        reply = self.control("status")
        state = reply.get("state", reply)
        return dict(state)

    def status_or_none(self) -> dict[str, Any] | None:
        """The daemon's state, or None when no daemon runs or none was ever deployed."""
        try:
            return self.status()
        except RemoteError as error:
            if error.record["code"] in ("AGENT_NOT_RUNNING", "AGENT_NOT_DEPLOYED"):
                return None
            raise


def parse_reply(answer: Answer) -> dict[str, Any] | None:
    """The last line of the answer that is a JSON object: login banners may come before it."""
    for line in reversed(answer.stdout.splitlines()):
        if line.startswith("{"):
            try:
                loaded = json.loads(line)
            except ValueError:
                return None
            return loaded if isinstance(loaded, dict) else None
    return None


__all__ = [
    "AgentRefusal",
    "AnsibleConnectionFailure",
    "Answer",
    "RemoteAgent",
    "RemoteError",
    "RemoteShell",
    "migration_directory",
]
