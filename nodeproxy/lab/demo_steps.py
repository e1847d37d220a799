"""What the demo shows, a function a step.  Each runs something, measures it, and fails unless the measurement is as it should be.

Invariant: nothing is claimed that was not just measured: by a capture between the nodes, by the programs' own output, by the
agents' answers.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from nodeproxy.lab.demo_mesh import POLICY_KEY, SERVICE, SERVICE_PORT, VIP
from nodeproxy.lab.demo_programs import PORT, clients_of, hold, shown_command, watch
from nodeproxy.lab.demo_report import Report, expect
from nodeproxy.lab.demo_wire import are_tls, readable_packets, tcp_bytes
from nodeproxy.lab.demo_world import World

# So many that each of three endpoints has its share from each of two workers, which take turns on their own.
_REQUESTS = 30
# The agents look at their mesh file each 0.2 s, and again until it has stopped changing.
_EDIT_TIMEOUT_S = 5.0


def before(world: World, report: Report) -> None:
    """Without nodeproxy, what pods say to each other can be read between the nodes."""
    frontend, orders = world.pods["frontend"], world.pods["orders-2"]
    url = f"http://{orders.host.address4}:{PORT}/"
    with world.capture() as capture:
        answer = world.fetch(frontend, url)
    report.command("frontend", shown_command(url), answer.stdout + answer.stderr)
    expect(world.secret in answer.stdout, "the two pods can't reach each other even without nodeproxy")
    pages, requests = readable_packets(capture, world.secret.encode()), readable_packets(capture, b"GET / HTTP")
    expect(pages > 0 and requests > 0, "the capture between the nodes does not see plain text: it can prove nothing")
    plain = tcp_bytes(capture)[1]
    report.show(f"a capture between the nodes can read it: {plain:,} bytes of plain TCP, the request and the page among them")


def enrol(world: World, report: Report) -> None:
    """With the pods in the mesh, the same programs talk and nothing can be read."""
    report.say("  (each node's agent compiles its eBPF programs; that is done once and takes some seconds)")
    for agent in world.agents.values():
        agent.wait_ready()
    begun = time.monotonic()
    world.write_mesh(enrolled=True)
    counts = [
        len(agent.wait_ready(sum(pod.node == name for pod in world.pods.values()))["pods"])
        for name, agent in world.agents.items()
    ]
    report.say(f"  {sum(counts)} pods are named in the mesh files: in the mesh, with certificates, {_ms(begun)} after the edit")
    frontend, orders = world.pods["frontend"], world.pods["orders-2"]
    urls = [f"http://{orders.host.address4}:{PORT}/", f"http://[{orders.host.address6}]:{PORT}/"]
    with world.capture() as capture:
        for url in urls:
            answer = world.fetch(frontend, url)
            report.command("frontend", shown_command(url), answer.stdout + answer.stderr)
            expect(world.secret in answer.stdout, f"the page did not come: {answer.stderr.strip()}")
    readable = readable_packets(capture, world.secret.encode()) + readable_packets(capture, b"GET / HTTP")
    tunnels, others = tcp_bytes(capture)
    expect(readable == 0, f"{readable} packets between the nodes can be read")
    expect(others == 0, f"{others} bytes between the nodes were outside of tunnels")
    expect(tunnels > 0 and are_tls(capture), f"the {tunnels} bytes to and from port 15008 are not all TLS")
    report.show(f"the same capture can read 0 bytes of it now; all that it sees is {tunnels:,} bytes of TLS")
    seen = clients_of(orders.directory)[-2:]
    wanted = [frontend.host.address4, frontend.host.address6]
    expect(seen == wanted, f"the server saw the clients {seen}, not {wanted}")
    report.show(f"the web server's own log has its client's addresses: {' and '.join(seen)}")


def who(world: World, report: Report) -> None:
    """Both ends are known by name, for ended and for live connections."""
    frontend, orders, agent = world.pods["frontend"], world.pods["orders-2"], world.agents["node-a"]
    line = agent.wait_logged(src_workload="frontend", dst_workload="orders-2", direction="outbound")
    identities = line.get("src.identity"), line.get("dst.identity")
    expect(identities == (frontend.identity, orders.identity), f"the access log of node-a has the identities {identities}")
    report.say("  the access log of node-a:")
    report.show(f"{identities[0]} → {identities[1]}, {line['bytes_sent']} and {line['bytes_recv']} bytes, {line['duration']}")
    holding = hold(frontend.host, frontend.cgroup, orders.host.address4)
    try:
        holding.wait("orders-2")
        shown = agent.command("connections", "-o", "json", "--pod", orders.uid)
        report.command("node-a", f"nodeproxy connections --pod {orders.uid}")
        expect(shown.returncode == 0, shown.stderr.strip())
        live = json.loads(shown.stdout)["connections"]
        expect(len(live) == 1, f"it lists {len(live)} connections, not the one that is open")
        report.show(_connection(live[0]))
        expect(live[0]["security"] == "mutual_tls", "it is not in mutual TLS")
    finally:
        holding.stop()


def _connection(entry: dict[str, Any]) -> str:
    source, destination = entry["source"], entry["destination"]
    security = "mutual TLS" if entry["security"] == "mutual_tls" else "plain"
    parties = f"{source['workload']['name']} {source['address']} → {destination['workload']['name']} {destination['address']}"
    return f"live: {parties}, {security}, {entry['received_bytes']} and {entry['sent_bytes']} bytes so far"


def denial(world: World, report: Report) -> None:
    """Who is not allowed is refused, with a reason that names the policy; so is who has no identity."""
    batch, orders, agents = world.pods["batch"], world.pods["orders-2"], world.agents
    url = f"http://{orders.host.address4}:{PORT}/"
    for where, client, workload in (("batch", batch, "batch"), ("outside", world.outside, "")):
        answer = world.fetch(client, url)
        report.command(where, shown_command(url), answer.stdout + answer.stderr)
        expect(answer.returncode != 0 and not answer.stdout, f"{where} got the page although no policy allows it")
        source = {"src_workload": workload} if workload else {"src_addr": world.outside.address4}
        line = agents["node-b"].wait_logged(dst_workload="orders-2", direction="inbound", **source)
        expect(POLICY_KEY in line.get("error", ""), f"the access log of node-b does not name the policy: {line}")
        who_it_is = line.get("src.identity", f"{world.outside.address4}, no identity")
        report.show(f"the access log of node-b: {who_it_is}: {line['error']}")
    told = agents["node-a"].command("why", "shop/batch", f"{SERVICE}:{SERVICE_PORT}")
    report.command("node-a", f"nodeproxy why shop/batch {SERVICE}:{SERVICE_PORT}", told.stdout + told.stderr)
    expect(told.returncode == 1 and POLICY_KEY in told.stdout, f"`why` does not say that {POLICY_KEY} refuses it")
    report.show(f"`why` knows it without a connection: {POLICY_KEY} refuses it (exit status 1)")


def balance(world: World, report: Report) -> None:
    """Connections to a service's address are spread over its endpoints, on this node and the other."""
    url = f"http://{VIP}/"
    answer = world.fetch(world.pods["frontend"], *[url] * _REQUESTS)
    counts = Counter(line.split()[0] for line in answer.stdout.splitlines() if world.secret in line)
    report.command("frontend", f"{shown_command(url)}    ({_REQUESTS} times)", answer.stderr)
    names = [pod.name for pod in world.servers]
    told = ", ".join(f"{name} {counts[name]}" for name in names)
    expect(
        sum(counts.values()) == _REQUESTS, f"{sum(counts.values())} of {_REQUESTS} came back ({told}): {answer.stderr.strip()}"
    )
    expect(all(counts[name] >= _REQUESTS / len(names) / 2 for name in names), f"they are not spread over the endpoints: {told}")
    report.show(f"{_REQUESTS} connections to {SERVICE} ({VIP}): {told}")


