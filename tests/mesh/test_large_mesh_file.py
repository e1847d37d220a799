"""A mesh file of 100,000 workloads: what it costs to load, to edit and to break, and that the agent goes on meanwhile."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator

import pytest

from tests.bench import processes
from tests.bench.agent_rows import Peak, services, workloads
from tests.mesh.cluster import Agent, Cluster, exactly, wait_until

WORKLOADS = 100_000
ADDED_MB, PEAK_MB = 80.0, 200.0
# Far above the 20 ms that are measured on a quiet machine, for a busy one; far below what reading such a file takes.
PAUSE_MS = 2000.0
TIMEOUT_S = 90.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(nodes=1)
    try:
        made.pod(0, "server")
        made.pod(0, "client")
        made.policies.append({"name": "deny", "namespace": "shop", "scope": "WorkloadSelector", "action": "Deny", "rules": [[]]})
        made.start()
        yield made
    finally:
        made.close()


class Pauses(threading.Thread):
    """Asks the agent again and again; how long it was silent at most, within a `with` block."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(daemon=True)
        self._agent, self._over = agent, threading.Event()
        self.longest_ms = 0.0

    def run(self) -> None:
        while not self._over.wait(0.01):
            began = time.monotonic()
            self._agent.get("/healthz")
            self.longest_ms = max(self.longest_ms, (time.monotonic() - began) * 1000)

    def __enter__(self) -> Pauses:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def written(cluster: Cluster) -> str:
    """The mesh file with the large state: a line for each entry."""
    lists = {
        "workloads": [*(pod.entry for pod in cluster.pods.values()), *workloads(WORKLOADS)],
        "services": services(WORKLOADS // 10),
        "policies": cluster.policies,
        "pods": [{"uid": pod.uid, "netns": pod.host.netns_path} for pod in cluster.pods.values()],
    }
    return "".join(f"{name}:\n" + "".join(f"- {json.dumps(entry)}\n" for entry in entries) for name, entries in lists.items())


def write(agent: Agent, text: str) -> None:
    temporary = agent.mesh.with_suffix(".new")
    temporary.write_text(text, encoding="ascii")
    temporary.rename(agent.mesh)


def edit(agent: Agent, text: str) -> float:
    """Change the mesh file; seconds until the agent's state is of it."""
    before = agent.get("/status")["state"]["epoch"]
    write(agent, text)
    began = time.monotonic()
    wait_until(lambda: agent.get("/status")["state"]["epoch"] > before, "the file is in use", TIMEOUT_S)
    return time.monotonic() - began


def connects(cluster: Cluster) -> bool:
    """Whether a connection from client to server carries a byte."""
    server, client = cluster.pods["server"], cluster.pods["client"]
    with server.listen(8080) as listener:
        listener.settimeout(5)
        try:
            with client.connect(server.ip, 8080) as ours:
                ours.settimeout(5)
                ours.sendall(b"x")
                theirs, _ = listener.accept()
                with theirs:
                    return exactly(theirs, 1) == b"x"
        except (ConnectionResetError, TimeoutError):
            return False


def test_100_000_workloads(cluster: Cluster, record_property: pytest.RecordProperty) -> None:
    agent = cluster.agents[0]
    assert agent.process is not None
    pid = agent.process.pid
    assert connects(cluster)
    at_rest = processes.pss_bytes(processes.tree(pid))
    text = written(cluster)
    with Peak(lambda: processes.tree(pid)) as peak, Pauses(agent) as pauses:
        load_s = edit(agent, text)
    assert agent.get("/status")["state"]["workloads"] == WORKLOADS + 2
    assert connects(cluster)
    added_mb = (processes.pss_bytes(processes.tree(pid)) - at_rest) / 1e6
    stored_mb = (agent.run_dir / "state" / "data.mdb").stat().st_size / 1e6
    peak_mb = (peak.bytes - at_rest) / 1e6

    uid = json.dumps(cluster.pods["server"].uid)
    change_s = edit(agent, text.replace(uid, uid + ', "authorizationPolicies": ["shop/deny"]', 1))
    assert not connects(cluster)
    edit(agent, text)
    assert connects(cluster)

    record_property(
        f"a mesh file of {WORKLOADS:,} workloads and {WORKLOADS // 10:,} services",
        f"loaded in {load_s:.1f} s; all processes have {added_mb:.1f} MB more (PSS), at the peak {peak_mb:.0f} MB, with "
        f"{stored_mb:.0f} MB of store; the agent was silent for {pauses.longest_ms:.0f} ms at most; "
        f"a change of one was in use after {change_s:.2f} s",
    )
    assert added_mb + stored_mb < ADDED_MB
    assert peak_mb < PEAK_MB
    assert pauses.longest_ms < PAUSE_MS
    assert change_s < load_s


def test_a_broken_edit_of_it_changes_nothing(cluster: Cluster) -> None:
    agent = cluster.agents[0]
    epoch = agent.get("/status")["state"]["epoch"]
    good = agent.mesh.read_text()
    write(agent, good.replace("10.64.255.255", "10.64.255.256", 1))
    wait_until(lambda: agent.get("/status")["state"]["error"], "the broken edit is told", TIMEOUT_S)
    state = agent.get("/status")["state"]
    assert f"{agent.mesh}:65539:" in state["error"]
    assert "an address must be an IP address, not '10.64.255.256'" in state["error"]
    assert (state["epoch"], state["workloads"]) == (epoch, WORKLOADS + 2)
    assert connects(cluster)
    write(agent, good)
    wait_until(lambda: not agent.get("/status")["state"]["error"], "the good one is back", TIMEOUT_S)


def test_a_restarted_agent_goes_on_with_it(cluster: Cluster, record_property: pytest.RecordProperty) -> None:
    agent = cluster.agents[0]
    agent.kill()
    began = time.monotonic()
    agent.start()
    record_property("an agent that is started with the same file again is ready after", f"{time.monotonic() - began:.1f} s")
    assert agent.get("/status")["state"]["workloads"] == WORKLOADS + 2
    assert all(int(count) < 10 for count in re.findall(r"(\d+) entries read", last_start(agent)))
    assert connects(cluster)


def last_start(agent: Agent) -> str:
    """What the agent has logged since it was started last, without what connections log."""
    messages = [json.loads(line).get("message", "") for line in agent.log().splitlines() if line.startswith("{")]
    first = max(number for number, message in enumerate(messages) if message.startswith("steering is"))
    return "\n".join(messages[first:])
