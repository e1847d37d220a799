"""What is remembered of a kind of connections says the same as what is worked out for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from nodeproxy.model.connection import Connection, Direction, Party, Security
from nodeproxy.model.reason import Reason
from nodeproxy.observe.access_log import format_json, format_text
from nodeproxy.observe.kind import MAX_KINDS, Kinds
from nodeproxy.observe.labels import Reporter, tcp_labels

Make = Callable[..., Connection]


def test_another_client_of_the_same_kind(connection: Make) -> None:
    kinds = Kinds()
    first = connection()
    second = connection(
        source=replace(first.source, address="10.0.0.1:4001"), id=2, sent_bytes=1, received_bytes=2, started=1.0, ended=70.5
    )
    kind = kinds.of(first)
    assert kinds.of(second) is kind
    for write in (format_text, format_json):
        kind.fixed = None
        for each in (first, second, first):
            assert write(each, kind) == write(each)


@pytest.mark.parametrize("address", ["[fd00::1]:5", "[fe80::1%eth0]:5", 'x" y', "", "10.0.0.1:4000" * 60])
def test_any_address_first_and_later(address: str, connection: Make) -> None:
    kinds = Kinds()
    usual = connection()
    odd = connection(source=replace(usual.source, address=address))
    for write in (format_text, format_json):
        for order in itertools.permutations((usual, odd)):
            kind = kinds.of(usual)
            kind.fixed = None
            for each in order:
                assert write(each, kind) == write(each)


@pytest.mark.parametrize("name", ['a"b', "a\nb", "x" * 5000, "\U0001f600"])
def test_names_that_must_be_quoted_or_cut(name: str, connection: Make) -> None:
    workload = replace(connection().source.workload, name=name, namespace=name, cluster=name)
    party = Party("10.0.0.1:1", workload, name * 2)
    hostile = connection(source=party, destination=replace(party, address=name), hbone_address=name)
    kind = Kinds().of(hostile)
    for write in (format_text, format_json):
        kind.fixed = None
        assert write(hostile, kind) == write(hostile, kind) == write(hostile)


def test_what_went_wrong_is_in_the_line(connection: Make) -> None:
    kind = Kinds().of(connection())
    format_json(connection(), kind)
    refused = connection(reason=Reason.POLICY_DENY, detail="no")
    assert format_json(refused, kind) == format_json(refused)


@pytest.mark.parametrize(
    "change",
    [
        {"direction": Direction.INBOUND},
        {"source": Party("10.0.0.1:4000")},
        {"source": Party("10.0.0.1:4000", None, "spiffe://a/ns/b/sa/c")},
        {"destination": Party("10.0.1.2:15009")},
        {"security": Security.NONE},
        {"service": None},
        {"hbone_address": ""},
    ],
)
def test_another_kind(change: dict[str, object], connection: Make) -> None:
    kinds = Kinds()
    usual, other = connection(), connection(**change)
    assert kinds.of(usual) is not kinds.of(other)
    assert format_json(other, kinds.of(other)) == format_json(other)
    assert format_json(usual, kinds.of(usual)) == format_json(usual)


@pytest.mark.parametrize("direction", list(Direction))
def test_labels(direction: Direction, connection: Make) -> None:
    record = connection(direction=direction)
    kind = Kinds().of(record)
    for _ in range(2):
        assert kind.labels(both=False) == (tcp_labels(record),)
        assert kind.labels(both=True) == (tcp_labels(record, Reporter.SOURCE), tcp_labels(record, Reporter.DESTINATION))


def test_kinds_are_bounded(connection: Make) -> None:
    kinds = Kinds()
    for number in range(MAX_KINDS + 10):
        kinds.of(connection(hbone_address=str(number)))
    assert len(kinds._known) <= MAX_KINDS
