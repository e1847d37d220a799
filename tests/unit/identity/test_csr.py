"""Requests from strangers: what is taken of them, and what is refused."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from nodeproxy.errors import IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.csr import MAX_CSR_BYTES, public_key_of


def request(key: Any, hash_: Any = hashes.SHA256()) -> x509.CertificateSigningRequest:  # noqa: B008 — a constant
    return x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hash_)


def pem(csr: x509.CertificateSigningRequest) -> str:
    return csr.public_bytes(Encoding.PEM).decode()


def test_keys_that_are_signed() -> None:
    for key in (pki.new_key(), rsa.generate_private_key(65537, 2048)):
        assert public_key_of(pem(request(key))) == key.public_key()


KEYS: dict[str, Any] = {
    "ed25519": (ed25519.Ed25519PrivateKey.generate, None),
    "another curve": (lambda: ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
    "dsa": (lambda: dsa.generate_private_key(1024), hashes.SHA256()),
    "a short rsa key": (lambda: rsa.generate_private_key(65537, 1024), hashes.SHA256()),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_that_are_not(kind: str) -> None:
    make, hash_ = KEYS[kind]
    with pytest.raises(IdentityError, match="use P-256"):
        public_key_of(pem(request(make(), hash_)))


def test_a_key_that_is_not_the_senders() -> None:
    """Its own signature over somebody else's key: the request's bytes with the key exchanged."""
    mine, theirs = pki.new_key(), pki.new_key()
    bytes_of = lambda key: pki._spki(key.public_key())  # type: ignore[arg-type]  # noqa: E731
    der = request(mine).public_bytes(Encoding.DER).replace(bytes_of(mine), bytes_of(theirs))
    forged = x509.load_der_x509_csr(der)
    assert forged.public_key() == theirs.public_key()
    with pytest.raises(IdentityError, match="not signed by its own key"):
        public_key_of(pem(forged))


def test_what_is_no_request() -> None:
    good = pem(request(pki.new_key()))
    for text in (
        "",
        "nothing",
        good.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        good[:100],
        good.replace("MI", "MM"),
        "\ud800",
    ):
        with pytest.raises(IdentityError, match="can't be read|own key"):
            public_key_of(text)
    with pytest.raises(IdentityError, match="more than"):
        public_key_of(good + " " * MAX_CSR_BYTES)


def test_every_shortened_and_flipped_request_is_refused() -> None:
    der = request(pki.new_key()).public_bytes(Encoding.DER)
    for position in range(len(der)):
        for changed in (der[:position], der[:position] + bytes([der[position] ^ 0x41]) + der[position + 1 :]):
            text = f"-----BEGIN CERTIFICATE REQUEST-----\n{b64encode(changed).decode()}\n-----END CERTIFICATE REQUEST-----\n"
            with pytest.raises(IdentityError):
                public_key_of(text)
