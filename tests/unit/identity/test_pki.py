from __future__ import annotations

import time
from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from nodeproxy.errors import IdentityError
from nodeproxy.identity import pki

NOW = time.time()
IDENTITY = "spiffe://cluster.local/ns/shop/sa/cart"


def certificate(
    key: pki.SigningKey, *, ca: bool | None = True, sign: bool = True, days: tuple[int, int] = (-1, 1), issuer: str = "root"
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    begin, end = (datetime.fromtimestamp(NOW, UTC) + timedelta(days=day) for day in days)
    builder = x509.CertificateBuilder(name(issuer), name("root"), key.public_key(), x509.random_serial_number(), begin, end)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if not sign:
        usage = x509.KeyUsage(True, False, False, False, False, False, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(key, hashes.SHA256())


def test_the_profile_of_a_leaf() -> None:
    root_key = pki.new_key()
    root = pki.make_root(root_key, "cluster.local", NOW)
    leaf = pki.make_leaf(IDENTITY, pki.new_key().public_key(), root, root_key, NOW, 3600.0)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert list(names.value) == [x509.UniformResourceIdentifier(IDENTITY)]
    assert list(leaf.subject) == []
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.not_valid_before_utc.timestamp() == int(NOW - pki.CLOCK_SKEW_S)
    assert leaf.not_valid_after_utc.timestamp() == int(NOW + 3600)


def test_an_independent_verifier_accepts_the_chain() -> None:
    root_key = pki.new_key()
    root = pki.make_root(root_key, "cluster.local", NOW)
    leaf = pki.make_leaf(IDENTITY, pki.new_key().public_key(), root, root_key, NOW, 3600.0)
    PolicyBuilder().store(Store([root])).build_client_verifier().verify(leaf, [])


def test_an_independent_verifier_follows_the_cross_certificate() -> None:
    old_key, new_key = pki.new_key(), pki.new_key()
    old, new = pki.make_root(old_key, "cluster.local", NOW), pki.make_root(new_key, "cluster.local", NOW)
    cross = pki.cross_sign(new, new_key, old, old_key)
    leaf = pki.make_leaf(IDENTITY, pki.new_key().public_key(), new, new_key, NOW, 3600.0)
    for trusted in (old, new):
        PolicyBuilder().store(Store([trusted])).build_client_verifier().verify(leaf, [cross])


def test_a_leaf_does_not_outlive_its_root() -> None:
    key = pki.new_key()
    root = certificate(key)
    leaf = pki.make_leaf(IDENTITY, pki.new_key().public_key(), root, key, NOW, 1e7)
    assert leaf.not_valid_after_utc == root.not_valid_after_utc
    with pytest.raises(IdentityError, match="ended on"):
        pki.make_leaf(IDENTITY, pki.new_key().public_key(), root, key, NOW + 2 * 86400, 3600.0)


def test_roots_of_one_trust_domain_differ_in_name() -> None:
    assert pki.make_root(pki.new_key(), "td", NOW).subject != pki.make_root(pki.new_key(), "td", NOW).subject


def test_a_trust_domain_longer_than_a_name_may_be() -> None:
    pki.make_root(pki.new_key(), "t" * 255, NOW)


ROOTS = {
    "no constraints": ({"ca": None}, "not a CA"),
    "a leaf": ({"ca": False}, "CA:FALSE"),
    "may not sign": ({"sign": False}, "keyCertSign"),
    "expired": ({"days": (-3, -1)}, "expired"),
    "not yet": ({"days": (1, 3)}, "not valid before"),
    "an intermediate": ({"issuer": "somebody"}, "not self-signed"),
}


@pytest.mark.parametrize("case", ROOTS)
def test_root_refused(case: str) -> None:
    options, words = ROOTS[case]
    key = pki.new_key()
    with pytest.raises(IdentityError, match=words):
        pki.check_root(certificate(key, **options), key, NOW)  # type: ignore[arg-type]


def test_root_of_another_key_refused() -> None:
    with pytest.raises(IdentityError, match="does not belong"):
        pki.check_root(certificate(pki.new_key()), pki.new_key(), NOW)


def test_a_good_root_passes() -> None:
    key = pki.new_key()
    pki.check_root(certificate(key), key, NOW)
    pki.check_root(pki.make_root(key, "td", NOW), key, NOW)


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def test_a_certificate_of_no_known_version() -> None:
    """Which cryptography tells of by an error that is no ValueError."""
    der = (
        pki.make_root(pki.new_key(), "td", NOW)
        .public_bytes(Encoding.DER)
        .replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x42", 1)
    )
    text = b"-----BEGIN CERTIFICATE-----\n" + b64encode(der) + b"\n-----END CERTIFICATE-----\n"
    with pytest.raises(IdentityError, match="no PEM certificate"):
        pki.parse_roots(text, "root-cert.pem")


def test_the_profile_of_a_serving_certificate() -> None:
    key = pki.new_key()
    root = pki.make_root(key, "cluster.local", NOW)
    leaf = pki.make_serving(["a.svc", "b.svc"], pki.new_key().public_key(), root, key, NOW, 3600.0)
    assert list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [
        x509.DNSName("a.svc"),
        x509.DNSName("b.svc"),
    ]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    PolicyBuilder().store(Store([root])).build_server_verifier(x509.DNSName("b.svc")).verify(leaf, [])


def test_keys_that_can_not_sign_for_peers() -> None:
    for content, words in (
        (b"nothing", "no PEM private key"),
        (pem(pki.new_key(), b"secret"), "password"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "EC and RSA"),
        (pem(rsa.generate_private_key(65537, 1024)), "1024 bits"),
    ):
        with pytest.raises(IdentityError, match=words):
            pki.parse_key(content, "ca-key.pem")


def test_keys_that_can() -> None:
    for key in (pki.new_key(), ec.generate_private_key(ec.SECP384R1())):
        assert isinstance(pki.parse_key(pem(key), "ca-key.pem"), ec.EllipticCurvePrivateKey)


def test_a_bundle_without_a_certificate() -> None:
    with pytest.raises(IdentityError, match=r"root-cert\.pem"):
        pki.parse_roots(b"", "root-cert.pem")
