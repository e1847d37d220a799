"""What two agents of one instance say to each other while one takes over from the other: one message a packet, as in `messages`.

    successor → holder   Asking
    holder → successor   Refused, or Offer … Offer (the last one says so)
    successor → holder   Take                  it has all that it can have beforehand, its workers among it
    holder → successor   Leaving …, Said …, Yielded
    successor → holder   Done                  its listeners have the place of the holder's
    afterwards           PodRemoved to the holder, PodReleased back, until the holder's connections have ended

Whose connection closes early has given up: before Done the holder goes on as if nothing had been, after it the successor serves
alone.  Between Take and Done is the only time that neither changes what both share unless the other one lives, so it is bounded:
a successor gives up after TAKE_S, ends after END_S if it hangs, and after DONE_S the holder kills it, where it is in sight, and
serves again.
"""

from __future__ import annotations

import msgspec

from nodeproxy.model.delta import PodSpec
from nodeproxy.model.messages import PodReleased, PodRemoved

# Raise it when an agent of before would misunderstand: it refuses then.
PROTOCOL = 1
# Of at most 300 bytes each, in a packet.
IDENTITIES_AN_OFFER = 256
# 250 pods take 3 s on a busy machine; what stands still meanwhile is the coming and going of pods.  In this order, with time for
# ending a process in between.
TAKE_S = 60.0
END_S = 65.0
DONE_S = 70.0


class Asking(msgspec.Struct, frozen=True, tag=True):
    """I would take over.  version: of the program.  netns: inode of the network namespace that it runs in."""

    protocol: int
    version: str
    pid: int
    netns: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """No, and why."""

    why: str


class Offer(msgspec.Struct, frozen=True, tag=True):
    """What to begin with.

    store: name of a directory in the run directory, with a copy of the state.  own_cgroup_id: in which workers' sockets are the
    proxy's own.  identities: of the pods; `last`: there are no more.
    """

    store: str
    own_cgroup_id: int
    version: str
    pid: int
    identities: tuple[str, ...]
    last: bool


class Take(msgspec.Struct, frozen=True, tag=True):
    """Go: from now on nothing is changed by the holder that both share."""


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """A pod that has left, while connections of it go on at the holder's.  Descriptor: its network namespace."""

    spec: PodSpec
    cookie: int


class Said(msgspec.Struct, frozen=True, tag=True):
    """What an administrator said of a pod; spec None: that it stays out."""

    uid: str
    spec: PodSpec | None


class Yielded(msgspec.Struct, frozen=True, tag=True):
    """All was said.  Descriptors: the lock of the run directory, that of the pins (or none, if the holder has it no more)."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """The successor serves."""


FromHolder = Refused | Offer | Leaving | Said | Yielded | PodReleased
FromSuccessor = Asking | Take | Done | PodRemoved
