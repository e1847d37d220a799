from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeproxy.errors import IdentityError
from nodeproxy.identity.spiffe import MAX_SPIFFE_BYTES, Spiffe
from nodeproxy.model.workload import Workload

SEGMENT = st.text("aZ09._-", min_size=1, max_size=20).filter(lambda text: text not in (".", ".."))
DOMAIN = st.text("az09._-", min_size=1, max_size=40)


@given(DOMAIN, SEGMENT, SEGMENT)
def test_what_is_printed_is_what_was_parsed(domain: str, namespace: str, account: str) -> None:
    text = f"spiffe://{domain}/ns/{namespace}/sa/{account}"
    parsed = Spiffe.parse(text)
    assert parsed == Spiffe(domain, namespace, account)
    assert str(parsed) == text


@given(st.text(max_size=60))
def test_nothing_else_passes(text: str) -> None:
    with pytest.raises(IdentityError):
        Spiffe.parse(text)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_a_hostile_part_is_refused_or_kept_as_it_is(domain: str, namespace: str, account: str) -> None:
    text = f"spiffe://{domain}/ns/{namespace}/sa/{account}"
    try:
        parsed = Spiffe.parse(text)
    except IdentityError:
        return
    assert str(parsed) == text
    assert parsed == Spiffe(domain, namespace, account)


def test_an_error_shows_hostile_text_in_one_line() -> None:
    with pytest.raises(IdentityError) as caught:
        Spiffe.parse("spiffe://td/ns/a\nb/sa/c" + "d" * 1000)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_workloads_identity_is_one() -> None:
    workload = Workload(uid="u", name="n", namespace="shop", service_account="cart")
    assert Spiffe.parse(workload.identity) == Spiffe("cluster.local", "shop", "cart")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://td",
        "spiffe:///ns/a/sa/b",
        "SPIFFE://td/ns/a/sa/b",
        "spiffe://TD/ns/a/sa/b",
        "spiffe://td:80/ns/a/sa/b",
        "spiffe://user@td/ns/a/sa/b",
        "spiffe://td/ns/a/sa/b/",
        "spiffe://td/ns/a/sa/",
        "spiffe://td/ns/../sa/b",
        "spiffe://td/ns/./sa/b",
        "spiffe://td/ns/a%2fb/sa/b",
        "spiffe://td/ns/a/sa/b?x",
        "spiffe://td/ns/a/sa/b#x",
        "spiffe://td/ns/a/sa/b\n",
        "spiffe://td/sa/b/ns/a",
        "spiffe://td/NS/a/sa/b",
        "spiffe://" + "t" * 256 + "/ns/a/sa/b",
        "spiffe://td/ns/a/sa/" + "b" * MAX_SPIFFE_BYTES,
        "spiffe://td/ns/é/sa/b",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        Spiffe.parse(text)
