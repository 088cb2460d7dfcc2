# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Certificates for one source-target pair.

Each end has a key and a self-signed certificate, and the other end's certificate is the only one it trusts: no
certificate authority exists that could vouch for a third party. Both pairs are made on the controller, kept in a
directory only its owner can read, and removed by ``finalize``.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from pathlib import Path

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    CRYPTOGRAPHY_ERROR: str | None = None
except ImportError as error:
    CRYPTOGRAPHY_ERROR = str(error)

ROLES = ("sender", "receiver")
# Long enough for a slow initial sync, short enough that a forgotten pair is useless.
VALIDITY = datetime.timedelta(days=90)
# A server whose clock is behind must still accept a certificate made a moment ago.
CLOCK_TOLERANCE = datetime.timedelta(days=2)


def other(role: str) -> str:
    """The opposite end of the pair."""
    return "receiver" if role == "sender" else "sender"


def ensure_pair(directory: Path, migration: str, now: datetime.datetime) -> bool:
    """Make the keys and certificates of both ends in ``directory`` unless valid ones are there.

    Files: ``sender.key``, ``sender.crt``, ``receiver.key``, ``receiver.crt`` (PEM, mode 0600; directory 0700).
    Returns whether anything was made. Both ends are always made together: one of them alone could not be trusted
    by the other.
    """
    if all(is_valid(directory, role, now) for role in ROLES):
        return False
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(directory, 0o700)
    for role in ROLES:
        key, certificate = make(f"{migration}.{role}", now)
        write_private(directory / f"{role}.key", key)
        write_private(directory / f"{role}.crt", certificate)
    return True


def is_valid(directory: Path, role: str, now: datetime.datetime) -> bool:
    """Whether ``role`` has a key and a certificate that will live for at least another day."""
    key, certificate = directory / f"{role}.key", directory / f"{role}.crt"
    if not (key.is_file() and certificate.is_file()):
        return False
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    return bool(loaded.not_valid_after_utc - now > datetime.timedelta(days=1))


def make(name: str, now: datetime.datetime) -> tuple[bytes, bytes]:
    """A new P-256 key and its self-signed certificate for ``name``, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path`` atomically with ``data``, readable by its owner only from the first byte on."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)
