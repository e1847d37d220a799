"""Each way a handshake can fail, with real handshakes over memory."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeproxy.errors import IdentityError, ProtocolError
from nodeproxy.identity import tls
from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.identity.rotation import retire, rotate
from nodeproxy.model.reason import Reason

CLIENT = "spiffe://cluster.local/ns/shop/sa/cart"
SERVER = "spiffe://cluster.local/ns/shop/sa/stock"
Handshake = Callable[[ssl.SSLContext, ssl.SSLContext], Any]


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def client_of(material: Any) -> ssl.SSLContext:
    return tls.client_context(material.chain, material.key, material.roots)


def server_of(material: Any) -> ssl.SSLContext:
    return tls.server_context(material.chain, material.key, material.roots)


def bare_client(roots: bytes, *, alpn: tuple[str, ...] = ("h2",)) -> ssl.SSLContext:
    """A client that is not ours: no certificate, any version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=roots.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def test_both_sides_know_each_other(forger: Any, handshake: Handshake) -> None:
    ends = handshake(client_of(forger.good(CLIENT)), server_of(forger.good(SERVER)))
    assert ends.errors == {}
    assert ends.client.version() == "TLSv1.3"
    assert tls.verify_server(ends.client, frozenset({SERVER})) == SERVER
    assert tls.verify_client(ends.server, "cluster.local") == CLIENT


def test_no_sni_no_ticket_no_early_data(forger: Any) -> None:
    hello = ssl.MemoryBIO()
    client = client_of(forger.good(CLIENT)).wrap_bio(ssl.MemoryBIO(), hello)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    record = hello.read()
    assert extensions_of(record).isdisjoint({0, 35, 42, 41})  # server_name, session_ticket, early_data, pre_shared_key


def extensions_of(record: bytes) -> set[int]:
    """The extension types of a ClientHello (RFC 8446, section 4.1.2)."""
    at = 5 + 4 + 2 + 32  # record header, handshake header, legacy_version, random
    at += 1 + record[at]
    at += 2 + int.from_bytes(record[at : at + 2], "big")
    at += 1 + record[at]
    end = at + 2 + int.from_bytes(record[at : at + 2], "big")
    at += 2
    found = set()
    while at < end:
        found.add(int.from_bytes(record[at : at + 2], "big"))
        at += 4 + int.from_bytes(record[at + 2 : at + 4], "big")
    return found


def test_server_sends_no_ticket(forger: Any, handshake: Handshake) -> None:
    ends = handshake(client_of(forger.good(CLIENT)), server_of(forger.good(SERVER)))
    assert ends.client.session.has_ticket is False


def refusals(ends: Any) -> dict[str, Reason]:
    return {side: tls.tls_refusal(error).reason for side, error in ends.errors.items()}


def test_client_without_certificate(forger: Any, handshake: Handshake) -> None:
    server = forger.good(SERVER)
    ends = handshake(bare_client(server.roots), server_of(server))
    assert refusals(ends) == {"server": Reason.PEER_NO_CERTIFICATE, "client": Reason.NO_CERTIFICATE}


NOW = time.time()
REFUSED_CLIENTS = {
    "expired": ({"end": NOW - 60}, Reason.PEER_CERTIFICATE_EXPIRED, "expired"),
    "not yet valid": ({"begin": NOW + 600}, Reason.PEER_CERTIFICATE_EXPIRED, "not valid yet"),
    "a server's": ({"usages": (ExtendedKeyUsageOID.SERVER_AUTH,)}, Reason.PEER_CERTIFICATE_PURPOSE, "clientAuth"),
}


@pytest.mark.parametrize("case", REFUSED_CLIENTS)
def test_client_certificate_refused(case: str, forger: Any, handshake: Handshake) -> None:
    options, reason, word = REFUSED_CLIENTS[case]
    ends = handshake(client_of(forger.forge([uri(CLIENT)], **options)), server_of(forger.good(SERVER)))
    refusal = tls.tls_refusal(ends.errors["server"])
    assert refusal.reason is reason
    assert word in refusal.detail
    told = tls.tls_refusal(ends.errors["client"])
    assert told.reason is Reason.TLS_FAILURE
    assert "our certificate" in told.detail


def test_client_of_another_root(forger: Any, other_forger: Any, handshake: Handshake) -> None:
    stranger = replace(other_forger.good(CLIENT), roots=forger.ca.roots_pem)
    ends = handshake(client_of(stranger), server_of(forger.good(SERVER)))
    assert refusals(ends) == {"server": Reason.PEER_CERTIFICATE_UNTRUSTED, "client": Reason.TLS_FAILURE}
    assert "does not trust our root" in tls.tls_refusal(ends.errors["client"]).detail


def test_server_of_another_root(forger: Any, other_forger: Any, handshake: Handshake) -> None:
    ends = handshake(client_of(forger.good(CLIENT)), server_of(other_forger.good(SERVER)))
    assert refusals(ends)["client"] is Reason.PEER_CERTIFICATE_UNTRUSTED


