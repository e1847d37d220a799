"""What the agent, the zygote and the workers say to each other: one message a packet of a Unix SOCK_SEQPACKET pair, in msgpack.

Descriptors ride in the same packet (SCM_RIGHTS), in the order that the message's docstring gives.  A message is at most
`MAX_MESSAGE_BYTES` long; what could be longer (a list of connections) is sent in pages.
"""

from __future__ import annotations

import msgspec

from nodeproxy.model.connection import Connection

# The default of net.core.wmem_max (212,992 bytes) bounds a packet of a Unix socket; half of it leaves room for the kernel's own
# bookkeeping.
MAX_MESSAGE_BYTES = 106_496
MAX_DESCRIPTORS = 8
CONNECTIONS_A_PAGE = 50
# Listeners that others have taken the place of in the kernel's map: so long may the handshake of a connection take that the
# kernel had given to them (its SYN-ACK is sent again after a second, and after two more).
LISTENERS_LINGER_S = 3.5
# Names of at most 511 bytes (the store's limit of a key) in a message.
NAMES_A_MESSAGE = 128


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker must know from its first instruction; it never changes in a worker's life."""

    slot: int
    store: str  # directory of the state's store
    log_json: bool = False
    same_node_hbone: bool = False
    on_demand: bool = False  # the state holds only what was asked for
    original_destination_fd: int = -1  # set by the zygote: the BPF map's descriptor


# ── agent → zygote ────────────────────────────────────────────────────────────────────────────────


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Make a worker.  Descriptors: the worker's end of its socket pair, the original-destination map."""

    settings: WorkerSettings


# ── zygote → agent ────────────────────────────────────────────────────────────────────────────────


class Forked(msgspec.Struct, frozen=True, tag=True):
    """The worker of `slot` runs as `pid`."""

    slot: int
    pid: int


class Exited(msgspec.Struct, frozen=True, tag=True):
    """The worker `pid` ended; 0: the oldest one that was asked for could not be made.

    status: as `os.waitstatus_to_exitcode` gives it (negative: by that signal).
    """

    pid: int
    status: int


ZygoteReply = Forked | Exited

# ── agent → worker ────────────────────────────────────────────────────────────────────────────────


class PodAdded(msgspec.Struct, frozen=True, tag=True):
    """Serve this pod.  cookie: of its network namespace.  Descriptors: that, then its outbound, HBONE and plaintext listeners.

    A pod that the worker has already, in that namespace, gets these listeners in place of those that it had.
    """

    uid: str
    cookie: int
    addresses: tuple[str, ...]


class PodRemoved(msgspec.Struct, frozen=True, tag=True):
    """Take no new connection of this pod; `abort`: end those that it has.  `PodReleased` follows when the last has ended."""

    uid: str
    cookie: int  # of its network namespace: the same uid may be back, in another, before this is over
    abort: bool


class CertificateIssued(msgspec.Struct, frozen=True, tag=True):
    """A certificate of a pod of this node, or a newer one, with the roots that its peers are checked by (all PEM)."""

    identity: str
    chain: bytes
    key: bytes
    roots: bytes


class CertificateDropped(msgspec.Struct, frozen=True, tag=True):
    """The last pod of this identity has left."""

    identity: str


class StateChanged(msgspec.Struct, frozen=True, tag=True):
    """The store has a new epoch: look at live connections again."""


class NamesAnswered(msgspec.Struct, frozen=True, tag=True):
    """The store knows by now who has these names, or that nobody has.  refusal: it does not, and why will not soon.

    pod: whose asking is refused (see `NamesWanted`), "" for everybody's.
    """

    names: tuple[str, ...]
    refusal: str = ""
    pod: str = ""


class ReportWanted(msgspec.Struct, frozen=True, tag=True):
    """Answer with a `Report` now."""

    request: int


class ConnectionsWanted(msgspec.Struct, frozen=True, tag=True):
    """Answer with `Connections`, page by page."""

    request: int


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Close the listeners, say GOAWAY, end when the last connection has ended or `grace_s` is over.

    linger_s: not 0 where another agent's listeners have taken the place of these: what had reached these by then is served as
    before, for so long, and none of it is refused.
    """

    grace_s: float
    linger_s: float = 0.0


ToWorker = (
    PodAdded
    | PodRemoved
    | CertificateIssued
    | CertificateDropped
    | StateChanged
    | NamesAnswered
    | ReportWanted
    | ConnectionsWanted
    | Drain
)

# ── worker → agent ────────────────────────────────────────────────────────────────────────────────


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker serves."""


class Report(msgspec.Struct, frozen=True, tag=True):
    """A page of counters since the last report (`observe.counters` packs them); `last` closes it.  request 0: unasked."""

    request: int
    counters: bytes
    last: bool


class Connections(msgspec.Struct, frozen=True, tag=True):
    """A page of the live connections; `last` closes the answer."""

    request: int
    connections: tuple[Connection, ...]
    last: bool


class PodReleased(msgspec.Struct, frozen=True, tag=True):
    """No connection needs what was set up in the namespace of this cookie any more."""

    cookie: int


class NamesWanted(msgspec.Struct, frozen=True, tag=True):
    """Connections wait until the store knows who has these names ("network/ip", uid, service key): ask for them.

    pod: on whose account, so that who asks too much harms nobody else.  Each name is answered by `NamesAnswered`, once.
    """

    pod: str
    names: tuple[str, ...]


class NamesUsed(msgspec.Struct, frozen=True, tag=True):
    """Decisions have hung on these names since this was last said."""

    names: tuple[str, ...]


FromWorker = Ready | Report | Connections | PodReleased | NamesWanted | NamesUsed
