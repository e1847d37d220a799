"""A certificate signing request from somebody who is not trusted: its public key is all that is taken of it.

Invariant: names, extensions and whatever else it asks for are never read, so that none of it can get into a certificate.  It must
not know who asks, nor what for.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nodeproxy.errors import IdentityError
from nodeproxy.identity.pki import MIN_RSA_BITS, PublicKey

# A request with an RSA key of 4096 bits and one name has 1.8 KB in PEM; with P-256 it has 0.5.
MAX_CSR_BYTES = 16 << 10
# Checking a signature costs the square of this; nobody needs more for a key that lives a day.
MAX_RSA_BITS = 4096


def public_key_of(pem: str) -> PublicKey:
    """The key that the request is about and that signed it; IdentityError if it is none that we sign."""
    if len(pem) > MAX_CSR_BYTES:
        raise IdentityError(f"the certificate signing request has more than {MAX_CSR_BYTES} characters")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = _checked(request.public_key())
        proven = request.is_signature_valid  # "proof of possession" (RFC 2986, section 3)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as exc:
        raise IdentityError("the certificate signing request can't be read: send PKCS #10 in PEM") from exc
    if not proven:
        raise IdentityError("the certificate signing request is not signed by its own key")
    return key


def _checked(key: object) -> PublicKey:
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return key
        case rsa.RSAPublicKey() if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            return key
    raise IdentityError(
        "the certificate signing request's key is of a kind that is not signed: "
        f"use P-256, or RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits"
    )
