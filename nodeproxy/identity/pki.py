"""Makes the X.509 that our CAs sign, and checks what an operator hands in as a root or an intermediate.

Profile: ECDSA P-256; a workload's certificate has an empty subject, one critical URI SAN and both extended key usages (it is a
server's and a client's at once).  It must not know files, directories or the current time: both come in as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nodeproxy.errors import IdentityError

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

# Two nodes' clocks may differ: without this a peer whose clock is behind refuses a new certificate as "not yet valid".  Two
# minutes is what istiod allows; NTP holds clocks within milliseconds, a resumed virtual machine may be behind by a minute until
# it catches up.
CLOCK_SKEW_S = 120.0
# A root outlives the machines that trust it; `rotate` exists for the day before it ends.
ROOT_LIFETIME_DAYS = 3650
# NIST SP 800-57, table 2: 2048 bits is the least RSA key of 112 bits' strength.
MIN_RSA_BITS = 2048
_CA_USAGE = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
    key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip
_LEAF_USAGE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
    key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip
_LEAF_EXTENDED_USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
_SERVING_EXTENDED_USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
_LEAF_CONSTRAINTS = x509.BasicConstraints(ca=False, path_length=None)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: SigningKey) -> bytes:
    """PKCS #8 in PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate in PEM."""
    return certificate.public_bytes(Encoding.PEM)


def same_key(certificate: x509.Certificate, key: SigningKey) -> bool:
    """Whether the certificate is about this key."""
    return _spki(certificate.public_key()) == _spki(key.public_key())


def _spki(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def make_root(key: SigningKey, trust_domain: str, now_s: float) -> x509.Certificate:
    """A self-signed root.  Its name holds its serial: two roots of one trust domain must differ in name, for people's sake."""
    serial = x509.random_serial_number()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),  # RFC 5280, appendix A: ub-organization-name is 64
            x509.NameAttribute(NameOID.COMMON_NAME, f"nodeproxy root {serial:x}"[:31]),
        ]
    )
    begin = datetime.fromtimestamp(now_s - CLOCK_SKEW_S, UTC)
    end = begin + timedelta(days=ROOT_LIFETIME_DAYS)
    return _ca_certificate(key, name, serial, (begin, end), issuer_name=name, issuer_key=key)


def cross_sign(root: x509.Certificate, root_key: SigningKey, old_root: x509.Certificate, old_key: SigningKey) -> x509.Certificate:
    """The new root's key and name, vouched for by the old root: who trusts only the old one can follow the chain through this."""
    period = (
        max(root.not_valid_before_utc, old_root.not_valid_before_utc),
        min(root.not_valid_after_utc, old_root.not_valid_after_utc),
    )
    return _ca_certificate(
        root_key,
        root.subject,
        x509.random_serial_number(),
        period,
        issuer_name=old_root.subject,
        issuer_key=old_key,
        issuer=old_root,
    )


