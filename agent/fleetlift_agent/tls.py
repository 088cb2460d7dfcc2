# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS 1.3 between the two agents of one migration.

Each side holds one self-signed certificate made for this pair. The peer's certificate
is the only trust anchor, and after the handshake its exact DER bytes are compared.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from fleetlift_agent.errors import AgentError

# openssl/x509_vfy.h. PARTIAL_CHAIN: a leaf certificate may itself be the trust anchor.
# NO_CHECK_TIME: a source whose clock is wrong must still be movable, and the certificate
# is pinned byte by byte, so its dates add nothing.
_X509_V_FLAG_PARTIAL_CHAIN = 0x80000
_X509_V_FLAG_NO_CHECK_TIME = 0x200000
_PARTING_SECONDS = 1.0
_PARTING_READS = 16


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of this side, and the certificate of the only peer that may connect."""

    certificate: Path
    key: Path
    peer_certificate: Path


@dataclass(frozen=True)
class TlsIdentity:
    """A loaded context and the fingerprint the peer must show."""

    context: ssl.SSLContext
    peer_fingerprint: bytes
    server: bool

    def wrap(self, raw: socket.socket) -> ssl.SSLSocket:
        """Shake hands on a connected socket and pin the peer. Raises AgentError or OSError."""
        try:
            wrapped = self.context.wrap_socket(raw, server_side=self.server, do_handshake_on_connect=False)
            try:
                wrapped.do_handshake()
            except ssl.SSLError:
                _part(wrapped)
                raise
        except ssl.SSLCertVerificationError as error:
            raise _refused(
                f"its certificate is not the one made for this migration ({error.verify_message})"
            ) from error
        except ssl.SSLError as error:
            raise AgentError(
                "TLS_HANDSHAKE_FAILED",
                f"No TLS session with the peer: {error.reason or error}",
                "Check that host and port belong to the other agent of this migration and that both certificates "
                "were made for it",
                subject="connection",
            ) from error
        shown = wrapped.getpeercert(binary_form=True) or b""
        if not hmac.compare_digest(hashlib.sha256(shown).digest(), self.peer_fingerprint):
            wrapped.close()
            raise _refused("its certificate differs from the one made for this migration")
        return wrapped


def load_identity(files: TlsFiles, *, server: bool) -> TlsIdentity:
    """Load keys and certificates. Raises AgentError when one cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags(_X509_V_FLAG_PARTIAL_CHAIN | _X509_V_FLAG_NO_CHECK_TIME)
    if server:
        context.num_tickets = 0
    try:
        context.load_cert_chain(str(files.certificate), str(files.key))
        pem = files.peer_certificate.read_text(encoding="ascii")
        context.load_verify_locations(cadata=pem)
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip() + "\n")).digest()
    except (OSError, ValueError, ssl.SSLError) as error:
        raise AgentError(
            "TLS_MATERIAL_UNUSABLE",
            f"A certificate or key of this migration cannot be loaded: {error}",
            "Install the agent again so that the pair of certificates is made anew",
            subject="tls",
        ) from error
    return TlsIdentity(context, fingerprint, server)


def _part(wrapped: ssl.SSLSocket) -> None:
    """Close so that the alert that was just sent arrives: closing on unread bytes would overtake it with a reset."""
    try:
        wrapped.settimeout(_PARTING_SECONDS)
        socket.socket.shutdown(wrapped, socket.SHUT_WR)
        for _round in range(_PARTING_READS):
            if not socket.socket.recv(wrapped, 4096):
                return
    except OSError:
        # The peer is gone already.
        return
    finally:
        wrapped.close()


def _refused(why: str) -> AgentError:
    return AgentError(
        "PEER_CERTIFICATE_REFUSED",
        f"The peer was refused: {why}",
        "Make sure that host and port are those of the other agent of this migration, then install both agents again",
        subject="connection",
    )
