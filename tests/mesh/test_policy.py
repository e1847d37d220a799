"""Authorization on the running mesh: between nodes, on one node, and for what arrives in plain; at connect and afterwards."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nodeproxy.lab.topology import Host
from tests.mesh.attempts import (
    WATCH_INTERVAL_S,
    Greeter,
    Holder,
    Knocker,
    answer,
    connected,
    is_open,
    start_fast,
    total,
    until_reset,
)
from tests.mesh.cluster import Agent, Cluster, wait_until
from tests.mesh.evidence import Row, refused_total, rows_of
from tests.pace import PACE

PORT, SECOND_PORT = 7100, 7101
FLIPS = 200
ROUNDS = 10
DENIED = "policy_deny: denied by DENY policy shop/test, rule 0"
NOT_ALLOWED = "policy_no_allow: no ALLOW policy matched: shop/test"

Policy = dict[str, Any]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    cluster = Cluster()
    with contextlib.ExitStack() as closing:
        closing.callback(cluster.close)
        cluster.pod(0, "client", namespace="web")
        cluster.pod(0, "other", namespace="back")
        for node, name in ((0, "near"), (1, "far"), (1, "second")):
            pod = cluster.pod(node, name)
            closing.callback(Greeter(pod.host, (PORT, SECOND_PORT)).close)
        cluster.lab.external()
        yield start_fast(cluster)


@pytest.fixture
def policies(mesh: Cluster) -> Iterator[list[Policy]]:
    """The mesh's policies, none at first and none left."""
    mesh.policies.clear()
    yield mesh.policies
    for pod in mesh.pods.values():
        pod.entry.pop("authorizationPolicies", None)
    if mesh.policies:
        mesh.policies.clear()
        mesh.apply()


def policy(action: str, match: dict[str, Any] | None, name: str = "test", **more: Any) -> Policy:
    """A policy of one rule; match None: a rule that always matches."""
    rules = [[]] if match is None else [[[match]]]
    return {"name": name, "namespace": "shop", "scope": "Namespace", "action": action, "rules": rules, **more}


def ways(mesh: Cluster, host: Host) -> list[tuple[Agent, str]]:
    """(who judges, address) of each way from `host` into namespace shop: on one node and between nodes, of both families."""
    near, far = mesh.pods["near"], mesh.pods["far"]
    both = [(mesh.agents[0], near.ip), (mesh.agents[0], near.ip6), (mesh.agents[1], far.ip), (mesh.agents[1], far.ip6)]
    return both if host is not mesh.lab.external() else both[2:]


def written(address: str, port: int = PORT) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def failed_total(agent: Agent) -> float:
    return total(agent, "istio_tcp_connections_failed_total", response_flags="DENY")


def new_row(agent: Agent, target: str, seen: int) -> Row:
    """The line after the `seen` ones about connections to `target` that were refused."""
    return dict(wait_until(lambda: refused_rows(agent, target)[seen:], f"the line of {target}")[0])


def refused_rows(agent: Agent, target: str) -> list[Row]:
    return [row for row in rows_of(agent, dst_addr=target) if "error" in row]


def denied(mesh: Cluster, host: Host, error: str, port: int = PORT) -> None:
    """Nobody answers `host`; line and metrics of who judged say why, and on the other node that the peer said no."""
    source = mesh.agents[0]
    for agent, address in ways(mesh, host):
        target = written(address, port)
        reason = error.partition(":")[0]
        seen, seen_outside = len(refused_rows(agent, target)), len(refused_rows(source, target))
        before, failed = refused_total(agent, reason), failed_total(agent)
        assert answer(host, address, port) is None
        row = new_row(agent, target, seen)
        assert row["error"] == error
        assert (row["bytes_sent"], row["bytes_recv"]) == (0, 0)
        assert row["dst.workload"] == ("near" if agent is source else "far")
        assert refused_total(agent, reason) == before + 1
        assert failed_total(agent) == failed + 1
        if agent is not source and host is not mesh.lab.external():
            row = new_row(source, target, seen_outside)
            assert row["error"].startswith("hbone_denied: the destination's policy denied it")


def passes(mesh: Cluster, host: Host, port: int = PORT) -> None:
    for agent, address in ways(mesh, host):
        assert answer(host, address, port) == ("near" if agent is mesh.agents[0] else "far")