def edit(world: World, report: Report) -> None:
    """An edit of the policy holds for new connections and for those that are open."""
    frontend, batch, orders = world.pods["frontend"], world.pods["batch"], world.pods["orders-2"]
    address = orders.host.address4
    holding = hold(frontend.host, frontend.cgroup, address)
    watching = watch(frontend.host, frontend.cgroup, address)
    try:
        holding.wait("orders-2")
        watching.wait("open")
        report.command("node-a, node-b", f"edit the mesh files: {POLICY_KEY} allows batch instead of frontend")
        edited = time.monotonic()
        world.write_mesh(enrolled=True, caller="batch")
        refused = watching.wait("closed", _EDIT_TIMEOUT_S)
        ended = holding.wait("closed", _EDIT_TIMEOUT_S)
        report.show(
            f"frontend's new connections are refused after {_ms(edited, refused)}, its live one ended after {_ms(edited, ended)}"
        )
        answer = world.fetch(batch, f"http://{address}:{PORT}/")
        expect(world.secret in answer.stdout, f"batch is allowed now and does not get the page: {answer.stderr.strip()}")
        report.show("batch gets the page now")
        edited = time.monotonic()
        world.write_mesh(enrolled=True)
        report.show(f"edited back: frontend is let in after {_ms(edited, watching.wait('open', _EDIT_TIMEOUT_S))}")
    finally:
        holding.stop()
        watching.stop()


def death(world: World, report: Report) -> None:
    """With the agent killed, pods are closed and never open; the next agent takes over what is pinned."""
    frontend, orders, agent = world.pods["frontend"], world.pods["orders-2"], world.agents["node-a"]
    watching = watch(frontend.host, frontend.cgroup, orders.host.address4)
    try:
        watching.wait("open")
        killed = agent.kill()
        report.command("node-a", "kill -9 the agent")
        closed = watching.wait("closed")
        with world.capture() as capture:
            url = f"http://{orders.host.address4}:{PORT}/"
            answer = world.fetch(frontend, url)
        report.command("frontend", shown_command(url), answer.stdout + answer.stderr)
        expect(answer.returncode != 0 and not answer.stdout, "the pods talk although no agent is there")
        sent = sum(tcp_bytes(capture))
        expect(sent == 0, f"the capture between the nodes saw {sent} bytes of TCP")
        report.show(f"closed {_ms(killed, closed)} after the kill: refused, and 0 bytes between the nodes")
        started = time.monotonic()
        agent.start()
        report.command("node-a", "nodeproxy run …")
        opened = watching.wait("open", 20.0)
        status = agent.wait_ready(sum(pod.node == "node-a" for pod in world.pods.values()))
        expect(status["kernel"]["adopted"], "the new agent did not adopt what was pinned")
        report.show(f"back {_ms(started, opened)} after the start: the new agent adopted what the old one left pinned")
    finally:
        watching.stop()


def _ms(since_s: float, until_s: float | None = None) -> str:
    return f"{((time.monotonic() if until_s is None else until_s) - since_s) * 1000:,.0f} ms"


STEPS = (
    ("Before: plain text between the nodes", before),
    ("In the mesh: the same programs, encrypted", enrol),
    ("Who talked to whom", who),
    ("A denial, and its reason", denial),
    ("Balance over a service's endpoints", balance),
    ("A policy edit, live", edit),
    ("The agent killed: closed, never open; then back", death),
)
