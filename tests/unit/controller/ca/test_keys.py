"""What a Secret may hold, and what is refused of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography import x509

from nodeproxy.controller.ca import keys as ca_keys
from nodeproxy.controller.ca.keys import CaKeys, Phase
from nodeproxy.controller.ca.rotation import next_step
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.errors import IdentityError
from nodeproxy.identity import pki
from tests.unit.controller.material import DAY_S, KEYS, NOW, RSA_KEY, ca_certificate, pem, sec1, verifies

IDENTITY = "spiffe://cluster.local/ns/shop/sa/cart"
ROOT_KEY, UPPER_KEY, KEY = KEYS
ROOT = ca_certificate("root", ROOT_KEY)
UPPER = ca_certificate("upper", UPPER_KEY, ROOT, ROOT_KEY)
LOWER = ca_certificate("lower", KEY, UPPER, UPPER_KEY, path_length=0)
Data = dict[str, bytes]


def secret(**changes: bytes) -> Data:
    """What cert-manager writes for an intermediate below an intermediate."""
    parts = {"tls_crt": pem(LOWER, UPPER), "tls_key": sec1(KEY), "ca_crt": pem(ROOT)} | changes
    return {name.replace("_", ".").replace("phase.since", "phase-since"): content for name, content in parts.items() if content}


def test_our_own_is_read_as_it_was_written() -> None:
    keys = ca_keys.create("cluster.local", NOW)
    settings = CaSettings()
    for now in (NOW, NOW, NOW + settings.root_overlap_s):
        again = ca_keys.decode(ca_keys.encode(keys), now)
        assert ca_keys.encode(again) == ca_keys.encode(keys)
        assert again.phase is keys.phase
        assert again.own_root
        keys = next_step(again, settings, now, asked=True) or keys
    assert keys.phase is Phase.DRAINING


def test_an_intermediate_of_cert_manager() -> None:
    keys = ca_keys.decode(secret(), NOW)
    assert (keys.chain, keys.roots, keys.phase, keys.own_root) == ((LOWER, UPPER), (ROOT,), Phase.STEADY, False)
    leaf = keys.sign(IDENTITY, pki.new_key().public_key(), NOW, DAY_S)
    assert verifies(leaf, keys.chain, keys.roots, NOW)
    assert not verifies(leaf, keys.chain[:1], keys.roots, NOW)


def test_its_root_may_stand_in_the_chain_and_its_key_be_rsa() -> None:
    lower = ca_certificate("lower", RSA_KEY, ROOT, ROOT_KEY)
    keys = ca_keys.decode(secret(tls_crt=pem(lower, ROOT), tls_key=sec1(RSA_KEY)), NOW)
    assert keys.chain == (lower,)
    leaf = keys.sign(IDENTITY, pki.new_key().public_key(), NOW, DAY_S)
    assert verifies(leaf, keys.chain, keys.roots, NOW)


def test_a_root_that_somebody_brings() -> None:
    keys = ca_keys.decode(secret(tls_crt=pem(ROOT), tls_key=pki.key_pem(ROOT_KEY)), NOW)
    assert keys.own_root
    assert keys.chain == ()


def test_a_leaf_ends_with_its_issuer() -> None:
    short = ca_certificate("short", KEY, ROOT, ROOT_KEY, days=(-1, 0.5))
    keys = ca_keys.decode(secret(tls_crt=pem(short)), NOW)
    assert keys.sign(IDENTITY, UPPER_KEY.public_key(), NOW, DAY_S).not_valid_after_utc == short.not_valid_after_utc
    with pytest.raises(IdentityError, match="ended"):
        keys.sign(IDENTITY, UPPER_KEY.public_key(), NOW + DAY_S, DAY_S)


REFUSED: dict[str, tuple[Callable[[], Data], str]] = {
    "nothing": (dict, "tls.crt is missing"),
    "no roots": (lambda: secret(ca_crt=b""), "ca.crt is missing"),
    "garbage": (lambda: secret(tls_crt=b"garbage"), "no PEM certificate"),
    "a garbage key": (lambda: secret(tls_key=b"garbage"), "no PEM private key"),
    "too long": (lambda: secret(ca_crt=b"x" * 300_000), "more than"),
    "another key": (lambda: secret(tls_key=sec1(ROOT_KEY)), "does not belong"),
    "a leaf": (lambda: secret(tls_crt=pem(ca_certificate("leaf", KEY, ROOT, ROOT_KEY, ca=False))), "CA:FALSE"),
    "expired": (lambda: secret(tls_crt=pem(ca_certificate("old", KEY, ROOT, ROOT_KEY, days=(-9, -1)))), "expired"),
    "not yet": (lambda: secret(tls_crt=pem(ca_certificate("new", KEY, ROOT, ROOT_KEY, days=(1, 9)))), "not valid before"),
    "a chain with a gap": (lambda: secret(tls_crt=pem(LOWER)), "not signed by"),
    "a foreign root": (lambda: secret(ca_crt=pem(ca_certificate("root", UPPER_KEY))), "not signed by"),
    "an intermediate as root": (lambda: secret(tls_crt=pem(LOWER), ca_crt=pem(UPPER)), "not self-signed"),
    "a bounded upper": (
        lambda: secret(tls_crt=pem(LOWER, ca_certificate("upper", UPPER_KEY, ROOT, ROOT_KEY, path_length=0))),
        "may not sign the CA",
    ),
    "an expired root": (lambda: secret(ca_crt=pem(ca_certificate("root", ROOT_KEY, days=(-9, -1)))), "has ended"),
    "a next root without its key": (lambda: secret(next_crt=pem(ROOT, ROOT)), "next.key is missing"),
    "a next root of another key": (lambda: secret(next_crt=pem(ROOT, ROOT), next_key=sec1(KEY)), "next.crt must hold"),
    "a next root that is not trusted": (lambda: secret(next_crt=pem(LOWER, LOWER), next_key=sec1(KEY)), "lacks the root"),
    "a time that is none": (lambda: secret(phase_since=b"yesterday"), "no time"),
    "a phase without a time": (
        lambda: secret(tls_crt=pem(ROOT), tls_key=sec1(ROOT_KEY), cross_crt=pem(ROOT)),
        "must say since when",
    ),
    "a cross certificate of another key": (
        lambda: secret(tls_crt=pem(ROOT), tls_key=sec1(ROOT_KEY), cross_crt=pem(UPPER)),
        "not about the key",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(IdentityError, match=words):
        ca_keys.decode(make(), NOW)


def test_an_extension_that_can_not_be_read() -> None:
    der = LOWER.public_bytes(pki.Encoding.DER).replace(b"\x30\x06\x01\x01\xff\x02\x01\x00", b"\x30\x06\x01\x01\xff\x02\x01\xff")
    assert der != LOWER.public_bytes(pki.Encoding.DER)
    with pytest.raises(IdentityError, match="can't be read"):
        ca_keys.decode(secret(tls_crt=pem(x509.load_der_x509_certificate(der), UPPER)), NOW)


def test_keys_are_never_printed() -> None:
    assert "PRIVATE" not in repr(ca_keys.create("cluster.local", NOW))
    assert isinstance(ca_keys.create("cluster.local", NOW), CaKeys)
