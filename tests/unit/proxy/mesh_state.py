"""A worker's context over a real state that tests change."""

from __future__ import annotations

from pathlib import Path

from nodeproxy.model.delta import Everything
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope
from nodeproxy.proxy.certificates import Certificates
from nodeproxy.proxy.context import Context
from nodeproxy.proxy.waiting import Waiting
from nodeproxy.state.balance import Balancer
from nodeproxy.state.reader import StateReader
from nodeproxy.state.store import StateWriter
from tests.unit.proxy.conftest import Bench
from tests.unit.state.builders import pod, service

CLIENT = pod("uid", "10.0.0.1", service_account="client")
SERVER = pod("server", "10.0.0.2", services={"ns/web.svc": {}}, service_account="server")
OTHER = pod("other", "10.0.0.3", services={"ns/web.svc": {}}, service_account="server")
WEB = service("web", "10.96.0.1")


def deny(port: int, *, dry_run: bool = False) -> Policy:
    """No connection to this port."""
    match = Match(destination_ports=(port,))
    return Policy(
        name=f"no-{port}", namespace="", scope=PolicyScope.GLOBAL, action=Action.DENY, rules=(((match,),),), dry_run=dry_run
    )


class State:
    """The whole of it is what was `put` last."""

    def __init__(self, bench: Bench, path: Path) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []  # of the agent
        self.writer = StateWriter(path)
        self.put()
        self.reader = StateReader(path)
        self.context = Context(
            poller=bench.poller,
            state=self.reader,
            balancer=Balancer(seed=1),
            sessions=bench.sessions,
            certificates=Certificates(),
            same_node_hbone=False,
            max_pod_connections=1000,
            waiting=Waiting(bench.poller, lambda owner, names: self.asked.append((owner, names))),
        )

    def put(self, *policies: Policy, workloads: tuple[object, ...] = (CLIENT, SERVER, OTHER)) -> None:
        self.writer.replace(Everything(workloads, (WEB,), policies))  # type: ignore[arg-type]

    def close(self) -> None:
        self.reader.close()
        self.writer.close()
