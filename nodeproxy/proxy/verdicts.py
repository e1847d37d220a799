"""What becomes of the requests of one tunnel's client: judged once for each place that it asks for, and remembered.

Invariant: a remembered verdict is used only while the state has the epoch that it was made in, so it is the verdict of the
moment.  Everything else that it depends on (the client's identity and address, the pod and the address that it came to) is the
tunnel's and never changes.  It must not know sockets.
"""

from __future__ import annotations

import logging

from nodeproxy.decide.demand import Unanswered
from nodeproxy.decide.inbound import Admission, admit_hbone
from nodeproxy.model.address import join_address
from nodeproxy.model.connection import Party
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.model.workload import Workload
from nodeproxy.proxy.context import Context
from nodeproxy.proxy.session import defect
from nodeproxy.state.view import View
from nodeproxy.wire.baggage import parse_baggage
from nodeproxy.wire.hbone import connect_key, parse_connect
from nodeproxy.wire.stream import Headers

log = logging.getLogger(__name__)

# A client asks for few places in the one pod.  A verdict takes some 1 KiB.
MAX_VERDICTS = 32
MAX_KEY_BYTES = 1024


class Verdict:
    """Requests of one client for one place.

    source, destination: as in the records of their connections.  refusal: they may not be.  Else admission, and block: what
    answers them.
    """

    __slots__ = ("admission", "block", "destination", "refusal", "source")

    def __init__(
        self,
        source: Party,
        destination: Party,
        refusal: Refusal | None,
        admission: Admission | None = None,
        block: bytes = b"",
    ) -> None:
        self.source = source
        self.destination = destination
        self.refusal = refusal
        self.admission = admission
        self.block = block


class Verdicts:
    """The verdicts of one tunnel, from client `identity` at `peer` to the address `local` of the pod `uid`."""

    __slots__ = ("_context", "_epoch", "_identity", "_local", "_peer", "_uid", "_verdicts")

    def __init__(self, context: Context, uid: str, identity: str, peer: tuple[str, int], local: tuple[str, int]) -> None:
        self._context = context
        self._uid = uid
        self._identity = identity
        self._peer = peer
        self._local = local
        self._epoch = -1
        self._verdicts: dict[tuple[bytes, ...], Verdict] = {}

    def get(self, headers: Headers) -> Verdict:
        """What becomes of such a request, as the state is now."""
        view = self._context.renewed_view()
        if view.epoch != self._epoch:
            self._verdicts.clear()
            self._epoch = view.epoch
        key = connect_key(headers)
        verdict = self._verdicts.get(key)
        if verdict is not None:
            return verdict
        try:
            verdict = self._judge(view, headers)
        except Exception as error:
            log.exception("a defect, which ended one connection")
            return Verdict(self._source(None), self._destination(view, self._local[1]), defect(error))
        if sum(map(len, key)) <= MAX_KEY_BYTES and not isinstance(verdict.refusal, Unanswered):
            if len(self._verdicts) >= MAX_VERDICTS:
                self._verdicts.clear()  # cheaper than to know which is the oldest
            self._verdicts[key] = verdict
        return verdict

    def _judge(self, view: View, headers: Headers) -> Verdict:
        request = parse_connect(headers)
        workload = view.workload(self._uid)
        if isinstance(request, Refusal):
            return Verdict(self._source(None), self._destination(view, self._local[1]), request)
        if workload is None:
            detail = f"this pod's workload {self._uid} is not in the state"
            refusal = Refusal(Reason.UNKNOWN_WORKLOAD, detail)
            return Verdict(self._source(None), self._destination(view, self._local[1]), refusal)
        client = view.workload_at(workload.network, self._peer[0]) or view.workload_at("", self._peer[0])
        if client is None or client.identity != self._identity:
            client = parse_baggage(request.baggage, self._identity) if request.baggage else None
        admission = admit_hbone(
            view,
            workload,
            request.authority,
            self._local[0],
            self._identity,
            self._peer[0],
            forwarded_host=request.forwarded_host,
            names=self._context.names,
        )
        if isinstance(admission, Refusal):
            # What it wanted, for the log: a policy that denied it may be about the port.
            return Verdict(self._source(client), self._destination(view, request.port), admission)
        destination = Party(join_address(*admission.address), workload, workload.identity)
        return Verdict(self._source(client), destination, None, admission, self._context.ok_block(workload))

    def _source(self, workload: Workload | None) -> Party:
        return Party(join_address(*self._peer), workload, self._identity)

    def _destination(self, view: View, port: int) -> Party:
        workload = view.workload(self._uid)
        return Party(join_address(self._local[0], port), workload, workload.identity if workload else "")
