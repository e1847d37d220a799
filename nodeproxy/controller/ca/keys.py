"""The CA's keys and certificates, as a Secret holds them and as they sign.

    tls.crt      the certificate that signs, then the intermediates above it, if any
    tls.key      its key (PKCS #8, SEC 1 or PKCS #1, PEM)
    ca.crt       the roots that peers are checked by, all trusted
    cross.crt    after a change of root: the signing root's key, vouched for by the root before
    next.crt     before a change of root: the root to come, and its key vouched for by the present one
    next.key     the key of the root to come
    phase-since  when the change of root came to where it is (RFC 3339)

The first three are what cert-manager writes for a certificate with `isCA: true`.  Invariants: what `decode` returns can sign,
and what it signs leads to one of its roots; keys are never part of what is printed.  It must not know where a Secret is or who
follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from nodeproxy.errors import IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.rotation import Successor

CERTIFICATE, KEY, ROOTS = "tls.crt", "tls.key", "ca.crt"
CROSS, NEXT_CERTIFICATE, NEXT_KEY, SINCE = "cross.crt", "next.crt", "next.key", "phase-since"
# What a change of root adds and takes away.
OPTIONAL = (CROSS, NEXT_CERTIFICATE, NEXT_KEY, SINCE)
# A Secret holds 1 MiB at most; a CA's parts are some kilobytes.
MAX_PART_BYTES = 256 << 10


class Phase(StrEnum):
    """Where a change of root is."""

    STEADY = "steady"  # one root, which signs
    SPREADING = "spreading"  # the next root is published, the present one signs
    DRAINING = "draining"  # the next root signs, what the one before has signed is still alive


class CaKeys(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What signs, and what is trusted.

    chain: sent after a leaf: what leads from `certificate` to the roots.
    since: when the change of root came to its phase, seconds since the epoch; 0.0 in the steady phase.
    """

    certificate: x509.Certificate
    key: pki.SigningKey
    chain: tuple[x509.Certificate, ...] = ()
    roots: tuple[x509.Certificate, ...]
    following: Successor | None = None
    since: float = 0.0

    def __repr__(self) -> str:
        return f"CaKeys({self.certificate.subject.rfc4514_string()}, {len(self.roots)} roots, {self.phase})"

    @property
    def phase(self) -> Phase:
        """Where the change of root is."""
        if self.following is not None:
            return Phase.SPREADING
        return Phase.DRAINING if self.own_root and self.chain else Phase.STEADY

    @property
    def own_root(self) -> bool:
        """Whether a root signs, and not an intermediate that somebody else renews."""
        return self.certificate in self.roots

    def roots_pem(self) -> bytes:
        """All trusted roots."""
        return b"".join(map(pki.certificate_pem, self.roots))

    def chain_pem(self) -> bytes:
        """What is sent after a leaf."""
        return b"".join(map(pki.certificate_pem, self.chain))

    def sign(self, identity: str, key: pki.PublicKey, now_s: float, lifetime_s: float) -> x509.Certificate:
        """A workload's certificate; IdentityError if the CA's has ended."""
        return pki.make_leaf(identity, key, self.certificate, self.key, now_s, lifetime_s)


def create(trust_domain: str, now_s: float) -> CaKeys:
    """A new root of our own."""
    key = pki.new_key()
    root = pki.make_root(key, trust_domain, now_s)
    return CaKeys(certificate=root, key=key, roots=(root,))


def decode(data: Mapping[str, bytes], now_s: float) -> CaKeys:
    """The keys of a Secret's data; IdentityError says which part is wrong, and how."""
    try:
        return _decode(data, now_s)
    except (ValueError, UnsupportedAlgorithm) as exc:  # what cryptography says of an extension that can't be read
        raise IdentityError(f"a certificate can't be read: {exc}") from exc


def _decode(data: Mapping[str, bytes], now_s: float) -> CaKeys:
    certificates = pki.parse_roots(_part(data, CERTIFICATE), CERTIFICATE)
    key = pki.parse_key(_part(data, KEY), KEY)
    roots = tuple(pki.parse_roots(_part(data, ROOTS), ROOTS))
    pki.check_issuer(certificates[0], key, now_s, f"certificate in {CERTIFICATE}")
    for root in roots:
        if not pki.self_signed(root):
            raise IdentityError(f"{ROOTS} holds {_name(root)}, which is not self-signed: peers need the roots there")
    if certificates[0] in roots:
        chain = _cross(data, certificates[0])
    else:
        chain = tuple(certificate for certificate in certificates if not pki.self_signed(certificate))
    keys = CaKeys(
        certificate=certificates[0],
        key=key,
        chain=chain,
        roots=roots,
        following=_following(data, roots),
        since=_since(data),
    )
    if keys.phase is not Phase.STEADY and not keys.since:
        raise IdentityError(f"{SINCE} is missing: a change of root is under way, and it must say since when")
    if not keys.own_root:
        _check_chain(keys, datetime.fromtimestamp(now_s, UTC))
    return keys