def test_client_only_certificate_as_server(forger: Any, handshake: Handshake) -> None:
    server = forger.forge([uri(SERVER)], usages=(ExtendedKeyUsageOID.CLIENT_AUTH,))
    ends = handshake(client_of(forger.good(CLIENT)), server_of(server))
    assert refusals(ends)["client"] is Reason.PEER_CERTIFICATE_PURPOSE


def test_self_signed_leaf(forger: Any, other_forger: Any, handshake: Handshake) -> None:
    from nodeproxy.identity import pki

    root = other_forger.ca
    fake = client_of(replace(forger.good(CLIENT), chain=root.roots_pem, key=pki.key_pem(root.key)))
    ends = handshake(fake, server_of(forger.good(SERVER)))
    assert refusals(ends)["server"] is Reason.PEER_CERTIFICATE_UNTRUSTED


def test_other_trust_domain(forger: Any, handshake: Handshake) -> None:
    ends = handshake(client_of(forger.forge([uri("spiffe://elsewhere/ns/shop/sa/cart")])), server_of(forger.good(SERVER)))
    assert ends.errors == {}
    with pytest.raises(ProtocolError, match="trust domain cluster.local") as caught:
        tls.verify_client(ends.server, "cluster.local")
    assert caught.value.reason is Reason.PEER_TRUST_DOMAIN


def test_trust_domain_that_begins_like_ours(forger: Any, handshake: Handshake) -> None:
    ends = handshake(
        client_of(forger.forge([uri("spiffe://cluster.local.evil/ns/shop/sa/cart")])), server_of(forger.good(SERVER))
    )
    with pytest.raises(ProtocolError) as caught:
        tls.verify_client(ends.server, "cluster.local")
    assert caught.value.reason is Reason.PEER_TRUST_DOMAIN


WRONG_NAMES: dict[str, list[x509.GeneralName]] = {
    "none": [],
    "two": [uri(CLIENT), uri(SERVER)],
    "twice": [uri(CLIENT), uri(CLIENT)],
    "a DNS name": [x509.DNSName("cart.shop.svc")],
    "https": [uri("https://cluster.local/ns/shop/sa/cart")],
    "another path": [uri("spiffe://cluster.local/ns/shop/sa/cart/x")],
    "an empty namespace": [uri("spiffe://cluster.local/ns//sa/cart")],
    "a line end": [uri("spiffe://cluster.local/ns/shop/sa/cart\nforged")],
    "a zero byte": [uri("spiffe://cluster.local/ns/shop/sa/cart\0")],
    "an IP in the name of a URI": [x509.RFC822Name(CLIENT.replace("spiffe://", "x@"))],
}


@pytest.mark.parametrize("case", WRONG_NAMES)
def test_names_that_are_no_identity(case: str, forger: Any, handshake: Handshake) -> None:
    ends = handshake(client_of(forger.forge(WRONG_NAMES[case])), server_of(forger.good(SERVER)))
    with pytest.raises(ProtocolError) as caught:
        tls.verify_client(ends.server, "cluster.local")
    assert caught.value.reason is Reason.PEER_IDENTITY
    assert "\n" not in str(caught.value)


def test_uri_that_is_not_text(forger: Any, handshake: Handshake) -> None:
    san = b"\x30\x0b\x86\x09spiffe\xff\xfe\xfd"
    material = forger.forge([], raw_names=san)
    ends = handshake(client_of(material), server_of(forger.good(SERVER)))
    with pytest.raises(ProtocolError) as caught:
        tls.verify_client(ends.server, "cluster.local")
    assert caught.value.reason is Reason.PEER_IDENTITY


def test_dns_name_beside_the_identity_is_allowed(forger: Any, handshake: Handshake) -> None:
    ends = handshake(client_of(forger.forge([x509.DNSName("cart"), uri(CLIENT)])), server_of(forger.good(SERVER)))
    assert tls.verify_client(ends.server, "cluster.local") == CLIENT


def test_server_of_another_identity(forger: Any, handshake: Handshake) -> None:
    ends = handshake(client_of(forger.good(CLIENT)), server_of(forger.good(SERVER)))
    with pytest.raises(ProtocolError, match=f"proved to be {SERVER}") as caught:
        tls.verify_server(ends.client, frozenset({CLIENT}))
    assert caught.value.reason is Reason.PEER_IDENTITY


def test_identity_before_the_handshake_is_an_error(forger: Any) -> None:
    fresh = client_of(forger.good(CLIENT)).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    with pytest.raises(ProtocolError):
        tls.peer_identity(fresh)


def test_tls_1_2(forger: Any, handshake: Handshake) -> None:
    old = bare_client(forger.ca.roots_pem)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    ends = handshake(old, server_of(forger.good(SERVER)))
    assert refusals(ends) == {"server": Reason.TLS_FAILURE, "client": Reason.TLS_FAILURE}
    assert "no TLS 1.3" in tls.tls_refusal(ends.errors["server"]).detail
    assert "TLS 1.3" in tls.tls_refusal(ends.errors["client"]).detail


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
def test_no_alpn(alpn: tuple[str, ...], forger: Any, handshake: Handshake, tmp_path: Any) -> None:
    material = forger.good(CLIENT)
    (tmp_path / "pem").write_bytes(material.key + material.chain)
    client = bare_client(material.roots, alpn=alpn)
    client.load_cert_chain(tmp_path / "pem")
    ends = handshake(client, server_of(forger.good(SERVER)))
    with pytest.raises(ProtocolError) as caught:
        tls.verify_client(ends.server, "cluster.local")
    assert caught.value.reason is Reason.NO_ALPN


