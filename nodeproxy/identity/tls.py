"""TLS as HBONE speaks it, for workers: contexts from PEM in memory, the peer's identity, and a name for each way it can fail.

Invariants: TLS 1.3 only, both sides show a certificate, no name of the server is sent (SNI), no session is ever resumed, and no
private key touches a file system.  It must not know sockets, workloads or policy, and imports little: each worker pays for it.
"""

from __future__ import annotations

import os
import ssl
from typing import Any

from nodeproxy.errors import IdentityError, ProtocolError
from nodeproxy.identity.spiffe import Spiffe
from nodeproxy.model.reason import Reason, Refusal

ALPN = "h2"
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_INVALID_PURPOSE = 26  # X509_V_ERR_INVALID_PURPOSE

# RFC 8446, section 6.2: what the peer's alert says about *us*.  Keys are OpenSSL's names of these alerts.
_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        Reason.NO_CERTIFICATE,
        "it wants a certificate and got none from us; is this pod's certificate issued?",
    ),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (
        Reason.TLS_FAILURE,
        "it says that our certificate is expired or not yet valid; compare the two nodes' clocks",
    ),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": (
        Reason.TLS_FAILURE,
        "it does not accept our certificate, without saying why; its log does",
    ),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": (Reason.TLS_FAILURE, "it says that our certificate is revoked"),
    "SSLV3_ALERT_BAD_CERTIFICATE": (
        Reason.TLS_FAILURE,
        "it can't accept our certificate (trust domain, signature or form); its log says more",
    ),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": (
        Reason.TLS_FAILURE,
        "it says that our certificate is not for this purpose (extended key usage)",
    ),
    "TLSV1_ALERT_UNKNOWN_CA": (Reason.TLS_FAILURE, "it does not trust our root; give both sides the same roots"),
    "TLSV1_ALERT_ACCESS_DENIED": (Reason.TLS_FAILURE, "it trusts our certificate and denies access all the same"),
    "TLSV1_ALERT_PROTOCOL_VERSION": (Reason.TLS_FAILURE, "it does not speak TLS 1.3"),
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": (Reason.NO_ALPN, "it does not speak h2, so it is no HBONE peer"),
    "TLSV1_ALERT_DECRYPT_ERROR": (Reason.TLS_FAILURE, "it could not verify our signature"),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (Reason.TLS_FAILURE, "it found no parameters in common"),
}
# What we found wrong in what the peer sent.  Keys are OpenSSL's reasons.
_FINDINGS = {
    "UNSUPPORTED_PROTOCOL": "it offered no TLS 1.3, which HBONE needs",
    "WRONG_VERSION_NUMBER": "it sent something that is not TLS",
    "HTTP_REQUEST": "it sent plain HTTP to a TLS port",
    "HTTPS_PROXY_REQUEST": "it sent plain HTTP CONNECT to a TLS port",
    "NO_SHARED_CIPHER": "it offered no cipher that we accept",
    "UNEXPECTED_EOF_WHILE_READING": "it closed the connection within the TLS session",
}
_PEER = "the peer refused the TLS handshake: "


def server_context(chain_pem: bytes, key_pem: bytes, roots_pem: bytes) -> ssl.SSLContext:
    """What a pod accepts tunnels with.  Use: `context.wrap_bio(incoming, outgoing, server_side=True)`."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, chain_pem, key_pem, roots_pem)
    context.num_tickets = 0  # nobody resumes a session here: a resumed one would keep an identity past its certificate
    return context


def client_context(chain_pem: bytes, key_pem: bytes, roots_pem: bytes) -> ssl.SSLContext:
    """What a pod opens tunnels with.  Use: `context.wrap_bio(incoming, outgoing)`, without `server_hostname`: no SNI is sent."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, chain_pem, key_pem, roots_pem)