def encode(keys: CaKeys) -> dict[str, bytes]:
    """The Secret's data.  Of `OPTIONAL`, what is not in it must not be in the Secret either."""
    data = {KEY: pki.key_pem(keys.key), ROOTS: keys.roots_pem(), CERTIFICATE: pki.certificate_pem(keys.certificate)}
    if keys.chain:
        data[CROSS] = keys.chain_pem()
    if keys.following is not None:
        data[NEXT_CERTIFICATE] = pki.certificate_pem(keys.following.root) + pki.certificate_pem(keys.following.cross)
        data[NEXT_KEY] = pki.key_pem(keys.following.key)
    if keys.since:
        data[SINCE] = datetime.fromtimestamp(keys.since, UTC).isoformat(timespec="seconds").encode()
    return data


def _part(data: Mapping[str, bytes], name: str) -> bytes:
    content = data.get(name, b"")
    if not content:
        raise IdentityError(f"{name} is missing")
    if len(content) > MAX_PART_BYTES:
        raise IdentityError(f"{name} has more than {MAX_PART_BYTES} bytes: this is no CA's")
    return content


def _cross(data: Mapping[str, bytes], signing: x509.Certificate) -> tuple[x509.Certificate, ...]:
    if CROSS not in data:
        return ()
    cross = pki.parse_roots(_part(data, CROSS), CROSS)[0]
    if cross.subject != signing.subject or cross.public_key() != signing.public_key():
        raise IdentityError(f"{CROSS} is not about the key of {CERTIFICATE}")
    return (cross,)


def _following(data: Mapping[str, bytes], roots: tuple[x509.Certificate, ...]) -> Successor | None:
    if NEXT_CERTIFICATE not in data and NEXT_KEY not in data:
        return None
    certificates = pki.parse_roots(_part(data, NEXT_CERTIFICATE), NEXT_CERTIFICATE)
    key = pki.parse_key(_part(data, NEXT_KEY), NEXT_KEY)
    if len(certificates) != 2 or not all(pki.same_key(certificate, key) for certificate in certificates):
        raise IdentityError(
            f"{NEXT_CERTIFICATE} must hold two certificates of {NEXT_KEY}: the root, and the one that vouches for it"
        )
    if certificates[0] not in roots:
        raise IdentityError(f"{ROOTS} lacks the root of {NEXT_CERTIFICATE}")
    return Successor(certificates[0], key, certificates[1])


def _since(data: Mapping[str, bytes]) -> float:
    text = data.get(SINCE, b"").decode("ascii", "replace").strip()
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError as exc:
        raise IdentityError(f"{SINCE} is no time such as 2026-01-31T12:00:00+00:00") from exc


def _check_chain(keys: CaKeys, now: datetime) -> None:
    """The chain leads to a root, nothing on it has ended, and each CA may have the others below it."""
    for below, (lower, upper) in enumerate(zip(keys.chain, (*keys.chain[1:], None), strict=True), 1):
        issuers = keys.roots if upper is None else (upper,)
        issuer = next((issuer for issuer in issuers if pki.issued_by(lower, issuer)), None)
        if issuer is None:
            raise IdentityError(f"{_name(lower)} in {CERTIFICATE} is not signed by what comes after it, nor by a root in {ROOTS}")
        if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
            raise IdentityError(f"{_name(issuer)}, which {CERTIFICATE} leads to, has ended or not begun")
        # RFC 5280, section 4.2.1.9: how many CAs may be below; without the extension it is no CA.
        constraints = [e.value for e in issuer.extensions if isinstance(e.value, x509.BasicConstraints)]
        if not any(value.ca and (value.path_length is None or value.path_length >= below) for value in constraints):
            raise IdentityError(f"{_name(issuer)} may not sign the CA that is below it (its basic constraints)")


def _name(certificate: x509.Certificate) -> str:
    return f"the certificate of {certificate.subject.rfc4514_string() or 'nobody'}"
