"""What `status` says of each pod of the node: whether it is in the mesh, and if not, why.

Invariant: every pod that is known stands here once.  It must not change anything.
"""

from __future__ import annotations

import msgspec

from nodeproxy.agent.node import Node
from nodeproxy.agent.pod_namespace import EnrolledPod
from nodeproxy.agent.pods.label_events import describe
from nodeproxy.model.node_pod import PodState


class PodRow(msgspec.Struct, kw_only=True):
    """One pod.  workload: "namespace/name".  error: why it is not served, though it is to be.  why: the state as a sentence.

    standing_connections: those that it had before it was enrolled and still has.
    """

    uid: str
    netns: str = ""
    addresses: tuple[str, ...] = ()
    identity: str = ""
    workload: str = ""
    since: float = 0.0
    error: str = ""
    certificate_until: float = 0.0
    state: PodState
    why: str = ""
    standing_connections: int = 0


def pod_rows(node: Node) -> list[PodRow]:
    """By uid, those that are in first; then those that failed, and those that are not to be in."""
    whys = {pod.workload.uid: describe(pod.membership) for pod in node.roster.pods() if pod.workload} if node.roster else {}
    rows = [_enrolled(node, uid, pod, whys.get(uid, "")) for uid, pod in sorted(node.enrolment.pods.items())]
    named = {uid: node.view().workload(uid) for uid in node.enrolment.failed}
    rows += [
        PodRow(
            uid=uid,
            netns=failed.spec.netns,
            workload=f"{workload.namespace}/{workload.name}" if (workload := named[uid]) is not None else "",
            error=failed.error,
            state=PodState.FAILED,
            why=failed.error,
        )
        for uid, failed in sorted(node.enrolment.failed.items())
        if uid not in node.enrolment.pods
    ]
    return rows if node.labels is None or node.roster is None else rows + _others(node, rows)


def _enrolled(node: Node, uid: str, pod: EnrolledPod, why: str) -> PodRow:
    workload = node.view().workload(uid)
    identity = workload.identity if workload else ""
    error = "" if workload else f"the state has no workload {uid}: its connections are refused"
    if workload and not set(workload.addresses) & set(pod.addresses):
        stated = ", ".join(workload.addresses) or "no address"
        error = f"the state gives it {stated}, its namespace has {', '.join(pod.addresses)}"
    if (failed := node.enrolment.failed.get(uid)) is not None:
        error = f"it is to leave, and can't be taken out: {failed.error}"
    return PodRow(
        uid=uid,
        netns=pod.spec.netns,
        addresses=pod.addresses,
        identity=identity,
        workload=f"{workload.namespace}/{workload.name}" if workload else "",
        since=pod.since,
        error=error,
        certificate_until=node.identities.valid_until(identity),
        state=PodState.IN,
        why=why,
        standing_connections=node.standing.count(uid),
    )


def _others(node: Node, rows: list[PodRow]) -> list[PodRow]:
    """What the controller has told of beside those."""
    assert node.roster is not None
    assert node.labels is not None
    found = []
    known = {row.uid for row in rows}
    commands = node.enrolment.commands
    for pod in node.roster.pods():
        if pod.workload is None:
            found.append(PodRow(uid="", workload=pod.key, state=PodState(pod.membership.value), why=describe(pod.membership)))
        elif pod.workload.uid not in known:
            why = node.labels.waiting.get(pod.key, "it has not been looked for yet")
            if commands.get(pod.workload.uid, pod) is None:
                why = "`nodeproxy leave` took it out"
            found.append(PodRow(uid=pod.workload.uid, workload=pod.key, state=PodState.WAITING, why=why))
    return found
