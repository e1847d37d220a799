"""Matchers of one policy field each."""

import pytest

from nodeproxy.errors import ConfigError
from nodeproxy.model.policy import Match, StringMatch
from nodeproxy.policy.address import canonical_ip, ip_number, parse_cidr
from nodeproxy.policy.match import Facts, Subject, compile_match, compile_strings


@pytest.mark.parametrize(
    ("match", "text", "expected"),
    [
        (StringMatch(exact="prod"), "prod", True),
        (StringMatch(exact="prod"), "prod2", False),
        (StringMatch(exact="prod"), "Prod", False),
        (StringMatch(exact=""), "", True),
        (StringMatch(prefix="pro"), "prod", True),
        (StringMatch(prefix="pro"), "xprod", False),
        (StringMatch(prefix=""), "", True),
        (StringMatch(suffix="od"), "prod", True),
        (StringMatch(suffix="od"), "prodx", False),
        (StringMatch(presence=True), "x", True),
        (StringMatch(presence=True), "", False),
        (StringMatch(), "x", False),
        (StringMatch(), "", False),
    ],
)
def test_each_kind_of_string_match(match: StringMatch, text: str, expected: bool) -> None:
    assert compile_strings([match])(text) is expected


def test_any_of_several_string_matches_will_do() -> None:
    matches = compile_strings(
        [StringMatch(exact="a"), StringMatch(exact="b"), StringMatch(prefix="c-"), StringMatch(suffix="-d")]
    )
    assert [matches(text) for text in ("a", "b", "c-1", "1-d", "c", "d", "")] == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("block", "address", "expected"),
    [
        ("10.0.0.0/8", "10.255.1.2", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("10.1.2.3/8", "10.9.9.9", True),  # host bits are dropped
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("0.0.0.0/0", "192.0.2.1", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("::/0", "2001:db8::1", True),
        ("::/0", "192.0.2.1", False),
        ("2001:db8::/32", "2001:db8:1::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("2001:db8::1", "2001:db8::1", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),  # IPv4-mapped is IPv4
        ("::ffff:10.0.0.0/104", "10.1.2.3", True),
        ("::ffff:10.0.0.0/104", "11.1.2.3", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("0.0.0.0/0", "", False),  # no address is in no block
        ("0.0.0.0/0", "not-an-address", False),
    ],
)
def test_blocks_hold_addresses_of_their_family(block: str, address: str, expected: bool) -> None:
    network, mask = parse_cidr(block)
    number = ip_number(address)
    assert (number >= 0 and number & mask == network) is expected
    test = compile_match(Match(source_ips=(block,)))
    assert test is not None
    assert test(Facts(Subject("", address, "10.0.0.1", 80))) is expected


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "10.0.0", "::/129", "nonsense", "10.0.0.0/-1"])
def test_a_block_that_is_none_is_an_error_that_says_how(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it like 10\.0\.0\.0/8"):
        parse_cidr(text)


def test_addresses_have_one_spelling() -> None:
    assert canonical_ip("2001:DB8:0::0001") == "2001:db8::1"
    assert canonical_ip("::ffff:a00:1") == canonical_ip("::ffff:10.0.0.1") == "10.0.0.1"
    assert canonical_ip("fe80::1%eth0") == "fe80::1"
    with pytest.raises(ValueError, match="10"):
        canonical_ip("10.0.0.256")


def test_an_empty_match_compiles_to_nothing() -> None:
    assert compile_match(Match()) is None


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ("spiffe://td/ns/prod/sa/web", ("td/ns/prod/sa/web", "prod", "web")),
        ("spiffe://td/elsewhere", ("td/elsewhere", "", "")),
        ("spiffe://td/ns/prod/sa/web/more", ("td/ns/prod/sa/web/more", "", "")),
        ("https://td/ns/prod/sa/web", ("", "", "")),
        ("", ("", "", "")),
    ],
)
def test_facts_of_an_identity(identity: str, expected: tuple[str, str, str]) -> None:
    facts = Facts(Subject(identity, "10.0.0.1", "10.0.0.2", 80))
    assert (facts.principal, facts.namespace, facts.service_account) == expected