def _ca_certificate(
    key: SigningKey,
    name: x509.Name,
    serial: int,
    period: tuple[datetime, datetime],
    *,
    issuer_name: x509.Name,
    issuer_key: SigningKey,
    issuer: x509.Certificate | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder(issuer_name, name, key.public_key(), serial, *period)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(authority_key_identifier(issuer), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Names the issuer's key, so that it is found among several roots; a copy of the issuer's own identifier if it has one."""
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise IdentityError("the root's key is neither EC nor RSA") from None
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def make_leaf(
    identity: str, key: PublicKey, issuer: x509.Certificate, issuer_key: SigningKey, now_s: float, lifetime_s: float
) -> x509.Certificate:
    """A workload's certificate of its public key: valid from a little before `now_s` to `lifetime_s` after it.

    Never longer than its issuer; IdentityError if that has ended.
    """
    name = x509.UniformResourceIdentifier(identity)
    return _end_entity([name], _LEAF_EXTENDED_USAGE, key, issuer, issuer_key, now_s, lifetime_s)


def make_serving(
    dns_names: Sequence[str], key: PublicKey, issuer: x509.Certificate, issuer_key: SigningKey, now_s: float, lifetime_s: float
) -> x509.Certificate:
    """A server's certificate for DNS names (ASCII), which no workload's can be taken for: it has no URI.  See `make_leaf`."""
    names = [x509.DNSName(name) for name in dns_names]
    return _end_entity(names, _SERVING_EXTENDED_USAGE, key, issuer, issuer_key, now_s, lifetime_s)


def _end_entity(
    names: Sequence[x509.GeneralName],
    usage: x509.ExtendedKeyUsage,
    key: PublicKey,
    issuer: x509.Certificate,
    issuer_key: SigningKey,
    now_s: float,
    lifetime_s: float,
) -> x509.Certificate:
    begin = max(datetime.fromtimestamp(int(now_s - CLOCK_SKEW_S), UTC), issuer.not_valid_before_utc)
    end = min(datetime.fromtimestamp(int(now_s + lifetime_s), UTC), issuer.not_valid_after_utc)
    if end <= datetime.fromtimestamp(now_s, UTC):
        raise IdentityError(
            f"the root certificate ended on {issuer.not_valid_after_utc:%Y-%m-%d}: make a new one (rotation.rotate)"
        )
    return (
        x509.CertificateBuilder(issuer.subject, x509.Name([]), key, x509.random_serial_number(), begin, end)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(_LEAF_CONSTRAINTS, critical=True)
        .add_extension(_LEAF_USAGE, critical=True)
        .add_extension(usage, critical=False)
        .add_extension(authority_key_identifier(issuer), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def parse_roots(pem: bytes, source: str) -> list[x509.Certificate]:
    """The certificates of a bundle, at least one; IdentityError names `source`."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as exc:
        raise IdentityError(f"{source} holds no PEM certificate that can be read ({exc})") from exc


def parse_key(pem: bytes, source: str) -> SigningKey:
    """A CA's private key, EC or RSA, not encrypted; IdentityError names `source`."""
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as exc:
        raise IdentityError(f"{source} is protected by a password: give the key without one (openssl pkey -in … -out …)") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise IdentityError(f"{source} holds no PEM private key that can be read ({exc})") from exc
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise IdentityError(f"{source} is an RSA key of {key.key_size} bits: at least {MIN_RSA_BITS} are needed")
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key
    raise IdentityError(f"{source} is a {type(key).__name__}: peers of HBONE verify EC and RSA signatures only")


def check_root(root: x509.Certificate, key: SigningKey, now_s: float) -> None:
    """IdentityError unless `root` is a self-signed CA certificate of `key`, valid now."""
    check_issuer(root, key, now_s, "root certificate")
    if not self_signed(root):
        raise IdentityError("the root certificate is not self-signed: an intermediate can't be a root that peers trust")


def check_issuer(certificate: x509.Certificate, key: SigningKey, now_s: float, what: str) -> None:
    """IdentityError, naming it as `what`, unless `certificate` is a CA's, of `key`, valid now."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise IdentityError(f"the {what} is not a CA: it has no basic constraints") from None
    if not constraints.ca:
        raise IdentityError(f"the {what} is not a CA: its basic constraints say CA:FALSE")
    try:
        signs = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        signs = True  # RFC 5280, section 4.2.1.3: without the extension any use is allowed
    if not signs:
        raise IdentityError(f"the {what} may not sign certificates: its key usage lacks keyCertSign")
    if not same_key(certificate, key):
        raise IdentityError(f"the private key does not belong to the {what}")
    now = datetime.fromtimestamp(now_s, UTC)
    if now >= certificate.not_valid_after_utc:
        raise IdentityError(f"the {what} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < certificate.not_valid_before_utc:
        raise IdentityError(
            f"the {what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: is the clock right?"
        )


def self_signed(certificate: x509.Certificate) -> bool:
    """Whether the certificate vouches for itself, as a root does."""
    return issued_by(certificate, certificate)


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer`'s name and key stand behind the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
