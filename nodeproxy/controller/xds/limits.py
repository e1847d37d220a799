"""What a subscriber may make grow, and what it is told when it asks for more.

Invariant: every name here is closed: it is a metric's label.  It must not know streams or tables.
"""

from __future__ import annotations

from enum import StrEnum

from nodeproxy.errors import CallerError

# A client that resumes names what it has: 88 bytes a resource, so 9 MB for 100,000 workloads [measured].
MAX_REQUEST_BYTES = 64 << 20
# What ztunnel takes of one message, less what stands around the resources (protocols.md, "xDS": 200 MiB).
MAX_ANSWER_BYTES = 192 << 20
# One push of changes.  gRPC's clients take 4 MiB where nobody has told them otherwise.
MAX_PUSH_BYTES = 3 << 20
# What one subscriber may have asked for or been sent on demand, of one kind of resource.  Some 200 bytes each.
MAX_NAMES = 100_000
# Names of removed resources that are kept for subscribers that are behind; who is further behind resumes.  Some 200 bytes each.
MAX_REMOVED = 100_000
# Types besides ours that one stream may name before it is ended: a client of another protocol.
MAX_FOREIGN_REQUESTS = 100
MAX_CLIENTS = 5000
# A node's agent has one stream, two while it is replaced; several test programs may share a service account's pod.
MAX_STREAMS_OF_A_CALLER = 16
# Whole states that are being written at once: each takes its size in gRPC's buffers.
MAX_WHOLE_STATES = 8
# Streams whose first requests of each type are received at once: after a restart 1,000 clients that resume have 9 MB each to say,
# and take a tenth of a second of it to understand [measured].
MAX_STARTING = 64

# A stream whose requests make the controller work waits so many times as long before its next one is read: of the one thread that
# serves all, one client gets a fifth.  An ordinary request takes 0.1 ms; one that resumes 100,000 names, or lets go of one of as
# many, 0.1 s [measured].
REST = 4.0
MIN_WORK_S = 0.01
MAX_REST_S = 5.0

START_WAIT_S = 30.0
# The first request follows the stream's headers at once.
FIRST_REQUEST_WAIT_S = 10.0
# After so long a stream does not count as starting any more, whether all its types have begun or not.
STARTING_S = 10.0
# 30 MB in 60 s are 4 Mbit/s.
WRITE_WAIT_S = 60.0
# A status goes after what is being written; who does not take that much longer is cut off.
END_WAIT_S = 5.0
# A client acknowledges when it has applied a push.
ACK_WAIT_S = 120.0


class StreamEnd(StrEnum):
    """Why a stream was refused or ended by us."""

    UNSTARTED = "unstarted"  # the cluster has not been read yet
    CLIENTS = "clients"  # too many streams
    CALLER_STREAMS = "caller_streams"  # too many streams of one caller
    UNPLACED = "unplaced"  # a node's proxy asks for its node's pods, and its own has not been seen
    MALFORMED = "malformed"  # a request that is no DeltaDiscoveryRequest
    NAMES = "names"  # more names than a subscriber may have, or one that is none
    FOREIGN = "foreign"  # asks for other types again and again
    SILENT = "silent"  # no first request
    STALLED = "stalled"  # does not read, or does not acknowledge
    BEHIND = "behind"  # changes that it has not seen are forgotten


_STATUS = {
    StreamEnd.UNSTARTED: "UNAVAILABLE",
    StreamEnd.CLIENTS: "RESOURCE_EXHAUSTED",
    StreamEnd.CALLER_STREAMS: "RESOURCE_EXHAUSTED",
    StreamEnd.UNPLACED: "UNAVAILABLE",
    StreamEnd.MALFORMED: "INVALID_ARGUMENT",
    StreamEnd.NAMES: "RESOURCE_EXHAUSTED",
    StreamEnd.FOREIGN: "INVALID_ARGUMENT",
    StreamEnd.SILENT: "DEADLINE_EXCEEDED",
    StreamEnd.STALLED: "DEADLINE_EXCEEDED",
    # The client connects again at once, and resumes by the versions that it has.
    StreamEnd.BEHIND: "ABORTED",
}


def end(reason: StreamEnd, message: str) -> CallerError:
    """The error that ends a stream; `message` is for the client."""
    return CallerError(reason, message, _STATUS[reason])
