"""Which of several services of one host counts, and what it costs to find out."""

from __future__ import annotations

import pytest

from nodeproxy.translate import hosts as hosts_module
from nodeproxy.translate.hosts import Host, Hosts

pytestmark = pytest.mark.unit


def host(number: int, *, namespace: str = "ns", kind: str = "ServiceEntry", created: str = "") -> Host:
    return Host(
        source=(kind, f"{namespace}/e{number}"), namespace=namespace, name=f"e{number}", hostname="a.com", created=created
    )


def test_kubernetes_own_then_the_oldest_then_the_first_by_name_counts() -> None:
    hosts = Hosts()
    young, old, alike, own = (
        host(1, created="2"),
        host(3, created="1"),
        host(2, created="1"),
        host(9, kind="Service", created="3"),
    )
    assert hosts.put(young) == [young]
    assert hosts.put(old) == [young, old]
    assert hosts.put(alike) == [old, alike]
    assert hosts.put(own) == [alike, own]
    assert hosts.drop(old) == []
    assert hosts.drop(own) == [own, alike]
    again = host(2, created="3")
    assert hosts.put(again) == [alike, young]
    assert hosts.get("ns", "a.com") is young
    assert not hosts.counts(again)
    assert hosts.drop(young) == [young, again]
    assert hosts.drop(again) == [again]
    assert list(hosts.named("a.com")) == []


def test_of_several_namespaces_one_is_canonical() -> None:
    hosts = Hosts()
    second, first = host(1, namespace="b", created="2"), host(1, namespace="a", created="1")
    for each in (second, first):
        hosts.put(each)
    assert dict(hosts.named("a.com")) == {first: True, second: False}
    hosts.drop(first)
    assert dict(hosts.named("a.com")) == {second: True}


def test_a_change_does_not_cost_by_those_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, asked = Hosts(), 0
    real = hosts_module._age

    def counting(each: Host) -> object:
        nonlocal asked
        asked += 1
        return real(each)

    for number in range(500):
        hosts.put(host(number, namespace=f"n{number % 50}"))
    monkeypatch.setattr(hosts_module, "_age", counting)
    hosts.put(host(0, namespace="n0", created="1"))
    hosts.put(host(0, namespace="n0"))
    assert asked <= 12