@pytest.mark.parametrize(("sent", "word"), [(b"GET / HTTP/1.1\r\n\r\n", "plain HTTP"), (b"SSH-2.0-x\r\n" + bytes(20), "not TLS")])
def test_something_else_than_tls(sent: bytes, word: str, forger: Any) -> None:
    incoming = ssl.MemoryBIO()
    incoming.write(sent)
    server = server_of(forger.good(SERVER)).wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ssl.SSLError) as caught:
        server.do_handshake()
    refusal = tls.tls_refusal(caught.value)
    assert refusal.reason is Reason.TLS_FAILURE
    assert word in refusal.detail


def test_closed_within_the_handshake(forger: Any) -> None:
    incoming = ssl.MemoryBIO()
    incoming.write_eof()
    server = server_of(forger.good(SERVER)).wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ssl.SSLError) as caught:
        server.do_handshake()
    assert "closed" in tls.tls_refusal(caught.value).detail


def test_several_roots(forger: Any, other_forger: Any, handshake: Handshake) -> None:
    both = forger.ca.roots_pem + other_forger.ca.roots_pem
    ends = handshake(
        client_of(replace(other_forger.good(CLIENT), roots=both)), server_of(replace(forger.good(SERVER), roots=both))
    )
    assert ends.errors == {}
    assert tls.verify_client(ends.server, "cluster.local") == CLIENT


def test_root_rotation_in_any_order(tmp_path: Any, handshake: Handshake) -> None:
    directory = tmp_path / "rotated"
    before = LocalCA.create(directory)
    rotate(directory)
    after = LocalCA.open(directory)

    def sides(ca: LocalCA, trust: LocalCA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        client, server = ca.issue(CLIENT), ca.issue(SERVER)
        return (
            tls.client_context(client.chain_pem, client.key_pem, trust.roots_pem),
            tls.server_context(server.chain_pem, server.key_pem, trust.roots_pem),
        )

    everyone = [sides(before, before), sides(before, after), sides(after, before), sides(after, after)]
    for client, _ in everyone:
        for _, server in everyone:
            assert handshake(client, server).errors == {}
    assert retire(directory) == 1
    last = LocalCA.open(directory)
    client, server = sides(last, last)
    assert handshake(client, server).errors == {}
    assert "server" in handshake(everyone[0][0], server).errors  # signed by the root that is gone


def test_no_descriptor_and_no_file_is_left(forger: Any) -> None:
    material = forger.good(CLIENT)
    client_of(material)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        client_of(material)
        server_of(material)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("broken", ["chain", "key", "roots", "other key"])
def test_material_that_can_not_be_used(broken: str, forger: Any) -> None:
    material = forger.good(CLIENT)
    bad = (
        replace(material, key=forger.good(CLIENT).key)
        if broken == "other key"
        else replace(material, **{broken: b"\xff nonsense"})
    )
    with pytest.raises(IdentityError):
        client_of(bad)


# RFC 8446, section 6: the codes of alerts, and what must be told of each.
ALERTS = {
    40: (Reason.TLS_FAILURE, "no parameters"),
    42: (Reason.TLS_FAILURE, "can't accept our certificate"),
    43: (Reason.TLS_FAILURE, "not for this purpose"),
    44: (Reason.TLS_FAILURE, "revoked"),
    45: (Reason.TLS_FAILURE, "expired or not yet valid"),
    46: (Reason.TLS_FAILURE, "without saying why"),
    48: (Reason.TLS_FAILURE, "does not trust our root"),
    49: (Reason.TLS_FAILURE, "denies access"),
    51: (Reason.TLS_FAILURE, "could not verify our signature"),
    70: (Reason.TLS_FAILURE, "TLS 1.3"),
    80: (Reason.TLS_FAILURE, "alert internal_error"),
    116: (Reason.NO_CERTIFICATE, "wants a certificate"),
    120: (Reason.NO_ALPN, "does not speak h2"),
}


@pytest.mark.parametrize("code", ALERTS)
def test_alert_of_the_peer_is_named(code: int, forger: Any) -> None:
    incoming = ssl.MemoryBIO()
    client = client_of(forger.good(CLIENT)).wrap_bio(incoming, ssl.MemoryBIO())
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(bytes([21, 3, 3, 0, 2, 2, code]))  # a record of type alert, level fatal
    with pytest.raises(ssl.SSLError) as caught:
        client.do_handshake()
    reason, words = ALERTS[code]
    refusal = tls.tls_refusal(caught.value)
    assert refusal.reason is reason
    assert words in refusal.detail