def _context(protocol: int, chain_pem: bytes, key_pem: bytes, roots_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # peers are known by their SPIFFE ID (`verify_server`), not by a DNS name
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols([ALPN])
    try:
        context.load_verify_locations(cadata=roots_pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as exc:
        raise IdentityError(f"the trusted roots can't be read: {exc}") from exc
    # `load_cert_chain` takes a path only.  A memfd has one and lives in memory; it is gone with its descriptor.
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key_pem + chain_pem)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except (ssl.SSLError, OSError) as exc:
        raise IdentityError(f"a certificate and its key can't be used for TLS: {exc}") from exc
    return context


def peer_identity(tls: ssl.SSLObject) -> str:
    """The SPIFFE ID that the peer proved; ProtocolError unless its certificate holds exactly one URI and that is one.

    X.509-SVID, section 2: "An X.509 SVID MUST contain exactly one URI SAN, and by extension, exactly one SPIFFE ID."
    """
    try:
        # The type shed's type of this dictionary is a union of all its values' types; `subjectAltName` is pairs of text.
        certificate: dict[str, Any] | None = tls.getpeercert()
    except (ssl.SSLError, ValueError) as exc:  # UnicodeDecodeError: a URI that is not even text
        raise ProtocolError(Reason.PEER_IDENTITY, f"the peer's certificate has a name that can't be read: {exc}") from exc
    names: tuple[tuple[str, str], ...] = (certificate or {}).get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1:
        raise ProtocolError(
            Reason.PEER_IDENTITY,
            f"the peer's certificate has {len(uris)} URI names where a workload's has one: its CA made it for something else",
        )
    try:
        Spiffe.parse(uris[0])
    except IdentityError as exc:
        raise ProtocolError(Reason.PEER_IDENTITY, f"the peer's certificate names no workload: {exc}") from exc
    return uris[0]


def verify_server(tls: ssl.SSLObject, expected: frozenset[str]) -> str:
    """After a client's handshake: the server's identity, which must be one of `expected`."""
    _require_alpn(tls)
    identity = peer_identity(tls)
    if identity not in expected:
        wanted = " or ".join(sorted(expected)) or "nobody"
        raise ProtocolError(
            Reason.PEER_IDENTITY,
            f"the server proved to be {identity} and not {wanted}: its address has another owner by now, or it impersonates",
        )
    return identity


def verify_client(tls: ssl.SSLObject, trust_domain: str) -> str:
    """After a server's handshake and before any stream: the client's identity, which must be of our trust domain."""
    _require_alpn(tls)
    identity = peer_identity(tls)
    if not identity.startswith(f"spiffe://{trust_domain}/"):
        raise ProtocolError(
            Reason.PEER_TRUST_DOMAIN, f"the client proved to be {identity}, which is not of the trust domain {trust_domain}"
        )
    return identity


def _require_alpn(tls: ssl.SSLObject) -> None:
    if tls.selected_alpn_protocol() != ALPN:
        raise ProtocolError(Reason.NO_ALPN, "the peer did not agree on h2 (ALPN): it is no HBONE peer")


def tls_refusal(error: ssl.SSLError) -> Refusal:
    """The name of a failed handshake (or of an alert afterwards), whose fault it is, and what to do next."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _verification(error)
    name = error.reason or _name_in_text(str(error))
    if name == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Refusal(
            Reason.PEER_NO_CERTIFICATE, "the client showed no certificate: it is not in the mesh, or its proxy has none yet"
        )
    if name in _ALERTS:
        reason, detail = _ALERTS[name]
        return Refusal(reason, f"{_PEER}{detail}")
    if "_ALERT_" in name:
        return Refusal(Reason.TLS_FAILURE, f"{_PEER}alert {name.partition('_ALERT_')[2].lower()}")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Refusal(Reason.TLS_FAILURE, "the peer closed the connection within the TLS handshake")
    if name in _FINDINGS:
        return Refusal(Reason.TLS_FAILURE, f"the peer broke the TLS handshake: {_FINDINGS[name]}")
    return Refusal(Reason.TLS_FAILURE, f"the TLS session with the peer failed: {name.lower().replace('_', ' ') or error}")


def _name_in_text(text: str) -> str:
    """OpenSSL's reason where CPython's table lacks it: "[SSL] tlsv1 alert no application protocol (_ssl.c:992)"."""
    return text.partition("] ")[2].partition(" (_ssl")[0].upper().replace(" ", "_")


def _verification(error: ssl.SSLCertVerificationError) -> Refusal:
    code, message = error.verify_code, error.verify_message
    if code == _EXPIRED:
        return Refusal(
            Reason.PEER_CERTIFICATE_EXPIRED,
            "the peer's certificate is expired: its node's renewal or one of the two clocks has failed",
        )
    if code == _NOT_YET_VALID:
        return Refusal(Reason.PEER_CERTIFICATE_EXPIRED, "the peer's certificate is not valid yet: one of the two clocks is wrong")
    if code == _INVALID_PURPOSE:
        return Refusal(
            Reason.PEER_CERTIFICATE_PURPOSE,
            "the peer's certificate is not for this use (extended key usage): a client needs clientAuth, a server serverAuth",
        )
    return Refusal(
        Reason.PEER_CERTIFICATE_UNTRUSTED,
        f"the peer's certificate does not lead to a trusted root ({message}): give both sides the same roots",
    )
