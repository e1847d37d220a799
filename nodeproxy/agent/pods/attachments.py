"""What the CNI plug-in has brought and not taken away, and which namespaces are steered for whom: kept over a restart.

A method that changes something returns what is to be written to the store for it.  A namespace that the CNI has removed stays
known until its pod ends: the kubelet may still have a process in it.
Invariant: bounded by the pods of the node.  It must not know who is in the mesh.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping

import msgspec

from nodeproxy.model.cni import Attachment, CniAdd
from nodeproxy.state.store import Meta, StateWriter

# Prefixes of keys of the store's meta table.
_BROUGHT = "node/cni/"  # CONTAINER/INTERFACE → Attached
_STEERED = "node/steered/"  # a workload's uid → the cookie of its namespace
# A pod gets a new network each time that its sandbox dies; of more that were removed the first are forgotten.
_MAX_GONE = 16


class Attached(msgspec.Struct, frozen=True):
    """What was brought.  inode: of the network namespace."""

    request: CniAdd
    inode: int

    @property
    def attachment(self) -> Attachment:
        """What it is taken away by."""
        return Attachment(self.request.container_id, self.request.ifname)

    def is_there(self) -> bool:
        """Whether its path leads to the namespace still."""
        try:
            return os.stat(self.request.netns).st_ino == self.inode
        except OSError:
            return False


class Attachments:
    """All of one node."""

    def __init__(self, store: StateWriter) -> None:
        decode = msgspec.msgpack.decode
        brought = [decode(raw, type=Attached) for _, raw in store.metas(_BROUGHT)]
        self._brought = {each.attachment: each for each in brought}
        self._steered = {uid: decode(raw, type=int) for uid, raw in store.metas(_STEERED)}
        self._gone: dict[str, list[int]] = {}  # pod's uid → inodes of namespaces

    # ── attachments ──

    def all(self) -> frozenset[Attachment]:
        """Those that were brought and not taken away."""
        return frozenset(self._brought)

    def of(self, pod_uid: str) -> list[Attached]:
        """A pod's."""
        return [each for each in self._brought.values() if each.request.pod_uid == pod_uid]

    def add(self, brought: Attached) -> Meta:
        """An interface was made."""
        if self._brought.get(brought.attachment) == brought:
            return {}
        self._brought[brought.attachment] = brought
        if brought.inode in (gone := self._gone.get(brought.request.pod_uid, [])):
            gone.remove(brought.inode)  # the kernel gives numbers again
        return {_key(brought.attachment): msgspec.msgpack.encode(brought)}

    def remove(self, attachment: Attachment) -> tuple[Attached | None, Meta]:
        """An interface is removed; what it was, if it was known."""
        brought = self._brought.pop(attachment, None)
        if brought is None:
            return None, {}
        if not any(each.inode == brought.inode for each in self.of(brought.request.pod_uid)):
            gone = self._gone.setdefault(brought.request.pod_uid, [])
            gone.append(brought.inode)
            del gone[:-_MAX_GONE]
        return brought, {_key(attachment): None}

    def has_gone(self, pod_uid: str, inode: int) -> bool:
        """Whether the CNI has removed that network namespace of the pod."""
        return inode in self._gone.get(pod_uid, ())

    def prune(self, pod_uids: Collection[str]) -> Meta:
        """Forget what is of none of these pods, as far as it is not there any more."""
        for uid in self._gone.keys() - pod_uids:
            del self._gone[uid]
        over = [each for each in self._brought.values() if each.request.pod_uid not in pod_uids and not each.is_there()]
        for each in over:
            del self._brought[each.attachment]
        return {_key(each.attachment): None for each in over}

    # ── what is steered ──

    def note_steered(self, cookies: Mapping[str, int]) -> Meta:
        """The pods of these workloads are steered in these namespaces."""
        new = {uid: cookie for uid, cookie in cookies.items() if self._steered.get(uid) != cookie}
        self._steered.update(new)
        return {_STEERED + uid: msgspec.msgpack.encode(cookie) for uid, cookie in new.items()}

    def forget_steered(self, uids: Iterable[str]) -> Meta:
        """The pods of these workloads are not steered any more."""
        over = [uid for uid in uids if self._steered.pop(uid, None) is not None]
        return {_STEERED + uid: None for uid in over}

    def steered(self) -> Mapping[str, int]:
        """The cookie of the namespace by the workload's uid; of the agent before too."""
        return self._steered


def _key(attachment: Attachment) -> str:
    return f"{_BROUGHT}{attachment.container_id}/{attachment.ifname}"
