"""What a CA's answer must be before it is used: the certificate that was asked for, of our key, vouched for by the roots with it.

Without this check a CA's mistake would show only where peers refuse the certificate.  Knows no CA's protocol, no files, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from nodeproxy.errors import IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.certificate import IssuedCertificate

# A leaf, its intermediates and a bundle of roots; a CA that answers with more is no CA.
MAX_CHAIN_BYTES = 1 << 20


def signing_request(identity: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request (PKCS #10, PEM) for a certificate of `identity`: no subject, the identity as the only name."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def check_answer(
    identity: str, key: ec.EllipticCurvePrivateKey, answer: Sequence[str], now_s: float
) -> tuple[IssuedCertificate, bytes]:
    """The certificate, and the roots (PEM), from a CA's answer: leaf first, the roots in the last element.  Raises IdentityError.

    protocols of Istio ambient: the last element may hold several roots.
    """
    if len(answer) < 2:
        raise IdentityError(f"the CA answered with {len(answer)} certificates: at least the leaf and a root are expected")
    if sum(map(len, answer)) > MAX_CHAIN_BYTES:
        raise IdentityError(f"the CA answered with more than {MAX_CHAIN_BYTES} bytes of certificates")
    chain = pki.parse_roots("\n".join(answer[:-1]).encode(), "the CA's chain")
    roots = pki.parse_roots(answer[-1].encode(), "the CA's last certificate")
    leaf = chain[0]
    _check_leaf(identity, key, leaf, now_s)
    _check_path(chain, roots)
    issued = IssuedCertificate(
        identity=identity,
        chain_pem=b"".join(pki.certificate_pem(each) for each in chain),
        key_pem=pki.key_pem(key),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
        serial=f"{leaf.serial_number:x}",
    )
    return issued, b"".join(pki.certificate_pem(root) for root in roots)


def _check_leaf(identity: str, key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate, now_s: float) -> None:
    if not pki.same_key(leaf, key):
        raise IdentityError("the CA answered with a certificate of another key than ours")
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as exc:
        raise IdentityError(f"the CA answered with a certificate without a readable name: {exc}") from exc
    # X.509-SVID, section 2: "An X.509 SVID MUST contain exactly one URI SAN".
    if list(names) != [x509.UniformResourceIdentifier(identity)]:
        found = ", ".join(str(name.value) for name in names)[:500]
        raise IdentityError(f"the CA answered with a certificate of {found or 'nobody'} and not of {identity}")
    now = datetime.fromtimestamp(now_s, UTC)
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise IdentityError(
            f"the CA answered with a certificate that is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, which is not now: compare the clocks"
        )


def _check_path(chain: list[x509.Certificate], roots: list[x509.Certificate]) -> None:
    for certificate, issuer in zip(chain, chain[1:], strict=False):
        if not _issued(certificate, issuer):
            raise IdentityError(f"the CA's chain is broken: {_name(issuer)} has not signed {_name(certificate)}")
    if not any(_issued(chain[-1], root) for root in roots):
        raise IdentityError(
            f"the CA answered with a certificate that none of its {len(roots)} roots has signed; the last of its chain is "
            f"{_name(chain[-1])}"
        )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"serial {certificate.serial_number:x}"
