from __future__ import annotations

import time
from pathlib import Path

import pytest

from nodeproxy.errors import IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.chain import check_answer
from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.identity.rotation import rotate

WHO, OTHER = "spiffe://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/c"


@pytest.fixture
def ca(tmp_path: Path) -> LocalCA:
    return LocalCA.create(tmp_path / "ca")


def leaf(ca: LocalCA, identity: str = WHO, lifetime_s: float = 3600.0, now_s: float | None = None):
    key = pki.new_key()
    made = pki.make_leaf(identity, key.public_key(), ca.signing_root, ca.key, now_s or time.time(), lifetime_s)
    return key, pki.certificate_pem(made).decode()


def test_leaf_and_root(ca: LocalCA) -> None:
    key, pem = leaf(ca)
    issued, roots = check_answer(WHO, key, [pem, ca.roots_pem.decode()], time.time())
    assert (issued.identity, issued.chain_pem.decode(), issued.key_pem) == (WHO, pem, pki.key_pem(key))
    assert issued.not_before < time.time() < issued.not_after
    assert roots == ca.roots_pem


def test_through_an_intermediate_with_several_roots(tmp_path: Path, ca: LocalCA) -> None:
    rotate(tmp_path / "ca")
    new = LocalCA.open(tmp_path / "ca")
    issued = new.issue(WHO)
    key = pki.parse_key(issued.key_pem, "k")
    chain = issued.chain_pem.decode()
    cut = chain.index("-----BEGIN", 10)
    checked, roots = check_answer(WHO, key, [chain[:cut], chain[cut:], ca.roots_pem.decode()], time.time())
    assert checked.chain_pem == issued.chain_pem
    assert roots == ca.roots_pem
    check_answer(WHO, key, [chain, new.roots_pem.decode()], time.time())
    with pytest.raises(IdentityError, match="none of its 1 roots has signed"):
        check_answer(WHO, key, [chain[:cut], ca.roots_pem.decode()], time.time())


def test_what_is_refused(tmp_path: Path, ca: LocalCA) -> None:
    key, pem = leaf(ca)
    root = ca.roots_pem.decode()
    stranger = LocalCA.create(tmp_path / "stranger")
    for answer, identity, own, why in (
        ([], WHO, key, "0 certificates"),
        ([pem], WHO, key, "1 certificates"),
        ([pem, root], OTHER, key, f"a certificate of {WHO} and not of {OTHER}"),
        ([pem, root], WHO, pki.new_key(), "another key than ours"),
        ([pem, stranger.roots_pem.decode()], WHO, key, "none of its 1 roots"),
        ([pem, stranger.roots_pem.decode(), root], WHO, key, "the CA's chain is broken"),
        (["garbage", root], WHO, key, "no PEM certificate"),
        ([pem, "garbage"], WHO, key, "no PEM certificate"),
        ([root, root], WHO, key, "another key"),
        ([pem, root * 2000], WHO, key, "more than"),
    ):
        with pytest.raises(IdentityError, match=why):
            check_answer(identity, own, answer, time.time())
    with pytest.raises(IdentityError, match="compare the clocks"):
        check_answer(WHO, key, [pem, root], time.time() + 4000)


def test_a_certificate_without_a_name(ca: LocalCA) -> None:
    with pytest.raises(IdentityError, match="without a readable name"):
        check_answer(WHO, ca.key, [ca.roots_pem.decode(), ca.roots_pem.decode()], time.time())  # type: ignore[arg-type]
