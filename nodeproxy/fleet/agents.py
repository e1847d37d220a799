"""Finds the agents of a cluster and asks them, many at once and for a bounded time.

Invariant: what one node fails at is that node's error, named with what to do, and keeps nobody from the others' answers.
Whatever an agent answers, it is JSON of the form that is read of it, or an error.  It must not know what the answers mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import msgspec

from nodeproxy.errors import ClusterError, ConfigError
from nodeproxy.fleet.pods import FoundPod, list_pods
from nodeproxy.fleet.shapes import fault
from nodeproxy.kube import portforward
from nodeproxy.kube.client import KubeClient

SYSTEM_NAMESPACES = ("nodeproxy-system", "istio-system")
_LABELS = "app in (nodeproxy,ztunnel)"
ADMIN_PORT = 15000
# A port-forward is two connections and a process in some runtimes: this many at once are no burden for an API server.
MAX_AT_ONCE = 32
MAX_ERROR = 1000  # characters: a sentence or some; more is of no use on a screen
ASK_S = 10.0  # for one node: an answer takes milliseconds, a node that is away is known by silence
LEAST_S = 1.0  # for one that is asked when the time for all is about to end

Progress = Callable[[int, int], None]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent said.  agent: "namespace/name" of its pod, "" if the node has none.  answer: None if error is not "".

    unknown: the agent does not know the call: it is of an older version.
    """

    node: str
    agent: str = ""
    answer: dict[str, Any] | None = None
    error: str = ""
    unknown: bool = False


async def find_agents(client: KubeClient, namespaces: Sequence[str]) -> dict[str, FoundPod]:
    """Node → its agent's pod, of the first of the namespaces that has agents.  Raises ClusterError, and ConfigError for none.

    Of two agents of a node, as while a DaemonSet is rolled out, the one that serves.
    """
    refused: ClusterError | None = None
    for namespace in namespaces:
        found: dict[str, FoundPod] = {}
        try:
            pods = await list_pods(client, namespace, labels=_LABELS)
        except ClusterError as exc:
            if exc.status != 403:
                raise
            refused = refused or exc  # whose Role is of the next one may look there
            continue
        pods = [pod for pod in pods if pod.node and not pod.ended]
        for pod in sorted(pods, key=lambda pod: (not pod.leaving, pod.ready, pod.created)):
            found[pod.node] = pod
        if found:
            return found
    if refused is not None:
        raise refused
    named = " or ".join(namespaces)
    raise ConfigError(
        f"no agent's pod is in namespace {named} (label app: nodeproxy, or ztunnel): install nodeproxy, or name its namespace by "
        "--system-namespace"
    )