def test_without_policies_all_pass(mesh: Cluster, policies: list[Policy]) -> None:
    for host in (mesh.pods["client"].host, mesh.pods["other"].host, mesh.lab.external()):
        passes(mesh, host)


@pytest.mark.parametrize("field", ["principals", "namespaces", "serviceAccounts", "sourceIps"])
def test_who_it_is(mesh: Cluster, policies: list[Policy], field: str) -> None:
    """DENY hits the one and not the other, ALLOW the other way round; a `not` field turns it over."""
    client, other = mesh.pods["client"], mesh.pods["other"]
    value = {
        "principals": [{"exact": client.identity.removeprefix("spiffe://")}],
        "namespaces": [{"exact": "web"}],
        "serviceAccounts": [{"namespace": "web", "serviceAccount": "client"}],
        "sourceIps": [f"{client.ip}/32", f"{client.ip6}/128"],
    }[field]
    negated = "not" + field[0].upper() + field[1:]
    for action, key, hit, miss in (
        ("Deny", field, client, other),
        ("Allow", field, other, client),
        ("Deny", negated, other, client),
    ):
        policies[:] = [policy(action, {key: value})]
        mesh.apply()
        denied(mesh, hit.host, DENIED if action == "Deny" else NOT_ALLOWED)
        passes(mesh, miss.host)


def test_where_it_goes(mesh: Cluster, policies: list[Policy]) -> None:
    client = mesh.pods["client"].host
    policies[:] = [policy("Deny", {"destinationPorts": [PORT]})]
    mesh.apply()
    denied(mesh, client, DENIED)
    passes(mesh, client, SECOND_PORT)
    policies[:] = [policy("Allow", {"destinationPorts": [PORT]})]
    mesh.apply()
    denied(mesh, client, NOT_ALLOWED, SECOND_PORT)
    passes(mesh, client)


def test_the_rule_that_denied_is_named(mesh: Cluster, policies: list[Policy]) -> None:
    """The third rule of the second policy; DENY goes before ALLOW."""
    client = mesh.pods["client"].host
    nobody: list[Any] = [[{"namespaces": [{"exact": "nobody"}]}]]
    rules = [nobody, [[{"namespaces": [{"exact": "web"}]}], *nobody], [[{"namespaces": [{"prefix": "we"}]}]]]
    policies[:] = [
        policy("Allow", None, "all"),
        policy("Deny", {"namespaces": [{"exact": "nobody"}]}, "a-first"),
        {**policy("Deny", None, "b-second"), "rules": rules},
    ]
    mesh.apply()
    denied(mesh, client, "policy_deny: denied by DENY policy shop/b-second, rule 2")
    passes(mesh, mesh.pods["other"].host)


def test_plaintext_has_an_address_and_no_identity(mesh: Cluster, policies: list[Policy]) -> None:
    outside = mesh.lab.external()
    addresses = [f"{outside.address4}/32", f"{outside.address6}/128"]
    for match in ({"sourceIps": addresses}, {"notPrincipals": [{"presence": {}}]}, {"notNamespaces": [{"exact": "web"}]}):
        policies[:] = [policy("Deny", match)]
        mesh.apply()
        denied(mesh, outside, DENIED)
        passes(mesh, mesh.pods["client"].host)
    policies[:] = [policy("Allow", {"principals": [{"presence": {}}]})]
    mesh.apply()
    denied(mesh, outside, NOT_ALLOWED)
    policies[:] = [policy("Allow", {"sourceIps": addresses})]
    mesh.apply()
    passes(mesh, outside)
    denied(mesh, mesh.pods["client"].host, NOT_ALLOWED)


# ── connections that stand ──


@contextlib.contextmanager
def standing(mesh: Cluster, port: int = PORT) -> Iterator[dict[str, socket.socket]]:
    """A connection of each kind: "WHO to WHERE over FAMILY"."""
    found: dict[str, socket.socket] = {}
    with contextlib.ExitStack() as closing:
        hosts = {"client": mesh.pods["client"].host, "other": mesh.pods["other"].host, "outside": mesh.lab.external()}
        for who, host in hosts.items():
            for where in ("near", "far", "second"):
                for family in ("address4", "address6"):
                    if host is mesh.lab.external() and where == "near":
                        continue
                    sock, greeting = connected(host, getattr(mesh.pods[where].host, family), port)
                    closing.callback(sock.close)
                    assert greeting == where
                    found[f"{who} to {where} over {family}"] = sock
        yield found


