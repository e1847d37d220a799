"""What an enrolment does inside a pod's network namespace: open it, set it up, look at it, tidy it.

All of it is calls to the kernel, done in a thread so that the agent's loop goes on.  It must not know who else is enrolled.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from nodeproxy.errors import EnrolmentError, NodeproxyError
from nodeproxy.linux.addresses import pod_addresses
from nodeproxy.linux.netns import netns_cookie, netns_inode, open_netns, refuse_node_netns
from nodeproxy.linux.routes import disable_last_leg, enable_last_leg
from nodeproxy.model.delta import PodSpec

log = logging.getLogger(__name__)


@dataclass(slots=True)
class EnrolledPod:
    """A pod under steering.

    lacking: addresses that its namespace has and that are somebody else's.  fresh: it was not steered before, by no agent.
    """

    spec: PodSpec
    netns_fd: int
    inode: int
    cookie: int
    addresses: tuple[str, ...]
    since: float
    lacking: tuple[str, ...] = ()
    fresh: bool = True


def prepare(spec: PodSpec) -> EnrolledPod:
    """Open the pod's namespace and route its last leg.  Raises NodeproxyError, OSError."""
    netns_fd = open_netns(spec.netns)
    try:
        refuse_node_netns(netns_fd, spec.netns)
        inode = netns_inode(netns_fd)
        if spec.inode and inode != spec.inode:
            raise EnrolmentError(f"{spec.netns} is another network namespace by now; has the pod ended?")
        enable_last_leg(netns_fd)
        return EnrolledPod(spec, netns_fd, inode, netns_cookie(netns_fd), pod_addresses(netns_fd), time.time())
    except BaseException:
        os.close(netns_fd)
        raise


def prepare_all(specs: Iterable[PodSpec]) -> list[EnrolledPod | NodeproxyError | OSError]:
    """Each for itself, in their order: one's failure is no other's."""
    made: list[EnrolledPod | NodeproxyError | OSError] = []
    for spec in specs:
        try:
            made.append(prepare(spec))
        except (NodeproxyError, OSError) as error:
            made.append(error)
    return made


def close_all(made: Iterable[EnrolledPod | NodeproxyError | OSError]) -> None:
    """Nobody is to be put in any more: let go of what `prepare_all` has opened."""
    for each in made:
        if isinstance(each, EnrolledPod):
            os.close(each.netns_fd)


def tidy(pod: EnrolledPod) -> None:
    """Nothing of ours is needed in the namespace any more."""
    try:
        disable_last_leg(pod.netns_fd)
    except (NodeproxyError, OSError) as error:
        log.warning("pod %s: its namespace keeps the rules of the last leg: %s", pod.spec.uid, error)
    finally:
        os.close(pod.netns_fd)


def cookie_of(spec: PodSpec) -> int | None:
    """The cookie of the pod's namespace, None if that can't be entered (any more)."""
    try:
        netns_fd = open_netns(spec.netns)
    except NodeproxyError:
        return None
    try:
        return netns_cookie(netns_fd)
    except (NodeproxyError, OSError):
        return None
    finally:
        os.close(netns_fd)


def is_there(pod: EnrolledPod) -> bool:
    """Whether the path that it was told by leads to its namespace still."""
    return _inode(pod.spec.netns) == pod.inode


def leads_to(spec: PodSpec) -> bool:
    """Whether the path leads to the namespace that is meant."""
    return _inode(spec.netns) == spec.inode


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None