class Fleet:
    """The agents of one cluster: node → pod.

    namespaces: where they are looked for.  timeout_s: for one node; deadline_s: for all that is asked of `ask_all` together.
    """

    def __init__(
        self,
        client: KubeClient,
        agents: Mapping[str, FoundPod],
        namespaces: Sequence[str] = SYSTEM_NAMESPACES,
        *,
        timeout_s: float = ASK_S,
        deadline_s: float = 60.0,
    ) -> None:
        self.client = client
        self.agents = agents
        self._namespaces = namespaces
        self._timeout_s, self._deadline_s = timeout_s, deadline_s

    @classmethod
    async def find(cls, client: KubeClient, namespaces: Sequence[str], *, deadline_s: float) -> Self:
        """That of the cluster, found within `deadline_s`.  Raises ClusterError and ConfigError."""
        try:
            async with asyncio.timeout(deadline_s):
                return cls(client, await find_agents(client, namespaces), namespaces, deadline_s=deadline_s)
        except TimeoutError as exc:
            raise ClusterError(
                f"the API server did not list the agents' pods within {deadline_s:g} s; is it well? (--timeout)"
            ) from exc

    async def find_again(self) -> None:
        """Look who is there now, for agents' pods come and go.  If the API server does not say, those of before are asked on."""
        with contextlib.suppress(ClusterError):  # which each of them then fails at, and that is told
            self.agents = await find_agents(self.client, self._namespaces)

    async def ask(self, node: str, path: str, query: Mapping[str, str] | None = None, *, within_s: float | None = None) -> Reply:
        """GET `path` of a node's agent.  Raises ConfigError if the agent did not understand what was asked (status 400).

        within_s: what is left of the time for all; None for all of it.
        """
        pod = self.agents.get(node)
        if pod is None:
            return Reply(node=node, error=f"no agent runs on node {node}")
        left_s = max(self._deadline_s if within_s is None else within_s, LEAST_S)
        timeout_s = min(self._timeout_s, left_s)
        try:
            answer = await portforward.get(
                self.client, pod.namespace, pod.name, ADMIN_PORT, path, query or {}, timeout_s=timeout_s
            )
            return _understood(node, pod.key, path, answer)
        except ClusterError as exc:
            return Reply(node=node, agent=pod.key, error=f"{_cut(str(exc))}{_advice(exc, pod)}")

    async def ask_all(self, nodes: Iterable[str], path: str, progress: Progress | None = None) -> list[Reply]:
        """The same of each of the nodes, in their order, once."""
        wanted = list(dict.fromkeys(nodes))
        replies: dict[str, Reply] = {}
        waiting = iter(wanted)
        over = time.monotonic() + self._deadline_s

        async def work() -> None:
            for node in waiting:
                left_s = over - time.monotonic()
                replies[node] = self._not_asked(node) if left_s <= 0 else await self._ask_whatever(node, path, left_s)
                if progress is not None:
                    progress(len(replies), len(wanted))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(MAX_AT_ONCE, len(wanted))):
                group.create_task(work())
        return [replies[node] for node in wanted]

    async def _ask_whatever(self, node: str, path: str, left_s: float) -> Reply:
        try:
            return await self.ask(node, path, within_s=left_s)
        except ConfigError as exc:  # what is asked of all has no arguments to be wrong
            return Reply(node=node, agent=self.agents[node].key, error=str(exc))

    def _not_asked(self, node: str) -> Reply:
        pod = self.agents.get(node)
        error = f"not asked: the {self._deadline_s:g} s for all nodes were over; give --timeout more, or name nodes by --node"
        return Reply(node=node, agent=pod.key if pod is not None else "", error=error)


def _understood(node: str, agent: str, path: str, answer: portforward.Answer) -> Reply:
    try:
        value = msgspec.json.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        error = f"{agent} is no nodeproxy agent: it answers GET {path} with status {answer.status} and no JSON object"
        return Reply(node=node, agent=agent, error=error)
    if answer.status == 200 and (odd := fault(path, value)):
        error = f"{agent} answers GET {path} in a form that is not known here: {odd}; is it of another version than this program?"
        return Reply(node=node, agent=agent, error=error)
    if answer.status == 200:
        return Reply(node=node, agent=agent, answer=value)
    said = _cut(str(value.get("error", f"GET {path}: status {answer.status}")))
    if answer.status == 400:
        raise ConfigError(said)
    if answer.status == 404:
        error = f"its agent is of an older version that does not know GET {path}: roll out the DaemonSet anew"
        return Reply(node=node, agent=agent, error=error, unknown=True)
    return Reply(node=node, agent=agent, error=said)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}…"


def _advice(exc: ClusterError, pod: FoundPod) -> str:
    text = str(exc)
    if exc.status == 404:
        return "; the pod has gone since it was listed, as while agents are rolled out: ask again"
    if "connection refused" in text and "error dialing backend" not in text:
        logs = f"kubectl logs -n {pod.namespace} {pod.name}"
        return f"; nothing listens there: the agent starts, has ended, or was told another --admin ({logs})"
    if "error dialing backend" in text:
        return f"; the API server does not reach the kubelet of node {pod.node}: is the node up?"
    return ""
