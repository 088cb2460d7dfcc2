# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A database server: PostgreSQL on a disk of its own, and a client that never stops inserting.

The client notes each sequence number in a file outside the database once its transaction is
committed: whatever the file says must be in the database, on the source and on every copy.
"""

from __future__ import annotations

from pathlib import Path

from lab.command import run

VERSION = "15"
DATA = f"/var/lib/postgresql/{VERSION}/main"
COMMITTED = "/var/lib/fleetlift-writer/committed"
COUNT_ROWS = "SELECT count(*) FROM journal WHERE seq BETWEEN 1 AND {last}"
# About 40 MB of rows that were there before.
ROWS = 250_000
SCHEMA = f"""\
CREATE TABLE journal (seq bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), note text NOT NULL);
CREATE TABLE orders AS
  SELECT n AS id, md5(n::text) AS customer, repeat(md5((n * 7)::text), 3) AS item, n % 997 AS amount
  FROM generate_series(1, {ROWS}) n;
CHECKPOINT;
"""
WRITER = f"""\
#!/usr/bin/python3
# Inserts one row after the other, and writes down what was committed.
import os, time
import psycopg2

def write(record):
    connection = psycopg2.connect(dbname="postgres", user="postgres", host="/var/run/postgresql")
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(max(seq), 0) FROM journal")
        seq = cursor.fetchone()[0]
        while True:
            seq += 1
            cursor.execute("INSERT INTO journal (seq, note) VALUES (%s, %s)", (seq, os.urandom(64).hex()))
            connection.commit()
            os.write(record, b"%d\\n" % seq)
            time.sleep(0.02)

record = os.open("{COMMITTED}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
while True:
    try:
        write(record)
    except psycopg2.Error:
        time.sleep(0.5)
"""
INIT = """\
#!/bin/sh
### BEGIN INIT INFO
# Provides:          fleetlift-writer
# Required-Start:    $local_fs postgresql
# Required-Stop:     $local_fs postgresql
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: Client that keeps inserting rows
### END INIT INFO
PIDFILE=/run/fleetlift-writer.pid
DAEMON=/usr/local/sbin/fleetlift-writer
case "$1" in
  start) start-stop-daemon --start --background --make-pidfile --pidfile $PIDFILE --chuid postgres --startas $DAEMON ;;
  stop) start-stop-daemon --stop --retry 5 --remove-pidfile --pidfile $PIDFILE ;;
  restart|force-reload) "$0" stop; "$0" start ;;
  status) start-stop-daemon --status --pidfile $PIDFILE ;;
  *) echo "usage: $0 start|stop|restart|status" >&2; exit 2 ;;
esac
"""


def seed(root: Path) -> None:
    """Make the cluster with its tables on the disk, and have the server and its client start at boot."""
    inside = ["chroot", str(root)]
    run([*inside, "pg_createcluster", VERSION, "main", "--", "--no-sync", "--auth-local=trust"])
    # Reachable from outside, so that whoever migrates it can see it answer.
    listen = root / f"etc/postgresql/{VERSION}/main/conf.d/listen.conf"
    listen.write_text("listen_addresses = '*'\n", encoding="ascii")
    postgres = f"/usr/lib/postgresql/{VERSION}/bin/postgres"
    configuration = f"config_file=/etc/postgresql/{VERSION}/main/postgresql.conf"
    single = ["--single", "-j", "-D", DATA, "-c", configuration, "-c", "fsync=off", "postgres"]
    # With -j a statement ends at a semicolon followed by an empty line.
    script = SCHEMA.replace(";\n", ";\n\n")
    run([*inside, "runuser", "-u", "postgres", "--", postgres, *single], stdin=script)
    record = root / COMMITTED.lstrip("/")
    record.parent.mkdir(mode=0o755, exist_ok=True)
    run([*inside, "chown", "postgres:postgres", str(Path(COMMITTED).parent)])
    for name, text in (("usr/local/sbin/fleetlift-writer", WRITER), ("etc/init.d/fleetlift-writer", INIT)):
        path = root / name
        path.write_text(text, encoding="ascii")
        path.chmod(0o755)
    run([*inside, "update-rc.d", "postgresql", "enable"])
    run([*inside, "update-rc.d", "fleetlift-writer", "defaults"])


def committed(root: Path) -> int:
    """Return the last sequence number that the client on this disk saw committed; 0 when it has no client."""
    record = root / COMMITTED.lstrip("/")
    if not record.exists():
        return 0
    whole = record.read_bytes().rpartition(b"\n")[0]
    return int(whole.rpartition(b"\n")[2] or 0)