def pushed(mesh: Cluster, live: dict[str, socket.socket], hit: set[str]) -> None:
    """Make the edit; exactly the connections `hit` end by it, on both sides' accounts."""
    begun = time.monotonic()
    mesh.write()
    ends = until_reset({name: live[name] for name in hit})
    assert ends.keys() == hit, f"these go on: {sorted(hit - ends.keys())}"
    times = sorted((when - begun) * 1000 for when in ends.values())
    interval_ms = WATCH_INTERVAL_S * 1000
    span = f"{times[0]:.0f} to {times[-1]:.0f}"
    print(f"{len(times)} connections reset {span} ms after the edit, for which the agent looks each {interval_ms:.0f} ms")
    assert times[-1] < 1000 * PACE
    survivors = {name: sock for name, sock in live.items() if name not in hit}
    assert not [name for name, sock in survivors.items() if not is_open(sock)]


def test_a_push_ends_what_it_denies(mesh: Cluster, policies: list[Policy]) -> None:
    """At once, on one node, between nodes and in plain; the connections of others are left alone."""
    with standing(mesh) as live:
        policies[:] = [
            policy("Deny", {"namespaces": [{"exact": "web"}]}),
            policy("Deny", {"notPrincipals": [{"presence": {}}]}, "strict"),
        ]
        before = [refused_total(agent, "policy_deny") for agent in mesh.agents]
        seen = len(rows_of(mesh.agents[1], dst_addr=written(mesh.pods["far"].ip)))
        pushed(mesh, live, {name for name in live if not name.startswith("other")})
        # near twice; far and second twice, and as often in plain
        after = [before[0] + 2, before[1] + 8]
        wait_until(lambda: [refused_total(agent, "policy_deny") for agent in mesh.agents] == after, "all are counted")
        errors = {row["error"] for row in rows_of(mesh.agents[1], dst_addr=written(mesh.pods["far"].ip))[seen:]}
        assert errors == {f"policy_deny: denied by DENY policy shop/{name}, rule 0" for name in ("test", "strict")}


def test_a_push_that_allows_others_ends_the_rest(mesh: Cluster, policies: list[Policy]) -> None:
    with standing(mesh) as live:
        policies[:] = [policy("Allow", {"namespaces": [{"exact": "back"}]})]
        pushed(mesh, live, {name for name in live if not name.startswith("other")})


def test_a_push_by_port(mesh: Cluster, policies: list[Policy]) -> None:
    with standing(mesh) as first, standing(mesh, SECOND_PORT) as second:
        policies[:] = [policy("Deny", {"destinationPorts": [SECOND_PORT]})]
        pushed(mesh, second, set(second))
        assert all(is_open(sock) for sock in first.values())


@pytest.mark.parametrize("where", ["near", "far"])
def test_a_policy_that_attaches_later_closes(mesh: Cluster, policies: list[Policy], where: str) -> None:
    """It was there from the first, for nobody.  Upstream judges by the workload as it was at connect time, and lets it go on."""
    policies[:] = [policy("Deny", None, "selected", scope="WorkloadSelector")]
    mesh.apply()
    with standing(mesh) as live:
        mesh.pods[where].entry["authorizationPolicies"] = ["shop/selected"]
        pushed(mesh, live, {name for name in live if f"to {where}" in name})
        for host in (mesh.pods["client"].host, mesh.pods["other"].host):
            assert answer(host, mesh.pods[where].ip, PORT) is None
            assert answer(host, mesh.pods["second"].ip, PORT) == "second"


def test_a_workload_that_is_removed(mesh: Cluster, policies: list[Policy]) -> None:
    """Who is not in the state any more is talked to by nobody; its name comes back, and it is talked to."""
    with standing(mesh) as live:
        gone = {name: mesh.pods.pop(name) for name in ("near", "far")}
        try:
            pushed(mesh, live, {name for name in live if "to second" not in name})
            target = written(gone["far"].ip)
            reasons = {row["error"].partition(":")[0] for row in rows_of(mesh.agents[1], dst_addr=target) if "error" in row}
            assert "unknown_workload" in reasons
        finally:
            mesh.pods.update(gone)
            mesh.apply()
    back = {pod.uid for pod in gone.values()}

    def in_the_mesh() -> set[str]:
        return {row["uid"] for agent in mesh.agents for row in agent.get("/status")["pods"] if not row["error"]}

    wait_until(lambda: back <= in_the_mesh(), "they are enrolled again")
    wait_until(lambda: all(agent.get("/status")["ready"] for agent in mesh.agents), "they have their certificates")
    passes(mesh, mesh.pods["client"].host)


