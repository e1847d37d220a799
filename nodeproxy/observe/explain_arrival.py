"""What a destination's node would say of a connection that arrives there, for `why` of whoever looks at both ends.

Invariant: nothing is decided here: it is `decide.inbound` that is asked, with this node's state, which need not be the state of
the node that the connection comes from.
"""

from __future__ import annotations

import msgspec

from nodeproxy.decide.demand import Names
from nodeproxy.decide.inbound import Admission, admit_hbone, admit_plain
from nodeproxy.decide.outbound import RouteKind
from nodeproxy.decide.trace import Trace, note
from nodeproxy.errors import ConfigError
from nodeproxy.model.address import join_address
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import HBONE_PORT, Workload
from nodeproxy.observe.explain import Explanation
from nodeproxy.policy.address import canonical_ip
from nodeproxy.state.view import View
from nodeproxy.wire.hbone import parse_authority

_KINDS = (RouteKind.HBONE, RouteKind.PLAIN)


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A connection as its source's node would send it: the fields of `explain.Way`, of kind hbone or plain.

    workload: the uid of the pod that it comes to.  address: the pod's ip:port.
    """

    kind: str
    workload: str
    address: str
    authority: str = ""
    identity: str = ""
    source_address: str = ""


def explain_arrival(view: View, arrival: Arrival, *, enrolled: bool, has_certificate: bool, names: Names = None) -> Explanation:
    """Whether it would be let in.

    enrolled: whether the pod is steered on this node.  has_certificate: whether it could prove its identity.  names: as in
    `explain`.  Raises ConfigError if `arrival` is none.
    """
    if arrival.kind not in _KINDS:
        raise ConfigError(f"kind {arrival.kind!r}: must be {' or '.join(_KINDS)}")
    parsed = parse_authority(arrival.address)
    if parsed is None or not parsed[2]:
        raise ConfigError(f"address {arrival.address!r}: must be ip:port")
    steps: Trace = []
    ip, port = canonical_ip(parsed[0]), parsed[1]
    answer = _answer(view, arrival, (ip, port), enrolled, has_certificate, names, steps)
    refusal = None
    if isinstance(answer, Refusal):
        refusal = answer
        outcome = f"refused ({refusal.reason}): {refusal.detail}"
    elif answer is None:
        outcome = f"let in to {join_address(ip, port)} as it is: nobody asks policy for a pod outside the mesh"
    else:
        outcome = f"let in to {join_address(*answer.address)}"
    return Explanation(
        source=arrival.identity or arrival.source_address,
        destination=join_address(ip, port),
        steps=tuple(steps),
        outcome=outcome,
        refusal=refusal,
        enrolled=enrolled,
    )


def _answer(
    view: View,
    arrival: Arrival,
    address: tuple[str, int],
    enrolled: bool,
    has_certificate: bool,
    names: Names,
    steps: Trace,
) -> Admission | Refusal | None:
    """None: no proxy stands before the pod."""
    uid = arrival.workload
    pod = view.workload(uid)
    if pod is None:
        note(steps, "does this node know the pod?", "no", uid)
        return Refusal(
            Reason.UNKNOWN_WORKLOAD, f"this node's state has no workload {uid}: compare the nodes' state in `status`", uid
        )
    note(steps, "is the pod in the mesh here?", "yes" if enrolled else "no: it is not enrolled on this node", uid)
    if arrival.kind == RouteKind.PLAIN:
        return admit_plain(view, pod, *address, arrival.source_address, steps) if enrolled else None
    refusal = _of_tunnel(pod, enrolled, has_certificate, steps)
    if refusal is not None:
        return refusal
    return admit_hbone(view, pod, arrival.authority, address[0], arrival.identity, arrival.source_address, steps, names=names)


def _of_tunnel(pod: Workload, enrolled: bool, has_certificate: bool, steps: Trace) -> Refusal | None:
    """Why no tunnel to the pod would come to be."""
    if not enrolled:
        detail = f"nothing listens at port {HBONE_PORT} of {pod.uid}, which other nodes take for one of the mesh; enrol it, or "
        return Refusal(Reason.CONNECT_REFUSED, detail + "take the mesh's label from it", pod.uid)
    note(steps, "has it a certificate?", f"yes, of {pod.identity}" if has_certificate else "no", pod.uid)
    if not has_certificate:
        return Refusal(Reason.NO_CERTIFICATE, f"there is none for {pod.identity} yet; `status` says why", pod.uid)
    return None
