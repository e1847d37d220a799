"""How each kind of resource is stored: what leads to it, and what of a reader's caches a change of it touches.

Invariant: what a look-up in `view` may answer differently after a change is named by `touch`, told the resource as it was and as
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Service, Workload
from nodeproxy.policy.index import digest, index_keys
from nodeproxy.state.changes import Touched
from nodeproxy.state.layout import (
    address_keys,
    decode_policy,
    decode_service,
    decode_workload,
    group_of,
    scope_key,
    scope_of,
)

Entry = tuple[str, bytes, bytes]  # index, key, value


class Table:
    """How one kind of resource is stored: its table, its key, the index entries that it stands for, and what a change of it
    touches."""

    def __init__(
        self,
        name: str,
        key: Callable[[Any], str],
        decode: Callable[[bytes], Any],
        entries: Callable[[Any, bytes], Iterable[Entry]],
        touch: Callable[[Any, Touched], None],
        names: Callable[[Any], Iterable[str]],
    ) -> None:
        """names: under which a resource of this kind may have been asked for."""
        self.name, self.key, self.decode, self.entries, self.touch, self.names = name, key, decode, entries, touch, names


def _workload_entries(workload: Workload, key: bytes) -> Iterable[Entry]:
    yield from (("addresses", address, key) for address in address_keys(workload))
    yield from (("endpoints", service.encode(), key) for service in workload.services)


def _service_entries(service: Service, key: bytes) -> Iterable[Entry]:
    yield from (("vips", vip.encode(), key) for vip in service.vips)
    yield "hosts", service.hostname.lower().encode(), key


def _policy_entries(policy: Policy, key: bytes) -> Iterable[Entry]:
    scope = scope_of(policy)
    if scope is None:
        return
    group = group_of(policy)
    yield "scopes", scope_key(scope, group), key
    for shape, values in index_keys(policy):
        yield "shapes", scope_key(scope, group, shape), key
        yield "rules", digest(scope.encode(), group, shape, values), key


def _touch_workload(workload: Workload, touched: Touched) -> None:
    touched.workloads.add(workload.uid)
    touched.addresses.update(key.decode() for key in address_keys(workload))
    touched.endpoints.update(workload.services)


def _touch_service(service: Service, touched: Touched) -> None:
    touched.services.add(service.key)
    touched.vips.update(service.vips)


def _touch_policy(policy: Policy, touched: Touched) -> None:
    touched.policies.add(policy.key)
    scope = scope_of(policy)
    if scope is not None:
        touched.scopes.add(scope)


def workload_names(workload: Workload) -> list[str]:
    """Names that this workload answers to, in asking on demand."""
    return [workload.uid, *(key.decode() for key in address_keys(workload))]


def service_names(service: Service) -> list[str]:
    """Names that this service answers to, in asking on demand."""
    return [service.key, *service.vips]


def _no_names(policy: Policy) -> tuple[str, ...]:
    return ()


def _policy_key(policy: Policy) -> str:
    return policy.key


def _service_key(service: Service) -> str:
    return service.key


def _workload_key(workload: Workload) -> str:
    return workload.uid


WORKLOADS = Table("workloads", _workload_key, decode_workload, _workload_entries, _touch_workload, workload_names)
SERVICES = Table("services", _service_key, decode_service, _service_entries, _touch_service, service_names)
POLICIES = Table("policies", _policy_key, decode_policy, _policy_entries, _touch_policy, _no_names)
