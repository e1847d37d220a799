"""Which pods run where, as far as the CA asks: the one thing that it believes about who may have which identity."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, Protocol

from nodeproxy.controller.token_review import Caller
from nodeproxy.translate import objects

_ENDED = frozenset({"Succeeded", "Failed"})


class Placement(Protocol):
    """What the controller has seen of the cluster's pods: of all that have not ended, whether they are in the mesh or not."""

    def synced(self) -> bool:
        """Whether all pods that there were have been seen; before that the other answers mean nothing."""
        ...

    def node_of(self, namespace: str, pod: str, uid: str) -> str:
        """The node of the pod with this name and uid; "" if there is none, or it is not on a node yet."""
        ...

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod of this service account is on the node and has not ended."""
        ...


def node_of(placement: Placement, caller: Caller) -> str:
    """Where the caller's pod runs; "" if it has not been seen, is gone, or is not on the node that its token says."""
    node = placement.node_of(caller.namespace, caller.pod, caller.pod_uid)
    return node if caller.node in ("", node) else ""


class _Account(NamedTuple):
    """Whose pod it is, and where; one for all pods that have it in common."""

    node: str
    namespace: str
    service_account: str


class PodPlacement:
    """The pods that a watch tells of: `Placement`."""

    def __init__(self) -> None:
        self._synced = False
        self._pods: dict[str, tuple[str, _Account]] = {}  # key → uid, account
        self._accounts: dict[_Account, _Account] = {}
        self._counts: Counter[_Account] = Counter()

    def synced(self) -> bool:
        """See `Placement`."""
        return self._synced

    def node_of(self, namespace: str, pod: str, uid: str) -> str:
        """See `Placement`."""
        known = self._pods.get(f"{namespace}/{pod}")
        return known[1].node if known is not None and known[0] == uid else ""

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """See `Placement`."""
        return _Account(node, namespace, service_account) in self._counts

    def all_told(self) -> None:
        """All pods that there were have been told of."""
        self._synced = True

    def apply(self, key: str, pod: objects.Pod | None) -> None:
        """A pod as it is now, None if it is gone."""
        former = self._pods.pop(key, None)
        if former is not None:
            self._release(former[1])
        if pod is not None and pod.spec.node_name and pod.status.phase not in _ENDED:
            self._pods[key] = (pod.metadata.uid, self._hold(pod))

    def __len__(self) -> int:
        return len(self._pods)

    def _hold(self, pod: objects.Pod) -> _Account:
        account = _Account(pod.spec.node_name, pod.metadata.namespace, pod.spec.service_account_name or "default")
        account = self._accounts.setdefault(account, account)
        self._counts[account] += 1
        return account

    def _release(self, account: _Account) -> None:
        self._counts[account] -= 1
        if not self._counts[account]:
            del self._counts[account], self._accounts[account]