# ── dry-run ──


def test_dry_run_is_logged_and_counted_and_lets_pass(mesh: Cluster, policies: list[Policy]) -> None:
    policies[:] = [
        policy("Deny", {"namespaces": [{"exact": "web"}]}, "dry", dryRun=True),
        policy("Allow", {"namespaces": [{"exact": "nobody"}]}, "dry-allow", dryRun=True),
    ]
    mesh.apply()
    client = mesh.pods["client"]
    names = ("shop/dry", "shop/dry-allow")

    def counted(agent: Agent) -> list[float]:
        return [total(agent, "nodeproxy_policy_dry_run_total", policy=name, verdict="deny") for name in names]

    for agent, where in zip(mesh.agents, ("near", "far"), strict=True):
        before, seen = counted(agent), len(dry_runs(agent))
        target = mesh.pods[where].ip
        assert answer(client.host, target, PORT) == where
        assert counted(agent) == [before[0] + 1, before[1] + 1]
        wait_until(lambda agent=agent, seen=seen: len(dry_runs(agent)) == seen + 2, "the lines")
        rows = dry_runs(agent)[seen:]
        assert [row["dry_run"] for row in rows] == [
            "policy_deny: denied by DENY policy shop/dry, rule 0",
            "policy_no_allow: no ALLOW policy matched: shop/dry-allow",
        ]
        for row in rows:
            assert row["scope"] == "policy"
            assert (row["src.identity"], row["dst.addr"], row["dst.workload"]) == (client.identity, written(target), where)


def dry_runs(agent: Agent) -> list[Row]:
    return [row for row in agent.access_log() if "dry_run" in row]


# ── edits that are refused ──


_EDITS = {
    "an unknown key": ('"action": "Deny"', '"actoin": "Deny"', "did you mean action"),
    "a wrong word": ('"action": "Deny"', '"action": "Forbid"', "Forbid"),
    "no address": ('"198.51.100.0/24"', '"198.51.100.0/99"', "198.51.100.0/99"),
    "a wrong kind": ('"name": "held"', '"name": ["held"]', "must be text, not a list"),
    "broken syntax": ('"action": "Deny"', '"action" "Deny"', "not YAML"),
    "a name twice": ('"name": "held"', '"name": "other-one"', "twice"),
}


@pytest.mark.parametrize("what", [*_EDITS, "half a file"])
def test_a_broken_edit_is_refused_whole(mesh: Cluster, policies: list[Policy], what: str) -> None:
    """File, line and column are told; what stood before goes on, and with the mended file it is over."""
    agent = mesh.agents[1]
    policies[:] = [
        policy("Deny", {"namespaces": [{"exact": "web"}]}, "held"),
        policy("Deny", {"sourceIps": ["198.51.100.0/24"]}, "other-one"),
    ]
    mesh.apply()
    good = agent.mesh.read_text()
    before = agent.get("/status")["state"]
    if what == "half a file":
        said = "not YAML"
        bad = good[: len(good) // 2]
        line = bad.count("\n") + 1
    else:
        old, new, said = _EDITS[what]
        bad = good.replace(old, new, 1)
        line = good.count("\n", 0, good.index(old)) + 1
    reason, told = refused_edit(agent, bad)
    assert said in reason
    if what == "a name twice":  # the second is told, which stands further down
        assert told > line
    else:
        assert abs(told - line) <= 1, reason  # the parser may notice at the beginning of the next line
    still_denied(mesh)
    state = agent.get("/status")["state"]
    assert {**state, "error": ""} == before
    assert agent.get("/status")["ready"]
    assert f"The last change was refused, the state before it stays: {agent.mesh}:{told}:" in agent.nodeproxy("status").stdout
    agent.mesh.write_text(good)
    wait_until(lambda: not agent.get("/status")["state"]["error"], "the mended file is taken")
    still_denied(mesh)


def refused_edit(agent: Agent, text: str) -> tuple[str, int]:
    """Put this in place of the agent's mesh file; why it was not taken, and the line that is named."""
    temporary = agent.mesh.with_suffix(".broken")
    temporary.write_text(text)
    temporary.rename(agent.mesh)
    error = str(wait_until(lambda: agent.get("/status")["state"]["error"], "the edit is refused"))
    found = re.fullmatch(rf"{re.escape(str(agent.mesh))}:(\d+):(\d+): (.+)", error)
    assert found, error
    messages = [json.loads(line)["message"] for line in agent.log().splitlines() if "nothing of it was applied" in line]
    assert messages[-1].startswith(f"{error}; ")
    return found[3], int(found[1])


def still_denied(mesh: Cluster) -> None:
    far = mesh.pods["far"].ip
    assert answer(mesh.pods["client"].host, far, PORT) is None
    assert answer(mesh.pods["other"].host, far, PORT) == "far"


def test_a_file_that_has_gone_changes_nothing(mesh: Cluster, policies: list[Policy]) -> None:
    agent = mesh.agents[1]
    policies[:] = [policy("Deny", {"namespaces": [{"exact": "web"}]}, "held")]
    mesh.apply()
    hidden = agent.mesh.rename(agent.mesh.with_suffix(".hidden"))
    wait_until(lambda: "can't be read" in agent.get("/status")["state"]["error"], "its absence is told")
    still_denied(mesh)
    hidden.rename(agent.mesh)
    wait_until(lambda: not agent.get("/status")["state"]["error"], "it is back")


# ── under load ──


def test_no_connection_slips_through_while_policy_flips(mesh: Cluster, policies: list[Policy]) -> None:
    """Whatever begins after a deny is in use gets nothing, whatever begins after an allow is in use gets an answer."""
    client, outside = mesh.pods["client"].host, mesh.lab.external()
    near, far = mesh.pods["near"], mesh.pods["far"]
    knockers = [Knocker(client, near.ip, PORT), Knocker(client, far.ip6, PORT), Knocker(outside, far.ip, PORT)]
    spans: list[tuple[bool, float, float]] = []
    deny = policy("Deny", None, "flip")
    begun = time.monotonic()
    try:
        for flip in range(FLIPS):
            allowed = flip % 2 == 1
            policies[:] = [] if allowed else [deny]
            mesh.apply()
            since = time.monotonic()
            wait_until(lambda since=since: all(each.error or each.tried_since(since) > 1 for each in knockers), "tries")
            spans.append((allowed, since, time.monotonic()))
    finally:
        for knocker in knockers:
            knocker.stop()
    held = {True: 0, False: 0}
    for knocker, who in zip(knockers, ("near", "far", "far"), strict=True):
        for allowed, since, until in spans:
            whole = [got for start, end, got in knocker.tries if since < start and end < until]
            held[allowed] += len(whole)
            assert set(whole) <= ({who} if allowed else {None})
    tries = sum(len(each.tries) for each in knockers)
    print(f"{FLIPS} flips in {time.monotonic() - begun:.1f} s, {tries} connections:")
    print(f"{held[False]} began and ended under a deny in use, {held[True]} under an allow in use")
    assert min(held.values()) >= FLIPS


def ends_by_reset(sock: socket.socket) -> bool:
    """Whether a connection ends by one, after its greeting or before."""
    try:
        while sock.recv(64):
            pass
    except ConnectionResetError:
        return True
    return False


def test_what_begins_as_a_deny_comes_ends_by_it(mesh: Cluster, policies: list[Policy]) -> None:
    """Whether it was judged, being connected or relayed at that moment: nothing that began under the allow lives on."""
    client, outside = mesh.pods["client"].host, mesh.lab.external()
    near, far = mesh.pods["near"], mesh.pods["far"]
    count = 0
    for _ in range(ROUNDS):
        if policies:
            policies.clear()
            mesh.apply()
        holders = [Holder(client, near.ip, PORT), Holder(client, far.ip6, PORT), Holder(outside, far.ip, PORT)]
        try:
            wait_until(lambda holders=holders: all(each.error or len(each.socks) > 20 for each in holders), "connections")
            policies[:] = [policy("Deny", None, "flip")]
            mesh.apply()
        finally:
            socks = [sock for holder in holders for sock in holder.stop()]
        count += len(socks)
        for sock in socks:
            with sock:
                assert ends_by_reset(sock)
    for agent in mesh.agents:
        wait_until(lambda agent=agent: not agent.get("/connections")["connections"], "nothing is left")
    print(f"{count} connections that began in {ROUNDS} transitions: all reset")
